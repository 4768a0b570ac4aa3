"""What a backend is asked: checked operands of one layer, and the buffers for its gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from datasets_registry.errors import HetprefError
from methods.lowrank.plan import Plan


class BackendUnavailable(HetprefError):
    """A named backend cannot do what it was asked; the message says why and what is available."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Operands of y = base + scale * B C A x, as `checks.problem_of` has found them to fit together.

    `x` is [T, d_in], its rows contiguous. `a` is [U, r, d_in], or [r, d_in] where it is shared; `b` is [U, r, d_out] or
    [r, d_out], rank-major like `a`; `core` is None, [U, r, r] or [U, r] (a diagonal). `scale` is a number, or [U].
    """

    x: Tensor
    a: Tensor
    b: Tensor
    core: Tensor | None
    scale: float | Tensor
    plan: Plan

    @property
    def shared_a(self) -> bool:
        """Return whether all users have one A."""
        return self.a.dim() == 2

    @property
    def shared_b(self) -> bool:
        """Return whether all users have one B."""
        return self.b.dim() == 2

    @property
    def rank(self) -> int:
        """Return r."""
        return self.a.shape[-2]

    @property
    def d_in(self) -> int:
        """Return the width of x."""
        return self.a.shape[-1]

    @property
    def d_out(self) -> int:
        """Return the width of y."""
        return self.b.shape[-1]

    @property
    def kind(self) -> str:
        """Return the variant's name: full, shared-a, shared-b, with -core or -vector where there is a core."""
        name = "shared-a" if self.shared_a else "shared-b" if self.shared_b else "full"
        if self.shared_a and self.shared_b:
            name = "shared"
        return name if self.core is None else f"{name}-{'core' if self.core.dim() == 3 else 'vector'}"


@dataclass(frozen=True, slots=True)
class Gradients:
    """Buffers that a backward pass fills; None where a gradient is not wanted.

    `dx` is [T, d_in]. With `rows`, `da`, `db` and `dcore` hold a row per user of `plan.users` (on a GPU: of
    `plan.padded_users`), else a row per user of U, where the rows of absent users become zero; a shared factor's
    gradient has the factor's shape. `dscale` is like them. `accumulate` adds to what is in the buffers.
    """

    dx: Tensor | None = None
    da: Tensor | None = None
    db: Tensor | None = None
    dcore: Tensor | None = None
    dscale: Tensor | None = None
    rows: bool = True
    accumulate: bool = False


class Backend(Protocol):
    """One way to compute it: a module with these functions, and perhaps a `variant_of` for `explain`."""

    def unavailable(self) -> str | None:
        """Return why it cannot be used on this machine, or None."""
        ...

    def refuses(self, problem: Problem) -> str | None:
        """Return why this problem (device, dtype, rank) cannot be computed here, or None."""
        ...

    def forward(self, problem: Problem, base: Tensor | None, out: Tensor) -> Tensor:
        """Write y [T, d_out] into `out` (which may be `base` itself) and return what `backward` needs.

        That is the hidden A x, [T, r], in a form of the backend's own. Rows of tokens without an adapter are the base's
        bits, or zero.
        """
        ...

    def backward(self, problem: Problem, dy: Tensor, hidden: Tensor, into: Gradients) -> None:
        """Fill the gradient buffers, given dL/dy [T, d_out]."""
        ...


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which sums are held: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
