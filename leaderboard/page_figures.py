"""What the page draws, written compactly: data by column, each text once, and the colours of methods in one place."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Any, cast

from leaderboard.rows import significant

LEAST = 3
PALETTE = "palette"
TITLES = {
    "curve": "Accuracy against data per person, with 95 % bands",
    "people": "Spread over people: 5 to 95 %, middle half, median and mean",
    "bytes": "Accuracy against bytes stored per person; ringed: the Pareto front",
    "memory": "Accuracy against memory; ringed: the Pareto front",
    "kernel": "Kernels",
}


def packed(value: Any) -> Any:
    """Return a specification in which every list of data is columns, and methods have the page's colours and shapes.

    >>> packed({"data": {"values": [{"a": "x", "b": 1.0}, {"a": "y", "b": 0.1234567}, {"a": "z"}]}})
    {'data': {'columns': {'a': ['x', 'y', 'z'], 'b': [1, 0.1235, None]}}}
    """
    if isinstance(value, list):
        return [packed(each) for each in cast(list[Any], value)]
    if not isinstance(value, dict):
        return value
    told = cast(dict[str, Any], value)
    values = told.get("values")
    if set(told) == {"values"} and isinstance(values, list) and len(cast(list[Any], values)) >= LEAST:
        return {"columns": _columns(cast(list[dict[str, Any]], values))}
    out = {key: packed(each) for key, each in told.items()}
    for channel in ("color", "shape"):
        each = out.get(channel)
        if isinstance(each, dict) and cast(dict[str, Any], each).get("field") == "method":
            out[channel] = {**cast(dict[str, Any], each), "scale": PALETTE}
    return out


def palette_of(specs: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Return the colour and the shape of every method by label, as the specifications tell them."""
    out: dict[str, dict[str, str]] = {}

    def gather(value: Any) -> None:
        if isinstance(value, list):
            for each in cast(list[Any], value):
                gather(each)
        if not isinstance(value, dict):
            return
        for key, each in cast(dict[str, Any], value).items():
            if key in ("color", "shape") and isinstance(each, dict):
                told = cast(dict[str, Any], each)
                if told.get("field") == "method" and isinstance(told.get("scale"), dict):
                    for label, shade in zip(told["scale"]["domain"], told["scale"]["range"], strict=True):
                        out.setdefault(label, {})[key] = shade
            gather(each)

    gather(list(specs.values()))
    return out


def column(texts: Sequence[str]) -> list[str] | dict[str, list[Any]]:
    """Return a column of texts, as the different ones and the place of each among them where that is shorter.

    >>> column(["feature"] * 4 + ["prompt"]), column(["0.1", "0.2"])
    ({'of': ['feature', 'prompt'], 'at': [0, 0, 0, 0, 1]}, ['0.1', '0.2'])
    """
    of = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    told = {"of": list(of), "at": [of[text] for text in texts]}
    plain = list(texts)
    return told if len(str(told)) < len(str(plain)) else plain


def keys_packed(keys: Sequence[str]) -> str:
    """Return the beginnings of records' keys as one text: base64 of their digits, or "=" and the keys themselves.

    >>> keys_packed(["00ff00ff00ff00ff"]), keys_packed(["abc", "d"])
    ('AP8A/wD/AP8=', '=abc d')
    """
    if all(re.fullmatch(r"[0-9a-f]{16}", key) for key in keys):
        return base64.b64encode(bytes.fromhex("".join(keys))).decode()
    return "=" + " ".join(keys)


def _columns(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for field in dict.fromkeys(name for row in values for name in row):
        told = [row.get(field) for row in values]
        if all(isinstance(each, str) for each in told):
            out[field] = column([str(each) for each in told])
        else:
            out[field] = [_short(each) if isinstance(each, float) else each for each in told]
    return out


def _short(value: float) -> float | int:
    return int(value) if value.is_integer() and abs(value) < 2**53 else significant(value)


def figure_title(name: str, spec: dict[str, Any]) -> str:
    """Return what is written over a figure: what it shows; for a kernel, and for memory, of which device, too."""
    kind = name.partition("-")[0]
    if kind == "kernel":
        return str(spec.get("title", TITLES[kind]))
    device = str(spec.get("title", "")).rpartition("), on ")[2] if kind == "memory" else ""
    return f"{TITLES[kind]}{f' (on {device})' if device else ''}"
