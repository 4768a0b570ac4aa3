"""Triton kernels of the batched low-rank operation; imported only on use, by `triton_backend`.

`shrink_part` and `adapt` are y = base + s E(C(S(x))) for tiles of tokens of one user, S to the rank and E from it: the
forward pass, and with A and B exchanged and C transposed the gradient of the tokens. `reduce_tokens` sums outer
products of two rows per token over a user's tokens: the gradient of a factor or of a full core; `sum_pieces` adds up
those of a user with many tokens. `reduce_products` is the gradient of a diagonal core and of the scale. No kernel uses
atomics: every sum has one order.

In the kernels: M tokens of a tile, R the rank padded to a power of two, K and N columns of input and output, ACC the
type of sums. DOT says whether `tl.dot` multiplies (M, R, K and N at least 16) or plain arithmetic, which pads next to
nothing and so serves segments of a few tokens. Offsets into factors and rows are int64.

Where Triton is not installed the module still imports (for documentation and doctests), but nothing in it can run.
"""

# In a kernel `tl.constexpr` marks what is known when it is compiled, and a branch on it is no branch; a type checker
# cannot know.
# pyright: reportInvalidTypeForm=false, reportPossiblyUnboundVariable=false
from __future__ import annotations

from typing import Any


def _undecorated(function: Any) -> Any:
    return function


try:
    import triton
    import triton.language as tl

    jit: Any = triton.jit
    # These change from batch to batch, and are not worth compiling anew for.
    kernel: Any = triton.jit(do_not_specialize=("tokens", "n_rows"))
except ModuleNotFoundError:
    tl: Any = None
    jit: Any = _undecorated
    kernel: Any = _undecorated


@jit
def _shrink(x, x_stride, places, live, factor, rank, width, begin, end,
            M: tl.constexpr, R: tl.constexpr, K: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
            PRECISION: tl.constexpr):
    """Return the sum over columns begin .. end of x[t, c] factor[j, c], (M, R)."""
    ranks = tl.arange(0, R)
    x_rows = (x + places * x_stride)[:, None]
    factor_rows = (factor + ranks.to(tl.int64) * width)[:, None]
    sums = tl.zeros((M, R), ACC) if DOT else tl.zeros((M, R, K), ACC)
    for column in range(begin, end, K):
        columns = column + tl.arange(0, K)
        inside = (columns < end)[None, :]
        left = tl.load(x_rows + columns[None, :], mask=live[:, None] & inside, other=0.0)
        right = tl.load(factor_rows + columns[None, :], mask=(ranks < rank)[:, None] & inside, other=0.0)
        if DOT:
            sums = tl.dot(left, tl.trans(right), sums, input_precision=PRECISION, out_dtype=ACC)
        else:
            sums += left.to(ACC)[:, None, :] * right.to(ACC)[None, :, :]
    if not DOT:
        sums = tl.sum(sums, axis=2)
    return sums


@jit
def _through(sums, core, from_stride, to_stride, rank,
             R: tl.constexpr, CORE: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr):
    """Return the rows (M, R) through a user's core: 0 none, 1 a diagonal, 2 a matrix that its strides may turn."""
    ranks = tl.arange(0, R)
    within = ranks < rank
    if CORE == 1:
        sums = sums * tl.load(core + ranks, mask=within, other=0.0).to(ACC)[None, :]
    if CORE == 2:
        cells = core + ranks[:, None] * from_stride + ranks[None, :] * to_stride
        matrix = tl.load(cells, mask=within[:, None] & within[None, :], other=0.0).to(ACC)
        if DOT:
            sums = tl.dot(sums, matrix, input_precision=PRECISION, out_dtype=ACC)
        else:
            sums = tl.sum(sums[:, :, None] * matrix[None, :, :], axis=1)
    return sums


