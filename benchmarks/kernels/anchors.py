"""Anchors, which compute something else: the base layer's product alone, and one adapter that all tokens share."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.kernels.contenders import Contender, Ready, leaf
from benchmarks.kernels.operands import Mode, Operands


def _anchor_ready(given: Operands, mode: Mode, weights: list[Tensor]) -> Ready:
    """Return a chain of plain linear layers made ready: what a model without users would pay."""
    x = given.x.detach().requires_grad_(mode == "both")
    leaves = [leaf(w) if mode == "both" else w for w in weights]

    def run() -> Tensor:
        with torch.set_grad_enabled(mode == "both"):
            y = x
            for weight in leaves:
                y = y @ weight
        if mode == "both":
            y.backward(given.dy)
        return y

    def reset() -> None:
        for each in (x, *leaves):
            each.grad = None

    return Ready(run, None, reset)


def _base_gemm(given: Operands, mode: Mode) -> Ready:
    weight = torch.randn(given.cell.d_in, given.cell.d_out, generator=torch.Generator().manual_seed(0))
    return _anchor_ready(given, mode, [weight.to(given.x.dtype)])


def _single_adapter(given: Operands, mode: Mode) -> Ready:
    a = given.a[0] if given.a.dim() == 3 else given.a
    b = given.b[0] if given.b.dim() == 3 else given.b
    return _anchor_ready(given, mode, [a.T, b])


ANCHORS = (
    Contender("base GEMM", "anchor", _base_gemm, grad=None),
    Contender("single adapter", "anchor", _single_adapter, grad=None),
)
