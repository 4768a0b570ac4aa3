"""How the torch backend lays out the tokens of a batch, so that its matmuls find them side by side."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from methods.lowrank.memory import empty
from methods.lowrank.plan import Plan


@dataclass(frozen=True, eq=False)
class Layout:
    """Tokens with an adapter, as a variant wants them.

    `order` int64 [n] names them, or is None where they are the batch as it stands; `others` the tokens without an
    adapter, None where there are none. `users` int64 [n_active] are the users of the segments, `rows` where each of
    them stands in `plan.users` (None: in this order), `groups` the segments of one length as (first segment, end
    segment, first token, length). `pads` is bool [n, 1], False where a row only fills up a segment, or None. It does
    not hold the plan, which would keep both for ever.
    """

    tokens: int
    n_users: int
    others: Tensor | None
    order: Tensor | None
    users: Tensor
    rows: Tensor | None
    groups: list[tuple[int, int, int, int]]
    pads: Tensor | None = None

    @cached_property
    def inverse(self) -> Tensor:
        """Return where each token of a batch without base-only tokens stands in `order`, int64 [T]."""
        assert self.order is not None
        places = torch.arange(len(self.order), device=self.device)
        if self.pads is not None:
            places = places[self.pads[:, 0]]
        return torch.empty(self.tokens, dtype=torch.long, device=self.device).scatter_(0, self.order[places], places)

    @cached_property
    def segment(self) -> Tensor:
        """Return the segment of every token, int64 [n]."""
        counts = [length for first, end, _, length in self.groups for _ in range(end - first)]
        return torch.repeat_interleave(torch.tensor(counts, dtype=torch.long, device="cpu")).to(self.device)

    @cached_property
    def token_users(self) -> Tensor:
        """Return the user of every token, int64 [n]."""
        return self.users.index_select(0, self.segment)

    @cached_property
    def ends(self) -> Tensor:
        """Return where each segment ends, int32 [n_active], where `groups` are single segments."""
        ends = [start + length for _, _, start, length in self.groups]
        return torch.tensor(ends, dtype=torch.int32, device="cpu").to(self.device)

    @cached_property
    def lengths(self) -> list[int]:
        """Return how many tokens every segment has, where `groups` are single segments."""
        return [length for _, _, _, length in self.groups]

    @cached_property
    def user_list(self) -> list[int]:
        """Return the users on the host."""
        return self.users.tolist()

    def grouped(self, factor: Tensor) -> tuple[Tensor, Tensor]:
        """Return factors and ends as grouped_mm takes them: of all users if most are present, else of these alone."""
        if 2 * len(self.users) < len(factor):
            return rows_at(factor, self.users), self.ends
        return factor, self.ends_of_all

    @cached_property
    def ends_of_all(self) -> Tensor:
        """Return where the tokens of each of all users end, int32 [U]; an absent user's are empty."""
        lengths = torch.zeros(self.n_users, dtype=torch.int32, device=self.device)
        lengths[self.users] = torch.diff(self.ends, prepend=self.ends.new_zeros(1))
        return lengths.cumsum(0, dtype=torch.int32)

    @property
    def device(self) -> torch.device:
        """Return where the layout lies."""
        return self.users.device

    def unpadded(self, narrow: Tensor) -> Tensor:
        """Return rows [n, r] of this order with zeros where they only fill up a segment."""
        return narrow if self.pads is None else narrow * self.pads

    def rows_of(self, wide: Tensor) -> Tensor:
        """Return rows of the batch in this order."""
        return wide if self.order is None else rows_at(wide, self.order)

    def to_batch(self, narrow: Tensor) -> Tensor:
        """Return rows of this order in the order of the batch; tokens without an adapter are zero."""
        if self.order is None:
            return narrow
        if self.others is None:
            return narrow.index_select(0, self.inverse)
        return narrow.new_zeros(self.tokens, *narrow.shape[1:]).index_copy_(0, self.order, narrow)

    def place(self, wide: Tensor, base: Tensor | None, out: Tensor) -> None:
        """Write base + wide into `out`, each row in its place; `base` may be `out`, and its other rows are kept."""
        if self.others is not None:
            assert self.order is not None
            if base is None:
                out.index_fill_(0, self.others, 0)
            else:
                wide = wide + base.index_select(0, self.order)
                if base is not out:
                    out.index_copy_(0, self.others, base.index_select(0, self.others))
            out.index_copy_(0, self.order, wide)
        elif base is not None:
            torch.add(base, wide if self.order is None else wide.index_select(0, self.inverse), out=out)
        elif self.order is None:
            out.copy_(wide)
        else:
            torch.index_select(wide, 0, self.inverse, out=out)


