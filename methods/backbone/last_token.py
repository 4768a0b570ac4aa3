"""The last layer's feed-forward part on last tokens alone: where pooling reads no other token, no other counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from datasets_registry.errors import MethodError
from methods.backbone.adapted_linear import AdaptedLinear, Binding
from methods.backbone.frozen_layers import layer_list


class LastOnly(nn.Module):
    """Runs `part`, which treats every token alone, on the tokens that `binding.last` names; others get zeros."""

    def __init__(self, part: nn.Module, binding: Binding) -> None:
        super().__init__()
        self.part, self.binding = part, binding

    def forward(self, x: Tensor, *more: Any, **named: Any) -> Any:
        """Return [texts, tokens, d] for x [texts, tokens, d]; a part that reads or gives more than that runs whole."""
        last = self.binding.last
        if last is None or more or named:
            return self.part(x, *more, **named)
        texts = torch.arange(len(x), device=x.device)
        read = self.part(x[texts, last][:, None])  # (texts, 1, d)
        if not isinstance(read, Tensor):
            return self.part(x)
        return torch.zeros_like(x).index_put((texts, last), read[:, 0])


def run_last_only(trunk: nn.Module, binding: Binding) -> bool:
    """Put a `LastOnly` in the place of the last layer's feed-forward part; return whether there was one to replace.

    A trunk whose layers are not known, or have no `mlp`, stays as it is, and so does one with adapters in that part.
    """
    try:
        last = layer_list(trunk)[-1]
    except MethodError:
        return False
    part = getattr(last, "mlp", None)
    if not isinstance(part, nn.Module) or any(isinstance(m, AdaptedLinear) for m in part.modules()):
        return False
    last.mlp = LastOnly(part, binding)
    return True
