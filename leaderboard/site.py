"""The page: one HTML file that needs nothing else, works from a file and offline, and shows hostile text as text."""

from __future__ import annotations

import json
import re
from typing import Any, cast

from datasets_registry.errors import printable
from leaderboard.cost_tables import COST_READING, cost_columns, several_encoders
from leaderboard.kernel_plots import left_out
from leaderboard.kernel_summaries import best_rival
from leaderboard.kernel_tables import (
    KERNEL_READING,
    by_device,
    cells_of,
    device_title,
    entrant,
    measured_peaks,
    milliseconds,
    mode_title,
    ratio_to_best,
    shape,
)
from leaderboard.markdown import (
    bracketed,
    budgets_at_gain,
    failed,
    failure_lines,
    measured,
    notes,
    reading,
    skipped_lines,
    unable,
)
from leaderboard.plots import by_dataset, figures, slug
from leaderboard.rows import Leaderboard, Row
from leaderboard.table_cells import number

COLUMNS: tuple[tuple[str, str, str, str], ...] = (
    ("acc_macro", "Accuracy", ".3f", "mean over people of the mean over their units"),
    ("gain", "Gain", "+.3f", "paired difference to pooled Bradley-Terry on the same features"),
    ("worst10", "Worst 10 %", ".3f", "accuracy of the lowest tenth of people, cross-fitted"),
    ("harm", "Harm", ".0%", "share of people worse than pooled by more than one standard error"),
    ("specificity", "Specificity", "+.3f", "accuracy lost with another person's state"),
    ("aulc", "AULC", ".3f", "area under accuracy over log2(1 + n), normalised"),
    ("n_at_gain", "n@gain", "g", "least data per person with a gain of a point, interval above 0"),
    ("nll_t", "NLL (T)", ".3f", "log loss after one temperature fitted on validation"),
    ("ece_t", "ECE (T)", ".3f", "calibration error after one temperature"),
    ("regret", "Regret", ".3f", "best-of-n regret against the true utilities (simulated data)"),
    ("closed_gap", "Gap closed", ".0%", "share of the way from pooled to the oracle (simulated data)"),
)


def site(board: Leaderboard) -> str:
    """Return the whole page, scripts and figures inlined."""
    import vl_convert
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("leaderboard"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalized,
    )
    cast(Any, environment).filters |= {"number": number, "bracketed": bracketed}
    specs = figures(board)
    cards = [_flat(method) for method in board.methods]
    return environment.get_template("index.html.j2").render(
        board=board,
        columns=COLUMNS,
        datasets=[_dataset(name, rows, specs) for name, rows in by_dataset(board).items()],
        cards={str(c.get("id", c.get("name"))): c for c in board.datasets},
        methods=cards,
        titles={str(m.get("name")): str(m.get("title", m.get("name"))) for m in cards},
        notes=notes,
        measured=measured,
        at_gain=budgets_at_gain(board),
        failures=failure_lines(failed(board)),
        skipped=[*failure_lines(unable(board)), *skipped_lines(board.skipped)],
        cost_columns=cost_columns(board.costs),
        cost_reading=COST_READING,
        several=several_encoders(board.costs),
        whisker=whisker,
        slug=slug,
        reading=reading(board).replace("`", "").replace("*", ""),
        kernels=_kernels(board, specs),
        figures=embedded(specs),
        bundle=script_safe(cast(Any, vl_convert).javascript_bundle() if specs else ""),
    )


def _finalized(value: Any) -> Any:
    """Return what the template prints, without control characters; what is already marked as safe stays so."""
    return printable(value) if type(value) is str else value


def embedded(value: Any) -> str:
    r"""Return JSON that may stand inside a script element, whatever text is in it.

    >>> embedded({"a": "</script>"})
    '{"a":"\\u003c/script\\u003e"}'
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def script_safe(source: str) -> str:
    """Return library code with nothing in it that would close its script element."""
    return re.sub(r"<(?=/script|!--)", r"\\x3c", source, flags=re.IGNORECASE)


def whisker(row: Row) -> dict[str, float] | None:
    """Return where the 5, 25, 50, 75 and 95 % points of people's accuracy stand in a strip that is 100 wide."""
    if len(row.people) != 5:
        return None
    return dict(zip(("p5", "p25", "p50", "p75", "p95"), (round(100 * p, 1) for p in row.people), strict=True))


def _dataset(name: str, rows: list[Row], specs: dict[str, Any]) -> dict[str, Any]:
    mine = {f"{kind}-{r.dataset}-{r.encoder}-{r.regime}" for r in rows for kind in ("curve", "bytes")}
    shown = [c for c in COLUMNS if any(getattr(r, c[0]).value is not None for r in rows)]
    names = sorted((slug(m) for m in mine), key=lambda s: (not s.startswith("curve"), s))
    return {"name": name, "rows": rows, "columns": shown, "figures": [s for s in names if s in specs]}


def _kernels(board: Leaderboard, specs: dict[str, Any]) -> dict[str, Any] | None:
    """Return what the section of kernels shows: every backend of ours on every cell, runs, figures; none without."""
    if not board.kernels:
        return None
    devices = [(device_title(device), measured_peaks(rows)) for device, rows in by_device(board.kernels).items()]
    cells = [
        {
            "row": row,
            "ours": ours,
            "backend": entrant(ours),
            "shape": shape(row),
            "mode": mode_title(row.mode),
            "rival": best_rival(row),
            "ratio": ratio_to_best(row, ours),
        }
        for row in board.kernels
        for ours in row.timings
        if ours.role == "ours"
    ]
    return {
        "reading": KERNEL_READING,
        "devices": devices,
        "summaries": [
            {"row": s, "backend": entrant(s), "mode": mode_title(s.mode), "cells": cells_of(s)}
            for s in board.kernel_summaries
        ],
        "cells": cells,
        "ms": milliseconds,
        "figures": sorted(name for name in specs if name.startswith("kernel-")),
        "left_out": left_out(board),
    }


def _flat(method: dict[str, Any]) -> dict[str, Any]:
    """Return a method card with the fields of its spec beside its name."""
    spec = method.get("spec")
    return {**method, **spec} if isinstance(spec, dict) else method
