"""Figures of a headline table: accuracy against what it costs, with the Pareto front, and the spread over people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from leaderboard.figure_style import Spec, colour, method_shape
from leaderboard.rows import CostRow, Place, Row

# Memory is what the device held at its peak where the device has its own, and what the process added otherwise.
_MEMORY = ("peak_device_bytes", "peak_rss_delta_bytes")
FRONT = "#808890"


def at(place: Place) -> tuple[Any, ...]:
    """Return which row of a board something is told of."""
    budget = (place.n_train, place.n_support, place.n_users, place.imbalance)
    return (place.label, place.dataset, place.encoder, place.regime, *budget, place.control)


def costs_by_place(costs: Sequence[CostRow]) -> dict[tuple[Any, ...], list[CostRow]]:
    """Return the costs of each row, one per device class."""
    out: dict[tuple[Any, ...], list[CostRow]] = defaultdict(list)
    for cost in costs:
        out[at(cost)].append(cost)
    return out


def bytes_figure(
    rows: Sequence[Row], costs: dict[tuple[Any, ...], list[CostRow]], palette: dict[str, str], title: str
) -> Spec | None:
    """Return accuracy against the bytes stored per person, or none where fewer than two rows tell them."""
    told = [
        (row, float(cost.state_bytes_per_user))
        for row in rows
        for cost in costs.get(at(row), [])[:1]
        if cost.state_bytes_per_user is not None
    ]
    return _pareto(told, palette, title, "bytes stored per person, on a log scale")


def memory_figures(
    rows: Sequence[Row], costs: dict[tuple[Any, ...], list[CostRow]], palette: dict[str, str], title: str
) -> dict[str, Spec]:
    """Return accuracy against memory by device class, where at least two rows were measured on it."""
    told: dict[str, list[tuple[Row, float]]] = defaultdict(list)
    for row in rows:
        for cost in costs.get(at(row), []):
            held = next((v for name in _MEMORY if (v := getattr(cost, name)) is not None), None)
            if held is not None:
                told[cost.device_class].append((row, float(held)))
    out: dict[str, Spec] = {}
    for device_class, each in sorted(told.items()):
        axis = "bytes of memory that a cell added at its peak, on a log scale"
        figure = _pareto(each, palette, f"{title}, on {device_class}", axis)
        if figure:
            out[device_class] = figure
    return out


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return which (cost, accuracy) points no other is at least as good as in both, by cost.

    >>> front([(8, 0.7), (4, 0.7), (16, 0.8), (32, 0.75)])
    [1, 2]
    """
    out: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i)):
        if not out or points[i][1] > points[out[-1]][1]:
            out.append(i)
    return out


def _pareto(told: Sequence[tuple[Row, float]], palette: dict[str, str], title: str, axis: str) -> Spec | None:
    # A control is a bound or a baseline, and nobody chooses between it and a method.
    methods = [(row, cost) for row, cost in told if row.role == "method" and row.control is None and row.imputed < 1]
    known = [(row, cost, value) for row, cost in methods if (value := row.acc_macro.value) is not None]
    if len(known) < 2:
        return None
    best = set(front([point[1:] for point in known]))
    values: list[Spec] = [
        {
            "method": row.label,
            "bytes": cost,
            "accuracy": value,
            "low": row.acc_macro.low,
            "high": row.acc_macro.high,
            "front": "yes" if k in best else "no",
        }
        for k, (row, cost, value) in enumerate(known)
    ]
    on_front = [{"filter": {"field": "front", "equal": "yes"}}]
    y: Spec = {"type": "quantitative", "scale": {"zero": False}, "title": "accuracy"}
    tooltip = [{"field": "method"}, {"field": "bytes", "format": ","}, {"field": "accuracy", "format": ".3f"}]
    hues = colour([row.label for row, _, _ in known], palette)
    accuracy = {"field": "accuracy", **y}
    return {
        "title": title,
        "data": {"values": values},
        "width": 420,
        "height": 260,
        "encoding": {"x": {**_bytes_axis([cost for _, cost, _ in known]), "title": axis}},
        "layer": [
            {
                "transform": on_front,
                "mark": {"type": "line", "interpolate": "step-after", "strokeDash": [4, 3], "color": FRONT},
                "encoding": {"y": accuracy, "order": {"field": "bytes"}},
            },
            {
                "transform": on_front,
                "mark": {"type": "point", "filled": False, "size": 190, "color": FRONT, "strokeWidth": 1.5},
                "encoding": {"y": accuracy},
            },
            {
                "mark": {"type": "rule", "opacity": 0.4},
                "encoding": {"y": {"field": "low", **y}, "y2": {"field": "high"}, "color": hues},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 64},
                "encoding": {
                    "y": accuracy,
                    "color": hues,
                    "shape": method_shape([row.label for row, _, _ in known], palette),
                    "tooltip": tooltip,
                },
            },
        ],
    }


