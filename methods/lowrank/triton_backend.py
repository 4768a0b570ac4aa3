"""Backend `triton`: kernels for a GPU. The host never waits, so a CUDA graph can capture forward and backward.

Forward: one program per tile of tokens of one user goes to the rank and back, and stores the hidden values once. Where
there are too few tiles to fill the device, `shrink_part` sums parts of the columns and `adapt` adds them up in their
order, for a block of columns each. Backward: the same kernels with A and B exchanged give dX and the gradients at the
rank; then one program owns a block of one user's factor and sums over that user's tokens. A user of more tokens than
`longest_piece` is summed in pieces, the pieces in their order. A shared factor's gradient is one matmul by torch. There
are no atomics and no autotuning: the same call gives the same bits.

`triton_tuning.json` has the sizes. With TRITON_INTERPRET=1, set before Triton is imported, the kernels run on the CPU;
bfloat16 is refused there, as the interpreter multiplies it wrongly without a word.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.lowrank.problem import Gradients, Problem, accumulate_dtype
from methods.lowrank.tiles import most_tiles, pieces_of, tiles_of

MOST_RANK = 128
_LEAST_DOT = 16  # no side of a tl.dot is shorter on a GPU; the interpreter would not mind
_REGISTER_BYTES = 32 << 10  # of a block of sums that a program of four warps may hold without spilling
_WIDE_RANK_BYTES = 256  # of a row of the padded rank's sums, from which on four warps spill
_SHARED_BYTES = 96 << 10  # of shared memory for the tiles in flight, so that two programs fit a processor


@dataclass(frozen=True, slots=True)
class Launch:
    """Sizes of the kernels for one direction of one call.

    `rows` tokens of a tile, `columns` of the input and `expand_columns` of the output at a time; segments of at most
    `short` tokens are multiplied without `tl.dot`. `splits` is 0 where a program does a whole tile, else the number of
    parts into which the input's columns are summed, and `groups` that of the output's columns.
    """

    rows: int
    columns: int
    expand_columns: int
    short: int
    splits: int
    groups: int
    longest_piece: int
    warps: int
    stages: int
    precision: str


def unavailable() -> str | None:
    """Return why Triton cannot be used on this machine, or None."""
    if find_spec("triton") is None:
        return "Triton is not installed (pip install triton; there are wheels for Linux only)"
    if not _interpreted():
        return None if torch.cuda.is_available() else "no CUDA device (TRITON_INTERPRET=1 runs it on the CPU, slowly)"
    language = sys.modules.get("triton.language")
    if language is not None and not type(language.zeros).__name__.startswith("Interpreted"):
        return "TRITON_INTERPRET was set after Triton had been imported; set it before Python starts"
    return None


def refuses(problem: Problem) -> str | None:
    """Return why this problem cannot be computed here, or None."""
    device = problem.x.device
    if device.type != ("cpu" if _interpreted() else "cuda"):
        return f"it computes on {'the CPU, as TRITON_INTERPRET is set' if _interpreted() else 'CUDA'}; x is on {device}"
    if problem.x.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        return f"dtype {problem.x.dtype} is not supported"
    if _interpreted() and problem.x.dtype == torch.bfloat16:
        return "Triton's interpreter multiplies bfloat16 wrongly; use float16 or float32 there"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs a GPU of compute capability 8.0 or later"
    most = MOST_RANK // 2 if problem.x.dtype == torch.float64 else MOST_RANK
    if problem.rank > most:
        return f"rank {problem.rank} is above {most}, the most for {problem.x.dtype}"
    return f"{problem.plan.tokens} tokens are too many for 32-bit indices" if problem.plan.tokens >= 2**31 else None


def variant_of(problem: Problem, mode: str = "forward") -> str:
    """Return how a problem is computed: "fused", or "split-N" where the input's columns are summed in N parts."""
    widths = (problem.d_in, problem.d_out) if mode == "forward" else (problem.d_out, problem.d_in)
    splits = launch_for(problem, *widths).splits
    return f"split-{splits}" if splits else "fused"


def forward(problem: Problem, base: Tensor | None, out: Tensor, launch: Launch | None = None) -> Tensor:
    """Write y into `out` and return A x, [T, r] in the order of the plan; with a core [2, T, r], of A x and C A x."""
    launch = launch or launch_for(problem, problem.d_in, problem.d_out)
    if not problem.rank or not problem.plan.tokens:
        _start(out, base)
        return _kept_like(problem).zero_()
    with _on(problem.x.device):
        return _adapt(problem, launch, problem.x, base, out, backward=False)


