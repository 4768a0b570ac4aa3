"""Batched low-rank adaptation: y = base + scale * B_u C_u A_u x for batches that mix hundreds of users; and gradients.

`plan_batch` sorts a batch by user once; `batched_lora` is the operation, differentiable; `lora_forward` and
`lora_backward` are the same with explicit buffers; `available_backends` says what runs here and `explain` what a call
would cost. See docs/kernels.md.
"""

from methods.lowrank.backends import available_backends
from methods.lowrank.memory import release_memory
from methods.lowrank.operation import Saved, batched_lora, lora_backward, lora_forward
from methods.lowrank.plan import Plan, plan_batch
from methods.lowrank.problem import BackendUnavailable, Gradients
from methods.lowrank.work import explain

__all__ = [
    "BackendUnavailable",
    "Gradients",
    "Plan",
    "Saved",
    "available_backends",
    "batched_lora",
    "explain",
    "lora_backward",
    "lora_forward",
    "plan_batch",
    "release_memory",
]
