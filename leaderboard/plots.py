"""Figures as Vega-Lite: one specification serves the page, the SVG and the PNG. Rendered by vl-convert, no browser."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from datasets_registry.atomic_write import write_atomically
from leaderboard import headline_plots
from leaderboard.figure_style import COLOURS, Spec, Table, colour, colours, drawable, method_shape, slug
from leaderboard.kernel_plots import kernel_figures, roofline_figures
from leaderboard.panel import POOLED
from leaderboard.rows import Curve, Leaderboard, Row
from leaderboard.table_cells import people_title

MOST_COLOURS = 7  # more than that, and nobody can tell them apart
BEHIND = "#cfd3d8"
# The names of figures: what of an earlier board is removed, and what is published.
FIGURE_FILE = re.compile(r"(overview|(curve|bytes|memory|people|kernel)-[a-z0-9.-]+)\.(svg|png)")
_TICKS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def figures(board: Leaderboard) -> dict[str, Spec]:
    """Return every figure by file name: of each headline table its curves, people and costs, and of the kernels."""
    out = {name: spec for drawn in headline_figures(board).values() for name, spec in drawn.items()}
    return out | drawable(kernel_figures(board) | roofline_figures(board))


def headline_figures(board: Leaderboard) -> dict[Table, dict[str, Spec]]:
    """Return the figures of each headline table, by (dataset, encoder, regime) and file name."""
    palette = colours(board)
    costs = headline_plots.costs_by_place(board.costs)
    heads: dict[Table, list[Row]] = defaultdict(list)
    for row in board.rows:
        if row.headline:
            heads[row.dataset, row.encoder, row.regime].append(row)
    out: dict[Table, dict[str, Spec]] = {}
    taken: set[str] = set()
    for place, shown in _headline_curves(board).items():
        dataset, encoder, regime = place
        title = f"{dataset}, {people_title(regime)} ({encoder})"
        drawn = {
            "curve": curve_figure(shown, palette, title) if shown else None,
            "people": headline_plots.people_figure(heads[place], palette, title),
            "bytes": headline_plots.bytes_figure(heads[place], costs, palette, title),
        }
        for device_class, figure in headline_plots.memory_figures(heads[place], costs, palette, title).items():
            drawn[f"memory {device_class}"] = figure
        out[place] = {}
        for kind, spec in drawn.items():
            first, _, device_class = kind.partition(" ")
            name = slug("-".join([first, dataset, encoder, regime, *([device_class] if device_class else [])]))
            if name in taken:
                digest = hashlib.sha256(repr((kind, place)).encode()).hexdigest()[:8]
                name = slug(f"{name[:80]}-{digest}")
            if spec:
                taken.add(name)
                out[place][name] = drawable(spec)
    return out


def overview(board: Leaderboard) -> Spec | None:
    """Return the curves of the methods on every dataset, a row each, under one legend: the figure of a README.

    Where there are many methods, those that lead have colours, and the others are grey lines behind them.
    """
    leading = _leading(board)
    palette = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(leading)}
    rows: dict[str, list[Spec]] = defaultdict(list)
    legend = {"orient": "bottom", "columns": 4, "title": None, "symbolType": "circle", "symbolOpacity": 1}
    for (dataset, _, regime), curves in _headline_curves(board).items():
        methods = [c for c in curves if c.role == "method"]
        if not methods:
            continue
        shown = [c for c in methods if c.label in palette] or methods
        panel = curve_figure(shown, palette, f"{dataset}, {regime}")
        layers = [{"mark": layer["mark"], "encoding": dict(layer["encoding"])} for layer in panel["layer"]]
        for layer in layers:
            layer["encoding"].pop("opacity", None)
            layer["encoding"].pop("shape", None)
        x = {**panel["encoding"]["x"]}
        x["axis"] = {**x["axis"], "title": f"{shown[0].axis} (units per person)"}
        behind = [c for c in methods if c.label not in palette]
        # one panel draws the legend that all share
        hues = {**panel["encoding"]["color"], "legend": None if rows else legend}
        encoding = {"x": x, "color": hues}
        layers = [*_behind(behind, palette, layers[1]["encoding"]["y"]), *layers]
        rows[dataset].append({**panel, "width": 300, "height": 190, "encoding": encoding, "layer": layers})
    if not rows:
        return None
    columns = [{"hconcat": panels} for panels in rows.values()]
    return drawable({"vconcat": columns, "resolve": {"scale": {"color": "shared"}}})


def _leading(board: Leaderboard) -> list[str]:
    """Return the labels that have a colour in the overview: all where they are few, else the reference and the best."""
    labels = sorted({c.label for c in board.curves if c.role == "method"})
    if len(labels) <= MOST_COLOURS:
        return labels
    gains: dict[str, list[float]] = defaultdict(list)
    for each in board.overall:
        if each.gain.value is not None and each.label in labels:
            gains[each.label].append(each.gain.value * each.datasets)
    best = sorted(gains, key=lambda label: (label != POOLED, -sum(gains[label])))
    kept = best[:MOST_COLOURS]
    return [label for label in labels if label in kept]


def _behind(curves: Sequence[Curve], palette: dict[str, str], y: Spec) -> list[Spec]:
    """Return the layer of methods without a colour; none where all have one."""
    values: list[Spec] = curve_figure(curves, palette, "")["data"]["values"] if curves else []
    if not values:
        return []
    mark = {"type": "line", "strokeWidth": 1, "color": BEHIND}
    return [
        {
            "data": {"values": values},
            "mark": mark,
            "encoding": {"y": y, "detail": {"field": "method"}, "color": {"value": BEHIND}},
        }
    ]


def _headline_curves(board: Leaderboard) -> dict[Table, list[Curve]]:
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
    labels = [c.label for c in curves]
    hues = colour(labels, palette)
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
        "encoding": {"x": x, "color": hues},
        "layer": [
            {
                # many bands at full strength would be one grey field
                "mark": {"type": "area", "opacity": 0.12 if len(curves) <= 8 else 0.04},
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
                "encoding": {
                    "y": accuracy,
                    "tooltip": tooltip,
                    "opacity": faded,
                    "shape": method_shape(labels, palette),
                },
            },
        ],
    }


def write_plots(board: Leaderboard, folder: Path) -> list[Path]:
    """Write every figure as SVG and PNG; figures of an earlier board that are no longer there are removed."""
    import vl_convert

    written: list[Path] = []
    whole = overview(board)
    for name, spec in {**({"overview": whole} if whole else {}), **figures(board)}.items():
        text = json.dumps({"background": "white", **spec})
        svg = vl_convert.vegalite_to_svg(text)
        write_atomically(folder / f"{name}.svg", svg.encode())
        write_atomically(folder / f"{name}.png", vl_convert.svg_to_png(svg, scale=2))
        written += [folder / f"{name}.svg", folder / f"{name}.png"]
    for stale in folder.glob("*.*"):
        if stale not in written and FIGURE_FILE.fullmatch(stale.name):
            stale.unlink()
    return written