_layouts: WeakKeyDictionary[Plan, dict[str, Layout]] = WeakKeyDictionary()


def layout_of(plan: Plan, variant: str) -> Layout:
    """Return the layout of a plan for a variant of the torch backend, made once per plan."""
    made = _layouts.setdefault(plan, {})
    kind = variant if variant in _MAKERS else "planned"
    if kind not in made:
        made[kind] = _MAKERS[kind](plan) if kind in _MAKERS else _as_planned(plan)
    return made[kind]


def _as_planned(plan: Plan) -> Layout:
    whole = plan.in_order and not plan.n_base
    ends = pairwise(plan.bounds)
    groups = [(i, i + 1, start - plan.n_base, end - start) for i, (start, end) in enumerate(ends)]
    return Layout(
        plan.tokens, plan.n_users, _others(plan), None if whole else plan.order[plan.n_base :], plan.users, None, groups
    )


def _others(plan: Plan) -> Tensor | None:
    return plan.order[: plan.n_base] if plan.n_base else None


def _by_length(plan: Plan) -> Layout:
    bounds = np.asarray(plan.bounds)
    lengths = np.diff(bounds)
    by_length = np.argsort(lengths, kind="stable")
    ordered = lengths[by_length]
    ends = np.cumsum(ordered)
    # The place in the plan's order of every token: each segment's start, and the running count within the segment.
    places = np.repeat(bounds[:-1][by_length] - (ends - ordered), ordered) + np.arange(ends[-1] if len(ends) else 0)
    cuts = [*np.flatnonzero(np.diff(ordered, prepend=-1)).tolist(), len(ordered)]
    groups = [(first, end, int(ends[first] - ordered[first]), int(ordered[first])) for first, end in pairwise(cuts)]
    rows = torch.from_numpy(by_length).to(plan.device)
    order = plan.order.index_select(0, torch.from_numpy(places).to(plan.device))
    return Layout(plan.tokens, plan.n_users, _others(plan), order, plan.users.index_select(0, rows), rows, groups)


def _padded(plan: Plan) -> Layout:
    """Return every segment at the length of the longest; a pad repeats the segment's first token."""
    starts, lengths = np.asarray(plan.bounds)[:-1], np.diff(plan.bounds)
    column = np.arange(plan.longest)
    real = column < lengths[:, None]  # (n_active, longest)
    places = (starts[:, None] + np.where(real, column, 0)).reshape(-1)
    pads = torch.from_numpy(real.reshape(-1, 1)).to(plan.device)
    order = plan.order.index_select(0, torch.from_numpy(places).to(plan.device))
    groups = [(0, plan.n_active, 0, plan.longest)] if plan.n_active else []
    return Layout(plan.tokens, plan.n_users, None, order, plan.users, None, groups, pads)


_MAKERS = {"lengths": _by_length, "padded": _padded}


def rows_at(tensor: Tensor, index: Tensor) -> Tensor:
    """Return rows of a tensor, in kept memory where they are large."""
    return torch.index_select(tensor, 0, index, out=empty((len(index), *tensor.shape[1:]), tensor))
