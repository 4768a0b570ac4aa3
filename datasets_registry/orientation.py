"""Which of two items is `first`, and what is dropped before anyone sees a dataset: the harness decides, not loaders."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets_registry.protocol import hash_keys, mix
from datasets_registry.records import Comparisons, Items, PreferenceData, Truth, Users


def oriented(data: PreferenceData) -> PreferenceData:
    """Return the data with `first` decided by a seeded hash of (user, unit, pair), independent of the label.

    The pair is put in order of item row, then swapped by one bit of the hash; soft labels follow. So nothing about
    the label can be read off the position, whichever way the loader wrote its pairs.
    """
    c = data.comparisons
    users = hash_keys(data.users.ids, "orientation", data.card.name)
    items = np.arange(len(data.items), dtype=np.uint64)
    low, high = np.minimum(c.first, c.second), np.maximum(c.first, c.second)
    place = mix(c.unit.astype(np.uint64), mix(items[low], items[high]))
    flip = (mix(users[c.user], place) >> np.uint64(63)).astype(bool)
    swap = (c.first > c.second) != flip
    turned = replace(
        c,
        first=np.where(flip, high, low).astype(np.int32),
        second=np.where(flip, low, high).astype(np.int32),
        label=np.where(swap, np.float32(1) - c.label, c.label).astype(np.float32),
    )
    return replace(data, comparisons=turned)


def cleaned(
    users: Users,
    items: Items,
    comparisons: Comparisons,
    unit_cluster: NDArray[np.int32],
    clusters: tuple[str, ...],
    truth: Truth | None,
) -> dict[str, Any]:
    """Return the parts of a PreferenceData without empty or equal responses, and without what is then not referred to.

    Comparisons in which a response is empty, or both are the same text, are dropped; ties stay (.5). People, items,
    units and clusters that no comparison refers to any more are left out, and every index is renumbered.
    """
    texts: dict[str, int] = {}
    # (n_items,) equal texts get equal codes; -1 = empty
    codes = np.array([texts.setdefault(r.strip(), len(texts)) if r.strip() else -1 for r in items.response], np.int64)
    first, second = codes[comparisons.first], codes[comparisons.second]
    keep = np.flatnonzero((first >= 0) & (second >= 0) & (first != second))
    kept = comparisons if len(keep) == len(comparisons) else comparisons.take(keep)

    people, user = _renumbered(len(users), kept.user)
    used, first, second = _renumbered(len(items), kept.first, kept.second)
    units, unit = _renumbered(len(unit_cluster), kept.unit)
    groups, unit_cluster = _renumbered(len(clusters), unit_cluster[units])
    if len(people) < len(users):
        users = Users(_chosen(users.ids, people), {k: _chosen(v, people) for k, v in users.metadata.items()})
        truth = None if truth is None else replace(truth, theta=truth.theta[people])
    if len(used) < len(items):
        attributes = None if items.attributes is None else items.attributes[used]
        items = Items(_chosen(items.prompt, used), _chosen(items.response, used), attributes, items.attribute_names)
    return {
        "users": users,
        "items": items,
        "comparisons": replace(kept, user=user, unit=unit, first=first, second=second),
        "unit_cluster": unit_cluster,
        "clusters": _chosen(clusters, groups),
        "truth": truth,
    }


def _renumbered(size: int, *columns: NDArray[np.int32]) -> tuple[NDArray[Any], ...]:
    """Return the values of 0..size-1 that occur, and the columns renumbered to positions among them."""
    seen = np.zeros(size, bool)
    for column in columns:
        seen[column] = True
    place = (np.cumsum(seen) - 1).astype(np.int32)
    return (np.flatnonzero(seen), *(place[column] for column in columns))


def _chosen(texts: tuple[str, ...], rows: NDArray[Any]) -> tuple[str, ...]:
    return tuple(texts[row] for row in rows)
