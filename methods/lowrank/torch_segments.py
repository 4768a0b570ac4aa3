"""Backend `torch`: no compiler, any device. Segments of sorted tokens, multiplied in the way that suits their lengths.

Three ways to multiply every user's tokens by that user's factor, chosen by the measured table (`tuning.py`):

* `loop`: one matmul per user, for few users with many tokens each;
* `grouped`: `torch.nn.functional.grouped_mm` over the users present;
* `lengths`: users with equally many tokens stand together as one batched matmul, so that nothing is padded.

A shared factor is one dense matmul over all tokens in the order of the batch: no wide row is moved for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

from methods.lowrank import tuning
from methods.lowrank.memory import empty
from methods.lowrank.plan import Plan
from methods.lowrank.problem import Gradients, Problem

VARIANTS = ("loop", "grouped", "lengths")


def unavailable() -> str | None:
    """Return None: it needs nothing but torch."""
    return None


def refuses(problem: Problem) -> str | None:
    """Return None: it computes whatever torch computes."""
    del problem
    return None


def variants(problem: Problem) -> list[str]:
    """Return the ways in which a problem can be multiplied."""
    width = 16 // problem.x.element_size()  # grouped_mm wants rows that begin at multiples of 16 bytes
    aligned = all(n and n % width == 0 for n in (problem.rank, problem.d_in, problem.d_out))
    grouped = aligned and problem.x.dtype in (torch.float32, torch.bfloat16)
    return [v for v in VARIANTS if v != "grouped" or grouped]


def variant_of(problem: Problem, mode: str = "forward") -> str:
    """Return the way that the measured table names for a problem; `mode` is "forward" or "backward"."""
    named = tuning.nearest(problem, mode).torch_variant
    return named if named in variants(problem) else "lengths"


@dataclass(frozen=True, eq=False)
class Layout:
    """Tokens with an adapter, as a variant wants them.

    `order` int64 [n] names them, or is None where they are the batch as it stands; `others` the tokens without an
    adapter, None where there are none. `users` int64 [n_active] are the users of the segments, `rows` where each of
    them stands in `plan.users` (None: in this order), `groups` the segments of one length as (first segment, end
    segment, first token, length). It does not hold the plan, which would keep both for ever.
    """

    tokens: int
    n_users: int
    others: Tensor | None
    order: Tensor | None
    users: Tensor
    rows: Tensor | None
    groups: list[tuple[int, int, int, int]]

    @cached_property
    def inverse(self) -> Tensor:
        """Return where each token of a batch without base-only tokens stands in `order`, int64 [T]."""
        assert self.order is not None
        return torch.empty_like(self.order).scatter_(0, self.order, torch.arange(len(self.order), device=self.device))

    @cached_property
    def segment(self) -> Tensor:
        """Return the segment of every token, int64 [n]."""
        counts = [length for first, end, _, length in self.groups for _ in range(end - first)]
        return torch.repeat_interleave(torch.tensor(counts, dtype=torch.long)).to(self.device)

    @cached_property
    def token_users(self) -> Tensor:
        """Return the user of every token, int64 [n]."""
        return self.users.index_select(0, self.segment)

    @cached_property
    def ends(self) -> Tensor:
        """Return where each segment ends, int32 [n_active], where `groups` are single segments."""
        return torch.tensor([start + length for _, _, start, length in self.groups], dtype=torch.int32).to(self.device)

    @cached_property
    def user_list(self) -> list[int]:
        """Return the users on the host."""
        return self.users.tolist()

    def grouped(self, factor: Tensor) -> tuple[Tensor, Tensor]:
        """Return factors and ends as grouped_mm takes them: of all users if most are present, else of these alone."""
        if 2 * len(self.users) < len(factor):
            return _rows(factor, self.users), self.ends
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

    def rows_of(self, wide: Tensor) -> Tensor:
        """Return rows of the batch in this order."""
        return wide if self.order is None else _rows(wide, self.order)

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


_layouts: WeakKeyDictionary[Plan, dict[bool, Layout]] = WeakKeyDictionary()


def layout_of(plan: Plan, variant: str) -> Layout:
    """Return the layout of a plan for a variant, made once per plan."""
    made = _layouts.setdefault(plan, {})
    by_length = variant == "lengths"
    if by_length not in made:
        made[by_length] = _by_length(plan) if by_length else _as_planned(plan)
    return made[by_length]


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


def forward(problem: Problem, base: Tensor | None, out: Tensor, *, variant: str | None = None) -> Tensor:
    """Write y into `out` and return A x, [n, r], in the order of the variant's layout."""
    chosen = variant or variant_of(problem, "forward")
    layout = layout_of(problem.plan, chosen)
    if problem.shared_a:
        h = layout.rows_of(problem.x @ problem.a.T)
    else:
        h = _shrink(layout.rows_of(problem.x), problem.a, layout, chosen)
    z = _scaled(problem, layout, _through(problem, layout, h))
    if problem.shared_b:
        _add_shared(z, problem.b, base, out, layout)
    else:
        _put_expanded(z, problem.b, base, out, layout, chosen)
    return h


