"""MaxMin-RLHF (Chakraborty et al., arXiv 2402.08925) on frozen features: the reward that serves the worst-off group.

    r_k(x, y) = <theta_k, phi(x, y)> / s_k,   theta [K, d] by hard EM over people (`methods/clusters.py`)
    pi* = argmax_pi min_k E_x[ E_pi r_k(x, y) - beta KL(pi(.|x) || uniform) ]

The policy chooses among the items y of a training unit x, and its prior is uniform there. The least of K numbers is
their least convex combination, min_k v_k = min_lambda sum_k lambda_k v_k over the simplex, so with
r_lambda = sum_k lambda_k r_k the problem is max_pi min_lambda E_x[E_pi r_lambda - beta KL]. It is concave in pi, linear
in lambda, and both sets are convex and compact, so max and min change places (von Neumann; Sion). For a given lambda
the best policy is Gibbs', pi_lambda(y|x) ~ exp(r_lambda(x, y) / beta), whose value is a log-mean-exp:

    lambda* = argmin_lambda D(lambda),   D(lambda) = E_x[ beta log mean_y exp(r_lambda(x, y) / beta) ]

D is convex, and its slope is what each group gets: dD/dlambda_k = E_x E_pi_lambda[r_k]. At the optimum every group with
lambda_k > 0 gets the same, and no group gets less (Karush, Kuhn and Tucker). r_lambda* is the population reward that is
served to everybody.

Bradley-Terry fixes no level of a reward, and no scale that could be compared between groups: r_k is centred in every
unit, so that what a group gets is its gain over a choice at random, and has unit root mean square over the units (s_k).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from datasets_registry.records import Comparisons, Float32, Float64
from methods.bradley_terry import Pairs, held_out
from methods.clusters import HardEM
from methods.interface import Array, Budget, LinearMethod, MethodSpec, UserState, World
from methods.limits import ABOVE, Limits, must_hold, number, or_none, whole
from methods.registry import register

_CHUNK = 8192


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """What a policy chooses among: the groups' rewards of each unit's items, centred in the unit.

    rewards: float64 [m, K], rows sorted by unit; offsets: int64 [n_units + 1] bounds each unit's rows.
    """

    rewards: Float64
    offsets: Array

    @classmethod
    def of(cls, table: Comparisons, world: World, theta: Array) -> Choices:
        """Gather the items of every unit of a table; theta: [K, d] on the raw features. A unit counts once."""
        assert world.features is not None
        unit = np.concatenate([table.unit, table.unit]).astype(np.int64)
        item = np.concatenate([table.first, table.second]).astype(np.int64)
        width = int(item.max(initial=0)) + 1
        unit, item = np.divmod(np.unique(unit * width + item), width)
        offsets = np.append(np.flatnonzero(np.diff(unit, prepend=-1)), len(unit))
        used, place = np.unique(item, return_inverse=True)
        parts = [world.features[used[lo : lo + _CHUNK]] @ theta.T for lo in range(0, len(used), _CHUNK)]
        rewards = np.concatenate([np.zeros((0, len(theta))), *parts]).astype(np.float64)[place.reshape(-1)]
        sizes = np.diff(offsets)
        mean = np.add.reduceat(rewards, offsets[:-1], axis=0) / sizes[:, None]
        return cls(rewards - np.repeat(mean, sizes, axis=0), offsets)

    def over_units(self, values: Array) -> Float64:
        """Return E_x of the sum over a unit's items of values [m, ...]."""
        return np.add.reduceat(values, self.offsets[:-1], axis=0).mean(0)

    def size(self) -> Float64:
        """Return each group's root mean square E_x mean_y r_k^2, float64 [K]; 1 for a group that is indifferent."""
        size = np.sqrt(
            self.over_units(self.rewards**2 / np.repeat(np.diff(self.offsets), np.diff(self.offsets))[:, None])
        )
        return np.where(size > 0, size, 1.0)

    def gibbs(self, reward: Array, beta: float) -> tuple[Float64, Float64]:
        """Return the policy exp(reward / beta) of each unit, float64 [m], and beta log mean exp, float64 [n_units]."""
        sizes = np.diff(self.offsets)
        top = np.maximum.reduceat(reward, self.offsets[:-1])
        mass = np.exp((reward - np.repeat(top, sizes)) / beta)
        total = np.add.reduceat(mass, self.offsets[:-1])
        return mass / np.repeat(total, sizes), top + beta * np.log(total / sizes)

    def dual(self, mixture: Array, beta: float) -> tuple[float, Float64]:
        """Return D(lambda) and its slope, what each group gets under the policy, float64 [K]."""
        policy, value = self.gibbs(self.rewards @ mixture, beta)
        return float(value.mean()), self.over_units(policy[:, None] * self.rewards)

    def egalitarian(self, beta: float) -> Float64:
        """Return the lambda [K] that minimises D over the simplex."""
        from scipy.optimize import minimize

        k = self.rewards.shape[1]
        found = minimize(
            self.dual,
            np.full(k, 1.0 / k),
            args=(beta,),
            jac=True,
            method="SLSQP",
            bounds=[(0.0, 1.0)] * k,
            constraints={"type": "eq", "fun": lambda m: m.sum() - 1.0, "jac": lambda m: np.ones_like(m)},
            options={"maxiter": 300, "ftol": 1e-12},
        )
        mixture = np.clip(found.x, 0.0, None)
        return mixture / mixture.sum()


