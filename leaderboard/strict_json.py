"""JSON of one meaning: what every reader reads in the same way, and nothing else."""

from __future__ import annotations

import json
import math
import re
from typing import Any, cast

MAX_NESTING = 64
_SURROGATE = re.compile("[\ud800-\udfff]")


def parse(raw: bytes) -> Any:
    """Return the value of a JSON text in UTF-8; raises ValueError that says what is wrong.

    Refused are, beside what is no JSON: a byte order mark, a key that stands twice in an object, NaN and Infinity, a
    number beyond float64 or of more digits than Python reads, half of a surrogate pair, and deep nesting.

    >>> parse(b'{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as why:
        raise ValueError(f"not UTF-8 at byte {why.start}") from why
    if text.startswith("\ufeff"):
        raise ValueError("a byte order mark")
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_number)
    except RecursionError as why:
        raise ValueError(f"nested more than {MAX_NESTING} deep") from why
    _check(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:80]!r} stands twice in one object")
    return out


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is beyond any float64")
    return value


def _check(value: Any) -> None:
    """Raise ValueError for what is nested too deeply and for text that no file can hold; without recursion."""
    waiting: list[tuple[Any, int]] = [(value, 1)]
    while waiting:
        at, depth = waiting.pop()
        if depth > MAX_NESTING:
            raise ValueError(f"nested more than {MAX_NESTING} deep")
        if isinstance(at, str):
            if _SURROGATE.search(at):
                raise ValueError(f"half of a surrogate pair in {at[:80]!r}")
        elif isinstance(at, dict):
            told = cast(dict[str, Any], at)
            waiting += [(key, depth) for key in told]
            waiting += [(each, depth + 1) for each in told.values()]
        elif isinstance(at, list):
            waiting += [(each, depth + 1) for each in cast(list[Any], at)]
