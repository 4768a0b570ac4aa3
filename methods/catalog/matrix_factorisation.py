"""Matrix factorisation on item ids (Koren et al. 2009; from pairs: Rendle et al. 2009, arXiv 1205.2618).

    r_u(i) = b_i + <p_u, q_i>,   b [n_items] and q [n_items, k] shared, p_u [k] per user
    minimise  sum_n w_n NLL(r_u(first) - r_u(second); y_n) + beta/2 |b|^2
              + lambda/2 (sum_u |p_u|^2 + n_users/n_items sum_i |q_i|^2)

Nothing of an item is read but which one it is, so it can be learned about only from people who compared it. With the
second factor the penalty is lambda sqrt(n_users / n_items) times the nuclear norm of P Q^T, and |p_u|^2 and |q_i|^2 are
equal on average: one lambda means the same for any number of people and items. Rank 0 is item Bradley-Terry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from datasets_registry.errors import UnableError
from datasets_registry.protocol import generator
from datasets_registry.records import Comparisons, Float32, Float64
from methods.bradley_terry import STRENGTHS, Logistic, calibrated_nll, held_out, macro_nll, nll, sigmoid
from methods.interface import Array, Budget, Histories, Method, MethodSpec, UserState, World, places, stack, unstack
from methods.limits import ABOVE, Limits, must_hold, or_none, whole
from methods.registry import register

LAMBDAS: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)


@register
class MatrixFactorisation(Method):
    """`penalty` (lambda) and `item_penalty` (beta) None are chosen on validation NLL; rank 0 may be what is chosen.

    An item that nobody compared in training has reward 0, the mean of b, and q = 0. A call in whose queries there is
    no other item raises `UnableError`.
    """

    spec = MethodSpec(
        name="matrix-factorisation",
        title="Matrix factorisation on item ids",
        level="feature",
        adaptation="closed-form",
        citation="Koren, Bell and Volinsky 2009; Rendle et al. 2009 (BPR, arXiv 1205.2618)",
        equation="r_u(i) = b_i + <p_u, q_i>; b [n_items], q [n_items, k] shared, p_u [k] per user",
        shared_parameters="n_items (1 + k), of the items compared in training",
        per_user_parameters="k",
        cold_start="b: the items' Bradley-Terry scores",
        deviations=(
            "pairs are what people compared, not sampled ones; L-BFGS instead of SGD; a comparison's soft label is "
            "its likelihood's; p_u of anybody is the mode given b and q, a convex problem, for seen people too; "
            "penalties are chosen on macro validation NLL (not accuracy), one that sets every q to 0 among them"
        ),
        needs=frozenset(),
        transductive=True,
    )
    search: ClassVar[Mapping[str, Sequence[Any]]] = {"rank": (1, 2, 4, 8, 16)}
    chooses = "beta among 8, and lambda among 5, q = 0 being one, by validation NLL"

    def __init__(
        self,
        *,
        rank: int = 4,
        penalty: float | None = None,
        item_penalty: float | None = None,
        iterations: int = 100,
    ) -> None:
        self.rank = rank
        self.penalty = penalty
        self.item_penalty = item_penalty
        self.iterations = iterations

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Learn b and q of the items that seen people compared."""
        must_hold(self, self.limits())
        self.world = world
        users = np.unique(train.user)
        self.items_ = np.unique(np.concatenate([train.first, train.second])).astype(np.int64)
        table = _Table.of(Histories.group(train, users), self.items_)
        val = held_out(val, users)
        known = np.isin(val.first, self.items_) | np.isin(val.second, self.items_)
        val = val.take(known)
        point, beta = self._item_scores(table, val)
        self.lambda_ = self.penalty if self.penalty is not None else LAMBDAS[2]
        if self.rank:
            noise = 0.1 * generator("matrix-factorisation", budget.seed).normal(size=(len(self.items_), self.rank))
            begin = _Point(point.b, noise - noise.mean(0), np.zeros((len(users), self.rank)))
            point = self._factors(table, val, begin, beta, budget)
        self.bias_ = (point.b - point.b.mean()).astype(np.float32)
        self.factors_ = (point.q - point.q.mean(0)).astype(np.float32)

    def adapt(self, users: Sequence[int], history: Sequence[Comparisons], budget: Budget) -> list[UserState]:
        """Return p_u from the history alone; comparisons of unknown items say nothing."""
        histories = Histories.of(history)
        table = histories.table
        (b, q), (b_second, q_second) = self._of_items(table.first), self._of_items(table.second)
        b, q = b - b_second, q - q_second
        problem = Logistic(q, b, table.label.astype(np.float64), table.weight.astype(np.float64), histories.offsets)
        p = problem.modes(self.lambda_) if q.shape[1] else np.zeros((len(histories), 0))
        return unstack(p=p.astype(np.float32))

    def margins(self, states: Sequence[UserState], queries: Comparisons) -> Float32:
        """Return r_u(first) - r_u(second), float32 [n]; raises UnableError where no item is known."""
        known = np.isin(queries.first, self.items_) | np.isin(queries.second, self.items_)
        if len(queries) and not known.any():
            items = len(np.unique(np.concatenate([queries.first, queries.second])))
            raise UnableError(
                f"{self.spec.name} knows an item by who compared it, and none of the {items} items asked about "
                f"(queries: {len(queries)}) is among the {len(self.items_)} that were compared in training; it can "
                "serve only datasets whose items recur from prompt to prompt"
            )
        return self._rewards(states, queries.user, queries.first) - self._rewards(states, queries.user, queries.second)

    def rewards(self, states: Sequence[UserState], users: Array, items: Array) -> Float32 | None:
        """Return b_i + <p_u, q_i>, float32 [n]; 0 for an item that is not known."""
        return self._rewards(states, users, items)

    def _rewards(self, states: Sequence[UserState], users: Array, items: Array) -> Float32:
        b, q = self._of_items(items)
        p = stack(states, "p") if states else np.zeros((0, self.rank), np.float32)
        return (b + (q * p[users]).sum(1)).astype(np.float32)

    def _of_items(self, items: Array) -> tuple[Float32, Float32]:
        """Return b [n] and q [n, k] of item rows, zeros for those that are not known."""
        columns = _placed(self.items_, np.column_stack([self.bias_, self.factors_]), items)
        return columns[:, 0], columns[:, 1:]

    def _item_scores(self, table: _Table, val: Comparisons) -> tuple[_Point, float]:
        """Return item Bradley-Terry as a point of rank 0, and the beta with the smallest macro validation NLL."""
        point = _Point(np.zeros(len(self.items_)), np.zeros((len(self.items_), 0)), np.zeros((table.n_users, 0)))
        if self.item_penalty is not None or not len(val):
            beta = 1.0 if self.item_penalty is None else self.item_penalty
            return table.fitted(point, 0.0, beta, self.iterations), beta
        best = (float("inf"), point, 1.0)
        for beta in sorted(STRENGTHS, reverse=True):
            point = table.fitted(point, 0.0, beta, self.iterations)
            best = min(best, (macro_nll(self._margin(point, val), val), point, beta), key=lambda found: found[0])
        return best[1], best[2]

    def _factors(self, table: _Table, val: Comparisons, begin: _Point, beta: float, budget: Budget) -> _Point:
        """Return the fit under the lambda that serves validation best, weak to strong; begun at item Bradley-Terry.

        Not strong to weak: q = 0 is a saddle, from which a weaker penalty would not return.
        """
        if self.penalty is not None or not len(val):
            return table.fitted(begin, self.lambda_, beta, self.iterations)
        none = _Point(begin.b, 0 * begin.q, begin.p)
        best, best_score, worse = none, calibrated_nll(self._margin(none, val), val), 0
        point = begin
        for each in LAMBDAS[: max(1, budget.trials - 1)]:
            point = table.fitted(point, each, beta, self.iterations)
            score = calibrated_nll(self._margin(point, val), val)
            worse += 1
            if score < best_score:
                best, best_score, self.lambda_, worse = point, score, each, 0
            if worse == 2:
                break
        return best

    def _margin(self, point: _Point, val: Comparisons) -> Float64:
        """Return margins of validation rows, `user` being a position in the table's people, float64 [n]."""
        columns = np.column_stack([point.b, point.q])
        asked = _placed(self.items_, columns, val.first) - _placed(self.items_, columns, val.second)
        return asked[:, 0] + (asked[:, 1:] * point.p[val.user]).sum(1)

    def limits(self) -> Limits:
        """Return by option what is allowed; rank 0 is item Bradley-Terry."""
        chosen = or_none(ABOVE, ", to choose it on validation")
        return {"rank": whole(0), "penalty": chosen, "item_penalty": chosen, "iterations": whole(0)}

    @property
    def n_trained(self) -> int:
        """Return the number of shared parameters: b and q of the items compared in training."""
        return self.bias_.size + self.factors_.size