def _bytes_axis(costs: Sequence[float]) -> Spec:
    """Return the axis of bytes: powers of two in sight, on a scale that has a place for none at all."""
    largest = max(costs)
    least = min(c for c in costs if c > 0) if largest > 0 else 1.0
    ticks = [float(2**i) for i in range(52) if least / 2 < 2**i < largest * 2]
    ticks = ticks[:: 1 + len(ticks) // 8]
    scale: Spec = {"type": "log"} if min(costs) > 0 else {"type": "symlog", "constant": max(1.0, least / 4)}
    axis: Spec = {"format": "~s", "grid": False, "values": ticks if min(costs) > 0 else [0, *ticks]}
    return {"field": "bytes", "type": "quantitative", "scale": scale, "axis": axis}


def people_figure(rows: Sequence[Row], palette: dict[str, str], title: str) -> Spec | None:
    """Return the spread of accuracy over people as a strip per method, in the order of the table, or none without."""
    values: list[Spec] = []
    for row in rows:
        if len(row.people) == 5 and row.imputed < 1:
            points = dict(zip(("p5", "p25", "p50", "p75", "p95"), row.people, strict=True))
            values.append({"method": row.label, **points, "mean": row.acc_macro.value})
    if len(values) < 2:
        return None
    labels = [str(v["method"]) for v in values]
    shades = {"domain": labels, "range": [palette.get(label, FRONT) for label in labels]}
    hue: Spec = {"field": "method", "type": "nominal", "scale": shades, "legend": None}
    tooltip: list[Spec] = [{"field": "method"}]
    tooltip += [{"field": f, "format": ".2f"} for f in ("p5", "p25", "p50", "p75", "p95", "mean")]
    x: Spec = {"type": "quantitative", "scale": {"domain": [0, 1]}, "title": "accuracy of a person"}
    axis = {"title": None, "labelLimit": 190, "domain": False, "ticks": False}
    return {
        "title": title,
        "data": {"values": values},
        "width": 420,
        "height": {"step": 17},
        "encoding": {"y": {"field": "method", "type": "nominal", "sort": labels, "axis": axis}, "color": hue},
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 1.5},
                "encoding": {"x": {"field": "p5", **x}, "x2": {"field": "p95"}},
            },
            {
                "mark": {"type": "bar", "height": 9, "opacity": 0.55, "cornerRadius": 2},
                "encoding": {"x": {"field": "p25", **x}, "x2": {"field": "p75"}, "tooltip": tooltip},
            },
            {"mark": {"type": "tick", "thickness": 2, "size": 13}, "encoding": {"x": {"field": "p50", **x}}},
            {
                "mark": {
                    "type": "point",
                    "shape": "diamond",
                    "filled": False,
                    "fill": "white",
                    "size": 34,
                    "opacity": 1,
                },
                "encoding": {"x": {"field": "mean", **x}, "tooltip": tooltip},
            },
        ],
    }
