"""Clustered Bradley-Terry (Park et al., arXiv 2405.00254): K rewards, and each person belongs to one of them.

    r_u(x) = <theta_{c(u)}, phi(x)>,   theta [K, d] shared,   c(u) = argmax_k log P(comparisons of u | theta_k)

Hard EM: assign each person to the likeliest cluster, refit each cluster on its people, until nobody moves. Numbers of
clusters are tried in rising order, each started by dividing the clusters of the best smaller one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datasets_registry.records import Comparisons, Float32
from methods.bradley_terry import Pairs, held_out
from methods.clusters import HardEM, log_likelihood
from methods.interface import Budget, Histories, LinearMethod, MethodSpec, UserState, World, stack, unstack
from methods.limits import Limits, must_hold, number, or_none, whole
from methods.registry import register


@register
class ClusteredBT(LinearMethod):
    """K clusters by hard EM, the best of `restarts` starts by training likelihood; K None is chosen on validation."""

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
        deviations=(
            "linear reward on frozen features; a ridge penalty that draws each cluster to the pooled weights; "
            "restarts, because hard EM finds local optima; K is chosen among 1 (which is pooled-bt), 2, 4 and 8 by "
            "macro validation NLL (not accuracy) at the best of six temperatures, each started from the best smaller K"
        ),
        version="3",
    )
    chooses = "the ridge of the pooled start among 8, and K among 4, by validation NLL"

    def __init__(
        self, *, clusters: int | None = None, restarts: int = 2, iterations: int = 15, ridge: float = 10.0
    ) -> None:
        self.clusters = clusters
        self.restarts = restarts
        self.iterations = iterations
        self.ridge = ridge

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Learn the clusters' weights and shares; with K None and no validation, K is 1."""
        must_hold(self, self.limits())
        self.world = world
        pairs, users = Pairs.of_seen(world, train)
        self.scale_ = pairs.scale
        search = HardEM("clustered-bt", budget.seed, self.restarts, self.iterations, self.ridge)
        found = search.fit(pairs, held_out(val, users), self.clusters, budget.trials)
        self.theta_ = found.theta.astype(np.float32)
        self.shares_ = found.shares.astype(np.float32)

    def adapt(self, users: Sequence[int], history: Sequence[Comparisons], budget: Budget) -> list[UserState]:
        """Return the membership, one-hot float32 [K], from the history alone."""
        pairs = Pairs.of(self.world, Histories.of(history), self.scale_)
        member = np.eye(len(self.theta_))[log_likelihood(pairs, self.theta_).argmax(1)]
        member = np.where(pairs.histories.lengths[:, None] > 0, member, self.shares_)
        return unstack(member=member.astype(np.float32))

    @property
    def n_trained(self) -> int:
        """Return the number of shared parameters: the clusters' weights, and their shares of people."""
        return self.theta_.size + self.shares_.size

    def limits(self) -> Limits:
        """Return by option what is allowed; one cluster is pooled-bt."""
        return {
            "clusters": or_none(whole(), ", to choose their number on validation"),
            "restarts": whole(),
            "iterations": whole(),
            "ridge": number(),
        }

    def weights(self, states: Sequence[UserState]) -> Float32:
        """Return the cluster's weights, float32 [n_states, d]."""
        return (stack(states, "member") @ self.theta_ * self.scale_).astype(np.float32)
