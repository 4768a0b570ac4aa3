"""The low-rank linear factor family: theta_u = theta_0 + s B g(a_u), B shared [d, r], a_u per user [r].

One class for P-ShareLoRA on frozen features, LoRe, and whatever else is this model with another link g, prior or way of
fitting. A preset gives `fit` (which sets `scale_`, `gain_`, `base_`, `basis_`, `empty_`), `infer` (a_u from a history)
and, where it is not the identity, `codes` (g).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets_registry.records import Comparisons, Float32, Float64
from methods.bradley_terry import Logistic, Pairs, calibrated_nll, held_out, nll, sigmoid, some_people
from methods.interface import Budget, Histories, LinearMethod, UserState, World, stack, unstack

Array = NDArray[Any]
SHRINKAGE: tuple[float, ...] = (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0)
_TUNING_USERS = 2000
_ROUNDS = 2


class LinearFactors(LinearMethod):
    """Reward <theta_0 + s B g(a_u), phi(x)>; what a preset sets is listed in the module's docstring.

    scale_: float32 [d] feature scale; gain_: the number s; base_: float32 [d] and basis_: float32 [d, r], both on
    scaled features; empty_: float32 [r], the coordinates of someone who said nothing.
    """

    scale_: Float32
    gain_: float
    base_: Float32
    basis_: Float32
    empty_: Float32

    def begin(self, world: World, train: Comparisons) -> tuple[Pairs, Array]:
        """Return `Pairs.of_seen`, having set the world and a model of rewards alone: theta_0 = 0 and s = 1."""
        self.world = world
        pairs, users = Pairs.of_seen(world, train)
        self.scale_ = pairs.scale
        self.base_ = np.zeros(len(pairs.scale), np.float32)
        self.gain_ = 1.0
        return pairs, users

    def infer(self, problem: Logistic, budget: Budget) -> Array:
        """Return coordinates [n_users, r] of people with at least one comparison; others' rows are ignored."""
        raise NotImplementedError

    def codes(self, coordinates: Array) -> Array:
        """Return g(a_u), [n_users, r]; the identity unless a preset has another link."""
        return coordinates

    def adapt(self, users: Sequence[int], history: Sequence[Comparisons], budget: Budget) -> list[UserState]:
        """Return a_u from the history alone, given the frozen shared factors."""
        pairs = Pairs.of(self.world, Histories.of(history), self.scale_)
        projected = pairs.project(np.column_stack([self.base_, self.gain_ * self.basis_]))  # (n, 1 + r)
        problem = Logistic.of(pairs, projected[:, 1:], projected[:, 0])
        said = pairs.histories.lengths > 0
        a = np.where(said[:, None], self.infer(problem, budget), self.empty_)
        return unstack(a=a.astype(np.float32))

    def weights(self, states: Sequence[UserState]) -> Float32:
        """Return theta_u, float32 [n_states, d]."""
        codes = self.codes(stack(states, "a"))
        return ((self.base_ + self.gain_ * codes @ self.basis_.T) * self.scale_).astype(np.float32)

    def subspace(self) -> Float64:
        """Return an orthonormal basis of the shared factor on the raw features, float64 [d, r]."""
        q, _ = np.linalg.qr(self.basis_.astype(np.float64) * self.scale_[:, None].astype(np.float64))
        return q


@dataclass(slots=True, eq=False)
class Factors:
    """A point of training: theta_0 float64 [d], B float64 [d, r], a float64 [n_users, r]."""

    base: Float64
    basis: Float64
    codes: Float64


@dataclass(frozen=True, slots=True)
class Shrinkage:
    """What training penalises: `code`/2 |a_u|^2 per user, `code` * n_users/2 |s B|_F^2, and `base`/2 |theta_0|^2.

    With B's penalty proportional to the number of users, one value means the same for 10^2 and 10^5 users: the joint
    penalty is `code` * sqrt(n_users) times the nuclear norm of the users' matrix of deviations.
    """

    code: float
    base: float


