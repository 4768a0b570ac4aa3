"""Hierarchical Bradley-Terry: empirical-Bayes mixed logit (Train 2009, ch. 12; Gaussian random coefficients).

    theta_u ~ Normal(mu, Sigma),   mu [d] and Sigma [d, d] shared;   P(first > second | u) = sigmoid(<theta_u, dphi>)

Fitted by EM with a Laplace E-step: mode and covariance of every person's posterior, then mu = mean of the modes and
Sigma = mean of (mode - mu)(mode - mu)^T + covariance. Sigma says in which directions people differ and by how much,
so the shrinkage of each person adapts per direction: no validation is used.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datasets_registry.protocol import generator
from datasets_registry.records import Comparisons, Float32, Float64
from methods.bradley_terry import Logistic, Pairs, pooled
from methods.interface import Budget, Histories, LinearMethod, MethodSpec, UserState, World, stack, unstack
from methods.registry import register


@register
class HierarchicalBT(LinearMethod):
    """Gaussian population of weights, posterior mode per person."""

    spec = MethodSpec(
        name="hierarchical-bt",
        title="Hierarchical Bradley-Terry (mixed logit)",
        level="feature",
        adaptation="closed-form",
        citation="mixed logit: Train, Discrete Choice Methods with Simulation, 2nd ed. 2009; Laplace EM",
        equation="theta_u ~ N(mu, Sigma), mu [d], Sigma [d, d] shared; theta_u [d] = posterior mode",
        shared_parameters="d + d (d + 1) / 2",
        per_user_parameters="d",
        cold_start="mu, the mean person",
        deviations=(
            "Laplace approximation instead of simulation; above `dimensions` features the deviations theta_u - mu live "
            "in the leading principal components of the training differences; EM runs on at most `people` people"
        ),
    )

    def __init__(self, *, dimensions: int = 64, iterations: int = 30, people: int = 4000) -> None:
        self.dimensions = dimensions
        self.iterations = iterations
        self.people = people

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Learn mu and a square root L of Sigma: theta_u = mu + L z_u, z_u ~ N(0, I)."""
        self.world = world
        pairs, users = Pairs.of_seen(world, train)
        self.scale_ = pairs.scale
        if len(users) > self.people:
            pairs = pairs.of_users(np.sort(generator("people", budget.seed).permutation(len(users))[: self.people]))
        axes = self._axes(pairs)  # (d, k)
        mu = pooled(pairs, 1.0)
        root = 0.5 * np.eye(axes.shape[1])
        design = pairs.project(axes)
        z: Float64 | None = None
        for _ in range(self.iterations):
            problem = Logistic.of(pairs, (design @ root).astype(np.float32), pairs.project(mu[:, None])[:, 0])
            z, spread = problem.posteriors(start=z)
            centre = z.mean(0)
            second = (z - centre).T @ (z - centre) / len(z) + spread.mean(0)
            mu = mu + axes @ (root @ centre)
            lower = np.linalg.cholesky(second + 1e-6 * np.eye(len(second)))
            # carry the modes over to the new mean and root, so that Newton starts near the solution
            z = np.linalg.solve(lower, (z - centre).T).T
            root = root @ lower
        self.mu_ = mu.astype(np.float32)
        self.root_ = (axes @ root).astype(np.float32)

    def adapt(self, users: Sequence[int], history: Sequence[Comparisons], budget: Budget) -> list[UserState]:
        """Return the posterior mode of theta_u on the raw features, from the history alone."""
        pairs = Pairs.of(self.world, Histories.of(history), self.scale_)
        projected = pairs.project(np.column_stack([self.mu_, self.root_]))
        z = Logistic.of(pairs, projected[:, 1:], projected[:, 0]).modes()
        return unstack(theta=((self.mu_ + z @ self.root_.T) * self.scale_).astype(np.float32))

    def weights(self, states: Sequence[UserState]) -> Float32:
        """Return theta_u, float32 [n_states, d]."""
        return stack(states, "theta")

    def _axes(self, pairs: Pairs) -> Float64:
        """Return the axes along which people may differ, float64 [d, k]: all, or the leading principal components."""
        d = len(pairs.scale)
        if d <= self.dimensions:
            return np.eye(d)
        moment = sum((x.T @ x for _, x in pairs.blocks()), np.zeros((d, d), np.float32))
        _, vectors = np.linalg.eigh(moment)
        return vectors[:, -self.dimensions :].astype(np.float64)
