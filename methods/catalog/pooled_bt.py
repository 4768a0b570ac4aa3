"""Pooled Bradley-Terry: one linear reward for everybody. The reference that `gain` is measured against.

r(x) = <theta, phi(x)>,   theta [d] = argmin sum_n w_n NLL_n + ridge/2 |theta|^2
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datasets_registry.records import Comparisons, Float32
from methods.bradley_terry import Pairs, pooled, pooled_chosen
from methods.interface import Budget, LinearMethod, MethodSpec, UserState, World
from methods.limits import Limits, must_hold, number, or_none
from methods.registry import register


@register
class PooledBT(LinearMethod):
    """Ridge logistic regression on feature differences; `ridge` None is chosen on validation NLL."""

    spec = MethodSpec(
        name="pooled-bt",
        title="Pooled Bradley-Terry",
        level="feature",
        adaptation="none",
        citation="Bradley and Terry 1952",
        equation="r(x) = <theta, phi(x)>, theta [d] shared",
        shared_parameters="d",
        per_user_parameters="0",
        cold_start="itself",
        deviations=(
            "ridge penalty on standardised differences, its strength chosen on macro validation NLL (not accuracy)"
        ),
    )
    chooses = "ridge among 8, by validation NLL"

    def __init__(self, *, ridge: float | None = None) -> None:
        self.ridge = ridge

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Learn theta."""
        must_hold(self, self.limits())
        self.world = world
        pairs, _ = Pairs.of_seen(world, train)
        theta = pooled_chosen(pairs, val)[0] if self.ridge is None else pooled(pairs, self.ridge)
        self.theta_ = (theta * pairs.scale).astype(np.float32)

    def adapt(self, users: Sequence[int], history: Sequence[Comparisons], budget: Budget) -> list[UserState]:
        """Return empty states: nobody is different."""
        return [UserState() for _ in users]

    @property
    def n_trained(self) -> int:
        """Return the number of shared parameters: theta."""
        return self.theta_.size

    def limits(self) -> Limits:
        """Return by option what is allowed."""
        return {"ridge": or_none(number(), ", to choose it on validation")}

    def weights(self, states: Sequence[UserState]) -> Float32:
        """Return theta for everybody, float32 [n_states, d]."""
        return np.broadcast_to(self.theta_, (len(states), len(self.theta_)))
