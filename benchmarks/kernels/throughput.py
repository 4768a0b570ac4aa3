"""Throughput against users and against tokens, as Vega-Lite, drawn by vl-convert: an SVG each."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.kernels.report import MODE_TITLES, Result
from datasets_registry.atomic_write import write_atomically

# Okabe and Ito's colours for ours, which colour-blind readers tell apart; greys for rivals and anchors.
_COLOURS = {"ours": ("#0072b2", "#d55e00", "#009e73", "#cc79a7"), "rival": ("#6b6b6b",), "anchor": ("#c8c8c8",)}
_BEST_RIVAL = "fastest rival"
_ROOFLINE = "roofline"


def plot(results: Sequence[Result], axis: str) -> dict[str, Any]:
    """Return tokens/s over `axis` ("users" or "tokens"): ours, the fastest rival and this machine's roofline.

    A point is the median over the cells of the variant "full" that have this value, a panel each mode and each number
    of the other axis.
    """
    other = "tokens" if axis == "users" else "users"
    values: list[dict[str, Any]] = []
    for r in results:
        if r.told["variant"] != "full":
            continue
        place = {axis: r.told[axis], "mode": MODE_TITLES[r.mode], "panel": f"{other} {r.told[other]}"}
        seconds = {t.backend: t.median_s for t in r.ours} | {_ROOFLINE: r.told["floor_s"]}
        if r.rivals:
            seconds[_BEST_RIVAL] = r.rivals[0].median_s
        values += [{**place, "of": name, "tokens/s": r.told["tokens"] / s} for name, s in seconds.items()]
    ours = list(dict.fromkeys(t.backend for r in results for t in r.ours))
    names = [*ours, _BEST_RIVAL, _ROOFLINE]
    greys = [_COLOURS["rival"][0], _COLOURS["anchor"][0]]
    colours = [_COLOURS["ours"][i % len(_COLOURS["ours"])] for i in range(len(ours))] + greys
    scale = {"type": "log", "nice": False}
    y = {"aggregate": "median", "field": "tokens/s", "type": "quantitative", "scale": scale}
    sizes = sorted({v[axis] for v in values})
    encoding = {
        "x": {"field": axis, "type": "quantitative", "scale": {**scale, "base": 2}, "axis": {"values": sizes}},
        "y": {**y, "title": "tokens/s", "axis": {"format": "~s"}},
        "color": {"field": "of", "type": "nominal", "title": None, "scale": {"domain": names, "range": colours}},
    }
    order = sorted({v["panel"] for v in values}, key=lambda p: int(p.split()[1]))
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "background": "white",
        "data": {"values": values},
        "facet": {
            "row": {"field": "panel", "type": "nominal", "title": None, "sort": order},
            "column": {"field": "mode", "type": "nominal", "title": None, "sort": list(MODE_TITLES.values())},
        },
        "spec": {
            "width": 300,
            "height": 160,
            "encoding": encoding,
            "layer": [
                {"mark": {"type": "line", "strokeWidth": 2}},
                {"mark": {"type": "point", "filled": True, "size": 36}},
            ],
        },
    }


def write_plots(results: Sequence[Result], folder: Path) -> list[str]:
    """Write both figures as SVG; return what was left out, or written."""
    if importlib.util.find_spec("vl_convert") is None:
        return ['plots were left out: vl-convert-python is not installed. pip install "hetpref[site]"']
    import vl_convert

    out: list[str] = []
    for axis in ("users", "tokens"):
        path = folder / f"throughput-{axis}.svg"
        svg: str = vl_convert.vegalite_to_svg(json.dumps(plot(results, axis)))
        write_atomically(path, svg.encode())
        out.append(f"written: {path}")
    return out
