"""Fits methods of the catalogue by their interface alone: no label of a query is handed to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from benchmarks.cell_process import seed_everything
from benchmarks.choice_sets import completed
from datasets_registry.protocol import PROTOCOL, Count, seed_of
from datasets_registry.records import Comparisons, Float32, Int32, PreferenceData, Rows
from datasets_registry.splits import split
from methods.interface import Budget, Histories, Method, World
from methods.registry import create


@dataclass(frozen=True, slots=True, eq=False)
class Handed:
    """What a fit is handed: training and validation comparisons with their labels, the items, and a seed."""

    train: Comparisons
    val: Comparisons
    world: World
    seed: int

    @classmethod
    def of(
        cls,
        data: PreferenceData,
        fold: int,
        world: World,
        *,
        n_train: Count = "all",
        n_users: Count = "all",
        repetition: int = 0,
        rendered: Comparisons | None = None,
    ) -> Self:
        """Take a fold of a dataset's split; the seed is the protocol's for the fold and repetition.

        `rendered` are the dataset's comparisons, row by row, in the items of another rendering.
        """
        parts, table = split(data, fold), data.comparisons if rendered is None else rendered
        return cls(
            table.take(parts.train(n_train, n_users)),
            table.take(parts.validation(n_users, n_train)),
            world,
            seed_of(PROTOCOL, data.id, fold, repetition),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """Queries as a method sees them: without labels, and with every pair of a choice set (`choice_sets.completed`).

    users: int32 [n_people]; `table.user` is a position in it; `stands` and `sign` put the answers back in order.
    """

    users: Int32
    table: Comparisons
    stands: Rows
    sign: Float32

    @classmethod
    def of(cls, queries: Comparisons) -> Self:
        """Hide the labels of a table."""
        users = np.unique(queries.user).astype(np.int32)
        table, stands, sign = completed(queries)
        return cls(users, table.for_users(np.searchsorted(users, table.user)), stands, sign)

    def answers(self, method: Method, history: Comparisons, seed: int) -> Float32:
        """Return a fitted method's margins, float32 [n], in the order of the queries."""
        budget = Budget(seed=seed)
        states = method.adapt(self.users.tolist(), Histories.group(history, self.users), budget)
        margin = np.asarray(method.margins(states, self.table), np.float32)
        return margin[self.stands] * self.sign


def world_of(data: PreferenceData, encoder: str, features: Float32 | None = None) -> World:
    """Return what a method may look at: the items, their features in an encoder, or its own model to train in."""
    return World(data.id, data.items, len(data.users), features=features, encoder=encoder)


def margins(handed: Handed, method: str, config: Mapping[str, Any], asked: Sequence[Asked]) -> list[Float32]:
    """Fit a method once and return its margins, float32 [n], on each table."""
    seed_everything(handed.seed)
    fitted = create(method, **config)
    fitted.fit(handed.train, handed.val, handed.world, Budget(seed=handed.seed))
    return [each.answers(fitted, handed.train, handed.seed) for each in asked]
