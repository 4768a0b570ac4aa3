"""Choice sets must not tell who was chosen.

Where a person chose one of four, the comparisons are the chosen one against each other: the item that is in all of them
is the answer. So the query table that a method sees holds every pair of such a unit, in an order that says nothing; the
answers to the pairs that nobody judged are dropped before anything is written.
"""

from __future__ import annotations

import numpy as np

from datasets_registry.protocol import mix
from datasets_registry.records import Comparisons, Rows

# Units with more items than this are no choice sets but many separate judgements, whose pairs were drawn beforehand.
LARGEST_CHOICE_SET = 8


def completed(queries: Comparisons) -> tuple[Comparisons, Rows]:
    """Return the queries with every pair of each unit's items, and where the given ones stand in it, int64 [n].

    Labels are NaN throughout, weights 1 and `order` that of the unit.
    """
    hidden = queries.hidden()
    if not len(queries):
        return hidden, np.empty(0, np.int64)
    _, group = np.unique(np.stack([queries.user, queries.unit], axis=1), axis=0, return_inverse=True)
    group = group.reshape(-1).astype(np.int64)  # (n,)
    added = _missing_pairs(group, queries)
    # one row of each group stands for its user, unit and order
    like = np.zeros(int(group.max()) + 1, np.int64)
    like[group[::-1]] = np.arange(len(group))[::-1]
    source = np.concatenate([np.arange(len(group)), like[added[:, 0]]])
    low = np.concatenate([np.minimum(queries.first, queries.second), added[:, 1]])
    high = np.concatenate([np.maximum(queries.first, queries.second), added[:, 2]])
    table = hidden.take(source)
    place = mix(table.user.astype(np.uint64), mix(table.unit.astype(np.uint64), mix(_wide(low), _wide(high))))
    extra = np.arange(len(source)) >= len(group)
    flip = (place >> np.uint64(63)).astype(bool)
    whole = Comparisons.of(
        user=table.user,
        unit=table.unit,
        first=np.where(extra, np.where(flip, high, low), table.first),
        second=np.where(extra, np.where(flip, low, high), table.second),
        label=table.label,
        weight=np.ones(len(source)),
        order=queries.order[like[np.concatenate([group, added[:, 0]])]],
    )
    shuffled = np.lexsort((mix(place, _wide(np.full(len(place), 1))), table.unit, table.user))
    stands = np.empty(len(shuffled), np.int64)
    stands[shuffled] = np.arange(len(shuffled))
    return whole.take(shuffled), stands[: len(group)]


def _missing_pairs(group: Rows, queries: Comparisons) -> Rows:
    """Return int64 [m, 3] (group, lower item, higher item) of pairs that small units lack."""
    ends = np.concatenate([np.stack([group, queries.first], 1), np.stack([group, queries.second], 1)]).astype(np.int64)
    members = np.unique(ends, axis=0)  # (m, 2): group, item; sorted
    size = np.bincount(members[:, 0])
    starts = np.concatenate([[0], np.cumsum(size)])
    pairs = [np.empty((0, 3), np.int64)]
    for k in range(3, LARGEST_CHOICE_SET + 1):
        groups = np.flatnonzero(size == k)
        items = members[starts[groups][:, None] + np.arange(k), 1]  # (groups, k)
        low, high = np.triu_indices(k, 1)
        owner = np.repeat(groups, len(low))
        pairs.append(np.stack([owner, items[:, low].reshape(-1), items[:, high].reshape(-1)], 1))
    every = np.concatenate(pairs)
    n = int(ends[:, 1].max()) + 1
    given_low, given_high = np.minimum(queries.first, queries.second), np.maximum(queries.first, queries.second)
    given = (group * n + given_low) * n + given_high
    return every[~np.isin((every[:, 0] * n + every[:, 1]) * n + every[:, 2], given)]


def _wide(values: Rows) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
    return np.asarray(values).astype(np.uint64)
