"""Pairs out of ratings or votes: of two items that one person rated differently, the higher one is preferred."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasets_registry.protocol import hash_keys, mix
from datasets_registry.records import Comparisons, Int32


@dataclass(frozen=True, slots=True, eq=False)
class RatingPairs:
    """Disjoint pairs: the comparisons (each pair its own unit), and the block of every unit, int32 [n_units]."""

    comparisons: Comparisons
    unit_block: Int32


def disjoint_pairs(
    name: str,
    people: Sequence[str],
    user: NDArray[np.int64],
    item: NDArray[np.int64],
    rating: NDArray[np.int64],
    block: Int32,
) -> RatingPairs:
    """Return disjoint pairs of differently rated items, both of one block, for every person.

    people: ids; user, item, rating: [n_ratings]; block: [n_items], the prompt cluster of an item. No rating is used
    twice, so pairs are independent given the person, and no item of a person is in two clusters. The pairs come from a
    seeded permutation of the person's items; those left over (equal ratings met) are permuted again, in 12 rounds.
    """
    persons = hash_keys(people, "pairs", name)
    things = hash_keys((str(i) for i in range(len(block))), "pairs", name)
    rest = np.arange(len(user))
    winners: list[NDArray[np.int64]] = []
    losers: list[NDArray[np.int64]] = []
    for turn in range(12):
        salt = np.full(len(rest), turn, np.uint64)
        key = mix(mix(persons[user[rest]], things[item[rest]]), salt)
        rest = rest[np.lexsort((key, block[item[rest]], user[rest]))]
        a, b = _neighbours(user[rest].astype(np.int64) * (int(block.max()) + 1) + block[item[rest]])
        differ = rating[rest[a]] != rating[rest[b]]
        a, b = a[differ], b[differ]
        better = rating[rest[a]] > rating[rest[b]]
        winners.append(rest[np.where(better, a, b)])
        losers.append(rest[np.where(better, b, a)])
        rest = np.delete(rest, np.concatenate([a, b]))
    won, lost = np.concatenate(winners), np.concatenate(losers)
    order = np.lexsort((mix(persons[user[won]], things[item[won]] ^ things[item[lost]]), user[won]))
    won, lost = won[order], lost[order]
    comparisons = Comparisons.of(
        user=user[won], unit=np.arange(len(won)), first=item[won], second=item[lost], label=np.ones(len(won))
    )
    return RatingPairs(comparisons, block[item[won]].astype(np.int32))


def _neighbours(group: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions of consecutive pairs (0,1), (2,3), ... within every run of a sorted column."""
    starts = np.flatnonzero(np.r_[True, np.diff(group) != 0]) if len(group) else np.empty(0, np.int64)
    sizes = np.diff(np.r_[starts, len(group)])
    rank = np.arange(len(group)) - np.repeat(starts, sizes)
    a = np.flatnonzero((rank % 2 == 0) & (rank + 1 < np.repeat(sizes, sizes)))
    return a, a + 1
