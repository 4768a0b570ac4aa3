"""The kernels of a board as Markdown, for a README or a pull request, and as plain text for a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from datasets_registry.errors import printable
from leaderboard.kernel_summaries import best_rival
from leaderboard.rows import KernelRow, KernelSummary, KernelTiming, Leaderboard
from leaderboard.table_cells import escaped, number, table_line

START, END = "<!-- hetpref kernels -->", "<!-- /hetpref kernels -->"
NONE = "No kernels were measured for this board."
BUFFERS = """A backend named "(buffers)" writes into buffers that are kept from call to call, which no rival does: its
ratio is not of like with like."""
KERNEL_READING = f"""A cell is a shape, a routing of rows to users and a mode; every backend was timed on it in one run.
Against the best rival: the fastest rival's median time over ours, above 1 where ours is faster, as the geometric mean
over cells, with the worst cell beside it. Roofline: the share of the speed that this machine allows, by the greater of
the least FLOPs over its matrix-product rate and the least bytes over its memory bandwidth, both measured in that run;
above 100% what was read came from a cache. Rows and dense say which gradients of the factors were made, of active users
or of all. {BUFFERS} Compare only within one device class."""
_MODES = {"forward": "forward", "backward": "backward", "both": "forward+backward"}
_SUMMARY = ("dtype", "variant", "mode", "backend", "cells", "against the best rival", "worst cell", "roofline")
_CELLS = ("dtype", "variant", "shape", "routing", "mode", "ours", "ms", "roofline", "best rival", "rival's ms", "ratio")
_TEXT = frozenset({"dtype", "variant", "shape", "routing", "mode", "backend", "ours", "best rival", "worst cell"})
Device = tuple[str, str, int]


def kernel_sections(board: Leaderboard) -> list[str]:
    """Return the section of `leaderboard.md`: per device a table of backends and one of cells; none without kernels."""
    if not board.kernels:
        return []
    out = ["## Kernels", "", KERNEL_READING, ""]
    for device, rows in by_device(board.kernels).items():
        summaries = [s for s in board.kernel_summaries if (s.device_class, s.device, s.threads) == device]
        out += [f"### {escaped(device_title(device))}", "", escaped(measured_peaks(rows)), ""]
        out += [*_summary_table(summaries), ""] if summaries else []
        out += [*_cell_table(rows), ""]
    return [*out, *run_lines(board), ""]


def kernel_text(board: Leaderboard) -> list[str]:
    """Return a line per device, and per backend of ours, for a terminal."""
    out: list[str] = []
    for device in by_device(board.kernels):
        out.append(printable(f"kernels on {device_title(device)}, against the best rival of each cell:"))
        for s in board.kernel_summaries:
            if (s.device_class, s.device, s.threads) == device:
                told = f"{s.ratio:.3g}x over {cells_of(s)}" if s.ratio is not None else f"no rival in {cells_of(s)}"
                told += f", worst {s.worst.ratio:.3g}x at {s.worst.cell}" if s.worst else ""
                where = f"{s.variant}, {s.dtype}, {mode_title(s.mode)}"
                out.append(printable(f"  {where}: {entrant(s)}: {told}; {s.fraction:.0%} of the roofline"))
        out.append("")
    return out


def kernels_block(board: Leaderboard) -> str:
    """Return the kernels as they stand in a README, with a final newline: a table of backends per device."""
    if not board.kernels:
        return NONE + "\n"
    parts: list[str] = []
    for device, rows in by_device(board.kernels).items():
        summaries = [s for s in board.kernel_summaries if (s.device_class, s.device, s.threads) == device]
        parts += [f"**{escaped(device_title(device))}** ({escaped(measured_peaks(rows))})", ""]
        parts += [*_summary_table(summaries, each_rival=False), ""]
    if any(s.backend.endswith("(buffers)") for s in board.kernel_summaries):
        parts += [BUFFERS, ""]
    if any(run.dirty for run in board.kernel_runs):
        parts.append("Measured on a tree with uncommitted changes.")
    return "\n".join(parts).rstrip() + "\n"


def by_device(rows: Sequence[KernelRow]) -> dict[Device, list[KernelRow]]:
    """Return kernel rows by device class, device and number of threads, in order."""
    out: dict[Device, list[KernelRow]] = defaultdict(list)
    for row in rows:
        out[row.device_class, row.device, row.threads].append(row)
    return dict(out)


def device_title(device: Device) -> str:
    """Return a device in words.

    >>> device_title(("cpu-x86_64", "cpu", 1))
    'cpu-x86_64 (cpu), 1 thread'
    """
    device_class, name, threads = device
    return f"{device_class} ({name}), {threads} thread{'' if threads == 1 else 's'}"


def measured_peaks(rows: Sequence[KernelRow]) -> str:
    """Return the rates that the rooflines of some rows stand on, per dtype, as a range where they differ."""
    told: list[str] = []
    for dtype in sorted({row.dtype for row in rows}):
        some = [row for row in rows if row.dtype == dtype]
        flops = _range([row.gemm_flops_per_s / 1e9 for row in some])
        told.append(f"{dtype}: matrix product {flops} GFLOP/s, memory {_range(_bandwidths(some))} GB/s")
    return "; ".join(told)


def mode_title(mode: str) -> str:
    """Return a mode in words."""
    return _MODES[mode]


def entrant(timed: KernelTiming | KernelSummary) -> str:
    """Return a backend, with the gradients it made where there are any."""
    return f"{timed.backend}, {timed.grad}" if timed.grad else timed.backend


def shape(row: KernelRow) -> str:
    """Return the shape of a cell in the notation of the figures to reach."""
    across = f"{row.d_in}^2" if row.d_in == row.d_out else f"{row.d_in} to {row.d_out}"
    return f"{across}, r {row.rank}, U {row.users}, T {row.tokens}"


def milliseconds(seconds: float) -> str:
    """Return a time in ms with three digits.

    >>> milliseconds(0.000123456), milliseconds(1.23456)
    ('0.123', '1,235')
    """
    told = 1000 * seconds
    return f"{told:,.0f}" if told >= 100 else f"{told:.3g}"


def ratio_to_best(row: KernelRow, ours: KernelTiming) -> float | None:
    """Return the fastest rival's median over that of one of ours, or none where there is no rival."""
    rival = best_rival(row)
    return rival.median_s / ours.median_s if rival else None


