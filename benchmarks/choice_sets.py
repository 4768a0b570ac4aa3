"""Choice sets must not tell who was chosen.

Where a person chose one of four, the comparisons are the chosen one against each other: the item that is in all of them
is the answer. So the query table that a method sees is made from the unit's items alone: every pair once, turned by a
hash and in an order that say nothing. The answers to pairs that nobody judged are dropped before anything is written.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets_registry.protocol import mix
from datasets_registry.records import Comparisons, Float32, Rows

# A unit with more items than this and no item common to all its pairs is no choice set, but many separate judgements
# whose pairs were drawn beforehand: they are asked as they are.
LARGEST_MIXED_UNIT = 8


def completed(queries: Comparisons) -> tuple[Comparisons, Rows, Float32]:
    """Return what a method is asked, and where and how the given queries stand in it.

    The table has every pair of a unit's items once; `stands` int64 [n] is each given query's row of the table, and
    `sign` float32 [n] is -1 where the table has its two items the other way round. Labels are NaN throughout, weights
    1, `order` is the unit's first. Whichever items were chosen, the same people, units and items give the same table.
    """
    n = len(queries)
    if not n:
        return queries.hidden(), np.empty(0, np.int64), np.empty(0, np.float32)
    _, like, group = np.unique(_stacked(queries.user, queries.unit), axis=0, return_index=True, return_inverse=True)
    group = group.reshape(-1).astype(np.int64)  # (n,)
    order = np.full(len(like), np.iinfo(np.int32).max)
    np.minimum.at(order, group, queries.order)
    low, high = np.minimum(queries.first, queries.second), np.maximum(queries.first, queries.second)
    given = _stacked(group, low, high)
    pairs, place = np.unique(np.concatenate([given, _all_pairs(given)]), axis=0, return_inverse=True)
    owner = like[pairs[:, 0]]
    user, unit = queries.user[owner], queries.unit[owner]
    key = mix(_wide(user), mix(_wide(unit), mix(_wide(pairs[:, 1]), _wide(pairs[:, 2]))))
    flip = (key >> np.uint64(63)).astype(bool)
    shuffled = np.lexsort((mix(key, _wide(np.ones(len(key)))), unit, user))
    table = Comparisons.of(
        user=user,
        unit=unit,
        first=np.where(flip, pairs[:, 2], pairs[:, 1]),
        second=np.where(flip, pairs[:, 1], pairs[:, 2]),
        label=np.full(len(pairs), np.nan),
        order=order[pairs[:, 0]],
    ).take(shuffled)
    row = np.empty(len(shuffled), np.int64)
    row[shuffled] = np.arange(len(shuffled))
    stands = row[place.reshape(-1)[:n]]
    return table, stands, np.where(table.first[stands] == queries.first, 1, -1).astype(np.float32)


def _all_pairs(given: Rows) -> Rows:
    """Return int64 [m, 3] (group, lower item, higher item): every pair of the units that may be choice sets."""
    judged = np.unique(given, axis=0)
    ends = np.concatenate([judged[:, :2], judged[:, ::2]])
    members, pairs_of_item = np.unique(ends, axis=0, return_counts=True)  # (m, 2): group, item; sorted
    size = np.bincount(members[:, 0])
    most = np.zeros(len(size), np.int64)
    np.maximum.at(most, members[:, 0], pairs_of_item)
    star = most == np.bincount(judged[:, 0])  # one item is in every pair
    whole = (size >= 3) & (star | (size <= LARGEST_MIXED_UNIT))
    starts = np.concatenate([[0], np.cumsum(size)])
    found = [np.empty((0, 3), np.int64)]
    for k in np.unique(size[whole]):
        groups = np.flatnonzero(whole & (size == k))
        items = members[starts[groups][:, None] + np.arange(k), 1]  # (groups, k)
        low, high = np.triu_indices(k, 1)
        found.append(_stacked(np.repeat(groups, len(low)), items[:, low].reshape(-1), items[:, high].reshape(-1)))
    return np.concatenate(found)


def _stacked(*columns: NDArray[Any]) -> Rows:
    return np.stack(columns, axis=1).astype(np.int64)


def _wide(values: NDArray[Any]) -> NDArray[np.uint64]:
    return values.astype(np.uint64)
