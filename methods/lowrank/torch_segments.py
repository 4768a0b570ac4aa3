"""Backend `torch`: no compiler, any device. Segments of sorted tokens, multiplied in the way that suits their lengths.

Three ways to multiply every user's tokens by that user's factor, chosen by the measured table (`tuning.py`):

* `loop`: one matmul per user, for few users with many tokens each;
* `grouped`: `torch.nn.functional.grouped_mm` over the users present;
* `lengths`: users with equally many tokens stand together as one batched matmul, so that nothing is padded.

A shared factor is one dense matmul over all tokens in the order of the batch: no wide row is moved for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

from methods.lowrank import tuning
from methods.lowrank.pages import empty
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


@dataclass(frozen=True, slots=True)
class Layout:
    """Tokens with an adapter, as a variant wants them.

    `order` int64 [n] names the tokens, or is None where they are the batch as it stands. `users` int64 [n_active] are
    the users of the segments, `rows` where each of them stands in `plan.users` (None: in this order), `groups` the
    segments of one length as (first segment, end segment, first token, length).
    """

    order: Tensor | None
    users: Tensor
    rows: Tensor | None
    groups: list[tuple[int, int, int, int]]

    def rows_of(self, wide: Tensor) -> Tensor:
        """Return rows of the batch in this order."""
        return wide if self.order is None else wide.index_select(0, self.order)

    def to_batch(self, narrow: Tensor, tokens: int) -> Tensor:
        """Return rows of this order in the order of the batch; tokens without an adapter are zero."""
        if self.order is None:
            return narrow
        return narrow.new_zeros(tokens, *narrow.shape[1:]).index_copy_(0, self.order, narrow)


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
    return Layout(None if whole else plan.order[plan.n_base :], plan.users, None, groups)


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
    return Layout(order, plan.users.index_select(0, rows), rows, groups)


def forward(problem: Problem, base: Tensor | None, out: Tensor, *, variant: str | None = None) -> Tensor:
    """Write y into `out` and return A x, [T, r] in the order of the batch; zero for tokens without an adapter."""
    plan = problem.plan
    chosen = variant or variant_of(problem, "forward")
    layout = layout_of(plan, chosen)
    if problem.shared_a:
        hidden = problem.x @ problem.a.T
        h = layout.rows_of(hidden)
    else:
        h = _shrink(layout.rows_of(problem.x), problem.a, layout, chosen)
        hidden = layout.to_batch(h, plan.tokens)
    z = _scaled(problem, layout, _through(problem, layout, h))
    if problem.shared_b:
        _add(layout.to_batch(z, plan.tokens) @ problem.b, base, out, plan)
    elif layout.order is None and base is None:
        _expand(z, problem.b, out, layout, chosen)
    else:
        wide = _expand(z, problem.b, empty((len(z), problem.d_out), problem.x), layout, chosen)
        _place(wide, base, out, layout, plan)
    return hidden


def backward(problem: Problem, dy: Tensor, hidden: Tensor, into: Gradients, *, variant: str | None = None) -> None:
    """Fill the gradient buffers, given dL/dy."""
    plan = problem.plan
    chosen = variant or variant_of(problem, "backward")
    layout = layout_of(plan, chosen)
    h = layout.rows_of(hidden)
    z = _through(problem, layout, h)
    if problem.shared_b:
        g = layout.rows_of(dy @ problem.b.T)
        if into.db is not None:
            _shared_gradient(_scaled(problem, layout, z), dy, into.db, layout, plan, into)
    else:
        dys = layout.rows_of(dy)
        g = _shrink(dys, problem.b, layout, chosen)
        if into.db is not None:
            _outer(_scaled(problem, layout, z), dys, into.db, layout, plan, chosen, into)
    if into.dscale is not None:
        per_token = (g.double() * z).sum(1)
        _put(into.dscale, _segment_sums(per_token, layout), layout, plan, into)
    dz = _scaled(problem, layout, g)
    if into.dcore is not None:
        if into.dcore.dim() == 3:
            _outer(dz, h, into.dcore, layout, plan, "loop" if chosen == "grouped" else chosen, into)
        else:
            _put(into.dcore, _segment_sums(dz.double() * h, layout), layout, plan, into)
    dh = _back_through(problem, layout, dz)
    if into.da is not None:
        if problem.shared_a:
            _shared_gradient(dh, problem.x, into.da, layout, plan, into)
        else:
            _outer(dh, layout.rows_of(problem.x), into.da, layout, plan, chosen, into)
    if into.dx is not None:
        _fill_dx(problem, layout, dh, into.dx, chosen, into.accumulate)


def _shared_gradient(narrow: Tensor, wide: Tensor, out: Tensor, layout: Layout, plan: Plan, into: Gradients) -> None:
    """Put narrow^T wide over all tokens with an adapter: narrow [n, r] of a layout, wide [T, d] of the batch."""
    if plan.n_base:  # what stands in a token without an adapter, be it NaN, must not reach the sum
        wide = layout.rows_of(wide)
    else:
        narrow = layout.to_batch(narrow, plan.tokens)
    torch.addmm(out, narrow.T, wide, beta=int(into.accumulate), out=out)


def _fill_dx(problem: Problem, layout: Layout, dh: Tensor, dx: Tensor, chosen: str, accumulate: bool) -> None:
    """Write or add dh A, a row per token."""
    if problem.shared_a:
        whole = layout.to_batch(dh, problem.plan.tokens)
        torch.addmm(dx, whole, problem.a, beta=int(accumulate), out=dx)
    elif layout.order is None and not accumulate:
        _expand(dh, problem.a, dx, layout, chosen)
    else:
        wide = _expand(dh, problem.a, empty((len(dh), problem.d_in), dx), layout, chosen)
        _place(wide, dx if accumulate else None, dx, layout, problem.plan)


def _add(delta: Tensor, base: Tensor | None, out: Tensor, plan: Plan) -> None:
    """Write base + delta; rows without an adapter keep the base's bits (-0 + 0 would be 0)."""
    if base is None:
        out.copy_(delta)
        return
    kept = base.index_select(0, plan.order[: plan.n_base]) if plan.n_base else None
    torch.add(base, delta, out=out)
    if kept is not None:
        out.index_copy_(0, plan.order[: plan.n_base], kept)


