"""Figures as Vega-Lite: one specification serves the page, the SVG and the PNG. Rendered by vl-convert, no browser."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from datasets_registry.atomic_write import write_atomically
from datasets_registry.errors import printable
from leaderboard.rows import CostRow, Curve, Leaderboard, Row
from leaderboard.table_cells import people_title

Spec = dict[str, Any]
# Okabe and Ito's colours, told apart by colour-blind readers, then variations of lightness.
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#7a5195",
    "#8c6d31",
    "#b22222",
    "#2f4b7c",
    "#66a61e",
    "#a6761d",
)
GREYS = ("#6b6b6b", "#9a9a9a", "#b4b4b4", "#828282", "#4f4f4f", "#c8c8c8")
# The names of figures: what of an earlier board is removed, and what is published.
FIGURE_FILE = re.compile(r"(overview|(curve|bytes|kernel)-[a-z0-9.-]+)\.(svg|png)")
_TICKS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def colours(board: Leaderboard) -> dict[str, str]:
    """Return a colour per label, the same in every figure: colours for methods, greys for controls."""
    roles = {c.label: c.role for c in board.curves}
    methods = sorted(label for label, role in roles.items() if role == "method")
    controls = sorted(label for label, role in roles.items() if role == "control")
    told = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(methods)}
    return told | {label: GREYS[i % len(GREYS)] for i, label in enumerate(controls)}


def figures(board: Leaderboard) -> dict[str, Spec]:
    """Return every figure by file name: curves per dataset and regime, accuracy against bytes per person, kernels."""
    from leaderboard.kernel_plots import kernel_figures

    palette = colours(board)
    out: dict[str, Spec] = {}
    for (dataset, encoder, regime), shown in _headline_curves(board).items():
        if shown:
            title = f"{dataset}, {people_title(regime)} ({encoder})"
            out[slug(f"curve-{dataset}-{encoder}-{regime}")] = curve_figure(shown, palette, title)
        rows = [r for r in board.rows if r.headline and (r.dataset, r.encoder, r.regime) == (dataset, encoder, regime)]
        bytes_figure = _bytes_figure(rows, board.costs, palette, f"{dataset}, {people_title(regime)} ({encoder})")
        if bytes_figure:
            out[slug(f"bytes-{dataset}-{encoder}-{regime}")] = bytes_figure
    return drawable(out | kernel_figures(board))


def overview(board: Leaderboard) -> Spec | None:
    """Return the curves of the methods on every dataset, a row each, under one legend: the figure of a README."""
    palette = colours(board)
    rows: dict[str, list[Spec]] = defaultdict(list)
    legend = {"orient": "bottom", "columns": 4, "title": None, "symbolType": "circle", "symbolOpacity": 1}
    for (dataset, _, regime), curves in _headline_curves(board).items():
        shown = [c for c in curves if c.role == "method"]
        if not shown:
            continue
        panel = curve_figure(shown, palette, f"{dataset}, {regime}")
        layers = [{"mark": layer["mark"], "encoding": dict(layer["encoding"])} for layer in panel["layer"]]
        for layer in layers:
            layer["encoding"].pop("opacity", None)
        x = {**panel["encoding"]["x"]}
        x["axis"] = {**x["axis"], "title": f"{shown[0].axis} (units per person)"}
        # one panel draws the legend that all share
        colour = {**panel["encoding"]["color"], "legend": None if rows else legend}
        encoding = {"x": x, "color": colour}
        rows[dataset].append({**panel, "width": 300, "height": 190, "encoding": encoding, "layer": layers})
    if not rows:
        return None
    columns = [{"hconcat": panels} for panels in rows.values()]
    return drawable({"vconcat": columns, "resolve": {"scale": {"color": "shared"}}})


def drawable(value: Any) -> Any:
    r"""Return a specification without control characters in its text: the renderer ends the process at one of them.

    >>> drawable({"title": ["a\x00b"]})
    {'title': ['ab']}
    """
    if isinstance(value, dict):
        return {printable(key): drawable(each) for key, each in cast(dict[str, Any], value).items()}
    if isinstance(value, list | tuple):
        return [drawable(each) for each in cast(list[Any], value)]
    return printable(value) if isinstance(value, str) else value


def _headline_curves(board: Leaderboard) -> dict[tuple[str, str, str], list[Curve]]:
    """Return by (dataset, encoder, regime) the curves at the headline's setting that have more than one point."""
    heads = {(r.dataset, r.encoder, r.regime): r for r in board.rows if r.headline}
    return {
        place: [
            c
            for c in board.curves
            if (c.dataset, c.encoder, c.regime) == place
            and c.n_users == head.n_users
            and c.imbalance == head.imbalance
            and c.n_train in (None, head.n_train)
            and len(c.points) > 1
        ]
        for place, head in heads.items()
    }


