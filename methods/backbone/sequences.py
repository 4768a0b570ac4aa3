"""From comparisons to what a transformer runs: distinct (person, item) texts, length buckets, and batches of groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets_registry.protocol import mix, seed_of
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


@dataclass(frozen=True, eq=False)
class Batches:
    """The order in which a table is trained on: batches of about `size` comparisons, groups (person, unit) kept whole.

    `keys`: uint64, one per position of `table.user`, that say who somebody is by what they compared. The order is a
    hash of these, so neither renaming people nor another order of rows changes it. `balanced` deals everybody's groups
    in turn, a person with few of them being asked again, so that each has the same share of an epoch.
    """

    table: Comparisons
    keys: Array
    size: int
    seed: int
    balanced: bool = False

    @cached_property
    def _groups(self) -> tuple[Array, Array, Array, Array]:
        """Return the groups' users and units, int64 [n], the rows of all in their order, and each group's bounds."""
        table = self.table
        width = int(table.unit.max(initial=0)) + 1
        groups, member = np.unique(table.user.astype(np.int64) * width + table.unit, return_inverse=True)
        member = member.reshape(-1)
        rows = np.argsort(member, kind="stable")
        bounds = np.searchsorted(member[rows], np.arange(len(groups) + 1))
        return groups // width, groups % width, rows, bounds

    def epoch(self, number: int) -> list[Array]:
        """Return the rows of each batch of an epoch, in order."""
        user, unit, rows, bounds = self._groups
        salt = np.uint64(seed_of("batches", self.seed, number))
        place = mix(mix(self.keys[user], unit.astype(np.uint64)), np.full(len(user), salt, np.uint64))
        order = self._dealt(user, place) if self.balanced else np.argsort(place, kind="stable")
        counts = np.diff(bounds)[order]
        # a batch ends with the group that fills it
        batch = (np.cumsum(counts) - counts) // max(1, self.size)
        found: list[Array] = []
        for part in np.split(order, np.flatnonzero(np.diff(batch)) + 1):
            if len(part):
                found.append(np.concatenate([rows[bounds[g] : bounds[g + 1]] for g in part]))
        return found

    def steps(self, total: int) -> Iterator[tuple[Array, bool]]:
        """Yield the rows of `total` batches, pass after pass, and whether a batch is the last of its pass."""
        number = 0
        while total > 0:
            order = self.epoch(number)
            for place, rows in enumerate(order[:total], start=1):
                yield rows, place == len(order)
            total -= len(order)
            number += 1

    def _dealt(self, user: Array, place: Array) -> Array:
        """Return as many groups as there are, people in turn; whoever has run out begins again."""
        by_user = np.lexsort((place, user))
        people, first, counts = np.unique(user[by_user], return_index=True, return_counts=True)
        rounds = -(-len(user) // max(1, len(people)))
        turn = np.arange(rounds)[:, None]  # (rounds, people)
        drawn = by_user[first[None] + turn % counts[None]]
        # within a round people come in the order of their next group's hash
        within = np.argsort(mix(place[drawn], np.broadcast_to(turn, drawn.shape).astype(np.uint64)), axis=1)
        return np.take_along_axis(drawn, within, axis=1).ravel()[: len(user)]