def train_factors(
    pairs: Pairs, start: Factors, shrinkage: Shrinkage, *, iterations: int, hold_codes: bool = False
) -> Factors:
    """Return the joint MAP of (theta_0, B, {a_u}): L-BFGS over (theta_0, B), with the a_u solved inside.

    Given B each a_u is an r-dimensional convex problem, so the objective is minimised over a_u at every evaluation
    (batched Newton from the last solution) and the envelope theorem gives the gradient: no d x r Hessian is formed and
    the cost is linear in comparisons. With `hold_codes` the a_u stay as given.
    """
    from scipy.optimize import minimize

    d, r = start.basis.shape
    label, w, user = pairs.label, pairs.weight, pairs.user
    total = max(float(w.sum()), 1e-12)
    codes = start.codes

    def objective(x: Float64) -> tuple[float, Float64]:
        nonlocal codes
        shared = x.reshape(1 + r, d)  # theta_0, then the columns of B
        projected = pairs.project(shared.T)
        if not hold_codes:
            problem = Logistic.of(pairs, projected[:, 1:], projected[:, 0])
            codes = problem.modes(shrinkage.code, start=codes, iterations=4, tolerance=1e-3)
        factors = np.column_stack([np.ones(len(codes)), codes]).astype(np.float32)
        margin = np.einsum("nk,nk->n", projected, factors[user]).astype(np.float64)
        residual = (w * (sigmoid(margin) - label)).astype(np.float32)
        gradient = pairs.back_project(lambda at: residual[at, None] * factors[user[at]], 1 + r).T
        penalty = np.full((1 + r, 1), shrinkage.code * pairs.n_users)
        penalty[0] = shrinkage.base
        value = float(w @ nll(margin, label)) + 0.5 * float((penalty * shared * shared).sum())
        value += 0.5 * shrinkage.code * float((codes * codes).sum())
        return value / total, ((gradient + penalty * shared) / total).ravel()

    begin = np.vstack([start.base, start.basis.T]).ravel()
    found = minimize(objective, begin, jac=True, method="L-BFGS-B", options={"maxiter": iterations, "ftol": 1e-7})
    objective(found.x)  # the last evaluation of a line search need not be its result
    shared = found.x.reshape(1 + r, d)
    return Factors(shared[0].copy(), shared[1:].T.copy(), codes)


def refine_factors(pairs: Pairs, point: Factors, *, rounds: int, iterations: int, base_ridge: float = 1.0) -> Factors:
    """Return the empirical-Bayes fit near a MAP (itself for 0 rounds): Laplace EM over theta_0, B with a_u ~ N(0, I).

    The joint MAP treats every a_u as if it were known exactly, which shrinks B at a few comparisons per person. EM
    weighs each person by the posterior covariance V_u. The prior's mean and covariance are learned in the same round
    and folded into theta_0 and B (parameter expansion: Liu, Rubin and Wu 1998), so EM does not crawl.
    Two rounds are run and not more: Laplace's approximation makes B grow without bound where answers are separable.
    B is penalised with 1/2 |B|_F^2, and theta_0 as in the MAP.
    """
    if not rounds:
        return point
    codes = np.zeros_like(point.codes)
    for _ in range(rounds):
        projected = pairs.project(np.column_stack([point.base, point.basis]))
        codes, spread = Logistic.of(pairs, projected[:, 1:], projected[:, 0]).posteriors(start=codes)
        centre = codes.mean(0)
        second = (codes - centre).T @ (codes - centre) / len(codes) + spread.mean(0)
        root = np.linalg.cholesky(second + 1e-8 * np.eye(len(second)))
        inverse = np.linalg.inv(root)
        codes = (codes - centre) @ inverse.T
        point = Factors(point.base + point.basis @ centre, point.basis @ root, codes)
        point = _expected_step(pairs, point, inverse @ spread @ inverse.T, iterations, base_ridge)
    projected = pairs.project(np.column_stack([point.base, point.basis]))
    codes = Logistic.of(pairs, projected[:, 1:], projected[:, 0]).modes(start=point.codes)
    return Factors(point.base, point.basis, codes)


def _expected_step(pairs: Pairs, point: Factors, spread: Float64, iterations: int, base_ridge: float) -> Factors:
    """Maximise the expected log-likelihood over (theta_0, B), to second order in the spread of the codes."""
    from scipy.optimize import minimize

    d, r = point.basis.shape
    label, w, user = pairs.label, pairs.weight, pairs.user
    total = max(float(w.sum()), 1e-12)
    factors = np.column_stack([np.ones(len(point.codes)), point.codes]).astype(np.float32)
    narrow = spread.astype(np.float32)
    ridge = np.ones((1 + r, 1))
    ridge[0] = base_ridge

    def objective(x: Float64) -> tuple[float, Float64]:
        shared = x.reshape(1 + r, d)
        projected = pairs.project(shared.T)
        margin = np.einsum("nk,nk->n", projected, factors[user]).astype(np.float64)
        p = sigmoid(margin)
        uncertain = np.matmul(projected[:, None, 1:], narrow[user])[:, 0]  # (n, r): V_u B^T x_n
        variance = np.einsum("nk,nk->n", projected[:, 1:], uncertain)
        # E softplus(m + e) = softplus(m) + s'(m) var / 2, and its derivative in m
        curved = w * p * (1 - p)
        residual = (w * (p - label) + 0.5 * curved * (1 - 2 * p) * variance).astype(np.float32)
        curved = curved.astype(np.float32)

        def values(at: slice) -> Array:
            out = residual[at, None] * factors[user[at]]
            out[:, 1:] += curved[at, None] * uncertain[at]
            return out

        gradient = pairs.back_project(values, 1 + r).T + ridge * shared
        value = float(w @ nll(margin, label)) + 0.5 * float(curved @ variance) + 0.5 * float((ridge * shared**2).sum())
        return value / total, (gradient / total).ravel()

    begin = np.vstack([point.base, point.basis.T]).ravel()
    found = minimize(objective, begin, jac=True, method="L-BFGS-B", options={"maxiter": iterations, "ftol": 1e-7})
    shared = found.x.reshape(1 + r, d)
    return Factors(shared[0].copy(), shared[1:].T.copy(), point.codes)