@register
class MaxMinEM(LinearMethod):
    """Hard EM into groups, then one reward for everybody that does the best by the worst-off group."""

    spec = MethodSpec(
        name="maxmin-em",
        title="MaxMin-RLHF",
        level="feature",
        adaptation="none",
        citation="Chakraborty et al., MaxMin-RLHF, arXiv 2402.08925",
        equation="r(x) = sum_k lambda_k <theta_k, phi(x)>; theta [K, d], lambda [K] on the simplex, shared",
        shared_parameters="K d + K",
        per_user_parameters="0",
        cold_start="itself",
        deviations=(
            "linear rewards on frozen features instead of language models; a ridge penalty draws each group to the "
            "pooled weights, and K None is chosen as clustered-bt does; the max-min policy is not trained by PPO but "
            "found exactly, by the dual, for a policy that chooses among a unit's items with a penalty beta towards "
            "the uniform one, and what is served is its reward; groups' rewards are centred in each unit and scaled to "
            "unit root mean square; margins are in the scale of the groups' rewards, averaged by lambda"
        ),
    )
    search: ClassVar[Mapping[str, Sequence[Any]]] = {"beta": (0.3, 1.0, 3.0), "clusters": (None, 2, 4)}
    chooses = "with K None the ridge of the pooled start among 8, and K among 4, by validation NLL"

    def __init__(
        self,
        *,
        clusters: int | None = None,
        beta: float = 1.0,
        restarts: int = 2,
        iterations: int = 15,
        ridge: float = 10.0,
    ) -> None:
        self.clusters = clusters
        self.beta = beta
        self.restarts = restarts
        self.iterations = iterations
        self.ridge = ridge

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Learn the groups' rewards, and how they are mixed.

        Sets `mixture_` (lambda) and `gains_` (what each group gets under the policy, in its root mean squares).
        """
        must_hold(self, self.limits())
        self.world = world
        pairs, users = Pairs.of_seen(world, train)
        search = HardEM("maxmin-em", budget.seed, self.restarts, self.iterations, self.ridge)
        groups = search.fit(pairs, held_out(val, users), self.clusters, budget.trials)
        theta = groups.theta * pairs.scale
        choices = Choices.of(train, world, theta)
        size = choices.size()
        choices = Choices(choices.rewards / size, choices.offsets)
        mixture = choices.egalitarian(self.beta)
        self.theta_ = theta.astype(np.float32)
        self.shares_ = groups.shares.astype(np.float32)
        self.mixture_ = mixture.astype(np.float32)
        self.gains_ = choices.dual(mixture, self.beta)[1].astype(np.float32)
        self.size_ = size.astype(np.float32)

    def adapt(self, users: Sequence[int], history: Sequence[Comparisons], budget: Budget) -> list[UserState]:
        """Return empty states: the reward is everybody's."""
        return [UserState() for _ in users]

    def weights(self, states: Sequence[UserState]) -> Float32:
        """Return the weights of r_lambda for everybody, float32 [n_states, d]."""
        theta = (self.mixture_ @ self.size_) * ((self.mixture_ / self.size_) @ self.theta_)
        return np.broadcast_to(theta.astype(np.float32), (len(states), len(theta)))

    def limits(self) -> Limits:
        """Return by option what is allowed; one cluster is pooled-bt, and the larger beta, the nearer to uniform."""
        return {
            "clusters": or_none(whole(), ", to choose their number on validation"),
            "beta": ABOVE,
            "restarts": whole(),
            "iterations": whole(),
            "ridge": number(),
        }

    @property
    def n_trained(self) -> int:
        """Return the number of shared parameters: the groups' weights, and lambda."""
        return self.theta_.size + self.mixture_.size
