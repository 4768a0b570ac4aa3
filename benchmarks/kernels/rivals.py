"""The rivals in pure torch, each in its best form.

A rival is a way to multiply every user's tokens by that user's matrix: it puts the tokens in its own order (`arrange`),
multiplies there as often as the variant asks, and puts them back (`restore`); autograd does the rest. All take row
gradients, for their leaves are the rows of the users present: dense gradients cost each of them more. All indices are
computed beforehand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

from benchmarks.kernels.contenders import Contender, Ready, gradient
from benchmarks.kernels.operands import Mode, Operands, Outcome
from benchmarks.kernels.shapes import Cell

Factors = list[Tensor]
# A rival that needs more is left out.
MAX_BYTES = 4 << 30
# Rough costs on one core, only good enough to leave out what would take seconds.
_BYTES_PER_S, _FLOPS_PER_S = 2e9, 2e10


class Way(Protocol):
    """One rival's way; `z` is whatever it keeps tokens in."""

    standing: bool

    def leaves(self, stacked: Tensor, mode: Mode) -> Factors:
        """Return the leaves of a per-user factor [U, ...]; inside the timing, unless they are `standing`."""
        ...

    def gradients(self, factors: Factors) -> Tensor:
        """Return the gradients of the leaves as rows [n_active, ...] in the order of `Operands.users`."""
        ...

    def arrange(self, rows: Tensor) -> Any:
        """Return rows [T, d] of the batch in the rival's order."""
        ...

    def multiply(self, z: Any, factors: Factors, transposed: bool) -> Any:
        """Return z F_u, or z F_u^T, for every user's tokens."""
        ...

    def scaled(self, z: Any, factors: Factors) -> Any:
        """Return z * c_u for an r-vector per user."""
        ...

    def restore(self, z: Any) -> Tensor:
        """Return rows [T, d] in the order of the batch; zero for tokens without an adapter."""
        ...


class Restored:
    """Puts rows in the order of the batch; `places` int64 [n] says where each token of `Operands.order` stands."""

    def __init__(self, given: Operands, places: np.ndarray) -> None:
        self.total = given.cell.tokens
        self.tokens = None if given.tokens == self.total else torch.from_numpy(given.order)
        rows = places
        if self.tokens is None:
            rows = np.empty(self.total, np.int64)
            rows[given.order] = places
        self.rows = torch.from_numpy(rows)

    def __call__(self, z: Tensor) -> Tensor:
        """Return rows [T, d] of the batch; zero for tokens without an adapter."""
        rows = z.index_select(0, self.rows)
        if self.tokens is None:
            return rows
        return rows.new_zeros(self.total, rows.shape[1]).index_copy(0, self.tokens, rows)


class Loop:
    """A matmul per user on slices of the sorted batch; a leaf per user, as indexing a stacked one costs O(U^2)."""

    standing = True

    def __init__(self, given: Operands) -> None:
        self.users = given.users.tolist()
        self.order = torch.from_numpy(given.order)
        self.lengths = given.lengths.tolist()
        self.restored = Restored(given, np.arange(given.tokens))

    def leaves(self, stacked: Tensor, mode: Mode) -> Factors:
        """Return views of the users present."""
        return [stacked[user].detach().requires_grad_(mode == "both") for user in self.users]

    def gradients(self, factors: Factors) -> Tensor:
        """Return their gradients."""
        return torch.stack([gradient(each) for each in factors])

    def arrange(self, rows: Tensor) -> Factors:
        """Return a slice per user."""
        return list(rows.index_select(0, self.order).split(self.lengths))

    def multiply(self, z: Factors, factors: Factors, transposed: bool) -> Factors:
        """Return a product per user."""
        if transposed:
            return [part @ factor.T for part, factor in zip(z, factors, strict=True)]
        return [part @ factor for part, factor in zip(z, factors, strict=True)]

    def scaled(self, z: Factors, factors: Factors) -> Factors:
        """Return a product per user."""
        return [part * factor for part, factor in zip(z, factors, strict=True)]

    def restore(self, z: Factors) -> Tensor:
        """Return the batch."""
        return self.restored(torch.cat(z))