def backward(problem: Problem, dy: Tensor, hidden: Tensor, into: Gradients, launch: Launch | None = None) -> None:
    """Fill the gradient buffers; rows are those of `plan.padded_users`, and those behind the users present are zero."""
    launch = launch or launch_for(problem, problem.d_out, problem.d_in)
    if not problem.rank or not problem.plan.tokens:
        for buffer in (into.dx, into.da, into.db, into.dcore, into.dscale):
            if buffer is not None and not into.accumulate:
                buffer.zero_()
        return
    with _on(problem.x.device):
        _gradients(problem, launch, dy, hidden, into)


def _gradients(problem: Problem, launch: Launch, dy: Tensor, hidden: Tensor, into: Gradients) -> None:
    before, after = (hidden, hidden) if problem.core is None else (hidden[0], hidden[1])
    if into.db is not None:
        _factor_gradient(problem, launch, after, dy, into.db, problem.shared_b, into)
    if all(each is None for each in (into.dx, into.da, into.dcore, into.dscale)):
        return
    # What is kept is unscaled: dL/d(C A x) / s, and behind the core dL/d(A x) / s.
    base = into.dx if into.accumulate else None
    kept = _adapt(problem, launch, dy, base, into.dx, backward=True)
    outer, inner = (kept, kept) if problem.core is None else (kept[0], kept[1])
    if into.da is not None:
        _factor_gradient(problem, launch, inner, problem.x, into.da, problem.shared_a, into)
    if into.dcore is not None and into.dcore.dim() == 3:
        _reduce_tokens(problem, launch, outer, before, into.dcore, into, ordered=True)
    elif into.dcore is not None:
        _reduce_products(problem, launch, outer, before, into.dcore, into)
    if into.dscale is not None:
        _reduce_products(problem, launch, outer, after, into.dscale, into)


