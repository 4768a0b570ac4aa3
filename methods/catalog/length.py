"""Control: the longer response wins. A dataset where this is strong measures verbosity, not people.

r(x) = log(1 + characters of the response of x);   margin = r(first) - r(second)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datasets_registry.records import Comparisons, Float32
from methods.interface import Array, Budget, Method, MethodSpec, UserState, World
from methods.registry import register


@register
class Length(Method):
    """Log length of the response as the reward, for everybody."""

    spec = MethodSpec(
        name="length",
        title="Length only",
        level="feature",
        adaptation="none",
        citation="control",
        equation="r(x) = log(1 + |response of x|), in characters",
        shared_parameters="0",
        per_user_parameters="0",
        cold_start="the same reward",
        deviations="none",
        needs=frozenset(),
        role="control",
    )

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Keep the world: nothing is learned."""
        self.world = world

    def adapt(self, users: Sequence[int], history: Sequence[Comparisons], budget: Budget) -> list[UserState]:
        """Return empty states."""
        return [UserState() for _ in users]

    def margins(self, states: Sequence[UserState], queries: Comparisons) -> Float32:
        """Return the difference of log lengths, float32 [n]."""
        return self._lengths(queries.first) - self._lengths(queries.second)

    def rewards(self, states: Sequence[UserState], users: Array, items: Array) -> Float32:
        """Return log(1 + characters), float32 [n]."""
        return self._lengths(items)

    def _lengths(self, items: Array) -> Float32:
        rows, back = np.unique(items, return_inverse=True)
        counted = np.fromiter((len(self.world.items.response[row]) for row in rows), np.float64, len(rows))
        return np.log1p(counted).astype(np.float32)[back]
