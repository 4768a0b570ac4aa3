"""Near duplicates between training and query prompts: shingles, MinHash, and the share that overlaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasets_registry.protocol import PROTOCOL, generator, hash_keys
from datasets_registry.records import PreferenceData
from datasets_registry.splits import QUERY, TRAIN, Split

SHINGLE = 5
SIGNATURE = 128
NEAR = 0.8
MOST_QUERIES = 1_000
MOST_TRAINED = 20_000
MOST_CHARACTERS = 4_000


@dataclass(frozen=True, slots=True)
class Overlap:
    """Share of query situations with an exact, and with an exact or near duplicate among the training situations.

    A situation is the prompt and the set of responses that were compared in a unit. Near is a Jaccard similarity of
    character 5-grams of at least .8, estimated by MinHash (standard deviation .035). `near` is reported and refuses
    nothing: situations that a template renders from attributes are all alike in their letters.
    """

    exact: float
    near: float
    n_query: int
    n_train: int


def overlap(data: PreferenceData, split: Split) -> Overlap:
    """Return the overlap of the query and training prompts of a split; large datasets are sampled by a seed."""
    query = _situations(data, split, QUERY, MOST_QUERIES)
    train = _situations(data, split, TRAIN, MOST_TRAINED)
    known = set(train)
    exact = np.array([text in known for text in query], bool)
    near = exact | (nearest_jaccard(query, train) >= NEAR)
    return Overlap(float(exact.mean()), float(near.mean()), len(query), len(train))


def nearest_jaccard(texts: Sequence[str], others: Sequence[str]) -> NDArray[np.float64]:
    """Return for each text the estimated Jaccard similarity of 5-grams with the nearest of `others`, float64 [n].

    >>> nearest_jaccard(["one and the same text"], ["One and  the same text", "nothing alike"]).tolist()
    [1.0]
    """
    best = np.zeros(len(texts))
    if not len(others):
        return best
    theirs = np.ascontiguousarray(signatures(others).T)  # (128, n_others)
    for row, ours in enumerate(signatures(texts)):
        # 128 fits in a byte, which makes this count ten times as fast as one of machine integers.
        best[row] = (theirs == ours[:, None]).sum(axis=0, dtype=np.uint8).max() / SIGNATURE
    return best


def signatures(texts: Sequence[str]) -> NDArray[np.uint32]:
    """Return the MinHash signature of every text, uint32 [n, 128]; case and runs of blanks are ignored."""
    rng = generator(PROTOCOL, "minhash")
    odd = rng.integers(1, 2**63, SIGNATURE, dtype=np.uint64) | np.uint64(1)
    shift = rng.integers(0, 2**63, SIGNATURE, dtype=np.uint64)
    out = np.empty((len(texts), SIGNATURE), np.uint32)
    with np.errstate(over="ignore"):
        for row, text in enumerate(texts):
            values = _shingles(text)
            out[row] = ((values[:, None] * odd + shift) >> np.uint64(32)).min(axis=0)
    return out


def _shingles(text: str) -> NDArray[np.uint64]:
    """Return the distinct hashes of a text's character 5-grams; a shorter text is one shingle."""
    plain = " ".join(text.casefold().split())[:MOST_CHARACTERS].ljust(SHINGLE)
    points = np.frombuffer(plain.encode("utf-32-le", "replace"), np.uint32).astype(np.uint64)
    value = np.zeros(len(points) - SHINGLE + 1, np.uint64)
    with np.errstate(over="ignore"):
        for k in range(SHINGLE):
            value = value * np.uint64(0x100000001B3) + points[k : k + len(value)]
        value ^= value >> np.uint64(29)
        value *= np.uint64(0xBF58476D1CE4E5B9)
        value ^= value >> np.uint64(32)
    return np.unique(value)


def _situations(data: PreferenceData, split: Split, part: int, most: int) -> list[str]:
    """Return the distinct situations of a part: prompt, then the sorted responses that were compared in the unit."""
    c = data.comparisons
    rows = np.flatnonzero(split.row_part == part)
    units = np.unique(c.unit[rows])
    if len(units) > most:
        keys = hash_keys(map(str, units.tolist()), PROTOCOL, data.id, "overlap")
        units = np.sort(units[np.argsort(keys, kind="stable")[:most]])
    rows = rows[np.isin(c.unit[rows], units)]
    shown: dict[int, set[int]] = {}
    for unit, first, second in zip(c.unit[rows].tolist(), c.first[rows].tolist(), c.second[rows].tolist(), strict=True):
        shown.setdefault(unit, set()).update((first, second))
    texts = data.items
    situations = {
        "\n".join([texts.prompt[min(members)], *sorted(texts.response[m] for m in members)])
        for members in shown.values()
    }
    return sorted(situations)
