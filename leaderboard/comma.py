"""The rows as comma-separated values, for spreadsheets and notebooks."""

from __future__ import annotations

import csv
import io

from leaderboard.metrics import METRICS
from leaderboard.rows import Interval, Leaderboard

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


def _safe(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t") else value
