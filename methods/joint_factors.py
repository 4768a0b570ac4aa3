"""The joint low-rank model of PReF and RFM: everybody weighs the same K linear rewards, each person in their own way.

    r_u(x) = <V^T phi(x), a_u>,   V [d, K] shared, a_u [K] per person;   P(first > second | u) = sigmoid(<V^T x, a_u>)
    V, c, {a_u} = argmin sum_n w_n (NLL_n + norm |V^T x_n|) + ridge/2 (sum_u |a_u - c|^2 + N |V|_F^2) + |c|^2 / (2 N)

x_n [d] is a standardised difference of features, c [K] the prior mean of the N people's a_u. On frozen features the
papers' phi, a language model trained with a linear head, is the head alone. There is no theta_0 beside the K rewards:
what people have in common is V c. Anybody's a_u, seen or new, is the convex logistic regression that is left once V and
c are frozen. A preset is where training starts: `random_start`, or `svd_start`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from datasets_registry.protocol import generator
from datasets_registry.records import Comparisons, Float64
from methods.bradley_terry import Logistic, Pairs, calibrated_nll, held_out, nll, sigmoid, some_people
from methods.interface import Array, Budget, World
from methods.limits import ABOVE, Limits, must_hold, number, one_of, or_none, whole
from methods.linear_factors import LinearFactors

RIDGES: tuple[float, ...] = (1.0, 2.0, 0.5, 4.0, 0.25, 8.0)
"""The penalties that validation chooses among; a small budget of trials drops the last ones."""
ROUNDS = 10
_TUNING_PEOPLE = 2000


@dataclass(frozen=True, slots=True, eq=False)
class Joint:
    """A point of training: V float64 [d, K], c float64 [K], and everybody's a_u float64 [n_users, K]."""

    basis: Float64
    centre: Float64
    codes: Float64


@dataclass(frozen=True, slots=True)
class Penalties:
    """What training penalises: `ridge` both factors, `norm` the length of V^T x of a comparison."""

    ridge: float
    norm: float


