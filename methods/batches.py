"""The order in which comparisons are trained on, by what people compared and not by row numbers."""

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
        """Yield the rows of `total` batches, pass after pass, and whether a batch is the last of its pass.

        An empty table has no batch, so nothing is yielded.
        """
        number = 0
        while total > 0 and len(self.table):
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
