"""Figures of kernels: rooflines, and throughput and share of the roofline against users and tokens, a line a backend.

A line joins cells that differ in the axis alone or, where a grid has too few of those, in rank and routing, too: then
the title says so, and the share of the roofline has the difference in its floor. At a point all backends had one cell.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Literal

from datasets_registry.errors import printable
from leaderboard.figure_style import COLOURS, GREYS, Spec, slug
from leaderboard.kernel_summaries import best_rival
from leaderboard.kernel_tables import device_title, entrant, mode_title
from leaderboard.rows import KernelRow, KernelTiming, Leaderboard, significant

Axis = Literal["users", "tokens"]
Place = tuple[str, str, int, str, str, str, str]
MAX_FIGURES = 40
MAX_ROOFLINES = 12
ROOF, RIVAL = "#808890", "fastest rival"
_DASHES = {"ours": [1, 0], "rival": [6, 3], "anchor": [1, 3]}
_OTHERS: dict[Axis, Axis] = {"users": "tokens", "tokens": "users"}


def kernel_figures(board: Leaderboard) -> dict[str, Spec]:
    """Return a figure per device, dtype, variant and mode by file name, where cells differ in users or in tokens.

    Of many these are the first `MAX_FIGURES`, in the order of rows.
    """
    drawn = _groups(board)
    names = [_file_name(place) for place, _, _ in drawn]
    often = Counter(names)
    out: dict[str, Spec] = {}
    for name, (place, panels, rows) in list(zip(names, drawn, strict=True))[:MAX_FIGURES]:
        digest = hashlib.sha256(repr(place).encode()).hexdigest()[:8]
        out[name if often[name] == 1 else slug(f"{name}-{digest}")] = _figure(panels, rows, _title(place))
    return out


def roofline_figures(board: Leaderboard) -> dict[str, Spec]:
    """Return the roofline of each device and dtype: the rate of ours and of the best rival in every cell, under it.

    The roof is the fastest that was measured there. Of many these are the first `MAX_ROOFLINES`, in the order of rows.
    """
    groups: dict[tuple[str, str, int, str], list[KernelRow]] = defaultdict(list)
    for row in board.kernels:
        groups[row.device_class, row.device, row.threads, row.dtype].append(row)
    out: dict[str, Spec] = {}
    for (device_class, device, threads, dtype), rows in list(groups.items())[:MAX_ROOFLINES]:
        title = f"Roofline, {dtype}, on {device_title((device_class, device, threads))}"
        name = slug(f"kernel-roofline-{dtype}-{device_class}-{device}-{threads}")
        if name in out:
            digest = hashlib.sha256(repr((device, dtype)).encode()).hexdigest()[:8]
            name = slug(f"{name[:80]}-{digest}")
        out[name] = _roofline(rows, title)
    return out


def _roofline(rows: Sequence[KernelRow], title: str) -> Spec:
    """Return FLOP/s over FLOPs per byte on two logarithmic scales, with the roof over them."""
    told: list[tuple[KernelRow, KernelTiming]] = []
    for row in rows:
        ours = min((t for t in row.timings if t.role == "ours"), key=lambda t: t.median_s, default=None)
        told += [(row, each) for each in (ours, best_rival(row)) if each and row.flops and row.bytes]
    values: list[Spec] = [
        {
            "who": entrant(each) if each.role == "ours" else RIVAL,
            "backend": entrant(each),
            "mode": mode_title(row.mode),
            "FLOPs per byte": significant(row.flops / row.bytes),
            "FLOP/s": significant(row.flops / each.median_s),
            "cell": row.cell,
        }
        for row, each in told
    ]
    bandwidth, peak = max(r.bandwidth_bytes_per_s for r in rows), max(r.gemm_flops_per_s for r in rows)
    ends = [v["FLOPs per byte"] for v in values] + [peak / bandwidth]
    corners = sorted({min(ends) / 1.5, peak / bandwidth, max(ends) * 1.5})
    roof = [{"FLOPs per byte": significant(x), "FLOP/s": significant(min(peak, x * bandwidth))} for x in corners]
    scale: Spec = {"type": "log", "nice": False}
    x: Spec = {
        "field": "FLOPs per byte",
        "type": "quantitative",
        "scale": scale,
        "axis": {"format": "~g", "grid": False},
    }
    y: Spec = {
        "field": "FLOP/s",
        "type": "quantitative",
        "scale": {"type": "log"},
        "axis": {"format": "~s", "grid": False},
    }
    x["axis"], y["axis"] = {"format": "~g", "grid": False}, {"format": "~s", "grid": False}
    tooltip: list[Spec] = [{"field": f} for f in ("backend", "mode", "cell")] + [{"field": "FLOP/s", "format": ".3s"}]
    mine = sorted({entrant(each) for _, each in told if each.role == "ours"})
    shades = {"domain": [*mine, RIVAL], "range": [*(COLOURS[i % len(COLOURS)] for i in range(len(mine))), GREYS[1]]}
    shape: Spec = {"field": "mode", "type": "nominal", "legend": {"title": None, "symbolFillColor": "#828282"}}
    return {
        "title": title,
        "width": 420,
        "height": 300,
        "encoding": {"x": x, "y": y},
        "layer": [
            {"data": {"values": roof}, "mark": {"type": "line", "color": ROOF, "strokeWidth": 2}},
            {
                "data": {"values": values},
                "mark": {"type": "point", "filled": True, "size": 40, "opacity": 0.75},
                "encoding": {
                    "color": {"field": "who", "type": "nominal", "scale": shades, "legend": {"title": None}},
                    "shape": shape,
                    "tooltip": tooltip,
                },
            },
        ],
    }


def left_out(board: Leaderboard) -> str | None:
    """Return in words which figures are not drawn because there are too many, or none."""
    titles = [_title(place) for place, _, _ in _groups(board)[MAX_FIGURES:]]
    if not titles:
        return None
    figures_are = "1 figure of kernels is" if len(titles) == 1 else f"{len(titles)} figures of kernels are"
    return printable(f"{figures_are} not drawn, since there are more than {MAX_FIGURES}; the first is {titles[0]}")


def _groups(board: Leaderboard) -> list[tuple[Place, dict[Axis, list[KernelRow]], list[KernelRow]]]:
    """Return what figures are of: the place, the cells of each axis that has a line, and all rows there."""
    groups: dict[Place, list[KernelRow]] = defaultdict(list)
    for row in board.kernels:
        device = (row.device_class, row.device, row.threads)
        groups[*device, row.kernel, row.dtype, row.variant, row.mode].append(row)
    out: list[tuple[Place, dict[Axis, list[KernelRow]], list[KernelRow]]] = []
    for place, rows in groups.items():
        panels: dict[Axis, list[KernelRow]] = {
            axis: cells for axis in _OTHERS if len(cells := longest_slice(rows, axis)) > 1
        }
        if panels:
            out.append((place, panels, rows))
    return out


def _file_name(place: Place) -> str:
    device_class, device, threads, kernel, dtype, variant, mode = place
    return slug(f"kernel-{kernel}-{dtype}-{variant}-{mode}-{device_class}-{device}-{threads}")


def _title(place: Place) -> str:
    device_class, device, threads, kernel, dtype, variant, mode = place
    return f"{kernel}, {variant}, {dtype}, {mode_title(mode)}, on {device_title((device_class, device, threads))}"


def longest_slice(rows: Sequence[KernelRow], axis: Axis) -> list[KernelRow]:
    """Return the cells that differ in users, or in tokens, alone: of all such sets one with the most of them.

    Where a set that also differs in rank and routing has more, it is that one. Of several of one length it is the
    largest: the one with more of the other axis, and of larger matrices.
    """
    return max(_slices(rows, axis, 5), _slices(rows, axis, 3), key=len)


def _slices(rows: Sequence[KernelRow], axis: Axis, fixed: int) -> list[KernelRow]:
    """Return the longest set of cells that agree in the first `fixed` of shape, rank and routing, by the axis."""
    found: dict[tuple[Any, ...], dict[int, KernelRow]] = defaultdict(dict)
    for row in rows:
        rest = (getattr(row, _OTHERS[axis]), row.d_in, row.d_out, row.rank, row.routing)[:fixed]
        found[rest].setdefault(getattr(row, axis), row)
    rest = max(found, key=lambda rest: (len(found[rest]), rest))
    return [row for n, row in sorted(found[rest].items()) if n > 0]


def _figure(panels: dict[Axis, list[KernelRow]], rows: Sequence[KernelRow], title: str) -> Spec:
    """Return a column of two panels per axis, throughput over the share of the roofline, under one legend."""
    timings = {entrant(t): t for row in rows for t in row.timings}
    colour = _colour(timings)
    columns: list[Spec] = []
    for axis, cells in panels.items():
        values = [
            {
                "backend": entrant(t),
                "role": t.role,
                axis: getattr(row, axis),
                "tokens per second": t.tokens_per_s,
                "share of the roofline": t.fraction,
                "ms": 1000 * t.median_s,
                "cell": row.cell,
            }
            for row in cells
            for t in row.timings
        ]
        x = {
            "field": axis,
            "type": "quantitative",
            "scale": {"type": "log", "base": 2, "nice": False},
            "axis": {"values": [getattr(row, axis) for row in cells], "format": "d", "title": axis},
        }
        speed = {"field": "tokens per second", "scale": {"type": "log"}, "axis": {"format": "~s"}}
        share = {"field": "share of the roofline", "scale": {"zero": True}, "axis": {"format": ".0%"}}
        above = _panel({"x": x, "y": {**speed, "type": "quantitative"}, "color": colour})
        below = _panel({"x": x, "y": {**share, "type": "quantitative"}, "color": colour})
        columns.append({"data": {"values": values}, "vconcat": [{**above, "title": _fixed(cells, axis)}, below]})
    return {"title": title, "hconcat": columns, "resolve": {"scale": {"color": "shared"}}}


def _panel(encoding: Spec) -> Spec:
    dash = {"field": "role", "scale": {"domain": list(_DASHES), "range": list(_DASHES.values())}, "legend": None}
    tooltip = [{"field": "backend"}, {"field": "cell"}, {"field": "ms", "format": ".3~g"}]
    tooltip += [{"field": "share of the roofline", "format": ".0%"}]
    return {
        "width": 300,
        "height": 190,
        "encoding": encoding,
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"strokeDash": dash}},
            {"mark": {"type": "point", "filled": True, "size": 36}, "encoding": {"tooltip": tooltip}},
        ],
    }


def _colour(timings: dict[str, KernelTiming]) -> Spec:
    """Return the colour of each backend: ours first, then rivals, anchors in grey."""
    order = sorted(timings, key=lambda name: (list(_DASHES).index(timings[name].role), name))
    coloured = [name for name in order if timings[name].role != "anchor"]
    greys = [name for name in order if timings[name].role == "anchor"]
    shades = [COLOURS[i % len(COLOURS)] for i in range(len(coloured))]
    shades += [GREYS[i % len(GREYS)] for i in range(len(greys))]
    legend = {"title": None, "symbolType": "circle", "symbolOpacity": 1, "labelLimit": 240}
    scale = {"domain": [*coloured, *greys], "range": shades}
    return {"field": "backend", "type": "nominal", "scale": scale, "legend": legend}


def _fixed(cells: Sequence[KernelRow], axis: Axis) -> str:
    """Return in words what the cells of a line have in common, and what else differs in them."""
    other, ranks, routings = _OTHERS[axis], {c.rank for c in cells}, {c.routing for c in cells}
    told = [f"{cells[0].d_in} to {cells[0].d_out}", f"{getattr(cells[0], other):,} {other}"]
    told.append(f"rank {min(ranks)}" if len(ranks) == 1 else f"ranks {min(ranks)} to {max(ranks)}")
    return ", ".join([*told, min(routings) if len(routings) == 1 else "several routings"])