def begin_factors(pairs: Pairs, point: Factors, shrinkage: Shrinkage, iterations: int) -> Factors:
    """Return the start of training from drawn codes: a few steps of (theta_0, B) alone.

    At B = 0 the gradient of every a_u is zero, while that of B is sum_n x_n residual_n a_u^T: a random sketch of the
    users' gradients. So B moves first, as it does in the paper's training, and the codes follow.
    """
    return train_factors(pairs, point, shrinkage, iterations=iterations, hold_codes=True)


def warmed_up(pairs: Pairs, code: Float64, shrinkage: Shrinkage, iterations: int) -> Factors:
    """Return a short run from theta_0 = 0 and B = 0 on everybody as one person, with this `code` [r]."""
    d = len(pairs.scale)
    alone = Factors(np.zeros(d), np.zeros((d, len(code))), code[None])
    return train_factors(pairs.as_one(), alone, shrinkage, iterations=iterations, hold_codes=True)


@dataclass(frozen=True, slots=True)
class Training:
    """How factors are trained: the shrinkage of the MAP, then how many rounds of `refine_factors` (0 = none)."""

    shrinkage: float = 1.0
    rounds: int = 0
    iterations: int = 40
    base_ridge: float = 1.0

    def run(self, pairs: Pairs, start: Factors) -> Factors:
        """Return the trained factors."""
        penalties = Shrinkage(self.shrinkage, self.base_ridge)
        found = train_factors(pairs, start, penalties, iterations=self.iterations)
        return self.refined(pairs, found)

    def refined(self, pairs: Pairs, found: Factors) -> Factors:
        """Return a MAP after `rounds` of refinement."""
        return refine_factors(pairs, found, rounds=self.rounds, iterations=5, base_ridge=self.base_ridge)

    @property
    def code_ridge(self) -> float:
        """Return the ridge that a_u is inferred with: 1 once the prior is folded into B."""
        return 1.0 if self.rounds else self.shrinkage


def tuned_factors(
    pairs: Pairs, users: Array, val: Comparisons, start: Factors, budget: Budget, training: Training
) -> tuple[Factors, Training]:
    """Return the factors and the training with the smallest macro validation NLL, within `budget.trials`.

    Candidates differ in shrinkage and in whether they are refined; the ladder ends after two rungs that are worse. At
    most 2000 people are tuned on, as two numbers are chosen; where there are more, everybody is trained on from there.
    Weak to strong shrinkage, warm-started: a column of B that a strong penalty has set to zero is a saddle from which a
    weaker one would not return.
    """
    part = some_people(pairs.histories, _TUNING_USERS, "linear-factors", budget.seed)
    few = pairs if len(part) == pairs.n_users else pairs.of_users(part)
    val = held_out(val, users[part])
    if not len(val) or budget.trials < 2:
        return training.run(pairs, start), training
    x = pairs.world.differences(val) * pairs.scale
    rungs = max(1, min(len(SHRINKAGE), budget.trials // 2))

    def score(found: Factors) -> float:
        margin = x @ found.base + np.einsum("nr,nr->n", x @ found.basis, found.codes[val.user])
        return calibrated_nll(margin, val)

    point = Factors(start.base, start.basis, start.codes[part])
    best, best_score, begin, worse = point, float("inf"), point, 0
    chosen = training
    for strength in sorted(sorted(SHRINKAGE, key=lambda each: abs(np.log(each)))[:rungs]):
        training = replace(training, shrinkage=strength)
        point = training.run(few, point)
        worse += 1
        for rounds in (0, _ROUNDS):
            found = replace(training, rounds=rounds).refined(few, point)
            if score(found) < best_score:
                best, best_score, begin, worse = found, score(found), point, 0
                chosen = replace(training, rounds=rounds)
        if worse == 2:
            break
        training = replace(training, iterations=min(training.iterations, 15))
    if few is pairs:
        return best, chosen
    everybody = Factors(begin.base, begin.basis, np.zeros((pairs.n_users, begin.basis.shape[1])))
    return replace(chosen, iterations=6).run(pairs, everybody), chosen


def scattered(theta: Float64, spread: float, noise: Array) -> Float64:
    """Return `theta` plus `spread` of its root mean square times each column of noise, [d, K]."""
    return theta[:, None] + spread * np.sqrt((theta * theta).mean()) * noise
