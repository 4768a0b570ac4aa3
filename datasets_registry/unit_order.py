"""Units of people: their order, which is one seeded permutation per person and part, and how many are given."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets_registry.records import Int32


def unit_ranks(user: Int32, part: NDArray[np.int8], unit: Int32, key: NDArray[Any]) -> Int32:
    """Return per row the position of its unit, sorted by `key`, among its person's units of the same part."""
    order = np.lexsort((unit, key, part, user))
    u, p, t = user[order], part[order], unit[order]
    new_group = np.ones(len(order), bool)
    new_group[1:] = (u[1:] != u[:-1]) | (p[1:] != p[:-1])
    new_unit = new_group.copy()
    new_unit[1:] |= t[1:] != t[:-1]
    place = np.cumsum(new_unit)
    start = place[new_group][np.cumsum(new_group) - 1]
    rank = np.empty(len(order), np.int32)
    rank[order] = place - start
    return rank


def distinct_units(user: Int32, unit: Int32) -> int:
    """Return the number of distinct (user, unit) pairs of two columns."""
    pair = user.astype(np.int64) * (int(unit.max(initial=0)) + 1) + unit
    return len(np.unique(pair))


def zipf_allotment(have: NDArray[np.int64], rank: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Return how many of `total` units each person gets, int64 [n_people]: by 1 / rank, at least one, at most `have`.

    Sainte-Laguë's highest averages with weights 1 / rank: the k-th unit of the person of rank r has priority
    r (2k - 1), and the `total` smallest are given: exact, capped by what people have, growing monotonically.
    """
    owner = np.repeat(np.arange(len(have)), have)
    turn = np.arange(len(owner)) - np.repeat(np.cumsum(have) - have, have) + 1
    priority = np.where(turn == 1, 0, rank[owner] * (2 * turn - 1))
    chosen = np.lexsort((rank[owner], priority))[:total]
    return np.bincount(owner[chosen], minlength=len(have))
