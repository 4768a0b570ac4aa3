"""Backend `torch`: no compiler, any device. Segments of sorted tokens, multiplied in the way that suits their lengths.

Ways to multiply every user's tokens by that user's factor, chosen by the measured table (`tuning.py`):

* `loop`: one matmul per user, for few users with many tokens each;
* `grouped`: `torch.nn.functional.grouped_mm` over the users present;
* `lengths`: users with equally many tokens stand together as one batched matmul, so that nothing is padded;
* `padded`: one batched matmul at the length of the longest segment, for many users with a token or two each.

A shared factor is one dense matmul over all tokens in the order of the batch: no wide row is moved for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

from methods.lowrank import tuning
from methods.lowrank.layouts import Layout, layout_of, rows_at
from methods.lowrank.memory import empty
from methods.lowrank.problem import Gradients, Problem

VARIANTS = ("loop", "grouped", "lengths", "padded")
_MOST_PADDING = 4  # times the tokens


def unavailable() -> str | None:
    """Return None: it needs nothing but torch."""
    return None


def refuses(problem: Problem) -> str | None:
    """Return None: it computes whatever torch computes."""
    del problem
    return None


def variants(problem: Problem) -> list[str]:
    """Return the ways in which a problem can be multiplied."""
    plan = problem.plan
    width = 16 // problem.x.element_size()  # grouped_mm wants rows that begin at multiples of 16 bytes
    aligned = all(n and n % width == 0 for n in (problem.rank, problem.d_in, problem.d_out))
    able = {
        "loop": True,
        "grouped": aligned and problem.x.dtype in (torch.float32, torch.bfloat16),
        "lengths": True,
        "padded": not plan.n_base and plan.n_active * plan.longest <= _MOST_PADDING * plan.tokens,
    }
    return [name for name in VARIANTS if able[name]]


def variant_of(problem: Problem, mode: str = "forward") -> str:
    """Return the way that the measured table names for a problem; `mode` is "forward" or "backward"."""
    named = tuning.nearest(problem, mode).torch_variant
    return named if named in variants(problem) else "lengths"


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
    z = layout.unpadded(_through(problem, layout, h))
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
    g = layout.unpadded(g)
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
        turned = _views(factor.transpose(1, 2), layout.user_list)
        for part, each, target in zip(rows.split(layout.lengths), turned, out.split(layout.lengths), strict=True):
            torch.mm(part, each, out=target)
        return out
    for users, n, length, span in _batches(layout):
        part = rows_at(factor, users).transpose(1, 2)
        torch.bmm(rows[span].view(n, length, -1), part, out=out[span].view(n, length, -1))
    return out


def _expand(narrow: Tensor, factor: Tensor, out: Tensor, layout: Layout, chosen: str) -> Tensor:
    """Write narrow F_u, segment by segment: narrow [n, r], factor [U, r, d], out [n, d]; return out."""
    if chosen == "loop":
        own = _views(factor, layout.user_list)
        for part, each, target in zip(narrow.split(layout.lengths), own, out.split(layout.lengths), strict=True):
            torch.mm(part, each, out=target)
        return out
    for users, n, length, span in _batches(layout):
        part = rows_at(factor, users)
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
        left_parts, right_parts = narrow.T.split(layout.lengths, 1), wide.split(layout.lengths)
        for target, left, right in zip(_views(out, rows.tolist()), left_parts, right_parts, strict=True):
            if into.accumulate:
                target.addmm_(left, right)
            else:
                torch.mm(left, right, out=target)
        return
    done = 0
    for _, n, length, span in _batches(layout):
        left, right = narrow[span].reshape(n, length, -1).transpose(1, 2), wide[span].view(n, length, -1)
        if n == len(out) and layout.rows is None and not into.accumulate:
            torch.bmm(left, right, out=out)
            return
        part = torch.bmm(left, right, out=empty((n, left.shape[1], right.shape[2]), right))
        _write(out, rows[done : done + n], part, into.accumulate)
        done += n


def _views(stacked: Tensor, rows: list[int]) -> Sequence[Tensor]:
    """Return views of rows of a stacked tensor; taking all of them apart at once is the quicker way to many."""
    if 2 * len(rows) < len(stacked):
        return [stacked[row] for row in rows]
    views = stacked.unbind(0)
    return views if len(rows) == len(views) else [views[row] for row in rows]


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
