"""Nearest-neighbour users: a person is taken for the people whose weights explain the history best.

    theta_u = sum_v p_v theta_v,   p = softmax over the k likeliest v of log P(history of u | theta_v),   v != u
    theta_v [d] of seen people from per-user-bt;   no history: theta_pooled

A control: what copying similar people gives, without a model of how they differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datasets_registry.records import Comparisons, Float32, Float64
from methods.bradley_terry import Pairs, nll, some_people
from methods.catalog.per_user_bt import PerUserBT
from methods.interface import Array, Budget, Histories, LinearMethod, MethodSpec, UserState, World, stack, unstack
from methods.limits import Limits, must_hold, whole
from methods.registry import register


@register
class NearestUser(LinearMethod):
    """Average of the `k` seen people under whose weights the history is most likely; never oneself."""

    spec = MethodSpec(
        name="nearest-user",
        title="Nearest-neighbour users",
        level="feature",
        adaptation="closed-form",
        citation="control: k nearest neighbours by likelihood",
        equation="theta_u = sum_v softmax_v(log P(history_u | theta_v)) theta_v over the k likeliest v; theta_v [d]",
        shared_parameters="d + n d, n = min(people, number of seen)",
        per_user_parameters="d",
        cold_start="theta_pooled",
        deviations=(
            "a seen person's own row is left out, or it would find itself and become per-user-bt; "
            "at most `people` rows are kept, drawn by what people compared, so that cost stays linear in their number"
        ),
        version="2",
    )
    chooses = PerUserBT.chooses

    def __init__(self, *, k: int = 32, people: int = 2000) -> None:
        self.k = k
        self.people = people

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Keep the weights of seen people."""
        must_hold(self, self.limits())
        self.world = world
        each = PerUserBT()
        each.fit(train, val, world, budget)
        users = np.unique(train.user)
        users = users[some_people(Histories.group(train, users), self.people, "nearest-user", budget.seed)]
        self.scale_ = each.scale_
        self.pooled_ = each.theta_ * each.scale_
        self.neighbours_ = users.astype(np.int64)
        self.table_ = stack(each.adapt(users.tolist(), Histories.group(train, users), budget), "theta")

    def adapt(self, users: Sequence[int], history: Sequence[Comparisons], budget: Budget) -> list[UserState]:
        """Return the neighbours' average weights, from the history alone."""
        pairs = Pairs.of(self.world, Histories.of(history), np.ones_like(self.scale_))
        likely = self._log_likelihood(pairs)  # (n, n_neighbours)
        likely[np.asarray(users, np.int64)[:, None] == self.neighbours_] = -np.inf
        k = min(self.k, len(self.neighbours_))
        near = np.argpartition(-likely, k - 1, axis=1)[:, :k]
        score = np.take_along_axis(likely, near, 1)
        best = score.max(1, keepdims=True, initial=-np.inf)
        known = np.isfinite(best[:, 0]) & (pairs.histories.lengths > 0)
        p = np.exp(score - np.where(np.isfinite(best), best, 0.0))
        p /= np.maximum(p.sum(1, keepdims=True), 1e-300)
        theta = np.where(known[:, None], np.einsum("uk,ukd->ud", p, self.table_[near]), self.pooled_)
        return unstack(theta=theta.astype(np.float32))

    @property
    def n_trained(self) -> int:
        """Return the number of shared parameters: theta_pooled, and everybody's weights that are kept."""
        return self.pooled_.size + self.table_.size

    def limits(self) -> Limits:
        """Return by option what is allowed."""
        return {"k": whole(), "people": whole()}

    def weights(self, states: Sequence[UserState]) -> Float32:
        """Return theta_u, float32 [n_states, d]."""
        return stack(states, "theta")

    def _log_likelihood(self, pairs: Pairs) -> Float64:
        """Return log P(history of u | theta_v), float64 [n_users, n_neighbours], in blocks of rows."""
        out = np.zeros((pairs.n_users, len(self.table_)))
        label: Array = pairs.label[:, None]
        rows = max(1, (4 << 20) // max(len(self.table_), 1))
        for lo in range(0, len(pairs), rows):
            at = slice(lo, min(lo + rows, len(pairs)))
            x = self.world.differences(pairs.histories.table.take(at))
            loss = pairs.weight[at, None] * nll(x @ self.table_.T, label[at])
            who, starts = np.unique(pairs.user[at], return_index=True)
            out[who] -= np.add.reduceat(loss, starts, axis=0)
        return out