class Stacked:
    """What is common to the ways that keep the users present in one tensor, a copy where some are not."""

    standing = False

    def __init__(self, given: Operands) -> None:
        self.users = None if given.active == given.cell.users else torch.from_numpy(given.users)
        self.order = torch.from_numpy(given.order)
        self.positions = torch.from_numpy(given.positions)
        self.restored = Restored(given, np.arange(given.tokens))

    def leaves(self, stacked: Tensor, mode: Mode) -> Factors:
        """Return the rows of the users present."""
        rows = stacked if self.users is None else stacked.index_select(0, self.users)
        return [rows.detach().requires_grad_(mode == "both")]

    def gradients(self, factors: Factors) -> Tensor:
        """Return their gradients."""
        return gradient(factors[0])

    def arrange(self, rows: Tensor) -> Tensor:
        """Return the batch sorted by user."""
        return rows.index_select(0, self.order)

    def scaled(self, z: Tensor, factors: Factors) -> Tensor:
        """Return the product with each token's row."""
        return z * factors[0].index_select(0, self.positions)

    def restore(self, z: Tensor) -> Tensor:
        """Return the batch."""
        return self.restored(z)


class GroupedMm(Stacked):
    """`torch.nn.functional.grouped_mm` over the users present, or over all where most are: then no factor is copied."""

    def __init__(self, given: Operands) -> None:
        super().__init__(given)
        self.rows = slice(None)
        lengths = given.lengths
        if self.users is not None and 2 * given.active >= given.cell.users:
            self.rows, self.users = self.users, None
            self.positions = torch.from_numpy(given.users)[self.positions]
            lengths = np.bincount(given.users, given.lengths, given.cell.users)
        self.ends = torch.from_numpy(np.cumsum(lengths).astype(np.int32))

    def gradients(self, factors: Factors) -> Tensor:
        """Return the gradients of the users present."""
        return gradient(factors[0])[self.rows]

    def multiply(self, z: Tensor, factors: Factors, transposed: bool) -> Tensor:
        """Return the product of every group."""
        return grouped_mm(z, factors[0].transpose(1, 2) if transposed else factors[0], offs=self.ends)


class GatherBmm(Stacked):
    """A copy of the user's factor for every token and a batched product of one row: the P-ShareLoRA authors' way."""

    def __init__(self, given: Operands) -> None:
        super().__init__(given)
        self.sorted = given.tokens < given.cell.tokens
        if not self.sorted:
            self.positions = torch.from_numpy(np.searchsorted(given.users, given.ids))
        self.ids = self.positions if self.users is None else self.users[self.positions]

    def leaves(self, stacked: Tensor, mode: Mode) -> Factors:
        """Return the rows of the users present, or without gradients all users, whose rows are taken per token."""
        return super().leaves(stacked, mode) if mode == "both" else [stacked]

    def arrange(self, rows: Tensor) -> Tensor:
        """Return the batch as it is, or sorted where some tokens have no adapter."""
        return rows.index_select(0, self.order) if self.sorted else rows

    def multiply(self, z: Tensor, factors: Factors, transposed: bool) -> Tensor:
        """Return a row times a matrix for every token."""
        each = self._per_token(factors)  # (tokens, r, d)
        return torch.bmm(z[:, None, :], each.transpose(1, 2) if transposed else each)[:, 0]

    def scaled(self, z: Tensor, factors: Factors) -> Tensor:
        """Return the product with each token's row."""
        return z * self._per_token(factors)

    def restore(self, z: Tensor) -> Tensor:
        """Return the batch."""
        return self.restored(z) if self.sorted else z

    def _per_token(self, factors: Factors) -> Tensor:
        return factors[0].index_select(0, self.positions if factors[0].requires_grad else self.ids)