@jit
def _expand(inner, factor, rank, width, scale, base, base_stride, out, places, live, begin, end,
            R: tl.constexpr, N: tl.constexpr, BASE: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
            PRECISION: tl.constexpr):
    """Write base + scale * inner @ factor for columns begin .. end of the rows."""
    ranks = tl.arange(0, R)
    factor_rows = (factor + ranks.to(tl.int64) * width)[:, None]
    out_rows = (out + places * width)[:, None]
    if BASE:
        base_rows = (base + places * base_stride)[:, None]
    if DOT:
        left = inner.to(factor.dtype.element_ty)
    for column in range(begin, end, N):
        columns = column + tl.arange(0, N)
        inside = (columns < end)[None, :]
        right = tl.load(factor_rows + columns[None, :], mask=(ranks < rank)[:, None] & inside, other=0.0)
        if DOT:
            sums = tl.dot(left, right, input_precision=PRECISION, out_dtype=ACC)
        else:
            sums = tl.sum(inner[:, :, None] * right.to(ACC)[None, :, :], axis=1)
        sums = sums * scale
        mask = live[:, None] & inside
        if BASE:
            sums += tl.load(base_rows + columns[None, :], mask=mask, other=0.0).to(ACC)
        tl.store(out_rows + columns[None, :], sums.to(out.dtype.element_ty), mask=mask)


@jit
def _keep(kept, sums, start, live, rank, M: tl.constexpr, R: tl.constexpr):
    """Store rows (M, R) in the order of the plan."""
    ranks = tl.arange(0, R)
    rows = start.to(tl.int64) + tl.arange(0, M)
    cells = kept + rows[:, None] * rank + ranks[None, :]
    tl.store(cells, sums.to(kept.dtype.element_ty), mask=live[:, None] & (ranks < rank)[None, :])


@jit
def _part(x, x_stride, factor, order, parts, tokens, start, count, split, rank, width, begin, end,
          M: tl.constexpr, R: tl.constexpr, K: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
          PRECISION: tl.constexpr):
    """Store one part of the columns' sums for one tile."""
    live = tl.arange(0, M) < count
    places = tl.load(order + start + tl.arange(0, M), mask=live, other=0)
    sums = _shrink(x, x_stride, places, live, factor, rank, width, begin, end, M, R, K, DOT, ACC, PRECISION)
    _keep(parts + split.to(tl.int64) * tokens * rank, sums, start, live, rank, M, R)


@kernel
def shrink_part(x, x_stride, factor, user_stride, order, tiles, parts, tokens, rank, width, per_part,
                M: tl.constexpr, R: tl.constexpr, K: tl.constexpr, SHORT: tl.constexpr, SHORT_R: tl.constexpr,
                SHORT_K: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr):
    """Store parts [split, T, r], in the order of the plan; program (tile, split) sums `per_part` columns."""
    user = tl.load(tiles + tl.program_id(0) * 3)
    start = tl.load(tiles + tl.program_id(0) * 3 + 1)
    count = tl.load(tiles + tl.program_id(0) * 3 + 2)
    split = tl.program_id(1)
    begin = split * per_part
    end = tl.minimum(begin + per_part, width)
    if (count > 0) & (user >= 0):
        factor_of = factor + user.to(tl.int64) * user_stride
        if count <= SHORT:
            _part(x, x_stride, factor_of, order, parts, tokens, start, count, split, rank, width, begin, end,
                  SHORT, SHORT_R, SHORT_K, False, ACC, PRECISION)
        else:
            _part(x, x_stride, factor_of, order, parts, tokens, start, count, split, rank, width, begin, end,
                  M, R, K, True, ACC, PRECISION)


