"""The rows and the kernels' timings as comma-separated values, for spreadsheets and notebooks."""

from __future__ import annotations

import csv
import io

from leaderboard.metrics import METRICS
from leaderboard.rows import Interval, KernelRow, KernelTiming, Leaderboard

_PLACE = (
    "dataset",
    "encoder",
    "regime",
    "n_train",
    "n_support",
    "n_users",
    "imbalance",
    "label",
    "role",
    "level",
    "badge",
    "transductive",
)


def to_csv(board: Leaderboard) -> str:
    """Return a line per row; each metric has its value, and low and high beside it.

    Text that a spreadsheet would take for a formula is led by an apostrophe.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [*_PLACE, "tier", "rank", "imputed", *(f"{m}{end}" for m in METRICS for end in ("", "_low", "_high"))]
    )
    for row in board.rows:
        cells: list[object] = [_safe(getattr(row, name)) for name in _PLACE]
        cells += [row.tier, row.rank.value if row.rank else None, row.imputed]
        for name in METRICS:
            each: Interval = getattr(row, name)
            cells += [each.value, each.low, each.high]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return out.getvalue()


def kernels_csv(board: Leaderboard) -> str:
    """Return a line per timing of a kernel, each with its cell; seconds, bytes and FLOPs as they are."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    cell = [name for name in KernelRow.model_fields if name != "timings"]
    # A timing tells its own floor where that is not the cell's.
    timed = [name for name in KernelTiming.model_fields if name != "floor_s"]
    writer.writerow([*cell, *timed])
    for row in board.kernels:
        for each in row.timings:
            told = {**dict(row), **dict(each), "floor_s": each.floor_s or row.floor_s}
            cells = (_safe(told[name]) for name in (*cell, *timed))
            writer.writerow(["" if value is None else value for value in cells])
    return out.getvalue()


def _safe(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t") else value
