"""What a training step of backbone methods costs, side by side with PEFT and with the layer that the authors released.

`python -m benchmarks.backbone` measures it and prints its tables. What is trained is in `workloads`, who trains it in
`trainers`, and how it is measured in `measure`.
"""
