"""The operands of a cell, and what is right: y and every gradient in float64, by the formula, user by user."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.kernels.shapes import Cell, seeded, user_ids

Mode = Literal["forward", "both"]
# Relative Frobenius error against float64 on the rounded operands.
TOLERANCE = {"float32": 2e-6, "float64": 1e-13, "bfloat16": 6e-3, "float16": 6e-3}


@dataclass(frozen=True)
class Operands:
    """What a cell multiplies: y = B C A x with rank-major factors.

    `x` [T, d_in] and `dy` [T, d_out]; `a` [U, r, d_in] or shared [r, d_in]; `b` [U, r, d_out] or shared [r, d_out];
    `core` None, [U, r, r] or [U, r]; `ids` int64 [T] on the host.
    """

    cell: Cell
    ids: NDArray[np.int64]
    x: Tensor
    dy: Tensor
    a: Tensor
    b: Tensor
    core: Tensor | None

    @cached_property
    def users(self) -> NDArray[np.int64]:
        """Return the users present, ascending, int64 [n_active]."""
        return np.unique(self.ids[self.ids >= 0])

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Return the tokens that have an adapter, user by user, int64 [n]."""
        order = np.argsort(self.ids, kind="stable")
        return order[np.count_nonzero(self.ids < 0) :]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Return how many tokens each user present has, int64 [n_active]."""
        return np.bincount(self.ids[self.ids >= 0], minlength=self.cell.users)[self.users]

    @cached_property
    def positions(self) -> NDArray[np.int64]:
        """Return for every token of `order` which of `users` it belongs to, int64 [n]."""
        return np.repeat(np.arange(len(self.users)), self.lengths)

    @property
    def active(self) -> int:
        """Return how many users are present."""
        return len(self.users)

    @property
    def tokens(self) -> int:
        """Return how many tokens have an adapter."""
        return len(self.order)

    @property
    def longest(self) -> int:
        """Return the most tokens that one user has."""
        return int(self.lengths.max(initial=0))


def operands(cell: Cell) -> Operands:
    """Return random operands of a cell, the same for the same cell; y is of the order of 1."""
    generator = torch.Generator().manual_seed(seeded("kernel operands", cell.name))
    dtype: torch.dtype = getattr(torch, cell.dtype)

    def normal(deviation: float, *shape: int) -> Tensor:
        return torch.empty(shape).normal_(0, deviation, generator=generator).to(dtype)

    u, r = cell.users, cell.rank
    core = None
    if cell.variant in ("core", "vector"):
        core = normal(r**-0.5, *((u, r, r) if cell.variant == "core" else (u, r)))
    return Operands(
        cell,
        user_ids(cell),
        normal(1, cell.tokens, cell.d_in),
        normal(1, cell.tokens, cell.d_out),
        normal(cell.d_in**-0.5, *((u, r, cell.d_in) if cell.per_user_a else (r, cell.d_in))),
        normal(r**-0.5, *((u, r, cell.d_out) if cell.per_user_b else (r, cell.d_out))),
        core,
    )


@dataclass(slots=True)
class Outcome:
    """What an implementation computed: y, and with mode "both" the gradients.

    Gradients of what is per user have a row per user of `Operands.users`; a shared factor's has the factor's shape.
    """

    y: Tensor
    dx: Tensor | None = None
    da: Tensor | None = None
    db: Tensor | None = None
    dcore: Tensor | None = None


def truth(given: Operands, mode: Mode) -> Outcome:
    """Return what is right, computed in float64 from the formula and the chain rule, rounded once at the end.

    The rounding to the cell's dtype (at least float32) adds at most 6e-8, and halves the memory of the large cells.
    """
    wide = torch.float64 if given.cell.dtype == "float64" else torch.float32
    out = Outcome(given.x.new_zeros(given.cell.tokens, given.cell.d_out, dtype=wide))
    if mode == "both":
        out.dx = given.x.new_zeros(given.x.shape, dtype=wide)
        out.da, out.db = _like(given, given.a, 2, wide), _like(given, given.b, 2, wide)
        out.dcore = None if given.core is None else _like(given, given.core, 1, wide)
    ends = np.cumsum(given.lengths)
    for row, (user, end, length) in enumerate(zip(given.users.tolist(), ends, given.lengths, strict=True)):
        tokens = torch.from_numpy(given.order[end - length : end])
        _add_user(given, user, row, tokens, out)
    return out


def _like(given: Operands, tensor: Tensor, shared_dim: int, dtype: torch.dtype) -> Tensor:
    """Return float64 zeros for a shared factor, which sums over users, else a row per user present in `dtype`."""
    if tensor.dim() == 2 and shared_dim == 2:
        return tensor.new_zeros(tensor.shape, dtype=torch.float64)
    return tensor.new_zeros(given.active, *tensor.shape[1:], dtype=dtype)


def _add_user(given: Operands, user: int, row: int, tokens: Tensor, out: Outcome) -> None:
    a = (given.a[user] if given.a.dim() == 3 else given.a).double()
    b = (given.b[user] if given.b.dim() == 3 else given.b).double()
    core = None if given.core is None else given.core[user].double()
    if core is not None and core.dim() == 1:
        core = torch.diag(core)
    x = given.x[tokens].double()
    h = x @ a.T  # (tokens of the user, r)
    z = h if core is None else h @ core.T
    out.y[tokens] = (z @ b).to(out.y.dtype)
    if out.dx is None or out.da is None or out.db is None:
        return
    dy = given.dy[tokens].double()
    dz = dy @ b.T
    dh = dz if core is None else dz @ core
    out.dx[tokens] = (dh @ a).to(out.dx.dtype)
    _into(out.da, row, dh.T @ x)
    _into(out.db, row, z.T @ dy)
    if out.dcore is not None:
        dc = dz.T @ h
        out.dcore[row] = (dc if out.dcore.dim() == 3 else dc.diagonal()).to(out.dcore.dtype)


def _into(total: Tensor, row: int, part: Tensor) -> None:
    if total.dim() == 2:
        total += part
    else:
        total[row] = part.to(total.dtype)


def errors(found: Outcome, right: Outcome) -> dict[str, float]:
    """Return the relative Frobenius error of y and of every gradient; per user, the worst, where it is per user.

    A norm over all users would hide the ones with few tokens. Raises ValueError for a gradient that is missing, is not
    wanted, or has another shape.
    """
    out: dict[str, float] = {}
    for name in ("y", "dx", "da", "db", "dcore"):
        mine, wanted = getattr(found, name), getattr(right, name)
        if (mine is None) != (wanted is None) or (mine is not None and mine.shape != wanted.shape):
            shapes = [None if each is None else list(each.shape) for each in (mine, wanted)]
            raise ValueError(f"{name} has shape {shapes[0]}, it must be {shapes[1]}")
        if mine is None:
            continue
        per_user = mine.dim() == 3 or (name == "dcore" and mine.dim() == 2)
        difference = _norms(mine.to(wanted.dtype) - wanted, per_user)
        size = _norms(wanted, per_user)
        # A gradient that is zero has no relative error: what is found there must be zero, too.
        ratio = torch.where(size > 0, difference / size.clamp_min(1e-300), torch.where(difference > 0, torch.inf, 0.0))
        out[name] = float(ratio.max()) if ratio.numel() else 0.0
    return out


def _norms(values: Tensor, per_user: bool) -> Tensor:
    """Return the Frobenius norm of each row, or of the whole."""
    rows = values.reshape(len(values), -1) if per_user else values.reshape(1, -1)
    return torch.linalg.vector_norm(rows, dim=1).double()