def launch_for(problem: Problem, width_in: int, width_out: int) -> Launch:
    """Return the sizes for a direction: tiles as high as segments are long on average, if enough of them are left."""
    table, size = _table(), problem.x.element_size()
    row, rank = table["by_bytes"][str(size)], _padded(problem.rank)
    plan = problem.plan
    wanted = table["tiles_per_processor"] * _processors(problem.x.device)
    matrix = problem.core is not None and problem.core.dim() == 3
    wide = size > 2 and rank * size >= _WIDE_RANK_BYTES
    rows, most_rows = _LEAST_DOT, _LEAST_DOT if wide and matrix else row["most_rows"]
    while 2 * rows <= min(most_rows, plan.tokens / max(len(plan.padded_users), 1)):
        rows *= 2
    while rows > _LEAST_DOT and most_tiles(plan, rows) < wanted:
        rows //= 2
    columns = row["columns"]
    while columns > _LEAST_DOT and (rows + rank) * columns * size * row["stages"] > _SHARED_BYTES:
        columns //= 2
    short = row["short"]
    if matrix:
        short = max(1, min(short, 2 * _REGISTER_BYTES // (_sum_bytes(problem) * rank**2)))
    lack = -(-wanted // max(most_tiles(plan, rows), 1))
    splits = min(lack, width_in // (2 * columns))
    groups = min(lack, width_out // (2 * row["expand_columns"]))
    if splits < 2:
        splits, groups = 0, 1
    return Launch(
        rows,
        columns,
        row["expand_columns"],
        short,
        splits,
        max(groups, 1),
        table["longest_piece"],
        row["warps"] * (2 if wide else 1),
        row["stages"],
        table["float32_precision"],
    )


def _adapt(
    problem: Problem, launch: Launch, source: Tensor, base: Tensor | None, out: Tensor | None, *, backward: bool
) -> Tensor:
    """Run `adapt`: the forward pass, or with `backward` the gradient of the tokens; return the rows at the rank."""
    into, back = (problem.b, problem.a) if backward else (problem.a, problem.b)
    plan, core, rank = problem.plan, problem.core, problem.rank
    width_out = back.shape[-1]
    kept = _kept_like(problem)
    before, after = (kept, kept) if core is None else (kept[0], kept[1])
    sizes = _tile_sizes(problem, launch)
    parts = _parts(problem, launch, source, into, sizes) if launch.splits else kept
    groups = launch.groups if launch.splits and out is not None else 1
    tiles = tiles_of(plan, launch.rows)
    # Triton wants a tensor for every pointer; those that a flag turns off are never read.
    _kernels().adapt[len(tiles), groups](
        x=source, x_stride=source.stride(0), parts=parts, tokens=plan.tokens,
        into_rank=into, into_stride=_user_stride(into), from_rank=back, from_rank_stride=_user_stride(back),
        core=source if core is None else core, core_stride=0 if core is None else core.stride(0),
        from_stride=rank if backward else 1, to_stride=1 if backward else rank,
        base=source if base is None else base, base_stride=0 if base is None else base.stride(0),
        out=source if out is None else out, order=plan.order, tiles=tiles, kept=before, kept_after=after,
        rank=rank, width_in=into.shape[-1], width_out=width_out,
        per_group=_share(width_out, groups, max(launch.expand_columns, sizes["SHORT_K"])),
        N=launch.expand_columns, SHORT_N=sizes["SHORT_K"], SPLITS=launch.splits,
        CORE=0 if core is None else core.dim() - 1, BASE=base is not None, EXPAND=out is not None,
        IN_PLACE=base is not None and out is not None and base.data_ptr() == out.data_ptr(),
        CORE_PRECISION=_rank_precision(problem, launch), **_scales(problem), **sizes,
    )  # fmt: skip
    return kept


def _parts(problem: Problem, launch: Launch, source: Tensor, into: Tensor, sizes: dict[str, Any]) -> Tensor:
    """Return the sums to the rank, [splits, T, r], each over its share of the columns."""
    plan, width = problem.plan, into.shape[-1]
    tiles = tiles_of(plan, launch.rows)
    parts = _empty_at_rank(problem, launch.splits)
    _kernels().shrink_part[len(tiles), launch.splits](
        x=source, x_stride=source.stride(0), factor=into, user_stride=_user_stride(into), order=plan.order,
        tiles=tiles, parts=parts, tokens=plan.tokens, rank=problem.rank, width=width,
        per_part=_share(width, launch.splits, launch.columns), **sizes,
    )  # fmt: skip
    return parts


def _factor_gradient(
    problem: Problem, launch: Launch, left: Tensor, right: Tensor, out: Tensor, shared: bool, into: Gradients
) -> None:
    """Sum s left_t right_t over the tokens of each user, or where the factor is shared over all."""
    if not shared:
        _reduce_tokens(problem, launch, left, right, out, into)
        return
    plan, scale = problem.plan, problem.scale
    if isinstance(scale, Tensor):
        scale = scale[plan.ids.clamp(min=0)][plan.order, None] if plan.n_users else 1.0
    # In the order of the batch, so that no wide row is gathered. What stands in a token without an adapter, be it NaN,
    # must not reach the sum.
    right = right.masked_fill((plan.ids < 0)[:, None], 0)
    rows = torch.empty_like(left).index_copy_(0, plan.order, left * scale).to(right.dtype)
    if into.accumulate:
        out.addmm_(rows.T, right)
    else:
        torch.mm(rows.T, right, out=out)


def _reduce_tokens(
    problem: Problem,
    launch: Launch,
    left: Tensor,
    right: Tensor,
    out: Tensor,
    into: Gradients,
    ordered: bool = False,
) -> None:
    """Sum s left_t right_t over the tokens of each user into out [rows, r, width]."""
    plan, rank, width = problem.plan, problem.rank, right.shape[-1]
    if not into.rows and not into.accumulate:
        out.zero_()
    if not len(plan.padded_users):
        return
    pieces, longs, slots = pieces_of(plan, launch.longest_piece)
    padded = max(_padded(rank), _LEAST_DOT)
    columns = _fitting(problem, padded, launch.columns)
    blocks = -(-width // columns)
    parts = left.new_empty(slots, rank, width) if slots else left
    told = {"DENSE": not into.rows, "ACCUMULATE": into.accumulate, "ACC": _sum_type(problem), "R": padded, "N": columns}
    told |= _scales(problem) | _options(launch)
    _kernels().reduce_tokens[len(pieces), blocks](
        left=left, right=right, right_stride=right.stride(0), order=plan.order, pieces=pieces, out=out,
        n_rows=len(out), parts=parts, rank=rank, width=width, T=_LEAST_DOT * 2, SHORT=launch.short,
        ORDERED=ordered, PRECISION=_rank_precision(problem, launch) if ordered else launch.precision, **told,
    )  # fmt: skip
    if slots:
        _kernels().sum_pieces[len(longs), blocks](
            parts=parts, longs=longs, out=out, n_rows=len(out), rank=rank, width=width, **told
        )


def _reduce_products(
    problem: Problem, launch: Launch, left: Tensor, right: Tensor, out: Tensor, into: Gradients
) -> None:
    """Sum s left_t right_t element by element: the gradient of a diagonal core [rows, r], or of the scale [rows]."""
    plan = problem.plan
    if not into.rows and not into.accumulate:
        out.zero_()
    if not len(plan.padded_users):
        return
    total = out is into.dscale
    told = _scales(problem) if not total else {"scale": 1.0, "scales": left, "scales_stride": 0, "SCALES": False}
    pieces, _, _ = pieces_of(plan, plan.tokens + 1)
    padded = _padded(problem.rank)
    _kernels().reduce_products[len(pieces),](
        left=left, right=right, pieces=pieces, out=out, n_rows=len(out), rank=problem.rank, R=padded,
        T=_fitting(problem, 2 * padded, 128), TOTAL=total, DENSE=not into.rows, ACCUMULATE=into.accumulate,
        ACC=_sum_type(problem), **told, **_options(launch),
    )  # fmt: skip


def _tile_sizes(problem: Problem, launch: Launch) -> dict[str, Any]:
    """Return what both kernels of tiles are told of their sizes."""
    padded = _padded(problem.rank)
    return {
        "M": launch.rows,
        "R": max(padded, _LEAST_DOT),
        "K": launch.columns,
        "SHORT": launch.short,
        "SHORT_R": padded,
        "SHORT_K": _fitting(problem, launch.short * padded, 256),
        "ACC": _sum_type(problem),
        "PRECISION": launch.precision,
        **_options(launch),
    }


def _options(launch: Launch) -> dict[str, Any]:
    """Return what the compiler is told; sums may be fused with products, which Triton's releases do not agree on."""
    return {"num_warps": launch.warps, "num_stages": launch.stages, "enable_fp_fusion": True}


def _scales(problem: Problem) -> dict[str, Any]:
    """Return the scale as the kernels take it: a number is float32 there, so float64 brings it in a tensor."""
    scale = problem.scale
    if isinstance(scale, Tensor):
        return {"scale": 1.0, "scales": scale.to(accumulate_dtype(problem.x.dtype)), "scales_stride": 1, "SCALES": True}
    if problem.x.dtype == torch.float64:
        number = torch.full((1,), scale, dtype=torch.float64, device=problem.x.device)
        return {"scale": 1.0, "scales": number, "scales_stride": 0, "SCALES": True}
    return {"scale": float(scale), "scales": problem.x, "scales_stride": 0, "SCALES": False}


def _start(out: Tensor, base: Tensor | None) -> None:
    if base is None:
        out.zero_()
    elif base.data_ptr() != out.data_ptr():
        out.copy_(base)


def _kept_like(problem: Problem) -> Tensor:
    """Return room for the rows at the rank, and with a core for those behind it."""
    return _empty_at_rank(problem, None if problem.core is None else 2)


def _empty_at_rank(problem: Problem, many: int | None) -> Tensor:
    shape = (problem.plan.tokens, problem.rank)
    return problem.x.new_empty(shape if many is None else (many, *shape), dtype=accumulate_dtype(problem.x.dtype))


def _rank_precision(problem: Problem, launch: Launch) -> str:
    """Return how float32 rows at the rank are multiplied with each other; half-precision operands lose nothing more."""
    return launch.precision if problem.x.element_size() > 2 else "tf32"


def _user_stride(factor: Tensor) -> int:
    return factor.stride(0) if factor.dim() == 3 else 0


def _padded(rank: int) -> int:
    """Return the next power of two."""
    return 1 << (max(rank, 1) - 1).bit_length()


def _fitting(problem: Problem, rows: int, most: int) -> int:
    """Return how many columns a block of so many rows can have in registers: a power of two, 16 to `most`."""
    fit = max(_REGISTER_BYTES // (rows * _sum_bytes(problem)), 1)
    return max(_LEAST_DOT, min(most, 1 << (fit.bit_length() - 1)))


def _sum_bytes(problem: Problem) -> int:
    return 8 if problem.x.dtype == torch.float64 else 4


def _share(width: int, parts: int, multiple: int) -> int:
    """Return how many columns each part takes, a multiple of the block."""
    return -(-width // (parts * multiple)) * multiple


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def _kernels() -> Any:
    from methods.lowrank import triton_kernels

    return triton_kernels


def _sum_type(problem: Problem) -> Any:
    language = _kernels().tl
    return language.float64 if problem.x.dtype == torch.float64 else language.float32


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Make a device the one on which kernels start."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@cache
def _table() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "triton_tuning.json").read_text(encoding="utf-8"))