class JointFactors(LinearFactors):
    """theta_u = V a_u; a preset gives `start`, and a `ridge` of None is chosen on validation."""

    rank: int
    ridge: float | None
    norm_penalty: float
    iterations: int
    start: str

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Learn V and c; a rank above d is cut to d, where it already is any linear reward."""
        must_hold(self, self.limits())
        pairs, users = self.begin(world, train)
        part = some_people(pairs.histories, _TUNING_PEOPLE, "joint-factors", budget.seed)
        few = pairs if len(part) == pairs.n_users else pairs.of_users(part)
        basis = STARTS[self.start](few, min(self.rank, len(pairs.scale)), budget.seed)
        val = held_out(val, users[part])
        found, self.ridge_ = self._fitted(few, begun(few, basis), val, budget)
        if few is not pairs:
            found = train_joint(pairs, begun(pairs, found.basis), self._penalties(self.ridge_), 15)
        self.basis_ = found.basis.astype(np.float32)
        self.empty_ = found.centre.astype(np.float32)

    def limits(self) -> Limits:
        """Return by option what is allowed."""
        return {
            "rank": whole(),
            "start": one_of(*STARTS),
            "ridge": or_none(ABOVE, ", to choose it on validation"),
            "norm_penalty": number(),
            "iterations": whole(0),
        }

    def infer(self, problem: Logistic, budget: Budget) -> Float64:
        """Return a_u [n_users, K]: logistic regression on V^T x, with the prior of training."""
        return regressed(problem, self.empty_, self.ridge_)

    @property
    def n_trained(self) -> int:
        """Return the number of shared parameters: V and c."""
        return self.basis_.size + self.empty_.size

    def _fitted(self, pairs: Pairs, start: Joint, val: Comparisons, budget: Budget) -> tuple[Joint, float]:
        """Return the fit and its ridge; validation goes from weak to strong and ends after two that are worse.

        Each starts from the one before, and not the other way round: what a strong ridge has set to zero stays there.
        """
        if self.ridge is not None or not len(val) or budget.trials < 2:
            ridge = RIDGES[0] if self.ridge is None else float(self.ridge)
            return train_joint(pairs, start, self._penalties(ridge), self.iterations), ridge
        x = pairs.world.differences(val) * pairs.scale
        kept: tuple[float, Joint, float] | None = None
        point, iterations, worse = start, self.iterations, 0
        for ridge in sorted(RIDGES[: budget.trials]):
            point = train_joint(pairs, point, self._penalties(ridge), iterations)
            score = calibrated_nll(np.einsum("nk,nk->n", x @ point.basis, point.codes[val.user]), val)
            worse += 1
            if kept is None or score < kept[0]:
                kept, worse = (score, point, ridge), 0
            if worse == 2:
                break
            iterations = min(self.iterations, 20)
        assert kept is not None
        return kept[1], kept[2]

    def _penalties(self, ridge: float) -> Penalties:
        return Penalties(ridge, self.norm_penalty)


def regressed(problem: Logistic, centre: Array, ridge: float) -> Float64:
    """Return argmin_a sum w NLL(<design, a>) + ridge/2 |a - centre|^2 per person, float64 [n_users, K]."""
    base = problem.design @ centre.astype(np.float32)
    away = Logistic(problem.design, base, problem.label, problem.weight, problem.offsets).modes(ridge)
    return centre.astype(np.float64) + away


def train_joint(pairs: Pairs, start: Joint, penalties: Penalties, iterations: int) -> Joint:
    """Return the joint fit near `start`: L-BFGS over (V, c), with everybody's a_u solved inside by Newton's method.

    Given V and c each a_u is a convex problem in K unknowns, so the objective is minimised over them at every
    evaluation, and by the envelope theorem its gradient needs no derivative of theirs.
    """
    from scipy.optimize import minimize

    d, k = start.basis.shape
    n = max(pairs.n_users, 1)
    label, w, user = pairs.label, pairs.weight, pairs.user
    total = max(float(w.sum()), 1e-12)
    away = start.codes - start.centre

    def objective(at: Float64) -> tuple[float, Float64]:
        nonlocal away
        basis, centre = at[: d * k].reshape(d, k), at[d * k :]
        projected = pairs.project(basis)  # (n, K)
        problem = Logistic.of(pairs, projected, projected @ centre.astype(np.float32))
        away = problem.modes(penalties.ridge, start=away, iterations=4, tolerance=1e-3)
        codes = (centre + away).astype(np.float32)
        margin = np.einsum("nk,nk->n", projected, codes[user]).astype(np.float64)
        residual = (w * (sigmoid(margin) - label)).astype(np.float32)
        length = np.sqrt(np.einsum("nk,nk->n", projected, projected).astype(np.float64) + 1e-12)
        shorter = (penalties.norm * w / length).astype(np.float32)
        slope = pairs.back_project(lambda r: residual[r, None] * codes[user[r]] + shorter[r, None] * projected[r], k)
        slope += penalties.ridge * n * basis
        size = float((away * away).sum()) + n * float((basis * basis).sum())
        value = float(w @ (nll(margin, label) + penalties.norm * length))
        value += 0.5 * penalties.ridge * size + 0.5 * float(centre @ centre) / n
        return value / total, np.concatenate([slope.ravel(), residual @ projected + centre / n]) / total

    begin = np.concatenate([start.basis.ravel(), start.centre])
    found = minimize(objective, begin, jac=True, method="L-BFGS-B", options={"maxiter": iterations, "ftol": 1e-7})
    basis, centre = found.x[: d * k].reshape(d, k), found.x[d * k :]
    projected = pairs.project(basis)
    return Joint(basis, centre, regressed(Logistic.of(pairs, projected, np.zeros(len(pairs))), centre, penalties.ridge))


def begun(pairs: Pairs, basis: Float64) -> Joint:
    """Return where training starts from V: c is the pooled reward within its span, and so is everybody's a_u."""
    everybody = Logistic(
        pairs.project(basis), np.zeros(len(pairs)), pairs.label, pairs.weight, np.array([0, len(pairs)])
    )
    centre = everybody.modes(1.0)[0]
    return Joint(basis, centre, np.tile(centre, (pairs.n_users, 1)))


def random_start(pairs: Pairs, rank: int, seed: int) -> Float64:
    """Return V drawn from a normal, float64 [d, K], with columns of about unit length."""
    d = len(pairs.scale)
    return generator("joint-factors", seed).normal(size=(d, rank)) / np.sqrt(max(d, 1))


