"""A linear layer of the trunk with low-rank factors, shared or one per person of the batch, added to its output."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from methods.lowrank import Plan, batched_lora


@dataclass(slots=True, eq=False)
class Binding:
    """What every adapted layer of a model reads during one call: the factors, and which token is whose.

    `factors` maps "LAYER/a", "LAYER/b" and "LAYER/core" to [r, d], or [n, r, d] with a row per person of the plan. With
    `plan` None all of them are shared. An empty mapping is the base alone. `last` int64 [texts] is the place of each
    text's last token, where nothing but that is read in the end.
    """

    factors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    plan: Plan | None = None
    scale: float = 1.0
    backend: str = "auto"
    last: Tensor | None = None


class AdaptedLinear(nn.Module):
    """y = base(x) + scale * B C A x, the factors being those of `binding`; the base keeps its weights and is frozen."""

    def __init__(self, base: nn.Module, name: str, binding: Binding) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self.binding = binding

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., d_out] for x [..., d_in]."""
        below, bound = self.base(x), self.binding
        a = bound.factors.get(f"{self.name}/a")
        if a is None:
            return below
        b, core = bound.factors[f"{self.name}/b"], bound.factors.get(f"{self.name}/core")
        if bound.plan is None:
            if core is not None:
                hidden = x @ a.T
                hidden = hidden @ core.T if core.dim() == 2 else hidden * core
                return below + bound.scale * (hidden @ b)
            return below + bound.scale * (x @ a.T @ b)
        return batched_lora(x, a, b, bound.plan, scale=bound.scale, core=core, base=below, backend=bound.backend)


def linear_widths(module: nn.Module) -> tuple[int, int] | None:
    """Return (d_in, d_out) of a linear layer, GPT-2's transposed one included; None for anything else."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D" and isinstance(weight, torch.Tensor) and weight.dim() == 2:
        return weight.shape[0], weight.shape[1]
    return None
