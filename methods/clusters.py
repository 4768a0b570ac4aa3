"""Groups of people by hard EM: K linear Bradley-Terry rewards, and each person belongs to one of them.

    r_k(x) = <theta_k, phi(x)>,   theta [K, d];   c(u) = argmax_k log P(comparisons of u | theta_k)

Assign each person to the likeliest cluster, refit each cluster on its people, until nobody moves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets_registry.protocol import seed_of
from datasets_registry.records import Comparisons, Float64
from methods.bradley_terry import Pairs, calibrated_nll, nll, person_draws, pooled, pooled_chosen
from methods.interface import Array

CLUSTERS: tuple[int, ...] = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """Clusters' weights on scaled features float64 [K, d] and everybody's cluster int64 [n_users]."""

    theta: Float64
    member: Array

    @property
    def shares(self) -> Float64:
        """Return each cluster's share of people, float64 [K]."""
        return np.bincount(self.member, minlength=len(self.theta)) / max(1, len(self.member))


@dataclass(frozen=True, slots=True)
class HardEM:
    """How clusters are looked for: the likeliest of `restarts` runs of at most `iterations` rounds.

    ridge draws each cluster to the pooled weights; the starts are drawn from `name` and `seed`.
    """

    name: str
    seed: int
    restarts: int
    iterations: int
    ridge: float

    def fit(self, pairs: Pairs, val: Comparisons, clusters: int | None, trials: int) -> Clusters:
        """Return so many clusters; with None their number is chosen on `val` within `trials`, and is 1 without `val`.

        val: `user` is the position in `pairs`.
        """
        average = pooled_chosen(pairs, val)[0] if clusters is None else pooled(pairs, self.ridge)
        single = Clusters(average[None], np.zeros(pairs.n_users, np.int64))
        if clusters is not None:
            return self._climbed(pairs, average, single, clusters)
        return self._chosen(pairs, average, single, val, trials) if len(val) else single

    def _chosen(self, pairs: Pairs, average: Float64, single: Clusters, val: Comparisons, trials: int) -> Clusters:
        """Return the clusters with the smallest macro validation NLL, every K started from the best smaller one."""
        x = pairs.world.differences(val) * pairs.scale

        def score(found: Clusters) -> float:
            return calibrated_nll(np.einsum("nd,nd->n", x, found.theta[found.member[val.user]]), val)

        best, best_score = single, score(single)
        for k in CLUSTERS[1 : max(1, trials)]:
            found = self._climbed(pairs, average, best, k)
            used, member = np.unique(found.member, return_inverse=True)
            found = Clusters(found.theta[used], member)  # clusters that nobody is left in are dropped
            if score(found) < best_score:
                best, best_score = found, score(found)
        return best

    def _climbed(self, pairs: Pairs, average: Float64, fewer: Clusters, k: int) -> Clusters:
        """Return the likeliest of `restarts` runs of hard EM with k clusters, started by dividing `fewer`."""
        if k == len(fewer.theta):
            return fewer
        parts = -(-k // len(fewer.theta))
        best, best_likelihood = fewer, float("-inf")
        for restart in range(max(1, self.restarts)):
            draws = person_draws(pairs.histories, parts, seed_of(self.name, self.seed, k, restart))
            member = (fewer.member * parts + draws.argmax(1)) % k
            theta = np.tile(average, (k, 1))
            likelihood = float("-inf")
            for _ in range(self.iterations):
                theta = self._refitted(pairs, average, member, theta)
                each = log_likelihood(pairs, theta)
                likelihood = float(each.max(1).sum())
                moved, member = member, each.argmax(1)
                if np.array_equal(moved, member):
                    break
            if likelihood > best_likelihood:
                best, best_likelihood = Clusters(theta, member), likelihood
        return best

    def _refitted(self, pairs: Pairs, average: Float64, member: Array, theta: Float64) -> Float64:
        """Return each cluster's weights on its own people, float64 [K, d]; nobody gives the pooled ones."""
        fitted = np.tile(average, (len(theta), 1))
        for k in np.unique(member):
            people = pairs.of_users(np.flatnonzero(member == k))
            fitted[k] = pooled(people, self.ridge, start=theta[k], centre=average, iterations=10)
        return fitted


def log_likelihood(pairs: Pairs, theta: Array) -> Float64:
    """Return log P(comparisons of u | theta_k), float64 [n_users, K]."""
    margin = pairs.project(theta.T).astype(np.float64)
    loss = pairs.weight[:, None] * nll(margin, pairs.label[:, None])
    each = [np.bincount(pairs.user, column, minlength=pairs.n_users) for column in loss.T]
    return -np.stack(each, axis=1).astype(np.float64)