def backward(problem: Problem, dy: Tensor, hidden: Tensor, into: Gradients, *, variant: str | None = None) -> None:
    """Fill the gradient buffers, given dL/dy; a forced `variant` is the one of the forward call, too."""
    plan = problem.plan
    chosen, before = (variant or variant_of(problem, mode) for mode in ("backward", "forward"))
    layout, made_in = layout_of(plan, chosen), layout_of(plan, before)
    h = hidden if layout is made_in else layout.rows_of(made_in.to_batch(hidden))
    z = _through(problem, layout, h)
    if problem.shared_b:
        g = layout.rows_of(dy @ problem.b.T)
        if into.db is not None:
            _shared_gradient(_scaled(problem, layout, z), dy, into.db, layout, into)
    else:
        dys = layout.rows_of(dy)
        g = _shrink(dys, problem.b, layout, chosen)
        if into.db is not None:
            _outer(_scaled(problem, layout, z), dys, into.db, layout, chosen, into)
        del dys
    if into.dscale is not None:
        _put(into.dscale, _segment_sums((g.double() * z).sum(1), layout), layout, into)
    dz = _scaled(problem, layout, g)
    if into.dcore is not None:
        if into.dcore.dim() == 3:
            _outer(dz, h, into.dcore, layout, "loop" if chosen == "grouped" else chosen, into)
        else:
            _put(into.dcore, _segment_sums(dz.double() * h, layout), layout, into)
    dh = _back_through(problem, layout, dz)
    if into.da is not None:
        if problem.shared_a:
            _shared_gradient(dh, problem.x, into.da, layout, into)
        else:
            _outer(dh, layout.rows_of(problem.x), into.da, layout, chosen, into)
    if into.dx is not None:
        below = into.dx if into.accumulate else None
        if problem.shared_a:
            _add_shared(dh, problem.a, below, into.dx, layout)
        else:
            _put_expanded(dh, problem.a, below, into.dx, layout, chosen)


def _shared_gradient(narrow: Tensor, wide: Tensor, out: Tensor, layout: Layout, into: Gradients) -> None:
    """Put narrow^T wide over all tokens with an adapter: narrow [n, r] of a layout, wide [T, d] of the batch."""
    if layout.others is not None:  # what stands in a token without an adapter, be it NaN, must not reach the sum
        wide = layout.rows_of(wide)
    else:
        narrow = layout.to_batch(narrow)
    torch.addmm(out, narrow.T, wide, beta=int(into.accumulate), out=out)


def _add_shared(narrow: Tensor, factor: Tensor, base: Tensor | None, out: Tensor, layout: Layout) -> None:
    """Write base + narrow F in the order of the batch: narrow [n, r] of a layout, F [r, d]; `base` may be `out`."""
    if base is None:
        torch.mm(layout.to_batch(narrow), factor, out=out)
    elif layout.others is not None:  # rows without an adapter keep the base's bits: -0 + 0 would be 0
        layout.place(narrow @ factor, base, out)
    else:
        torch.addmm(base, layout.to_batch(narrow), factor, out=out)


def _put_expanded(
    narrow: Tensor, factor: Tensor, base: Tensor | None, out: Tensor, layout: Layout, chosen: str
) -> None:
    """Write base + narrow F_u in the order of the batch: narrow [n, r] of a layout; `base` may be `out`."""
    if chosen == "grouped" and len(narrow):
        factors, ends = layout.grouped(factor)
        layout.place(grouped_mm(narrow, factors, offs=ends), base, out)
    elif layout.order is None and base is None:
        _expand(narrow, factor, out, layout, chosen)
    else:
        wide = empty((len(narrow), factor.shape[-1]), narrow)
        layout.place(_expand(narrow, factor, wide, layout, chosen), base, out)


def _shrink(rows: Tensor, factor: Tensor, layout: Layout, chosen: str) -> Tensor:
    """Return rows F_u^T, segment by segment: rows [n, d], factor [U, r, d], result [n, r]."""
    if chosen == "grouped" and len(rows):
        factors, ends = layout.grouped(factor)
        return grouped_mm(rows, factors.transpose(1, 2), offs=ends)
    out = rows.new_empty(len(rows), factor.shape[1])
    if chosen == "loop":
        for user, (_, _, start, length) in zip(layout.user_list, layout.groups, strict=True):
            torch.mm(rows.narrow(0, start, length), factor[user].T, out=out.narrow(0, start, length))
        return out
    for users, n, length, span in _batches(layout):
        part = _rows(factor, users).transpose(1, 2)
        torch.bmm(rows[span].view(n, length, -1), part, out=out[span].view(n, length, -1))
    return out


