"""Control: a coin per comparison, that everybody shares. Its accuracy is .5 in expectation, whatever the dataset.

margin(first, second) = sign(first - second) h(seed, min, max),   h in (.01, 1) times a random sign, from a hash
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datasets_registry.protocol import mix, seed_of
from datasets_registry.records import Comparisons, Float32
from methods.interface import Budget, Method, MethodSpec, UserState, World
from methods.registry import register


@register
class Random(Method):
    """A hashed coin per pair of items, antisymmetric and fixed by the seed."""

    spec = MethodSpec(
        name="random",
        title="Random",
        level="feature",
        adaptation="none",
        citation="control",
        equation="s(x, x') = -s(x', x) = a hash of (seed, x, x') in (-1, 1)",
        shared_parameters="0",
        per_user_parameters="0",
        cold_start="the same coin",
        deviations="none",
        needs=frozenset(),
        scoring="pairwise",
        role="control",
    )

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Keep the seed."""
        self.world = world
        self.seed_ = seed_of("random", budget.seed)

    def adapt(self, users: Sequence[int], history: Sequence[Comparisons], budget: Budget) -> list[UserState]:
        """Return empty states."""
        return [UserState() for _ in users]

    def margins(self, states: Sequence[UserState], queries: Comparisons) -> Float32:
        """Return the coins, float32 [n]: never 0 unless an item is compared with itself."""
        low = np.minimum(queries.first, queries.second).astype(np.uint64)
        high = np.maximum(queries.first, queries.second).astype(np.uint64)
        key = mix(mix(np.full(len(low), self.seed_, np.uint64), low + np.uint64(1)), high + np.uint64(1))
        size = 0.01 + 0.99 * (key >> np.uint64(11)).astype(np.float64) / 2.0**53
        coin = np.where(key & np.uint64(1), size, -size)
        return (coin * np.sign(queries.first.astype(np.int64) - queries.second)).astype(np.float32)
