"""The page: one HTML file that needs nothing else, works from a file and offline, and shows hostile text as text.

The headline tables are HTML, so that they are read without scripts. Everything else stands once, compactly, as JSON and
is made into tables and figures when somebody looks at it; the figures are the specifications of the SVG files.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import defaultdict
from typing import Any, cast

from datasets_registry.errors import printable
from leaderboard.cost_tables import COST_READING
from leaderboard.figure_style import Spec, Table, drawable, slug
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
from leaderboard.ledger import LEDGER
from leaderboard.markdown import bracketed, failed, failure_lines, reading, skipped_lines, unable
from leaderboard.page_figures import figure_title, packed, palette_of
from leaderboard.page_tables import CONTROL, PageTable, page_tables
from leaderboard.plots import headline_figures
from leaderboard.rows import KernelRow, KernelTiming, Leaderboard
from leaderboard.table_cells import number

_CARD = ("population", "licence", "consent", "heterogeneity", "source", "revision", "citation", "people", "items")
DATASET_CARD = (*_CARD, "comparisons", "ties", "encoder", "simulated", "notes")
_METHOD = ("equation", "citation", "level", "adaptation", "shared_parameters", "per_user_parameters", "cold_start")
METHOD_CARD = (*_METHOD, "needs", "transductive", "deviations", "dist", "version")
# Beyond this the page has the largest budgets alone and says where the others are: with its HTML it is under 3 MB.
MOST_DATA = 2_500_000
LEDGER_COLUMNS = ("number", "date", "event", "method", "dist", "version", "attempt")
KERNEL_COLUMNS = (
    ("Device class", "text", ""),
    ("Threads", "number", ""),
    ("dtype", "text", ""),
    ("Variant", "text", ""),
    ("Shape", "text", ""),
    ("Users", "number", ""),
    ("Tokens", "number", ""),
    ("Routing", "text", ""),
    ("Mode", "text", ""),
    ("Backend", "method", ""),
    ("ms", "number", "median"),
    ("IQR ms", "number", "interquartile range"),
    ("Tokens per s", "number", ""),
    ("Roofline", "number", ""),
    ("Best rival", "text", ""),
    ("Rival's ms", "number", ""),
    ("Ratio", "number", "the fastest rival's median over ours"),
    ("Extra peak bytes", "number", ""),
    ("Run", "text", "the run that it was measured in, see below"),
)


def site(board: Leaderboard) -> str:
    """Return the whole page, scripts and figures inlined; it may run no script but its own."""
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
    cast(Any, environment).filters |= {"number": number, "bracketed": bracketed, "told": told}
    of_tables = headline_figures(board)
    specs = {name: spec for drawn in of_tables.values() for name, spec in drawn.items()}
    kernels = _kernels(board, specs)
    methods = [_flat(method) for method in board.methods]
    titles = {str(m.get("name")): str(m.get("title") or m.get("name")) for m in methods}
    told_of = {
        "titles": titles,
        "kernels": {"columns": KERNEL_COLUMNS, "rows": _kernel_cells(board)},
        "palette": palette_of(specs),
        "figures": packed(specs),
    }
    bundle = script_safe(f"(() => {{{cast(Any, vl_convert).javascript_bundle()}}})();") if specs else ""
    parts = [cast(Any, environment.loader).get_source(environment, name)[0] for name in ("figures.js", "page.js")]
    script = "\n".join(['"use strict";', "(() => {", *parts, "})();", ""])
    for every_budget in (True, False):
        tables = page_tables(board, every_budget=every_budget)
        data = embedded(drawable({"tables": [t.data for t in tables], **told_of}))
        if len(data.encode()) + len(bundle.encode()) < MOST_DATA:
            break
    return environment.get_template("index.html.j2").render(
        board=board,
        datasets=_datasets(tables, of_tables),
        cards={str(c.get("id", c.get("name"))): c for c in board.datasets},
        card_fields=DATASET_CARD,
        methods=methods,
        method_fields=METHOD_CARD,
        titles=titles,
        levels=sorted({r.level for r in board.rows}),
        regimes=list(dict.fromkeys(t.data["regime"] for t in tables)),
        devices=sorted({c.device_class for c in board.costs} | {k.device_class for k in board.kernels}),
        failures=failure_lines(failed(board)),
        skipped=[*failure_lines(unable(board)), *skipped_lines(board.skipped)],
        cost_reading=COST_READING,
        slug=slug,
        reading=reading(board).replace("`", "").replace("*", ""),
        kernels=kernels,
        ledger=_ledger(board.ledger),
        ledger_columns=LEDGER_COLUMNS,
        ledger_file=LEDGER,
        control=CONTROL,
        page_data=data,
        every_budget=every_budget,
        bundle=bundle,
        script=script,
        hashes=" ".join(_allowed(each) for each in (bundle, script) if each),
    )


def _finalized(value: Any) -> Any:
    """Return what the template prints, without control characters; what is already marked as safe stays so."""
    return printable(value) if type(value) is str else value


def _allowed(script: str) -> str:
    """Return the source expression by which a content security policy allows this script and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def embedded(value: Any) -> str:
    r"""Return JSON that may stand inside a script element, whatever text is in it.

    >>> embedded({"a": "</script>"})
    '{"a":"\\u003c/script\\u003e"}'
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    text = text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def script_safe(source: str) -> str:
    """Return library code with nothing in it that would close its script element."""
    return re.sub(r"<(?=/script|!--)", r"\\x3c", source, flags=re.IGNORECASE)


def told(value: Any) -> str:
    """Return a value of a card as it is read.

    >>> told({"index": 0.1, "low": None, "users": 9}), told(["features"]), told(True), told(1234567)
    ('index 0.1, users 9', 'features', 'yes', '1,234,567')
    """
    if isinstance(value, dict):
        return ", ".join(
            f"{str(k).replace('_', ' ')} {told(v)}" for k, v in cast(dict[str, Any], value).items() if v is not None
        )
    if isinstance(value, list | tuple):
        return ", ".join(told(each) for each in cast(list[Any], value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _datasets(tables: list[PageTable], specs: dict[Table, dict[str, Spec]]) -> list[dict[str, Any]]:
    """Return the sections of the page: per dataset its tables, each with its place in the data and its figures."""
    out: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for i, table in enumerate(tables):
        t = table.data
        mine = specs.get((t["dataset"], t["encoder"], t["regime"]), {})
        figures = [(name, figure_title(name, spec)) for name, spec in mine.items()]
        out[t["dataset"]].append({"index": i, "told": t, "rows": table.headline, "figures": figures})
    return [{"name": name, "tables": each} for name, each in out.items()]


def _ledger(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines of the ledger, newest first: the columns of the table, and everything else that they tell."""
    hidden = {*LEDGER_COLUMNS, "schema_version"}
    return [
        {
            "cells": ["–" if (value := entry.get(name)) is None else str(value) for name in LEDGER_COLUMNS],
            "rest": {str(k): _short(v) for k, v in entry.items() if k not in hidden and v is not None and v != []},
        }
        for entry in reversed(entries)
    ]


