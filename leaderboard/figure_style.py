"""What all figures share: colours and shapes of methods, names of files, and text that every renderer takes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any, cast

from datasets_registry.errors import printable
from leaderboard.rows import Leaderboard

Spec = dict[str, Any]
Table = tuple[str, str, str]
# Okabe and Ito's colours, told apart by colour-blind readers, then others that show on white and on black.
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#9a6fc0",
    "#8c6d31",
    "#d64545",
    "#6a8fd8",
    "#66a61e",
    "#a6761d",
)
GREYS = ("#6f6f6f", "#9a9a9a", "#b4b4b4", "#828282", "#767b80", "#c8c8c8")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")


def colours(board: Leaderboard) -> dict[str, str]:
    """Return a colour per label, the same in every figure: colours for methods, greys for controls."""
    roles = {r.label: "control" if r.control else r.role for r in board.rows}
    roles = {c.label: c.role for c in board.curves} | roles
    methods = sorted(label for label, role in roles.items() if role == "method")
    controls = sorted(label for label, role in roles.items() if role == "control")
    told = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(methods)}
    return told | {label: GREYS[i % len(GREYS)] for i, label in enumerate(controls)}


def colour(labels: Sequence[str], palette: dict[str, str]) -> Spec:
    """Return the colour of methods with its legend."""
    return _of_methods(labels, palette, lambda _, label: palette[label])


def method_shape(labels: Sequence[str], palette: dict[str, str]) -> Spec:
    """Return the shape of points: methods that share a colour, since there are more of them than colours, differ."""
    return _of_methods(labels, palette, lambda i, _: SHAPES[i // len(COLOURS) % len(SHAPES)])


def _of_methods(labels: Sequence[str], palette: dict[str, str], told: Callable[[int, str], str]) -> Spec:
    there = set(labels)
    order = [(i, label) for i, label in enumerate(palette) if label in there]
    scale = {"domain": [label for _, label in order], "range": [told(i, label) for i, label in order]}
    legend = {"title": None, "symbolOpacity": 1, "labelLimit": 240}
    return {"field": "method", "type": "nominal", "scale": scale, "legend": legend}


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


def slug(text: str) -> str:
    """Return a file name; a long one is cut and told apart by a digest.

    >>> slug("curve-electricity@1-tabular@1-seen")
    'curve-electricity-1-tabular-1-seen'
    """
    plain = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
    return plain if len(plain) <= 100 else f"{plain[:90]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