@jit
def _adapt_rows(x, x_stride, parts, tokens, into_rank, core, from_stride, to_stride, from_rank, scale, base,
                base_stride, out, order, start, count, kept, kept_after, rank, width_in, width_out, begin, end,
                M: tl.constexpr, R: tl.constexpr, K: tl.constexpr, N: tl.constexpr, SPLITS: tl.constexpr,
                CORE: tl.constexpr, BASE: tl.constexpr, EXPAND: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
                PRECISION: tl.constexpr, CORE_PRECISION: tl.constexpr):
    """Do one tile: to the rank (or add up its parts in their order), through the core, and back to the width."""
    ranks = tl.arange(0, R)
    live = tl.arange(0, M) < count
    places = tl.load(order + start + tl.arange(0, M), mask=live, other=0)
    if SPLITS == 0:
        sums = _shrink(x, x_stride, places, live, into_rank, rank, width_in, 0, width_in,
                       M, R, K, DOT, ACC, PRECISION)
    else:
        sums = tl.zeros((M, R), ACC)
        rows = start.to(tl.int64) + tl.arange(0, M)
        mask = live[:, None] & (ranks < rank)[None, :]
        for split in range(SPLITS):
            cells = parts + (rows + split * tokens)[:, None] * rank + ranks[None, :]
            sums += tl.load(cells, mask=mask, other=0.0)
    inner = _through(sums, core, from_stride, to_stride, rank, R, CORE, DOT, ACC, CORE_PRECISION)
    if begin == 0:
        _keep(kept, sums, start, live, rank, M, R)
        if CORE > 0:
            _keep(kept_after, inner, start, live, rank, M, R)
    if EXPAND:
        _expand(inner, from_rank, rank, width_out, scale, base, base_stride, out, places, live, begin, end,
                R, N, BASE, DOT, ACC, PRECISION)


@jit
def _leave(base, base_stride, out, order, start, count, kept, kept_after, rank, width, begin, end,
           M: tl.constexpr, R: tl.constexpr, N: tl.constexpr, CORE: tl.constexpr, BASE: tl.constexpr,
           EXPAND: tl.constexpr):
    """Write the rows of tokens without an adapter: the base's bits, or zero; and zeros for what is kept of them."""
    live = tl.arange(0, M) < count
    places = tl.load(order + start + tl.arange(0, M), mask=live, other=0)
    if begin == 0:
        nothing = tl.zeros((M, R), tl.float32)
        _keep(kept, nothing, start, live, rank, M, R)
        if CORE > 0:
            _keep(kept_after, nothing, start, live, rank, M, R)
    if EXPAND:
        for column in range(begin, end, N):
            columns = column + tl.arange(0, N)
            mask = live[:, None] & (columns < end)[None, :]
            cells = out + (places * width)[:, None] + columns[None, :]
            if BASE:
                below = base + (places * base_stride)[:, None] + columns[None, :]
                tl.store(cells, tl.load(below, mask=mask), mask=mask)
            else:
                tl.store(cells, tl.zeros((M, N), out.dtype.element_ty), mask=mask)


@kernel
def adapt(x, x_stride, parts, tokens, into_rank, into_stride, core, core_stride, from_stride, to_stride, from_rank,
          from_rank_stride, scale, scales, scales_stride, base, base_stride, out, order, tiles, kept, kept_after, rank,
          width_in, width_out, per_group,
          M: tl.constexpr, R: tl.constexpr, K: tl.constexpr, N: tl.constexpr, SHORT: tl.constexpr,
          SHORT_R: tl.constexpr, SHORT_K: tl.constexpr, SHORT_N: tl.constexpr, SPLITS: tl.constexpr,
          CORE: tl.constexpr, BASE: tl.constexpr, IN_PLACE: tl.constexpr, EXPAND: tl.constexpr, SCALES: tl.constexpr,
          ACC: tl.constexpr, PRECISION: tl.constexpr, CORE_PRECISION: tl.constexpr):
    """Adapt one tile in program (tile, group of columns).

    With SPLITS 0 it goes to the rank itself, and there is one group; else it adds up the parts of `shrink_part`. The
    rows at the rank are kept before the core and, where there is one, after it.
    """
    user = tl.load(tiles + tl.program_id(0) * 3)
    start = tl.load(tiles + tl.program_id(0) * 3 + 1)
    count = tl.load(tiles + tl.program_id(0) * 3 + 2)
    begin = tl.program_id(1) * per_group
    end = tl.minimum(begin + per_group, width_out)
    if count > 0:
        if user < 0:
            _leave(base, base_stride, out, order, start, count, kept, kept_after, rank, width_out, begin, end,
                   M, R, N, CORE, BASE, EXPAND and not IN_PLACE)
        else:
            which = user.to(tl.int64)
            own_scale = tl.load(scales + which * scales_stride) if SCALES else scale
            into_of, from_of = into_rank + which * into_stride, from_rank + which * from_rank_stride
            core_of = core + which * core_stride
            if count <= SHORT:
                _adapt_rows(x, x_stride, parts, tokens, into_of, core_of, from_stride, to_stride, from_of, own_scale,
                            base, base_stride, out, order, start, count, kept, kept_after, rank, width_in, width_out,
                            begin, end, SHORT, SHORT_R, SHORT_K, SHORT_N, SPLITS, CORE, BASE, EXPAND, False, ACC,
                            PRECISION, CORE_PRECISION)
            else:
                _adapt_rows(x, x_stride, parts, tokens, into_of, core_of, from_stride, to_stride, from_of, own_scale,
                            base, base_stride, out, order, start, count, kept, kept_after, rank, width_in, width_out,
                            begin, end, M, R, K, N, SPLITS, CORE, BASE, EXPAND, True, ACC, PRECISION, CORE_PRECISION)


