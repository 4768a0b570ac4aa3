"""The kernel benchmark: the batched low-rank product and its gradients against its rivals and against this machine.

`python -m benchmarks.kernels` runs the quick grid and prints its table; `python -m benchmarks.kernels.tune` measures
the table by which `backend="auto"` chooses. What is measured, and how, is said in `measure`; the grid is in `shapes`.
"""