def svd_start(pairs: Pairs, rank: int, seed: int) -> Float64:
    """Return V of the imputed SVD of the matrix of pairs x people, float64 [d, K], each reward of unit size.

    Y [pairs, people] holds label - 1/2 where somebody answered. What is missing starts at 0 and is replaced, ROUNDS
    times, by the best approximation of rank K within the features' span, X Theta: with G = X^T X over distinct pairs,
    G^(1/2) Theta is the truncated SVD of G^(-1/2) X^T Y, so no matrix of pairs x people is formed. Where every pair has
    a feature of its own this is the imputed SVD itself; elsewhere pairs that one person answered tell of others'.
    """
    of_pair, answer = _shares(pairs)
    gram = np.zeros((len(pairs.scale), len(pairs.scale)))
    for at, x in pairs.blocks():
        gram += x.T @ (of_pair[at, None] * x)
    values, axes = np.linalg.eigh(gram)
    root = np.sqrt(np.maximum(values, 0.0))
    inverse = np.where(root > 1e-3 * root.max(initial=0.0), 1.0 / np.maximum(root, 1e-12), 0.0)
    theta = np.zeros((len(root), pairs.n_users))
    left = np.zeros((len(root), rank))
    for _ in range(ROUNDS):
        whole = inverse[:, None] * (axes.T @ _missed(pairs, answer, theta)) + root[:, None] * (axes.T @ theta)
        left = _leading(whole, rank)
        theta = axes @ (inverse[:, None] * (left @ (left.T @ whole)))
    basis = axes @ (inverse[:, None] * left)
    size = np.sqrt((pairs.project(basis).astype(np.float64) ** 2).mean(0))
    return basis / np.maximum(size, 1e-12)


_WHOLE = 256  # columns of a Gram matrix that is decomposed whole


def _leading(matrix: Array, rank: int) -> Float64:
    """Return the left singular vectors of the largest singular values, float64 [d, rank], of a matrix [d, n].

    Of the smaller of the two Gram matrices and, where that is large, no more of its eigenvectors than are asked: a
    whole decomposition in every round is minutes at d = 4096. It is more precise, and what follows amplifies.
    """
    from scipy.linalg import eigh

    d, n = matrix.shape
    wide = d <= n or not n
    gram = matrix @ matrix.T if wide else matrix.T @ matrix
    if len(gram) <= _WHOLE:
        vectors = np.linalg.eigh(gram)[1][:, ::-1][:, :rank]
    else:
        vectors = eigh(gram, subset_by_index=(max(0, len(gram) - rank), len(gram) - 1))[1][:, ::-1]
    if not wide:
        # with fewer people than rank, the columns that no person asks for are zero, and QR fills them up
        vectors = np.pad(matrix @ vectors, ((0, 0), (0, rank - vectors.shape[1])))
        vectors = np.linalg.qr(vectors)[0]
    return vectors


STARTS: dict[str, Callable[[Pairs, int, int], Float64]] = {"random": random_start, "svd": svd_start}


def _shares(pairs: Pairs) -> tuple[Array, Array]:
    """Return each row's share of its pair and, by weight, of what its person answered to that pair, [n] each.

    A row (x, label) and its mirror (-x, 1 - label) add the same to all that is computed from them, so pairs need no
    orientation.
    """
    table = pairs.histories.table
    low, high = np.minimum(table.first, table.second), np.maximum(table.first, table.second)
    key = low.astype(np.int64) * (int(high.max(initial=0)) + 1) + high
    _, pair, times = np.unique(key, return_inverse=True, return_counts=True)
    _, entry = np.unique(pair.astype(np.int64) * pairs.n_users + table.user, return_inverse=True)
    said = np.maximum(np.bincount(entry, pairs.weight), 1e-12)
    return (1.0 / times[pair]).astype(np.float32), pairs.weight / said[entry]


def _missed(pairs: Pairs, answer: Array, theta: Float64) -> Float64:
    """Return X^T (Y - X Theta) over what was answered, float64 [d, n_users]."""
    out = np.zeros((pairs.n_users, len(pairs.scale)))
    table = np.ascontiguousarray(theta.T, np.float32)
    for at, x in pairs.blocks():
        miss = answer[at] * (pairs.label[at] - 0.5 - np.einsum("nd,nd->n", x, table[pairs.user[at]]))
        who, starts = np.unique(pairs.user[at], return_index=True)
        out[who] += np.add.reduceat(miss[:, None].astype(np.float32) * x, starts, axis=0)
    return out.T
