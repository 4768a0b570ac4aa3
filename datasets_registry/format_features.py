"""What a response looks like, without what it says: the input of the format probe."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np

from datasets_registry.records import Float64

CLASSES = ("empty", "upper", "lower", "digit", "bracket", "quote", "markdown", "punctuation", "other")
SKELETON_BUCKETS = 32
_COUNTED = ("lines", "blank_lines", "list_markers", "quotes", "brackets", "digits", "capitals", "markup", "not_ascii")
FORMAT_NAMES: tuple[str, ...] = (
    "first character",
    "last character",
    *(name.replace("_", " ") for name in _COUNTED),
    "skeleton",
)
_MARKS = {"bracket": "[](){}<>", "quote": "\"'`“”‘’«»", "markdown": "#*_-|•", "punctuation": ".,;:!?…"}
_DIGITS = re.compile(r"\d+(?:[.,]\d+)*")
_WORDS = re.compile(r"[^\W_]+(?:\s+[^\W_]+)*")
_LIST = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)


def lengths(texts: Sequence[str]) -> Float64:
    """Return the number of characters of each text, float64 [n]."""
    return np.array([len(text) for text in texts], np.float64)


def format_features(texts: Sequence[str]) -> Float64:
    """Return the form of every text, float64 [n, k]: one-hot classes, log counts, shares, and a hashed skeleton.

    >>> a, b = format_features(["[great]", "[small]"])
    >>> bool((a == b).all()), bool((a == format_features(["great"])[0]).all())
    (True, False)
    """
    one_hot = len(CLASSES)
    out = np.zeros((len(texts), 2 * one_hot + len(_COUNTED) + SKELETON_BUCKETS))
    for row, text in enumerate(texts):
        stripped = _DIGITS.sub("0", text)
        out[row, CLASSES.index(character_class(text[:1]))] = 1
        out[row, one_hot + CLASSES.index(character_class(text[-1:]))] = 1
        out[row, 2 * one_hot : 2 * one_hot + len(_COUNTED)] = _counts(text, stripped)
        bucket = zlib.crc32(skeleton(stripped).encode()) % SKELETON_BUCKETS
        out[row, 2 * one_hot + len(_COUNTED) + bucket] = 1
    return out


def skeleton(text: str) -> str:
    """Return what is left of a text when words and numbers are erased; at most 40 characters.

    >>> skeleton('["a plan", "for 3 years"]')
    '["_", "_"]'
    """
    return re.sub(r"\s+", " ", _WORDS.sub("_", text))[:40]


def character_class(character: str) -> str:
    """Return the class of a character.

    >>> [character_class(c) for c in ("", "A", "7", "[", "#", "!")]
    ['empty', 'upper', 'digit', 'bracket', 'markdown', 'punctuation']
    """
    if not character:
        return "empty"
    if character.isdigit():
        return "digit"
    if character.isalpha():
        return "lower" if character.islower() else "upper"
    return next((name for name, members in _MARKS.items() if character in members), "other")


def _counts(text: str, stripped: str) -> list[float]:
    lines = text.split("\n")
    size = max(len(stripped), 1)
    return [
        np.log1p(len(lines)),
        np.log1p(sum(not line.strip() for line in lines)),
        np.log1p(len(_LIST.findall(text))),
        np.log1p(sum(text.count(c) for c in "\"'`“”")),
        np.log1p(sum(text.count(c) for c in "[](){}")),
        sum(c.isdigit() for c in stripped) / size,
        sum(c.isupper() for c in stripped) / size,
        sum(text.count(c) for c in "#*_|") / size,
        sum(ord(c) > 127 for c in stripped) / size,
    ]
