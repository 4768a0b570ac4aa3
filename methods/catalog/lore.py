"""LoRe, low-rank reward modeling (Meta, COLM 2025): K shared rewards, each person a mixture of them.

    r_u(x) = phi(x)^T V softmax(w_u),   V [d, K] shared, w_u [K] per person;   margin = (r_u(first) - r_u(second)) / T

Loss: sum over people of their mean negative log-likelihood (macro), full batch, Adam. A new person's w_u is fitted on
the support set with V frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from datasets_registry.errors import RequestError
from datasets_registry.protocol import generator
from datasets_registry.records import Comparisons, Float64
from methods.bradley_terry import Logistic, Pairs, macro_nll, person_draws, sigmoid
from methods.interface import Array, Budget, MethodSpec, World
from methods.linear_factors import LinearFactors
from methods.registry import register


@register
class LoRe(LinearFactors):
    """theta_u = V softmax(w_u) / T: the factor model without theta_0, with a softmax link and no prior."""

    spec = MethodSpec(
        name="lore",
        title="LoRe",
        level="feature",
        adaptation="gradient",
        citation="LoRe: Personalizing LLMs via Low-Rank Reward Modeling (COLM 2025), arXiv 2504.14439",
        equation="r_u(x) = phi(x)^T V softmax(w_u) / T; V [d, K] shared, w_u [K] per user",
        shared_parameters="d K",
        per_user_parameters="K",
        cold_start="the mean softmax weight of seen people (undefined in the paper)",
        deviations=(
            "any frozen features, standardised, instead of one 4096-d encoder; temperature None is 100 d / 4096, so "
            "that an Adam step changes a margin as much as published; Adam's rate falls to zero by a cosine, and the "
            "iterate with the smallest macro validation NLL is kept, as 1000 constant steps without penalty diverge on "
            "separable people; w_u of a new person starts at the mean seen weights and not at random; no penalty "
            "towards a reference reward (published alpha = 0); draws belong to what a person compared"
        ),
    )

    def __init__(
        self,
        *,
        rank: int = 5,
        iterations: int = 1000,
        rate: float = 0.5,
        new_iterations: int = 500,
        new_rate: float = 0.1,
        temperature: float | None = None,
    ) -> None:
        self.rank = rank
        self.iterations = iterations
        self.rate = rate
        self.new_iterations = new_iterations
        self.new_rate = new_rate
        self.temperature = temperature

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Learn V; the w_u of seen people serve only to learn it, and `adapt` fits them anew."""
        if self.rank < 1:
            raise RequestError(f"rank={self.rank}: allowed are integers from 1; rank 1 is one reward for everybody")
        self.world = world
        pairs, users = Pairs.of_seen(world, train)
        d = len(pairs.scale)
        self.scale_ = pairs.scale
        self.base_ = np.zeros(d, np.float32)
        self.gain_ = 1.0 / (100.0 * d / 4096.0 if self.temperature is None else self.temperature)
        draw = generator("lore", budget.seed)
        begin = [draw.normal(size=(d, self.rank)) / np.sqrt(d), person_draws(pairs, self.rank, budget.seed)]
        share = _share_of_person(pairs.user, pairs.weight)
        at = np.minimum(np.searchsorted(users, val.user), len(users) - 1)
        held_out = val.take(users[at] == val.user)
        x = world.differences(held_out) * pairs.scale
        place = np.searchsorted(users, held_out.user)
        best: list[Array] = [begin[0], begin[1]]
        best_loss = float("inf")

        def gradient(point: list[Array]) -> list[Array]:
            v, w = point
            mixture = softmax(w)
            projected = pairs.project(v)  # (n, K)
            margin = self.gain_ * np.einsum("nk,nk->n", projected, mixture[pairs.user])
            residual = self.gain_ * share * (sigmoid(margin) - pairs.label)
            d_v = pairs.back_project(lambda at: residual[at, None] * mixture[pairs.user[at]], self.rank)
            return [d_v, _through_softmax(mixture, residual[:, None] * projected, pairs.user)]

        def watch(step: int, point: list[Array]) -> None:
            nonlocal best, best_loss
            last = step == self.iterations
            if not len(held_out):
                best = [p.copy() for p in point] if last else best
            elif step % 50 == 0 or last:
                margin = self.gain_ * np.einsum("nk,nk->n", x @ point[0], softmax(point[1])[place])
                loss = macro_nll(margin, held_out)
                if loss < best_loss:
                    best, best_loss = [p.copy() for p in point], loss

        adam(begin, gradient, self.rate, self.iterations, watch)
        self.basis_ = best[0].astype(np.float32)
        self.empty_ = np.log(softmax(best[1]).mean(0)).astype(np.float32)

    def codes(self, coordinates: Array) -> Array:
        """Return the mixture softmax(w_u), [n_users, K]."""
        return softmax(coordinates)

    def infer(self, problem: Logistic, budget: Budget) -> Float64:
        """Return w_u [n_users, K] by Adam on each person's mean negative log-likelihood, from the mean seen weights."""
        user = np.repeat(np.arange(len(problem.offsets) - 1), np.diff(problem.offsets))
        share = _share_of_person(user, problem.weight)

        def gradient(point: list[Array]) -> list[Array]:
            mixture = softmax(point[0])
            margin = np.einsum("nk,nk->n", problem.design, mixture[user])
            residual = share * (sigmoid(margin) - problem.label)
            return [_through_softmax(mixture, residual[:, None] * problem.design, user)]

        begin = np.tile(self.empty_.astype(np.float64), (len(problem.offsets) - 1, 1))
        return adam([begin], gradient, self.new_rate, self.new_iterations)[0]


def softmax(logits: Array) -> Array:
    """Return exp(logits) normalised over the last axis."""
    e = np.exp(logits - logits.max(-1, keepdims=True, initial=-np.inf))
    return e / e.sum(-1, keepdims=True)


def adam(
    point: list[Array],
    gradient: Callable[[list[Array]], list[Array]],
    rate: float,
    iterations: int,
    watch: Callable[[int, list[Array]], None] | None = None,
) -> list[Array]:
    """Return the point after Adam (Kingma and Ba 2015) with a cosine-decayed rate."""
    first = [np.zeros_like(p) for p in point]
    second = [np.zeros_like(p) for p in point]
    for step in range(1, iterations + 1):
        now = rate * 0.5 * (1.0 + np.cos(np.pi * (step - 1) / iterations))
        for p, m, s, g in zip(point, first, second, gradient(point), strict=True):
            m += 0.1 * (g - m)
            s += 0.001 * (g * g - s)
            p -= now * (m / (1 - 0.9**step)) / (np.sqrt(s / (1 - 0.999**step)) + 1e-8)
        if watch is not None:
            watch(step, point)
    return point


def _share_of_person(user: Sequence[int] | Array, weight: Array) -> Float64:
    """Return each row's share of its person's mean, float64 [n]."""
    total = np.bincount(user, weight)
    return weight / np.maximum(total, 1e-12)[user]


def _through_softmax(mixture: Array, per_row: Array, user: Array) -> Float64:
    """Return d loss / d logits [n_users, K] from d loss / d mixture per row [n, K]."""
    towards = np.stack([np.bincount(user, column, minlength=len(mixture)) for column in per_row.T], axis=1)
    return mixture * (towards - (mixture * towards).sum(1, keepdims=True))