def _short(value: Any) -> str:
    """Return a value of the ledger as it is read: of digests their beginning, since the file has them whole."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28,52}\b", r"\1…", told(value))


def _kernels(board: Leaderboard, specs: dict[str, Spec]) -> dict[str, Any] | None:
    """Return what the section of kernels shows, and put its figures among `specs`; none without kernels."""
    from leaderboard.kernel_plots import kernel_figures, roofline_figures

    if not board.kernels:
        return None
    drawn: dict[str, Spec] = drawable(roofline_figures(board) | kernel_figures(board))
    specs |= drawn
    devices = [(device_title(device), measured_peaks(rows)) for device, rows in by_device(board.kernels).items()]
    return {
        "reading": KERNEL_READING,
        "devices": devices,
        "summaries": [
            {"row": s, "backend": entrant(s), "mode": mode_title(s.mode), "cells": cells_of(s)}
            for s in board.kernel_summaries
        ],
        "figures": [(name, figure_title(name, spec)) for name, spec in drawn.items()],
        "left_out": left_out(board),
        "cells": sum(t.role == "ours" for row in board.kernels for t in row.timings),
    }


def _kernel_cells(board: Leaderboard) -> list[list[str]]:
    """Return every backend of ours on every cell, as text."""
    return [_kernel_cell(row, ours) for row in board.kernels for ours in row.timings if ours.role == "ours"]


def _kernel_cell(row: KernelRow, ours: KernelTiming) -> list[str]:
    rival = best_rival(row)
    return [
        row.device_class,
        str(row.threads),
        row.dtype,
        row.variant,
        shape(row),
        f"{row.users:,}",
        f"{row.tokens:,}",
        row.routing,
        mode_title(row.mode),
        entrant(ours),
        milliseconds(ours.median_s),
        milliseconds(ours.iqr_s),
        f"{ours.tokens_per_s:,.0f}",
        f"{ours.fraction:.0%}",
        rival.backend if rival else "–",
        milliseconds(rival.median_s) if rival else "–",
        number(ratio_to_best(row, ours), ".3g"),
        number(ours.extra_peak_bytes, ",d"),
        row.run,
    ]


def _flat(method: dict[str, Any]) -> dict[str, Any]:
    """Return a method card with the fields of its spec beside its name."""
    spec = method.get("spec")
    return {**method, **spec} if isinstance(spec, dict) else method