def curve_figure(curves: Sequence[Curve], palette: dict[str, str], title: str) -> Spec:
    """Return accuracy with its interval over log2(1 + n); controls are dashed."""
    values = [
        {
            "method": c.label,
            "kind": c.role,
            "n": p.n_mean,
            "budget": str(p.n),
            "accuracy": p.acc_macro.value,
            "low": p.acc_macro.low,
            "high": p.acc_macro.high,
        }
        for c in curves
        for p in c.points
        if p.acc_macro.value is not None
    ]
    largest = max((p.n_mean for c in curves for p in c.points), default=1.0)
    ticks = [t for t in _TICKS if t <= largest * 1.1]
    axis = curves[0].axis if curves else "n"
    x: Spec = {
        "field": "n",
        "type": "quantitative",
        "scale": {"type": "symlog", "constant": 1, "nice": False},
        "axis": {"values": ticks, "title": f"{axis}: units per person, on a scale of log2(1 + n)", "format": "d"},
    }
    colour = _colour([c.label for c in curves], palette)
    dash = {"field": "kind", "scale": {"domain": ["method", "control"], "range": [[1, 0], [4, 3]]}, "legend": None}
    faded = {"condition": {"param": "chosen", "value": 1}, "value": 0.12}
    accuracy = {"field": "accuracy", "type": "quantitative", "scale": {"zero": False}, "axis": {"title": "accuracy"}}
    tooltip = [{"field": f} for f in ("method", "budget")] + [
        {"field": f, "format": ".3f"} for f in ("accuracy", "low", "high")
    ]
    return {
        "title": title,
        "data": {"values": values},
        "width": 420,
        "height": 260,
        "encoding": {"x": x, "color": colour},
        "layer": [
            {
                "mark": {"type": "area", "opacity": 0.1},
                "transform": [{"filter": {"param": "chosen"}}],
                "encoding": {
                    "y": {"field": "low", "type": "quantitative", "title": "accuracy"},
                    "y2": {"field": "high"},
                },
            },
            {
                "mark": {"type": "line", "strokeWidth": 2},
                "encoding": {"y": accuracy, "strokeDash": dash, "opacity": faded},
            },
            {
                "params": [{"name": "chosen", "select": {"type": "point", "fields": ["method"]}, "bind": "legend"}],
                "mark": {"type": "point", "filled": True, "size": 36},
                "encoding": {"y": accuracy, "tooltip": tooltip, "opacity": faded},
            },
        ],
    }


def _bytes_figure(rows: Sequence[Row], costs: Sequence[CostRow], palette: dict[str, str], title: str) -> Spec | None:
    """Return accuracy against the bytes stored per person, where it is known of at least two rows."""
    place = {
        (c.label, c.dataset, c.encoder, c.regime, c.n_train, c.n_support, c.n_users, c.imbalance): c for c in costs
    }
    values: list[Spec] = []
    for r in rows:
        cost = place.get((r.label, r.dataset, r.encoder, r.regime, r.n_train, r.n_support, r.n_users, r.imbalance))
        if cost and cost.state_bytes_per_user is not None and r.acc_macro.value is not None:
            each = {"method": r.label, "bytes": cost.state_bytes_per_user, "accuracy": r.acc_macro.value}
            values.append({**each, "low": r.acc_macro.low, "high": r.acc_macro.high})
    if len(values) < 2:
        return None
    x = {
        "field": "bytes",
        "type": "quantitative",
        "scale": {"type": "symlog", "constant": 1},
        "axis": {"format": "~s", "grid": False, "values": [0, *(4**i for i in range(1, 16))]},
    }
    x["title"] = "bytes stored per person (log scale)"
    y = {"type": "quantitative", "scale": {"zero": False}, "title": "accuracy"}
    tooltip = [{"field": "method"}, {"field": "bytes", "format": ","}, {"field": "accuracy", "format": ".3f"}]
    return {
        "title": title,
        "data": {"values": values},
        "width": 420,
        "height": 260,
        "encoding": {"x": x, "color": _colour([r.label for r in rows], palette)},
        "layer": [
            {
                "mark": {"type": "rule", "opacity": 0.4},
                "encoding": {"y": {"field": "low", **y}, "y2": {"field": "high"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 70},
                "encoding": {"y": {"field": "accuracy", **y}, "tooltip": tooltip},
            },
        ],
    }


def _colour(labels: Sequence[str], palette: dict[str, str]) -> Spec:
    domain = [label for label in palette if label in set(labels)]
    scale = {"domain": domain, "range": [palette[label] for label in domain]}
    legend = {"title": None, "symbolType": "circle", "symbolOpacity": 1, "labelLimit": 240}
    return {"field": "method", "type": "nominal", "scale": scale, "legend": legend}


def write_plots(board: Leaderboard, folder: Path) -> list[Path]:
    """Write every figure as SVG and PNG; figures of an earlier board that are no longer there are removed."""
    import vl_convert

    written: list[Path] = []
    whole = overview(board)
    for name, spec in {**({"overview": whole} if whole else {}), **figures(board)}.items():
        text = json.dumps({"background": "white", **spec})
        write_atomically(folder / f"{name}.svg", vl_convert.vegalite_to_svg(text).encode())
        write_atomically(folder / f"{name}.png", vl_convert.vegalite_to_png(text, scale=2))
        written += [folder / f"{name}.svg", folder / f"{name}.png"]
    for stale in folder.glob("*.*"):
        if stale not in written and FIGURE_FILE.fullmatch(stale.name):
            stale.unlink()
    return written


def slug(text: str) -> str:
    """Return a file name; a long one is cut and told apart by a digest.

    >>> slug("curve-electricity@1-tabular@1-seen")
    'curve-electricity-1-tabular-1-seen'
    """
    plain = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
    return plain if len(plain) <= 100 else f"{plain[:90]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def by_dataset(board: Leaderboard) -> dict[str, list[Row]]:
    """Return the rows of each dataset, in order."""
    out: dict[str, list[Row]] = defaultdict(list)
    for row in board.rows:
        out[row.dataset].append(row)
    return dict(out)
