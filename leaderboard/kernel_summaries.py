"""Kernels in few numbers: each backend of ours against every rival, within one device, and against the roofline."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from leaderboard.rows import KernelRatio, KernelRow, KernelSummary, KernelTiming, KernelWorst, significant

MODES = ("forward", "backward", "both")


def summarised(rows: Sequence[KernelRow]) -> list[KernelSummary]:
    """Return how each backend of ours did, per device, kernel, dtype, variant and mode."""
    groups: dict[tuple[Any, ...], list[tuple[KernelRow, KernelTiming]]] = defaultdict(list)
    for row in rows:
        device = (row.device_class, row.device, row.threads)
        for each in row.timings:
            if each.role == "ours":
                place = (*device, row.kernel, row.dtype, row.variant, MODES.index(row.mode))
                groups[*place, each.backend, each.grad or ""].append((row, each))
    return [_summary(members) for _, members in sorted(groups.items())]


def _summary(members: Sequence[tuple[KernelRow, KernelTiming]]) -> KernelSummary:
    row, ours = members[0]
    against: dict[str, list[float]] = defaultdict(list)
    best: list[KernelWorst] = []
    for cell, mine in members:
        rivals = fastest_of_each(cell)
        for name, rival in rivals.items():
            against[name].append(rival.median_s / mine.median_s)
        if rivals:
            first = min(rivals.values(), key=lambda t: (t.median_s, t.backend))
            ratio = significant(first.median_s / mine.median_s)
            best.append(KernelWorst(ratio=ratio, cell=cell.cell, rival=first.backend))
    errors = [t.error for _, t in members if t.error is not None]
    repeated = [t.repeatable for _, t in members if t.repeatable is not None]
    return KernelSummary(
        kernel=row.kernel,
        device_class=row.device_class,
        device=row.device,
        threads=row.threads,
        dtype=row.dtype,
        variant=row.variant,
        mode=row.mode,
        backend=ours.backend,
        grad=ours.grad,
        cells=len(members),
        compared=len(best),
        ratio=geometric_mean([each.ratio for each in best]) if best else None,
        worst=min(best, key=lambda each: (each.ratio, each.cell)) if best else None,
        rivals=[
            KernelRatio(backend=name, cells=len(ratios), ratio=geometric_mean(ratios))
            for name, ratios in sorted(against.items())
        ],
        fraction=significant(statistics.median(t.fraction for _, t in members)),
        error=max(errors, default=None),
        repeatable=all(repeated) if repeated else None,
    )


def fastest_of_each(row: KernelRow) -> dict[str, KernelTiming]:
    """Return the rivals of a cell by backend, each with the faster of its gradients."""
    out: dict[str, KernelTiming] = {}
    for each in row.timings:
        if each.role == "rival" and (each.backend not in out or each.median_s < out[each.backend].median_s):
            out[each.backend] = each
    return out


def best_rival(row: KernelRow) -> KernelTiming | None:
    """Return the fastest rival of a cell, or none where no rival was timed."""
    return min(fastest_of_each(row).values(), key=lambda t: (t.median_s, t.backend), default=None)


def geometric_mean(ratios: Sequence[float]) -> float:
    """Return the geometric mean, to four digits.

    >>> geometric_mean([2.0, 8.0])
    4.0
    """
    return significant(math.exp(math.fsum(map(math.log, ratios)) / len(ratios)))