class Buckets:
    """Users of similar length, padded to the bucket's width, as one batched product and one leaf per bucket.

    Padding repeats the user's first token; what comes of it is never read, so its gradient is zero.
    """

    standing = False

    def __init__(self, given: Operands, widths: np.ndarray) -> None:
        starts = np.cumsum(given.lengths) - given.lengths
        places, padded = np.empty(given.tokens, np.int64), 0
        picks: list[np.ndarray] = []
        self.users: list[Tensor] = []
        self.shapes: list[tuple[int, int]] = []
        rows: list[np.ndarray] = []
        for width in np.unique(widths).tolist():
            members = np.flatnonzero(widths == width)
            column = np.arange(width)
            real = column < given.lengths[members, None]  # (users of the bucket, width)
            tokens = starts[members, None] + np.where(real, column, 0)
            picks.append(tokens.reshape(-1))
            places[tokens[real]] = padded + np.flatnonzero(real.reshape(-1))
            rows.append(members)
            self.users.append(torch.from_numpy(given.users[members]))
            self.shapes.append((len(members), width))
            padded += tokens.size
        self.whole = len(rows) == 1 and given.active == given.cell.users
        self.rows = torch.from_numpy(np.argsort(np.concatenate(rows)))
        self.order = torch.from_numpy(given.order[np.concatenate(picks)])
        self.restored = Restored(given, places)

    def leaves(self, stacked: Tensor, mode: Mode) -> Factors:
        """Return the rows of every bucket's users."""
        parts = [stacked] if self.whole else [stacked.index_select(0, users) for users in self.users]
        return [part.detach().requires_grad_(mode == "both") for part in parts]

    def gradients(self, factors: Factors) -> Tensor:
        """Return their gradients."""
        return torch.cat([gradient(each) for each in factors]).index_select(0, self.rows)

    def arrange(self, rows: Tensor) -> Factors:
        """Return [users of the bucket, width, d] for every bucket."""
        parts = rows.index_select(0, self.order).split([n * width for n, width in self.shapes])
        return [part.view(n, width, -1) for part, (n, width) in zip(parts, self.shapes, strict=True)]

    def multiply(self, z: Factors, factors: Factors, transposed: bool) -> Factors:
        """Return a batched product per bucket."""
        return [torch.bmm(p, f.transpose(1, 2) if transposed else f) for p, f in zip(z, factors, strict=True)]

    def scaled(self, z: Factors, factors: Factors) -> Factors:
        """Return a product per bucket."""
        return [part * factor[:, None] for part, factor in zip(z, factors, strict=True)]

    def restore(self, z: Factors) -> Tensor:
        """Return the batch."""
        return self.restored(torch.cat([part.flatten(0, 1) for part in z]))


def _padded(given: Operands) -> Buckets:
    return Buckets(given, np.full(given.active, given.longest))


def _powers_of_two(given: Operands) -> Buckets:
    return Buckets(given, 2 ** np.ceil(np.log2(given.lengths)).astype(np.int64))


def _computed(way: Way, cell: Cell, x: Tensor, factors: dict[str, Factors]) -> Tensor:
    """Return y by a rival's way; a shared factor is one dense product in the order of the batch."""
    z = way.arrange(x if cell.per_user_a else x @ factors["a"][0].T)
    if cell.per_user_a:
        z = way.multiply(z, factors["a"], True)
    if "core" in factors:
        z = way.multiply(z, factors["core"], True) if cell.variant == "core" else way.scaled(z, factors["core"])
    if cell.per_user_b:
        return way.restore(way.multiply(z, factors["b"], False))
    return way.restore(z) @ factors["b"][0]


