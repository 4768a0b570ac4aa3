"""What is measured: an implementation made ready for a cell, and the reasons for which it may be left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from benchmarks.kernels.operands import Mode, Operands, Outcome

Role = Literal["ours", "rival", "anchor"]


@dataclass(frozen=True, slots=True)
class Ready:
    """An implementation made ready for one cell and mode.

    `run` is what is timed. `outcome` takes what it returned and gives what it computed, outside the timing; None for an
    anchor, which computes something else. `reset` is called before each run, outside the timing. `backend` and `plan_s`
    tell of ours which backend ran and how many seconds the plan took, once per batch.
    """

    run: Callable[[], Any]
    outcome: Callable[[Any], Outcome] | None
    reset: Callable[[], None] = lambda: None
    backend: str | None = None
    plan_s: float | None = None


@dataclass(frozen=True, slots=True)
class Contender:
    """One implementation: `make` prepares it, with whatever a rival can compute beforehand left out of the timing.

    `refuses` returns why a cell cannot be measured with it (it is not installed, needs too much memory, is of another
    variant), and `estimate_s` how many seconds a call may take, with a share of what it takes to make ready, by which
    slow rivals are left out of a quick run.
    `grad` says what the gradients of per-user factors are: a row per user present, or one per user of all.
    """

    name: str
    role: Role
    make: Callable[[Operands, Mode], Ready]
    refuses: Callable[[Operands, Mode], str | None] = lambda given, mode: None
    estimate_s: Callable[[Operands, Mode], float] = lambda given, mode: 0.0
    grad: Literal["rows", "dense"] | None = "rows"


def leaf(tensor: Tensor) -> Tensor:
    """Return a tensor that shares memory and asks for a gradient."""
    return tensor.detach().requires_grad_()


def gradient(tensor: Tensor) -> Tensor:
    """Return the gradient that a leaf was given."""
    assert tensor.grad is not None
    return tensor.grad
