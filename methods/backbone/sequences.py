"""From comparisons to what a transformer runs: distinct (person, item) texts, and length buckets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets_registry.records import Comparisons

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Sequences:
    """The distinct texts of some comparisons, each encoded once per person it is shown to (once, if nobody has a part).

    user, item: int64 [m]; first, second: int64 [n], the sequence of each comparison's two items.
    """

    user: Array
    item: Array
    first: Array
    second: Array

    @classmethod
    def of(cls, table: Comparisons, *, personal: bool) -> Sequences:
        """Return the distinct (user, item), or with `personal` false the distinct items under user 0."""
        user = np.concatenate([table.user, table.user]).astype(np.int64)
        item = np.concatenate([table.first, table.second]).astype(np.int64)
        if not personal:
            user[:] = 0
        width = int(item.max(initial=0)) + 1
        distinct, at = np.unique(user * width + item, return_inverse=True)
        at = at.reshape(-1)
        return cls(distinct // width, distinct % width, at[: len(table)], at[len(table) :])

    def __len__(self) -> int:
        return len(self.item)


def buckets(lengths: Array, most_tokens: int) -> Iterator[Array]:
    """Yield index arrays of sequences of like length, each at most `most_tokens` when padded (one sequence at least).

    A bucket ends where the next sequence is twice as long as its shortest; once it holds a quarter of `most_tokens`,
    where that is a tenth longer.

    >>> [b.tolist() for b in buckets(np.array([5, 2, 2, 9]), 10)]
    [[1, 2], [0], [3]]
    """
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        end = start + 1
        # sorted ascending: the last one of a bucket is what the others are padded to
        while end < len(order) and (end + 1 - start) * int(lengths[order[end]]) <= most_tokens:
            held = (end - start) * int(lengths[order[end - 1]])
            if int(lengths[order[end]]) > (1.1 if 4 * held >= most_tokens else 2) * int(lengths[order[start]]):
                break
            end += 1
        yield order[start:end]
        start = end