def _place(wide: Tensor, base: Tensor | None, out: Tensor, layout: Layout, plan: Plan) -> None:
    """Write or add rows of a layout in their places of the batch; `base` may be `out`."""
    if base is None:
        if plan.n_base:
            out.index_fill_(0, plan.order[: plan.n_base], 0)
    elif base is not out:
        out.copy_(base)
    if layout.order is None:
        assert base is not None  # else the product was written in place
        out.add_(wide)
    elif base is None:
        out.index_copy_(0, layout.order, wide)
    else:
        out.index_add_(0, layout.order, wide)


def _shrink(rows: Tensor, factor: Tensor, layout: Layout, chosen: str) -> Tensor:
    """Return rows F_u^T, segment by segment: rows [n, d], factor [U, r, d], result [n, r]."""
    if chosen == "grouped" and len(rows):
        return grouped_mm(rows, _present(factor, layout).transpose(1, 2), offs=_ends(layout))
    out = rows.new_empty(len(rows), factor.shape[1])
    if chosen == "loop":
        for user, (_, _, start, length) in zip(layout.users.tolist(), layout.groups, strict=True):
            span = slice(start, start + length)
            torch.mm(rows[span], factor[user].T, out=out[span])
        return out
    for first, end, start, length in layout.groups:
        n, span = end - first, slice(start, start + (end - first) * length)
        part = factor.index_select(0, layout.users[first:end]).transpose(1, 2)
        torch.bmm(rows[span].view(n, length, -1), part, out=out[span].view(n, length, -1))
    return out


def _expand(narrow: Tensor, factor: Tensor, out: Tensor, layout: Layout, chosen: str) -> Tensor:
    """Write narrow F_u, segment by segment: narrow [n, r], factor [U, r, d], out [n, d]."""
    if chosen == "grouped" and len(narrow):
        out.copy_(grouped_mm(narrow, _present(factor, layout), offs=_ends(layout)))
    elif chosen == "loop":
        for user, (_, _, start, length) in zip(layout.users.tolist(), layout.groups, strict=True):
            span = slice(start, start + length)
            torch.mm(narrow[span], factor[user], out=out[span])
    else:
        for first, end, start, length in layout.groups:
            n, span = end - first, slice(start, start + (end - first) * length)
            part = factor.index_select(0, layout.users[first:end])
            torch.bmm(narrow[span].reshape(n, length, -1), part, out=out[span].view(n, length, -1))
    return out


