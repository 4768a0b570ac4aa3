"""Clustered Bradley-Terry (Park et al., arXiv 2405.00254): K rewards, and each person belongs to one of them.

    r_u(x) = <theta_{c(u)}, phi(x)>,   theta [K, d] shared,   c(u) = argmax_k log P(comparisons of u | theta_k)

Hard EM: assign each person to the likeliest cluster, refit each cluster on its people, until nobody moves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datasets_registry.errors import RequestError
from datasets_registry.protocol import seed_of
from datasets_registry.records import Comparisons, Float32, Float64
from methods.bradley_terry import Pairs, nll, person_draws, pooled
from methods.interface import Array, Budget, Histories, LinearMethod, MethodSpec, UserState, World, stack, unstack
from methods.registry import register


@register
class ClusteredBT(LinearMethod):
    """K clusters by hard EM, the best of `restarts` starts by training likelihood."""

    spec = MethodSpec(
        name="clustered-bt",
        title="Clustered Bradley-Terry",
        level="feature",
        adaptation="closed-form",
        citation="Park et al., arXiv 2405.00254",
        equation="r_u(x) = <theta_c(u), phi(x)>; theta [K, d] shared, c(u) the likeliest cluster",
        shared_parameters="K d + K",
        per_user_parameters="K (one-hot; the clusters' shares for an empty history)",
        cold_start="the clusters' mean, weighted by their shares of people",
        deviations="linear reward on frozen features; ridge penalty; restarts, because hard EM finds local optima",
    )

    def __init__(self, *, clusters: int = 2, restarts: int = 4, iterations: int = 20, ridge: float = 3.0) -> None:
        self.clusters = clusters
        self.restarts = restarts
        self.iterations = iterations
        self.ridge = ridge

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Learn the clusters' weights and shares."""
        if self.clusters < 1:
            raise RequestError(f"clusters={self.clusters}: allowed are integers from 1; 1 is pooled-bt")
        self.world = world
        pairs, users = Pairs.of_seen(world, train)
        self.scale_ = pairs.scale
        average = pooled(pairs, self.ridge)
        best = float("-inf")
        for restart in range(self.restarts if self.clusters > 1 else 1):
            start = person_draws(pairs, self.clusters, seed_of("clustered-bt", budget.seed, restart))
            member = start.argmax(1)
            theta = np.tile(average, (self.clusters, 1))
            likelihood = float("-inf")
            for _ in range(self.iterations):
                theta = self._refitted(pairs, member, theta)
                each = _log_likelihood(pairs, theta)
                likelihood = float(each.max(1).sum())
                moved, member = member, each.argmax(1)
                if np.array_equal(moved, member):
                    break
            if likelihood > best:
                best = likelihood
                self.theta_ = theta.astype(np.float32)
                shares = np.bincount(member, minlength=self.clusters) / len(users)
                self.shares_ = shares.astype(np.float32)

    def adapt(self, users: Sequence[int], history: Sequence[Comparisons], budget: Budget) -> list[UserState]:
        """Return the membership, one-hot float32 [K], from the history alone."""
        pairs = Pairs.of(self.world, Histories.of(history), self.scale_)
        member = np.eye(self.clusters)[_log_likelihood(pairs, self.theta_).argmax(1)]
        member = np.where(pairs.histories.lengths[:, None] > 0, member, self.shares_)
        return unstack(member=member.astype(np.float32))

    def weights(self, states: Sequence[UserState]) -> Float32:
        """Return the cluster's weights, float32 [n_states, d]."""
        return (stack(states, "member") @ self.theta_ * self.scale_).astype(np.float32)

    def _refitted(self, pairs: Pairs, member: Array, theta: Float64) -> Float64:
        """Return each cluster's weights on its own people, float64 [K, d]."""
        mine = member[pairs.user]
        return np.stack(
            [pooled(pairs, self.ridge, weight=pairs.weight * (mine == k), start=theta[k]) for k in range(len(theta))]
        )


def _log_likelihood(pairs: Pairs, theta: Array) -> Float64:
    """Return log P(comparisons of u | theta_k), float64 [n_users, K]."""
    margin = pairs.project(theta.T).astype(np.float64)
    loss = pairs.weight[:, None] * nll(margin, pairs.label[:, None])
    each = [np.bincount(pairs.user, column, minlength=pairs.n_users) for column in loss.T]
    return -np.stack(each, axis=1).astype(np.float64)
