"""MRM, meta reward modelling (SIGIR 2026, arXiv 2601.18731): LoRe's rewards, made personal by one step.

    r_u(x) = phi(x)^T V softmax(w_u),   w_u = w_0 - inner_rate * step(grad_w L_u(w_0; support of u))
    V [d, K] and w_0 [K] shared, w_u [K] per person;   L_u = mean NLL of a person

MAML over people: each epoch divides everybody's comparisons anew into support and query; one inner step on the support
gives w_u, and (V, w_0) descend the query loss through that step. RPO weighs the people of a batch by
sigmoid((L_u - tau) / tail), tau a quantile of their query losses, so that those who are served badly count more.
Anybody, seen or new, is served by the same one step from w_0 on all they said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from datasets_registry.protocol import generator, mix, seed_of
from datasets_registry.records import Comparisons, Float64
from methods.adam import Adam
from methods.bradley_terry import Logistic, Pairs, calibrated_nll, held_out, nll, person_keys, pooled_chosen, sigmoid
from methods.catalog.lore import share_of_person, softmax
from methods.interface import Array, Budget, MethodSpec, World
from methods.limits import ABOVE, INSIDE, SHARE, Limits, must_hold, number, one_of, whole
from methods.linear_factors import LinearFactors, scattered
from methods.registry import register

INNER = ("gradient", "adam")
_EVERY, _PATIENCE = 20, 4
_EPSILON = 1e-8


@register
class MRM(LinearFactors):
    """theta_u = V softmax(w_u), with w_u one inner step away from the meta-learned w_0."""

    spec = MethodSpec(
        name="mrm",
        title="MRM (meta reward modelling)",
        level="feature",
        adaptation="gradient",
        citation="One Adapts to Any: Meta Reward Modeling for Personalized LLM Alignment, arXiv 2601.18731",
        equation="r_u(x) = phi(x)^T V softmax(w_0 - rate step(grad_w L_u(w_0))); V [d, K], w_0 [K] shared, w_u [K]",
        shared_parameters="d K + K",
        per_user_parameters="K",
        cold_start="w_0, the meta-learned start",
        deviations=(
            "frozen features, standardised, instead of one 4096-d encoder times .01; the published inner step, Adam's "
            "first at 1e-3 or 5e-3 on K = 2 logits, moves a weight of the mixture by at most .0005 or .0025, by the "
            "same whatever the evidence, which is a population model: the default here is a plain gradient step of "
            "rate 5, and inner='adam', inner_rate=0.005 is the published one; columns of V start at the pooled reward "
            "plus noise of `spread` of its size, w_0 at 0; outer Adam at .03 (published 1e-3 and 5e-3 on other scales) "
            "on batches of 64 people (published 2) for at most 300 steps (published 200 epochs), and the iterate with "
            "the smallest macro validation NLL is kept, step 0 included (published: the best of 200 evaluations on the "
            "test set); half of a person's units are query in every epoch, drawn by hash (published share .9); RPO's "
            "weights are held constant in the gradient"
        ),
    )
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "inner_rate": (1.0, 5.0, 20.0),
        "rank": (2, 5, 10),
        "query_share": (0.5, 0.8),
    }
    chooses = "the ridge of the pooled start among 8, and how many steps are made, by validation NLL"

    def __init__(
        self,
        *,
        rank: int = 2,
        inner: str = "gradient",
        inner_rate: float = 5.0,
        outer_rate: float = 0.03,
        steps: int = 300,
        tasks: int = 64,
        query_share: float = 0.5,
        quantile: float = 0.5,
        tail: float = 0.5,
        spread: float = 0.3,
    ) -> None:
        self.rank = rank
        self.inner = inner
        self.inner_rate = inner_rate
        self.outer_rate = outer_rate
        self.steps = steps
        self.tasks = tasks
        self.query_share = query_share
        self.quantile = quantile
        self.tail = tail
        self.spread = spread

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Meta-learn V and w_0."""
        must_hold(self, self.limits())
        pairs, users = self.begin(world, train)
        val = held_out(val, users)
        theta, _ = pooled_chosen(pairs, val)
        noise = generator("mrm", budget.seed).normal(size=(len(theta), self.rank)) * (self.rank > 1)
        basis = scattered(theta, self.spread, noise)
        basis, start = self._trained(pairs, val, [basis, np.zeros(self.rank)], budget.seed)
        self.basis_ = basis.astype(np.float32)
        self.empty_ = start.astype(np.float32)

    def codes(self, coordinates: Array) -> Array:
        """Return the mixture softmax(w_u), [n_users, K]."""
        return softmax(coordinates)

    def infer(self, problem: Logistic, budget: Budget) -> Float64:
        """Return w_u, float64 [n_users, K]: one inner step from w_0 on the mean loss of all that a person said."""
        return self._stepped(problem, self.empty_)

    @property
    def n_trained(self) -> int:
        """Return the number of shared parameters: V and w_0."""
        return self.basis_.size + self.empty_.size

    def _trained(self, pairs: Pairs, val: Comparisons, point: list[Array], seed: int) -> tuple[Float64, Float64]:
        """Return the iterate (V, w_0) that serves seen people best on validation; the last one without validation."""
        adam = Adam(point, self.outer_rate)
        x = pairs.world.differences(val) * pairs.scale
        kept = (point[0].copy(), point[1].copy())
        best, worse = float("inf"), 0
        tasks = _tasks(pairs, self, seed)
        for step in range(self.steps + 1):
            if step % _EVERY == 0 or step == self.steps:
                score = -float(step)
                if len(val):
                    projected = pairs.project(point[0])
                    w = self._stepped(Logistic.of(pairs, projected, np.zeros(len(pairs))), point[1])
                    score = calibrated_nll(np.einsum("nk,nk->n", x @ point[0], softmax(w)[val.user]), val)
                worse += 1
                if score < best:
                    kept, best, worse = (point[0].copy(), point[1].copy()), score, 0
                if worse == _PATIENCE:
                    break
            if step < self.steps:
                _, slopes = meta_gradient(next(tasks), point[0], point[1], self)
                size = np.sqrt(sum(float((s * s).sum()) for s in slopes))
                adam.advance([s / max(1.0, size) for s in slopes], self.steps)
        return kept

    def _stepped(self, problem: Logistic, start: Array) -> Float64:
        user = np.repeat(np.arange(len(problem.offsets) - 1), np.diff(problem.offsets))
        start = start.astype(np.float64)
        mixture, design = softmax(start), problem.design.astype(np.float64)
        residual = share_of_person(user, problem.weight) * (sigmoid(design @ mixture) - problem.label)
        slope = _through(mixture, _sums(user, residual[:, None] * design, len(problem.offsets) - 1))
        return start - self.inner_rate * inner_step(slope, self.inner)[0]

    def limits(self) -> Limits:
        """Return by option what is allowed; an inner_rate of 0 is one model for everybody."""
        return {
            "rank": whole(),
            "inner": one_of(*INNER),
            "inner_rate": number(),
            "outer_rate": ABOVE,
            "steps": whole(0),
            "tasks": whole(),
            "query_share": INSIDE,
            "quantile": SHARE,
            "tail": ABOVE,
            "spread": number(),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Tasks:
    """A batch of `people` people: design float32 [n, d]; label, weight [n]; user int64 [n]; support bool [n]."""

    people: int
    design: Array
    label: Array
    weight: Array
    user: Array
    support: Array


def meta_gradient(tasks: Tasks, basis: Array, start: Array, method: MRM) -> tuple[float, list[Float64]]:
    """Return the RPO-weighted query loss after the inner step, and its gradients in V [d, K] and w_0 [K].

    Second order, in closed form: with e_u = d loss / d w_u, what flows back through the step is the gradient of
    -inner_rate <e_u, step(g_u)> in all that the support gradient g_u is made of.
    """
    user, n = tasks.user, tasks.people
    z = (tasks.design @ basis.astype(np.float32)).astype(np.float64)  # (n, K)
    mine = softmax(start)
    p = sigmoid(z @ mine)
    share = share_of_person(user, tasks.weight * tasks.support).astype(np.float64)
    residual = share * (p - tasks.label)
    pull = _sums(user, residual[:, None] * z, n)  # d L_u / d mixture on the support
    step, bend = inner_step(_through(mine, pull), method.inner)
    mixture = softmax(start - method.inner_rate * step)  # (people, K)

    margin = np.einsum("nk,nk->n", z, mixture[user])
    asked = share_of_person(user, tasks.weight * ~tasks.support).astype(np.float64)
    loss = np.bincount(user, asked * nll(margin, tasks.label), minlength=n)
    has_query = np.bincount(user, asked, minlength=n) > 0
    tau = np.quantile(loss[has_query], method.quantile) if has_query.any() else 0.0
    heavy = has_query * sigmoid((loss - tau) / method.tail) / max(int(has_query.sum()), 1)
    outer = heavy[user] * asked * (sigmoid(margin) - tasks.label)
    e = _through(mixture, _sums(user, outer[:, None] * z, n))

    back = -method.inner_rate * bend * e  # d loss / d g_u
    f = _through(mine, back)
    along = np.einsum("nk,nk->n", z, f[user])
    curved = share * p * (1 - p) * along
    d_z = outer[:, None] * mixture[user] + residual[:, None] * f[user] + curved[:, None] * mine
    twist = pull * back - pull * (back @ mine)[:, None] - back * (pull @ mine)[:, None]
    d_start = e.sum(0) + _through(mine, curved @ z + twist.sum(0))
    return float(heavy @ loss), [(tasks.design.T @ d_z.astype(np.float32)).astype(np.float64), d_start]


def inner_step(slope: Array, kind: str) -> tuple[Array, Array]:
    """Return the step and its elementwise derivative: along the gradient g itself, or Adam's first, g / (|g| + eps)."""
    if kind == "gradient":
        return slope, np.ones_like(slope)
    size = np.abs(slope) + _EPSILON
    return slope / size, _EPSILON / size**2


def _tasks(pairs: Pairs, method: MRM, seed: int) -> Iterator[Tasks]:
    """Yield batches of people, epoch after epoch; their order and what is support are hashes of what they compared."""
    table, keys, epoch = pairs.histories.table, person_keys(pairs.histories), 0
    while True:
        epoch += 1
        salt = np.uint64(seed_of("mrm", seed, epoch))
        order = np.argsort(mix(keys, np.full(len(keys), salt)), kind="stable")
        unit = mix(mix(keys[pairs.user], table.unit.astype(np.uint64)), np.full(len(table), salt))
        support = (unit >> np.uint64(11)) / 2.0**53 >= method.query_share
        for lo in range(0, len(order), method.tasks):
            chosen = np.zeros(len(keys), bool)
            chosen[order[lo : lo + method.tasks]] = True
            rows = np.flatnonzero(chosen[pairs.user])
            part = table.take(rows)
            design = pairs.held[rows] if pairs.held is not None else pairs.world.differences(part) * pairs.scale
            user = (np.cumsum(chosen) - 1)[part.user]
            label, weight = part.label.astype(np.float64), part.weight.astype(np.float64)
            yield Tasks(int(chosen.sum()), design, label, weight, user, support[rows])


def _sums(user: Array, rows: Array, n: int) -> Float64:
    """Return the sums of rows [m, K] per person, float64 [n, K]."""
    return np.stack([np.bincount(user, column, minlength=n) for column in rows.T], axis=1).astype(np.float64)


def _through(mixture: Array, towards: Array) -> Array:
    """Return (diag(p) - p p^T) towards, the way back through a softmax, over the last axis."""
    return mixture * (towards - (mixture * towards).sum(-1, keepdims=True))