def _outer(narrow: Tensor, wide: Tensor, out: Tensor, layout: Layout, plan: Plan, chosen: str, into: Gradients) -> None:
    """Put narrow^T wide of every segment: narrow [n, r], wide [n, d], out a row [r, d] per segment or per user."""
    if chosen == "grouped" and len(wide):
        _put(out, grouped_mm(narrow.T, wide, offs=_ends(layout)), layout, plan, into)
        return
    rows = _target_rows(layout, plan, into)
    if not into.accumulate and not into.rows and plan.n_active < len(out):
        out.zero_()
    if chosen == "loop":
        for row, (_, _, start, length) in zip(rows.tolist(), layout.groups, strict=True):
            span = slice(start, start + length)
            target = out[row]
            torch.addmm(target, narrow[span].T, wide[span], beta=int(into.accumulate), out=target)
        return
    for first, end, start, length in layout.groups:
        n, span = end - first, slice(start, start + (end - first) * length)
        part = torch.bmm(narrow[span].reshape(n, length, -1).transpose(1, 2), wide[span].reshape(n, length, -1))
        _write(out, rows[first:end], part, into.accumulate)


def _put(out: Tensor, values: Tensor, layout: Layout, plan: Plan, into: Gradients) -> None:
    """Put a value per segment where the caller wants it: a row per user present, or per user."""
    if not into.accumulate and not into.rows and plan.n_active < len(out):
        out.zero_()
    _write(out, _target_rows(layout, plan, into), values, into.accumulate)


def _target_rows(layout: Layout, plan: Plan, into: Gradients) -> Tensor:
    """Return the row of the buffer for every segment."""
    if not into.rows:
        return layout.users
    return torch.arange(plan.n_active, device=plan.device) if layout.rows is None else layout.rows


def _write(out: Tensor, rows: Tensor, values: Tensor, accumulate: bool) -> None:
    values = values.to(out.dtype)
    if accumulate:
        out.index_add_(0, rows, values)
    else:
        out.index_copy_(0, rows, values)


def _segment_sums(values: Tensor, layout: Layout) -> Tensor:
    """Return the sum of each segment's rows, [n_active, ...]."""
    index = _segment_index(layout, values.device)
    return values.new_zeros(len(layout.users), *values.shape[1:]).index_add_(0, index, values)


def _segment_index(layout: Layout, device: torch.device) -> Tensor:
    """Return the segment of every token of a layout, int64 [n]."""
    counts = [length for first, end, _, length in layout.groups for _ in range(end - first)]
    return torch.repeat_interleave(torch.tensor(counts, dtype=torch.long)).to(device)


def _token_users(layout: Layout) -> Tensor:
    """Return the user of every token of a layout, int64 [n]."""
    return layout.users.index_select(0, _segment_index(layout, layout.users.device))


def _scaled(problem: Problem, layout: Layout, rows: Tensor) -> Tensor:
    """Return rows times their user's scale."""
    if isinstance(problem.scale, Tensor):
        return rows * problem.scale.index_select(0, _token_users(layout)).to(rows.dtype)[:, None]
    return rows if problem.scale == 1.0 else rows * problem.scale


def _through(problem: Problem, layout: Layout, h: Tensor) -> Tensor:
    """Return C_u h, row by row."""
    if problem.core is None:
        return h
    core = problem.core.index_select(0, _token_users(layout))
    return h * core if core.dim() == 2 else torch.bmm(core, h[:, :, None])[:, :, 0]


def _back_through(problem: Problem, layout: Layout, dz: Tensor) -> Tensor:
    """Return C_u^T dz, row by row."""
    if problem.core is None:
        return dz
    core = problem.core.index_select(0, _token_users(layout))
    return dz * core if core.dim() == 2 else torch.bmm(dz[:, None, :], core)[:, 0]


def _present(factor: Tensor, layout: Layout) -> Tensor:
    """Return the factors of the users present, without a copy where all are."""
    return factor if len(layout.users) == len(factor) else factor.index_select(0, layout.users)


def _ends(layout: Layout) -> Tensor:
    """Return where each segment ends, int32 [n_active]."""
    ends = [start + length for _, _, start, length in layout.groups]
    return torch.tensor(ends, dtype=torch.int32, device=layout.users.device)
