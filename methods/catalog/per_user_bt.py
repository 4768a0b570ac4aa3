"""Per-user Bradley-Terry shrunk to pooled: everybody has weights of their own, near the average person's.

theta_u [d] = argmin sum_{n of u} w_n NLL_n + lambda/2 |theta_u - theta_pooled|^2
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datasets_registry.records import Comparisons, Float32, Float64
from methods.bradley_terry import STRENGTHS, Logistic, Pairs, calibrated_nll, held_out, pooled_chosen
from methods.interface import Budget, Histories, LinearMethod, MethodSpec, UserState, World, stack, unstack
from methods.limits import ABOVE, Limits, must_hold, or_none
from methods.registry import register


@register
class PerUserBT(LinearMethod):
    """One MAP per person around the pooled weights; `shrinkage` (lambda) None is chosen on validation NLL."""

    spec = MethodSpec(
        name="per-user-bt",
        title="Per-user Bradley-Terry, shrunk to pooled",
        level="feature",
        adaptation="closed-form",
        citation="ridge logistic regression per person around Bradley and Terry 1952",
        equation="theta_u = argmin NLL_u + lambda/2 |theta_u - theta_pooled|^2; theta_pooled [d] shared, theta_u [d]",
        shared_parameters="d",
        per_user_parameters="d",
        cold_start="theta_pooled",
        deviations=(
            "penalties act on standardised differences, their strengths chosen on macro validation NLL (not accuracy)"
        ),
        version="2",
    )
    chooses = "the pooled ridge among 8, and lambda among 8, by validation NLL"

    def __init__(self, *, shrinkage: float | None = None) -> None:
        self.shrinkage = shrinkage

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Learn the pooled weights, and how close to them people are."""
        must_hold(self, self.limits())
        self.world = world
        pairs, users = Pairs.of_seen(world, train)
        self.scale_ = pairs.scale
        theta, _ = pooled_chosen(pairs, val)
        self.theta_ = theta.astype(np.float32)
        self.shrinkage_ = self._chosen(pairs, users, val) if self.shrinkage is None else self.shrinkage

    def adapt(self, users: Sequence[int], history: Sequence[Comparisons], budget: Budget) -> list[UserState]:
        """Return theta_u on the raw features, from the history alone."""
        deviation = self._deviations(Pairs.of(self.world, Histories.of(history), self.scale_), self.shrinkage_)
        return unstack(theta=((self.theta_ + deviation) * self.scale_).astype(np.float32))

    @property
    def n_trained(self) -> int:
        """Return the number of shared parameters: theta_pooled."""
        return self.theta_.size

    def limits(self) -> Limits:
        """Return by option what is allowed."""
        return {"shrinkage": or_none(ABOVE, ", to choose it on validation")}

    def weights(self, states: Sequence[UserState]) -> Float32:
        """Return theta_u, float32 [n_states, d]."""
        return stack(states, "theta")

    def _deviations(self, pairs: Pairs, shrinkage: float, start: Float64 | None = None) -> Float64:
        """Return theta_u - theta_pooled, float64 [n_users, d], on scaled features."""
        base = pairs.project(self.theta_[:, None])[:, 0]
        return Logistic.of(pairs, pairs.design(), base).modes(shrinkage, start=start)

    def _chosen(self, pairs: Pairs, users: np.ndarray, val: Comparisons) -> float:
        """Return the lambda with the smallest macro validation NLL, strong to weak and warm-started."""
        val = held_out(val, users)
        if not len(val):
            return 1.0
        x = self.world.differences(val) * self.scale_
        best = (float("inf"), 1.0)
        deviation: Float64 | None = None
        for shrinkage in sorted(STRENGTHS, reverse=True):
            deviation = self._deviations(pairs, shrinkage, deviation)
            margin = x @ self.theta_ + np.einsum("nd,nd->n", x, deviation[val.user])
            best = min(best, (calibrated_nll(margin, val), shrinkage))
        return best[1]
