"""Hierarchical Bradley-Terry: empirical-Bayes mixed logit (Train 2009, ch. 12; Gaussian random coefficients).

    theta_u ~ Normal(mu, Sigma),   mu [d] and Sigma [d, d] shared;   P(first > second | u) = sigmoid(<theta_u, dphi>)

Fitted by EM with a Laplace E-step: mode and covariance of every person's posterior, then mu moves by the mean of the
modes, and Sigma is its maximum a posteriori under an inverse-Wishart prior that is worth `prior` people per person:

    Sigma = (S + prior * FLOOR * I) / (1 + prior),   S = mean of (mode - mu)(mode - mu)^T + covariance

S alone (prior = 0) grows without bound where people's answers are separable: the likelihood never falls with the size
of Sigma. The prior's density does, like |Sigma|^(-prior n / 2), so EM converges; a direction in which people hardly
differ shrinks to FLOOR. Sigma says in which directions people differ and by how much, so the shrinkage of each person
adapts per direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datasets_registry.records import Comparisons, Float32, Float64
from methods.bradley_terry import Logistic, Pairs, calibrated_nll, held_out, pooled_chosen, some_people
from methods.interface import Budget, Histories, LinearMethod, MethodSpec, UserState, World, stack, unstack
from methods.limits import ABOVE, Limits, must_hold, or_none, whole
from methods.registry import register

PRIORS: tuple[float, ...] = (0.01, 0.03, 0.1)
FLOOR = 1e-4
TOLERANCE = 0.02


@dataclass(frozen=True, slots=True, eq=False)
class _Population:
    """A point of EM: mu float64 [d], L float64 [k, k] along the axes, and the modes z float64 [n_users, k]."""

    mu: Float64
    root: Float64
    z: Float64


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
        shared_parameters="d + k (k + 1) / 2, k = min(d, dimensions)",
        per_user_parameters="d",
        cold_start="mu, the mean person",
        deviations=(
            "Laplace approximation instead of simulation; above `dimensions` features the deviations theta_u - mu live "
            "in the leading principal components of the training differences; EM runs on at most `people` people, "
            "drawn by what they compared; an inverse-Wishart prior on Sigma (none in the source), whose strength is "
            "chosen on validation among three and Sigma = 0, which is the pooled model, by macro NLL (not accuracy) at "
            "the best of six temperatures"
        ),
        version="3",
    )
    chooses = "the ridge of the pooled start among 8, and the prior among 4, Sigma = 0 being one, by validation NLL"

    def __init__(
        self, *, prior: float | None = None, dimensions: int = 64, iterations: int = 60, people: int = 4000
    ) -> None:
        self.prior = prior
        self.dimensions = dimensions
        self.iterations = iterations
        self.people = people

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Learn mu and a square root L of Sigma: theta_u = mu + L z_u, z_u ~ N(0, I)."""
        must_hold(self, self.limits())
        self.world = world
        pairs, users = Pairs.of_seen(world, train)
        self.scale_ = pairs.scale
        part = some_people(pairs.histories, self.people, "hierarchical-bt", budget.seed)
        if len(part) < len(users):
            pairs, users = pairs.of_users(part), users[part]
        val = held_out(val, users)
        theta, _ = pooled_chosen(pairs, val)
        axes = _axes(pairs, self.dimensions)
        start = _Population(theta, 0.5 * np.eye(axes.shape[1]), np.zeros((len(users), axes.shape[1])))
        if self.prior is not None or not len(val):
            prior = PRIORS[1] if self.prior is None else self.prior
            found = self._converged(pairs, axes, start, prior)
        else:
            found, prior = self._chosen(pairs, axes, start, val, budget)
        self.prior_ = prior
        self.mu_ = found.mu.astype(np.float32)
        self.root_ = (axes @ found.root).astype(np.float32)

    def adapt(self, users: Sequence[int], history: Sequence[Comparisons], budget: Budget) -> list[UserState]:
        """Return the posterior mode of theta_u on the raw features, from the history alone."""
        pairs = Pairs.of(self.world, Histories.of(history), self.scale_)
        projected = pairs.project(np.column_stack([self.mu_, self.root_]))
        z = Logistic.of(pairs, projected[:, 1:], projected[:, 0]).modes()
        return unstack(theta=((self.mu_ + z @ self.root_.T) * self.scale_).astype(np.float32))

    @property
    def n_trained(self) -> int:
        """Return the number of shared parameters: mu, and the symmetric Sigma along the axes."""
        k = self.root_.shape[1]
        return self.mu_.size + k * (k + 1) // 2

    def limits(self) -> Limits:
        """Return by option what is allowed; without a prior EM does not converge."""
        return {
            "prior": or_none(ABOVE, ", to choose it on validation"),
            "dimensions": whole(),
            "iterations": whole(0),
            "people": whole(),
        }

    def weights(self, states: Sequence[UserState]) -> Float32:
        """Return theta_u, float32 [n_states, d]."""
        return stack(states, "theta")

    def _chosen(
        self, pairs: Pairs, axes: Float64, start: _Population, val: Comparisons, budget: Budget
    ) -> tuple[_Population, float]:
        """Return the population and the prior with the smallest validation NLL, weak to strong and warm-started.

        Not strong to weak: EM leaves a direction that has shrunk to nothing only slowly.
        """
        x = self.world.differences(val) * self.scale_
        pooled_margin = x @ start.mu
        best = (calibrated_nll(pooled_margin, val), _Population(start.mu, 0.0 * start.root, start.z), np.inf)
        point, last = start, float("inf")
        along = x @ axes
        for prior in PRIORS[: max(1, budget.trials - 1)]:
            point = self._converged(pairs, axes, point, prior)
            deviation = point.z @ point.root.T
            score = calibrated_nll(x @ point.mu + np.einsum("nk,nk->n", along, deviation[val.user]), val)
            if score > last:
                break
            last = score
            if score < best[0]:
                best = (score, point, prior)
        return best[1], float(best[2])

    def _converged(self, pairs: Pairs, axes: Float64, at: _Population, prior: float) -> _Population:
        """Return the fixed point of EM under a prior, with everybody's modes; at most `iterations` rounds.

        It has converged when Sigma's Frobenius norm changes by less than TOLERANCE of itself.
        """
        mu, root, z = at.mu, at.root, at.z
        design = pairs.project(axes)
        for _ in range(self.iterations):
            problem = Logistic.of(pairs, (design @ root).astype(np.float32), pairs.project(mu[:, None])[:, 0])
            z, spread = problem.posteriors(start=z, iterations=4, tolerance=1e-3)
            centre = z.mean(0)
            second = (z - centre).T @ (z - centre) / len(z) + spread.mean(0)
            inverse = np.linalg.inv(root)
            values, vectors = np.linalg.eigh((second + prior * FLOOR * inverse @ inverse.T) / (1.0 + prior))
            # EM's next Sigma is L M L^T; over-relaxed it is L M^c L^T, c < 2: the same fixed point in half the rounds.
            # The stronger the prior, the less EM crawls and the less it is relaxed.
            lower = root @ (vectors * values ** (0.5 + 0.4 / (1.0 + prior)))
            mu = mu + axes @ (root @ centre)
            # carry the modes over to the new mean and root, so that Newton starts near the solution
            z = np.linalg.solve(lower, root @ (z - centre).T).T
            before, root = root @ root.T, lower
            after = root @ root.T
            if np.linalg.norm(after - before) < TOLERANCE * np.linalg.norm(after):
                break
        problem = Logistic.of(pairs, (design @ root).astype(np.float32), pairs.project(mu[:, None])[:, 0])
        return _Population(mu, root, problem.modes(start=z))


def _axes(pairs: Pairs, dimensions: int) -> Float64:
    """Return the axes along which people may differ, float64 [d, k]: all, or the leading principal components."""
    d = len(pairs.scale)
    if d <= dimensions:
        return np.eye(d)
    moment = sum((x.T @ x for _, x in pairs.blocks()), np.zeros((d, d), np.float32))
    _, vectors = np.linalg.eigh(moment)
    return vectors[:, -dimensions:].astype(np.float64)
