"""Control: a coin per person and comparison. Its accuracy is .5 in expectation, whatever the dataset.

margin_u(first, second) = sign(first - second) h(seed, u, min, max),   h in (.01, 1) times a random sign, from a hash

The coin is each person's own: one that everybody shared would be a fixed ranking, whose accuracy on a dataset of few
items strays from .5 by more than an interval over people can show.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datasets_registry.protocol import mix, seed_of
from datasets_registry.records import Comparisons, Float32
from methods.interface import Budget, Method, MethodSpec, UserState, World, stack, unstack
from methods.registry import register

WHY = "a person's coin is drawn from who they are: there is nothing else to draw it from before they said anything"


@register
class Random(Method):
    """A hashed coin per person and pair of items, antisymmetric and fixed by the seed."""

    spec = MethodSpec(
        name="random",
        title="Random",
        level="feature",
        adaptation="none",
        citation="control",
        equation="s_u(x, x') = -s_u(x', x) = a hash of (seed, u, x, x') in (-1, 1)",
        shared_parameters="0",
        per_user_parameters="1 key",
        cold_start="a coin of one's own",
        deviations="none",
        needs=frozenset(),
        scoring="pairwise",
        role="control",
        expected_failures={
            "renaming people changes nothing": WHY,
            "permuting people permutes results": WHY,
        },
    )

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Keep the seed."""
        self.world = world
        self.seed_ = seed_of("random", budget.seed)

    def adapt(self, users: Sequence[int], history: Sequence[Comparisons], budget: Budget) -> list[UserState]:
        """Return each person's key, whatever they said."""
        keys = mix(np.full(len(users), self.seed_, np.uint64), np.asarray(users, np.uint64) + np.uint64(1))
        return unstack(key=keys)

    def margins(self, states: Sequence[UserState], queries: Comparisons) -> Float32:
        """Return the coins, float32 [n]: never 0 unless an item is compared with itself."""
        low = np.minimum(queries.first, queries.second).astype(np.uint64)
        high = np.maximum(queries.first, queries.second).astype(np.uint64)
        key = mix(mix(stack(states, "key")[queries.user], low + np.uint64(1)), high + np.uint64(1))
        size = 0.01 + 0.99 * (key >> np.uint64(11)).astype(np.float64) / 2.0**53
        coin = np.where(key & np.uint64(1), size, -size)
        return (coin * np.sign(queries.first.astype(np.int64) - queries.second)).astype(np.float32)