def _expand(narrow: Tensor, factor: Tensor, out: Tensor, layout: Layout, chosen: str) -> Tensor:
    """Write narrow F_u, segment by segment: narrow [n, r], factor [U, r, d], out [n, d]; return out."""
    if chosen == "loop":
        for user, (_, _, start, length) in zip(layout.user_list, layout.groups, strict=True):
            torch.mm(narrow.narrow(0, start, length), factor[user], out=out.narrow(0, start, length))
        return out
    for users, n, length, span in _batches(layout):
        part = _rows(factor, users)
        torch.bmm(narrow[span].reshape(n, length, -1), part, out=out[span].view(n, length, -1))
    return out


def _outer(narrow: Tensor, wide: Tensor, out: Tensor, layout: Layout, chosen: str, into: Gradients) -> None:
    """Put narrow^T wide of every segment: narrow [n, r], wide [n, d], out a row [r, d] per segment or per user."""
    if chosen == "grouped" and len(wide):
        _put(out, grouped_mm(narrow.T, wide, offs=layout.ends), layout, into)
        return
    _clear_absent(out, layout, into)
    rows = _target_rows(layout, into)
    if chosen == "loop":
        for row, (_, _, start, length) in zip(rows.tolist(), layout.groups, strict=True):
            left, right, target = narrow.narrow(0, start, length).T, wide.narrow(0, start, length), out[row]
            if into.accumulate:
                target.addmm_(left, right)
            else:
                torch.mm(left, right, out=target)
        return
    done = 0
    for _, n, length, span in _batches(layout):
        left, right = narrow[span].reshape(n, length, -1).transpose(1, 2), wide[span].view(n, length, -1)
        part = torch.bmm(left, right, out=empty((n, left.shape[1], right.shape[2]), right))
        _write(out, rows[done : done + n], part, into.accumulate)
        done += n


def _batches(layout: Layout) -> Iterator[tuple[Tensor, int, int, slice]]:
    """Yield (users, how many, tokens of each, their span in the layout) for every length."""
    for first, end, start, length in layout.groups:
        yield layout.users[first:end], end - first, length, slice(start, start + (end - first) * length)


def _put(out: Tensor, values: Tensor, layout: Layout, into: Gradients) -> None:
    """Put a value per segment where the caller wants it: a row per user present, or per user."""
    _clear_absent(out, layout, into)
    if into.rows and layout.rows is None:
        _ = out.add_(values) if into.accumulate else out.copy_(values)
    else:
        _write(out, _target_rows(layout, into), values, into.accumulate)


def _clear_absent(out: Tensor, layout: Layout, into: Gradients) -> None:
    if not into.accumulate and len(layout.users) < len(out):
        out.zero_()


def _target_rows(layout: Layout, into: Gradients) -> Tensor:
    """Return the row of the buffer for every segment."""
    if not into.rows:
        return layout.users
    return torch.arange(len(layout.users), device=layout.device) if layout.rows is None else layout.rows


def _write(out: Tensor, rows: Tensor, values: Tensor, accumulate: bool) -> None:
    values = values.to(out.dtype)
    if accumulate:
        out.index_add_(0, rows, values)
    else:
        out.index_copy_(0, rows, values)


def _segment_sums(values: Tensor, layout: Layout) -> Tensor:
    """Return the sum of each segment's rows, [n_active, ...]."""
    return values.new_zeros(len(layout.users), *values.shape[1:]).index_add_(0, layout.segment, values)


def _scaled(problem: Problem, layout: Layout, rows: Tensor) -> Tensor:
    """Return rows times their user's scale."""
    if isinstance(problem.scale, Tensor):
        return (rows * problem.scale.index_select(0, layout.token_users)[:, None]).to(rows.dtype)
    return rows if problem.scale == 1.0 else rows * problem.scale


def _through(problem: Problem, layout: Layout, h: Tensor) -> Tensor:
    """Return C_u h, row by row."""
    if problem.core is None:
        return h
    core = problem.core.index_select(0, layout.token_users)
    return h * core if core.dim() == 2 else torch.bmm(core, h[:, :, None])[:, :, 0]


def _back_through(problem: Problem, layout: Layout, dz: Tensor) -> Tensor:
    """Return C_u^T dz, row by row."""
    if problem.core is None:
        return dz
    core = problem.core.index_select(0, layout.token_users)
    return dz * core if core.dim() == 2 else torch.bmm(dz[:, None, :], core)[:, 0]


def _rows(tensor: Tensor, index: Tensor) -> Tensor:
    """Return rows of a tensor, in kept memory where they are large."""
    return torch.index_select(tensor, 0, index, out=empty((len(index), *tensor.shape[1:]), tensor))