@jit
def _write(sums, out, row, rank, width, ranks, columns, ACCUMULATE: tl.constexpr, ACC: tl.constexpr):
    """Write or add one user's block (R, N) of a gradient [rows, rank, width]."""
    cells = out + (row.to(tl.int64) * rank + ranks)[:, None] * width + columns[None, :]
    mask = (ranks < rank)[:, None] & (columns < width)[None, :]
    if ACCUMULATE:
        sums += tl.load(cells, mask=mask, other=0.0).to(ACC)
    tl.store(cells, sums.to(out.dtype.element_ty), mask=mask)


@kernel
def reduce_tokens(left, right, right_stride, order, scale, scales, scales_stride, pieces, out, n_rows, parts, rank,
                  width, R: tl.constexpr, N: tl.constexpr, T: tl.constexpr, SHORT: tl.constexpr,
                  ORDERED: tl.constexpr, DENSE: tl.constexpr, ACCUMULATE: tl.constexpr, SCALES: tl.constexpr,
                  ACC: tl.constexpr, PRECISION: tl.constexpr):
    """Sum s left[t, j] right[t, c] over the tokens of a piece, in their order; program (piece, block of columns).

    `left` is in the order of the plan, `right` too where ORDERED. A piece that is all of its user is written to `out`
    [rows, r, width], in the user's row or, DENSE, in row u; another is written to `parts`, unscaled.
    """
    piece = pieces + tl.program_id(0) * 5
    row, user = tl.load(piece), tl.load(piece + 1)
    start, stop, slot = tl.load(piece + 2), tl.load(piece + 3), tl.load(piece + 4)
    own_scale = tl.load(scales + tl.where(stop > start, user, 0) * scales_stride) if SCALES else scale
    ranks = tl.arange(0, R)
    within = ranks < rank
    columns = tl.program_id(1) * N + tl.arange(0, N)
    inside = columns < width
    # Rows behind the users present are written too, with zeros: nobody else would.
    if (row < n_rows) & ((stop > start) | (not (DENSE or ACCUMULATE))):
        sums = tl.zeros((R, N), ACC)
        if stop - start <= SHORT:
            for one in range(start.to(tl.int64), stop.to(tl.int64)):
                place = one if ORDERED else tl.load(order + one)
                left_row = tl.load(left + one * rank + ranks, mask=within, other=0.0)
                right_row = tl.load(right + place * right_stride + columns, mask=inside, other=0.0).to(ACC)
                sums += left_row[:, None] * right_row[None, :]
        else:
            for token in range(start, stop, T):
                tokens = token + tl.arange(0, T)
                live = tokens < stop
                places = tokens.to(tl.int64) if ORDERED else tl.load(order + tokens, mask=live, other=0)
                left_rows = tl.load(left + tokens.to(tl.int64)[None, :] * rank + ranks[:, None],
                                    mask=live[None, :] & within[:, None], other=0.0)
                right_rows = tl.load(right + (places * right_stride)[:, None] + columns[None, :],
                                     mask=live[:, None] & inside[None, :], other=0.0)
                sums = tl.dot(left_rows.to(right.dtype.element_ty), right_rows, sums, input_precision=PRECISION,
                              out_dtype=ACC)
        if slot < 0:
            _write(sums * own_scale, out, user if DENSE else row, rank, width, ranks, columns, ACCUMULATE, ACC)
        else:
            _write(sums, parts, slot, rank, width, ranks, columns, False, ACC)