def cells_of(summary: KernelSummary) -> str:
    """Return how many cells a summary is of, and how many of them had a rival where not all had."""
    some = "" if summary.compared in (0, summary.cells) else f" ({summary.compared} with a rival)"
    return f"{summary.cells} cell{'' if summary.cells == 1 else 's'}{some}"


def run_lines(board: Leaderboard) -> list[str]:
    """Return a line per run that kernels came from: what it ran with, and on which commit."""
    out: list[str] = []
    for run in board.kernel_runs:
        packages = ", ".join(f"{name} {version}" for name, version in run.packages.items())
        tree = f"commit {run.commit[:12] if run.commit else 'unknown'}"
        tree += ", with uncommitted changes" if run.dirty else ""
        out.append(
            f"- run {escaped(run.run)}: {run.cells} cells, python {escaped(f'{run.python}, {packages}; {tree}')}"
        )
    return out


def _summary_table(summaries: Sequence[KernelSummary], *, each_rival: bool = True) -> list[str]:
    rivals = sorted({r.backend for s in summaries for r in s.rivals}) if each_rival else []
    head = [*_SUMMARY, *(f"against {name}" for name in rivals)]
    out = [table_line(map(escaped, head)), _rule(head)]
    for s in summaries:
        worst = f"{s.worst.ratio:.3g}: {s.worst.cell} ({s.worst.rival})" if s.worst else "–"
        own = (s.dtype, s.variant, mode_title(s.mode), entrant(s), cells_of(s).split(" cell")[0])
        against = {r.backend: r.ratio for r in s.rivals}
        cells = [*own, number(s.ratio, ".3g"), worst, number(s.fraction, ".0%")]
        out.append(table_line(map(escaped, [*cells, *(number(against.get(name), ".3g") for name in rivals)])))
    return out


def _cell_table(rows: Sequence[KernelRow]) -> list[str]:
    """Return a line per cell and mode, with the fastest of ours and of the rivals."""
    out = [table_line(_CELLS), _rule(_CELLS)]
    for row in rows:
        place = [row.dtype, row.variant, shape(row), row.routing, mode_title(row.mode)]
        ours = min((t for t in row.timings if t.role == "ours"), key=lambda t: t.median_s, default=None)
        rival = best_rival(row)
        mine = [entrant(ours), milliseconds(ours.median_s), f"{ours.fraction:.0%}"] if ours else ["–"] * 3
        theirs = [rival.backend, milliseconds(rival.median_s)] if rival else ["–"] * 2
        ratio = number(ratio_to_best(row, ours) if ours else None, ".3g")
        out.append(table_line(map(escaped, [*place, *mine, *theirs, ratio])))
    return out


def _rule(head: Sequence[str]) -> str:
    return table_line("---" if name in _TEXT else "---:" for name in head)


def _bandwidths(rows: Sequence[KernelRow]) -> list[float]:
    return [row.bandwidth_bytes_per_s / 1e9 for row in rows]


def _range(values: Sequence[float]) -> str:
    low, high = (f"{value:.3g}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
