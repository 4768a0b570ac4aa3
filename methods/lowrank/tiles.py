"""Work lists of a plan for kernels that own tokens of one user each: fixed shapes, made on the plan's device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from methods.lowrank.plan import Plan

_made: WeakKeyDictionary[Plan, dict[tuple[Any, ...], Any]] = WeakKeyDictionary()


def tiles_of(plan: Plan, rows: int) -> Tensor:
    """Return the tiles of a plan, int32 [N, 3]: (user, first place in the order, tokens), user -1 for base-only tokens.

    No tile has tokens of two users, or more than `rows`. N is the bound `most_tiles`, and the tiles behind the last one
    have no tokens. Made once per plan, by operations of fixed shape.
    """
    return _remembered(plan, ("tiles", rows), lambda: _tiles(plan, rows))


def most_tiles(plan: Plan, rows: int) -> int:
    """Return the bound on the number of tiles that the host knows.

    Each of n segments wastes at most rows - 1 places of its last tile, and base-only tokens are a segment too.
    """
    segments = min(len(plan.padded_users) + 1, plan.tokens)
    return (plan.tokens - segments) // rows + segments


def pieces_of(plan: Plan, longest: int) -> tuple[Tensor, Tensor, int]:
    """Return the pieces of at most `longest` tokens by which gradients are summed, the long users, and how many slots.

    Pieces are int32 [S + T // longest, 5]: (row, user, start, stop, slot), at least one per row of `padded_users`; slot
    is -1 where the piece is all of its user, else where its sum is put. Long users are int32 [T // longest, 4]: (row,
    user, first slot, pieces), pieces being 0 behind the last one. Made once per plan, by operations of fixed shape.
    """
    return _remembered(plan, ("pieces", longest), lambda: _pieces(plan, longest))


def _tiles(plan: Plan, rows: int) -> Tensor:
    offsets = plan.padded_offsets
    bounds = torch.cat([offsets.new_zeros(1), offsets])
    users = torch.cat([offsets.new_full((1,), -1), plan.padded_users])
    counts = (bounds.diff() + rows - 1) // rows
    ends = counts.cumsum(0)
    index = torch.arange(most_tiles(plan, rows), device=plan.device)
    segment = torch.searchsorted(ends, index, right=True).clamp_(max=len(users) - 1)
    starts = bounds[segment] + (index - (ends - counts)[segment]) * rows
    lengths = (bounds[segment + 1] - starts).clamp(max=rows)
    lengths = torch.where(index < ends[-1], lengths, 0)
    return torch.stack([users[segment], starts, lengths], 1).int()


def _pieces(plan: Plan, longest: int) -> tuple[Tensor, Tensor, int]:
    offsets, users = plan.padded_offsets, plan.padded_users
    counts = ((offsets.diff() + longest - 1) // longest).clamp_(min=1)
    ends = counts.cumsum(0)
    many = counts > 1
    slots = torch.where(many, counts, 0).cumsum(0) - counts  # the first slot of each user that has many pieces
    most = plan.tokens // longest
    index = torch.arange(len(users) + most, device=plan.device)
    row = torch.searchsorted(ends, index, right=True)
    at = row.clamp(max=len(users) - 1)
    within = index - (ends - counts)[at]
    starts = offsets[at] + within * longest
    stops = torch.minimum(starts + longest, offsets[at + 1])
    slot = torch.where(many[at], slots[at] + within, -1)
    pieces = torch.stack([row, users[at], starts, stops, slot], 1).int()
    long = torch.searchsorted(many.cumsum(0), torch.arange(1, most + 1, device=plan.device))
    at = long.clamp(max=len(users) - 1)
    longs = torch.stack([long, users[at], slots[at], torch.where(long < len(users), counts[at], 0)], 1).int()
    return pieces, longs, 2 * most


def _remembered(plan: Plan, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """Return what was made of a plan before, or make it.

    What is made while a graph is captured holds nothing before the graph is replayed, so only captures use it.
    """
    kept = _made.setdefault(plan, {})
    capturing = plan.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if (*key, False) in kept:
        return kept[*key, False]
    if (*key, capturing) not in kept:
        kept[*key, capturing] = make()
    return kept[*key, capturing]