def _ready(make: Callable[[Operands], Way], given: Operands, mode: Mode) -> Ready:
    way, cell = make(given), given.cell
    x = given.x.detach().requires_grad_(mode == "both")
    tensors = {"a": given.a, "b": given.b} | ({} if given.core is None else {"core": given.core})
    per_user = {"a": cell.per_user_a, "b": cell.per_user_b, "core": True}
    standing = {
        name: way.leaves(t, mode) if per_user[name] else [t.detach().requires_grad_(mode == "both")]
        for name, t in tensors.items()
        if way.standing or not per_user[name]
    }

    def run() -> tuple[Tensor, dict[str, Factors]]:
        factors = {name: standing.get(name) or way.leaves(t, mode) for name, t in tensors.items()}
        with torch.set_grad_enabled(mode == "both"):
            y = _computed(way, cell, x, factors)
        if mode == "both":
            y.backward(given.dy)
        return y, factors

    def outcome(result: tuple[Tensor, dict[str, Factors]]) -> Outcome:
        y, factors = result
        if mode == "forward":
            return Outcome(y)
        found = {name: way.gradients(each) if per_user[name] else gradient(each[0]) for name, each in factors.items()}
        return Outcome(y.detach(), gradient(x), found["a"], found["b"], found.get("core"))

    def reset() -> None:
        for each in (x, *(each for factors in standing.values() for each in factors)):
            each.grad = None

    return Ready(run, outcome, reset)


def _per_token_bytes(given: Operands, mode: Mode) -> float:
    """Return the bytes of a copy of the per-user factors for every token; with gradients there is a second one."""
    cell = given.cell
    width = cell.d_in * cell.per_user_a + cell.d_out * cell.per_user_b
    width += cell.rank if cell.variant == "core" else 0
    return float(given.tokens * cell.rank * width * given.x.element_size() * (2 if mode == "both" else 1))


def _padded_cost(given: Operands, widths: np.ndarray, mode: Mode) -> tuple[float, float]:
    """Return the bytes of the padded batch, and the seconds that it may take."""
    cell, rows = given.cell, float(widths.sum())
    moved = rows * (cell.d_in + cell.d_out) * given.x.element_size() * (2 if mode == "both" else 1)
    flops = 2 * rows * cell.rank * (cell.d_in + cell.d_out) * (3 if mode == "both" else 1)
    return moved, 2 * moved / _BYTES_PER_S + flops / _FLOPS_PER_S


def _no_more_than(moved: float) -> str | None:
    return f"it needs {moved / 2**30:.0f} GiB" if moved > MAX_BYTES else None


def _rival(name: str, make: Callable[[Operands], Way], **more: Any) -> Contender:
    return Contender(name, "rival", lambda given, mode: _ready(make, given, mode), **more)


def _grouped_refuses(given: Operands, mode: Mode) -> str | None:
    del mode
    size = given.x.element_size()
    if any(width * size % 16 for width in (given.cell.rank, given.cell.d_in, given.cell.d_out)):
        return "grouped_mm wants rows of a multiple of 16 bytes"
    if given.cell.dtype not in ("float32", "bfloat16"):
        return f"grouped_mm does not take {given.cell.dtype}"
    return None


RIVALS = (
    _rival("loop", Loop),
    _rival(
        "gather-bmm",
        GatherBmm,
        refuses=lambda given, mode: _no_more_than(_per_token_bytes(given, mode)),
        estimate_s=lambda given, mode: 1.5 * _per_token_bytes(given, mode) / _BYTES_PER_S,
    ),
    _rival(
        "padded-bmm",
        _padded,
        refuses=lambda given, mode: _no_more_than(_padded_cost(given, np.full(given.active, given.longest), mode)[0]),
        estimate_s=lambda given, mode: _padded_cost(given, np.full(given.active, given.longest), mode)[1],
    ),
    _rival("bucket-bmm", _powers_of_two),
    _rival("grouped-mm", GroupedMm, refuses=_grouped_refuses),
)
