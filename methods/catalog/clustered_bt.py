"""Clustered Bradley-Terry (Park et al., arXiv 2405.00254): K rewards, and each person belongs to one of them.

    r_u(x) = <theta_{c(u)}, phi(x)>,   theta [K, d] shared,   c(u) = argmax_k log P(comparisons of u | theta_k)

Hard EM: assign each person to the likeliest cluster, refit each cluster on its people, until nobody moves. Numbers of
clusters are tried in rising order, each started by dividing the clusters of the best smaller one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datasets_registry.errors import RequestError
from datasets_registry.protocol import seed_of
from datasets_registry.records import Comparisons, Float32, Float64
from methods.bradley_terry import Pairs, calibrated_nll, held_out, nll, person_draws, pooled, pooled_chosen
from methods.interface import Array, Budget, Histories, LinearMethod, MethodSpec, UserState, World, stack, unstack
from methods.registry import register

CLUSTERS: tuple[int, ...] = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True, eq=False)
class _Clusters:
    """Clusters' weights float64 [K, d] and everybody's cluster int64 [n_users]."""

    theta: Float64
    member: Array


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
        version="2",
    )

    def __init__(
        self, *, clusters: int | None = None, restarts: int = 2, iterations: int = 15, ridge: float = 10.0
    ) -> None:
        self.clusters = clusters
        self.restarts = restarts
        self.iterations = iterations
        self.ridge = ridge

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Learn the clusters' weights and shares; with K None and no validation, K is 1."""
        if self.clusters is not None and self.clusters < 1:
            raise RequestError(f"clusters={self.clusters}: allowed are integers from 1; 1 is pooled-bt")
        self.world = world
        pairs, users = Pairs.of_seen(world, train)
        self.scale_ = pairs.scale
        val = held_out(val, users)
        average = pooled_chosen(pairs, val)[0] if self.clusters is None else pooled(pairs, self.ridge)
        best = _Clusters(average[None], np.zeros(len(users), np.int64))
        if self.clusters is not None:
            best = self._climbed(pairs, average, best, self.clusters, budget.seed)
        elif len(val):
            best = self._chosen(pairs, average, best, val, budget)
        self.theta_ = best.theta.astype(np.float32)
        self.shares_ = (np.bincount(best.member, minlength=len(best.theta)) / len(users)).astype(np.float32)

    def adapt(self, users: Sequence[int], history: Sequence[Comparisons], budget: Budget) -> list[UserState]:
        """Return the membership, one-hot float32 [K], from the history alone."""
        pairs = Pairs.of(self.world, Histories.of(history), self.scale_)
        member = np.eye(len(self.theta_))[_log_likelihood(pairs, self.theta_).argmax(1)]
        member = np.where(pairs.histories.lengths[:, None] > 0, member, self.shares_)
        return unstack(member=member.astype(np.float32))

    def weights(self, states: Sequence[UserState]) -> Float32:
        """Return the cluster's weights, float32 [n_states, d]."""
        return (stack(states, "member") @ self.theta_ * self.scale_).astype(np.float32)

    def _chosen(
        self, pairs: Pairs, average: Float64, single: _Clusters, val: Comparisons, budget: Budget
    ) -> _Clusters:
        """Return the clusters with the smallest macro validation NLL, every K started from the best smaller one."""
        x = self.world.differences(val) * self.scale_

        def score(found: _Clusters) -> float:
            return calibrated_nll(np.einsum("nd,nd->n", x, found.theta[found.member[val.user]]), val)

        best, best_score = single, score(single)
        for k in CLUSTERS[1 : max(1, budget.trials)]:
            found = self._climbed(pairs, average, best, k, budget.seed)
            used, member = np.unique(found.member, return_inverse=True)
            found = _Clusters(found.theta[used], member)  # clusters that nobody is left in are dropped
            if score(found) < best_score:
                best, best_score = found, score(found)
        return best

    def _climbed(self, pairs: Pairs, average: Float64, fewer: _Clusters, k: int, seed: int) -> _Clusters:
        """Return the likeliest of `restarts` runs of hard EM with k clusters, started by dividing `fewer`."""
        if k == len(fewer.theta):
            return fewer
        parts = -(-k // len(fewer.theta))
        best, best_likelihood = fewer, float("-inf")
        for restart in range(max(1, self.restarts)):
            draws = person_draws(pairs.histories, parts, seed_of("clustered-bt", seed, k, restart))
            member = (fewer.member * parts + draws.argmax(1)) % k
            theta = np.tile(average, (k, 1))
            likelihood = float("-inf")
            for _ in range(self.iterations):
                theta = self._refitted(pairs, average, member, theta)
                each = _log_likelihood(pairs, theta)
                likelihood = float(each.max(1).sum())
                moved, member = member, each.argmax(1)
                if np.array_equal(moved, member):
                    break
            if likelihood > best_likelihood:
                best, best_likelihood = _Clusters(theta, member), likelihood
        return best

    def _refitted(self, pairs: Pairs, average: Float64, member: Array, theta: Float64) -> Float64:
        """Return each cluster's weights on its own people, float64 [K, d]; nobody gives the pooled ones."""
        fitted = np.tile(average, (len(theta), 1))
        for k in np.unique(member):
            people = pairs.of_users(np.flatnonzero(member == k))
            fitted[k] = pooled(people, self.ridge, start=theta[k], centre=average, iterations=10)
        return fitted


def _log_likelihood(pairs: Pairs, theta: Array) -> Float64:
    """Return log P(comparisons of u | theta_k), float64 [n_users, K]."""
    margin = pairs.project(theta.T).astype(np.float64)
    loss = pairs.weight[:, None] * nll(margin, pairs.label[:, None])
    each = [np.bincount(pairs.user, column, minlength=pairs.n_users) for column in loss.T]
    return -np.stack(each, axis=1).astype(np.float64)