def _placed(known: Array, columns: Array, items: Array) -> Array:
    """Return the row of `columns` [n_known, m] of each item, [n, m]; zeros for items that are not in sorted `known`."""
    at = places(known, items)
    return np.where((at >= 0)[:, None], columns[at], 0)


@dataclass(frozen=True, slots=True, eq=False)
class _Point:
    """b float64 [n_items], q float64 [n_items, k], p float64 [n_users, k]."""

    b: Float64
    q: Float64
    p: Float64


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """Comparisons sorted by person as a sparse matrix of differences, [n, n_items]: 1 at first, -1 at second."""

    differences: Any
    transposed: Any
    histories: Histories

    @classmethod
    def of(cls, histories: Histories, items: Array) -> _Table:
        """Gather everybody's histories; `items` are sorted item rows, all that occur."""
        from scipy.sparse import csr_array

        table = histories.table
        n = len(table)
        columns = np.searchsorted(items, np.stack([table.first, table.second], axis=1)).ravel()
        values = np.tile([1.0, -1.0], n)
        differences = csr_array((values, columns, 2 * np.arange(n + 1)), shape=(n, len(items)))
        return cls(differences, differences.T.tocsr(), histories)

    @property
    def n_users(self) -> int:
        return len(self.histories)

    def fitted(self, begin: _Point, penalty: float, beta: float, iterations: int) -> _Point:
        """Return the minimum of the module's objective by L-BFGS over (b, q, p) from `begin`."""
        from scipy.optimize import minimize

        table, starts = self.histories.table, self.histories.offsets[:-1]
        user, label, w = table.user, table.label.astype(np.float64), table.weight.astype(np.float64)
        (n_items, k), n_users = begin.q.shape, self.n_users
        total = max(float(w.sum()), 1e-12)
        strengths = (beta, penalty * n_users / max(n_items, 1), penalty)
        bounds = np.cumsum([n_items, n_items * k])

        def parts(x: Float64) -> tuple[Float64, Float64, Float64]:
            b, q, p = np.split(x, bounds)
            return b, q.reshape(n_items, k), p.reshape(n_users, k)

        def objective(x: Float64) -> tuple[float, Float64]:
            b, q, p = parts(x)
            turned, mine = self.differences @ q, p[user]  # (n, k)
            margin = self.differences @ b + (turned * mine).sum(1)
            residual = w * (sigmoid(margin) - label)
            slopes = (
                self.transposed @ residual,
                self.transposed @ (residual[:, None] * mine),
                np.add.reduceat(residual[:, None] * turned, starts, axis=0),
            )
            value = float(w @ nll(margin, label))
            value += 0.5 * sum(s * float((each * each).sum()) for s, each in zip(strengths, (b, q, p), strict=True))
            slope = [(g + s * each).ravel() for g, s, each in zip(slopes, strengths, (b, q, p), strict=True)]
            return value / total, np.concatenate(slope) / total

        begun = np.concatenate([begin.b, begin.q.ravel(), begin.p.ravel()])
        options = {"maxiter": iterations, "ftol": 1e-8, "gtol": 1e-7}
        return _Point(*parts(minimize(objective, begun, jac=True, method="L-BFGS-B", options=options).x))
