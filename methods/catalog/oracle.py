"""Control: the planted reward itself, on simulated data. No method can do better in expectation.

r_u(x) = temperature * <theta_u, attributes(x)>,   theta_u [k] from the simulation
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datasets_registry.errors import MethodError
from datasets_registry.records import Comparisons, Float32, Truth
from methods.interface import Array, Budget, Method, MethodSpec, UserState, World, stack, unstack
from methods.registry import register


@register
class Oracle(Method):
    """The true weights of each person, on the raw attributes and not on an encoder's features."""

    spec = MethodSpec(
        name="oracle",
        title="Oracle (simulated data)",
        level="feature",
        adaptation="lookup",
        citation="control",
        equation="r_u(x) = temperature <theta_u, attributes(x)>, theta_u planted",
        shared_parameters="0",
        per_user_parameters="k (number of attributes)",
        cold_start="known without a history",
        deviations="label noise (flip) is left out of the margin: it changes no sign",
        needs=frozenset({"truth"}),
        role="control",
    )

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Check that the truth was granted."""
        self.world = world
        self._truth()

    def adapt(self, users: Sequence[int], history: Sequence[Comparisons], budget: Budget) -> list[UserState]:
        """Return the planted theta_u; the history is not read. Rows that were not simulated get the mean."""
        truth = self._truth()
        rows = np.asarray(users, np.int64)
        known = rows < len(truth.theta)
        theta = np.where(known[:, None], truth.theta[np.where(known, rows, 0)], truth.mean)
        return unstack(theta=theta.astype(np.float32))

    def margins(self, states: Sequence[UserState], queries: Comparisons) -> Float32:
        """Return temperature <theta_u, attributes(first) - attributes(second)>, float32 [n]."""
        return self.rewards(states, queries.user, queries.first) - self.rewards(states, queries.user, queries.second)

    def rewards(self, states: Sequence[UserState], users: Array, items: Array) -> Float32:
        """Return temperature <theta_u, attributes(item)>, float32 [n]."""
        attributes = self.world.items.attributes
        if attributes is None:
            raise MethodError("oracle needs the simulation's item attributes, and this World has none")
        theta = stack(states, "theta")[users]
        return (self._truth().temperature * np.einsum("nk,nk->n", attributes[items], theta)).astype(np.float32)

    def _truth(self) -> Truth:
        if self.world.truth is None:
            raise MethodError(f"oracle needs simulated data with a known truth, and {self.world.dataset} has none")
        return self.world.truth