@kernel
def sum_pieces(parts, scale, scales, scales_stride, longs, out, n_rows, rank, width, R: tl.constexpr, N: tl.constexpr,
               DENSE: tl.constexpr, ACCUMULATE: tl.constexpr, SCALES: tl.constexpr, ACC: tl.constexpr):
    """Add up the pieces of a user with many tokens, in their order; program (such a user, block of columns)."""
    long = longs + tl.program_id(0) * 4
    row, user, first, count = tl.load(long), tl.load(long + 1), tl.load(long + 2), tl.load(long + 3)
    ranks = tl.arange(0, R)
    columns = tl.program_id(1) * N + tl.arange(0, N)
    mask = (ranks < rank)[:, None] & (columns < width)[None, :]
    if (count > 0) & (row < n_rows):
        sums = tl.zeros((R, N), ACC)
        for slot in range(first.to(tl.int64), first.to(tl.int64) + count):
            cells = parts + (slot * rank + ranks)[:, None] * width + columns[None, :]
            sums += tl.load(cells, mask=mask, other=0.0)
        own_scale = tl.load(scales + user * scales_stride) if SCALES else scale
        _write(sums * own_scale, out, user if DENSE else row, rank, width, ranks, columns, ACCUMULATE, ACC)


@kernel
def reduce_products(left, right, scale, scales, scales_stride, pieces, out, n_rows, rank, R: tl.constexpr,
                    T: tl.constexpr, TOTAL: tl.constexpr, DENSE: tl.constexpr, ACCUMULATE: tl.constexpr,
                    SCALES: tl.constexpr, ACC: tl.constexpr):
    """Sum s left[t, j] right[t, j] over a user's tokens, a number per j, or with TOTAL one in all; program (user)."""
    piece = pieces + tl.program_id(0) * 5
    row, user, start, stop = tl.load(piece), tl.load(piece + 1), tl.load(piece + 2), tl.load(piece + 3)
    ranks = tl.arange(0, R)
    if (row < n_rows) & ((stop > start) | (not (DENSE or ACCUMULATE))):
        sums = tl.zeros((T, R), ACC)
        for token in range(start, stop, T):
            tokens = token + tl.arange(0, T)
            cells = tokens.to(tl.int64)[:, None] * rank + ranks[None, :]
            mask = (tokens < stop)[:, None] & (ranks < rank)[None, :]
            sums += tl.load(left + cells, mask=mask, other=0.0) * tl.load(right + cells, mask=mask, other=0.0)
        own_scale = tl.load(scales + tl.where(stop > start, user, 0) * scales_stride) if SCALES else scale
        target = user if DENSE else row
        if TOTAL:
            total = tl.sum(tl.sum(sums, axis=1), axis=0) * own_scale
            if ACCUMULATE:
                total += tl.load(out + target).to(ACC)
            tl.store(out + target, total.to(out.dtype.element_ty))
        else:
            each = tl.sum(sums, axis=0) * own_scale
            cells = out + target.to(tl.int64) * rank + ranks
            if ACCUMULATE:
                each += tl.load(cells, mask=ranks < rank, other=0.0).to(ACC)
            tl.store(cells, each.to(out.dtype.element_ty), mask=ranks < rank)
