"""LoRe, low-rank reward modeling (Meta, COLM 2025): K shared rewards, each person a mixture of them.

    r_u(x) = phi(x)^T V softmax(w_u),   V [d, K] shared, w_u [K] per person;   margin = (r_u(first) - r_u(second)) / T

Loss: sum over people of their mean negative log-likelihood (macro), full batch, Adam on V and every w_u. A person's w_u
is then fitted on their own comparisons with V frozen. One Adam step moves an entry of V / T by rate / T, so T says how
fast the rewards learn next to the mixtures; the published one is for 4096 raw features and is chosen here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from datasets_registry.protocol import generator
from datasets_registry.records import Comparisons, Float32, Float64
from methods.adam import Adam
from methods.bradley_terry import Logistic, Pairs, calibrated_nll, held_out, person_draws, pooled_chosen, sigmoid
from methods.interface import Array, Budget, MethodSpec, World
from methods.limits import ABOVE, Limits, must_hold, number, or_none, whole
from methods.linear_factors import LinearFactors, scattered
from methods.registry import register

STEPS: tuple[float, ...] = (0.1, 0.03, 0.3)
"""What an Adam step may move an entry of V / T by, the default first; T = rate / step."""
_EARLY = (0, 2, 5, 10, 20)
_LATE = (40, 70, 100, 140, 200, 300, 400, 500, 700)
_NEW = (0, 2, 5, 10, 20, 40, 70, 100, 200, 500)


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
            "any frozen features, standardised, instead of one 4096-d encoder, so temperature None is chosen among "
            "three on validation (published 100); every column of V starts at the pooled reward plus noise of `spread` "
            "of its size, and not at random; Adam's rate falls to zero by a cosine over 200 steps (published 1000, "
            "constant), training stops early, and what is kept is the iterate of V, step 0 included, and the number "
            "of steps of w_u, 0 included, with the smallest macro validation NLL (not accuracy) at the best of six "
            "temperatures; w_u starts at the mean seen weights and not at random, for at most 100 steps "
            "(published 500); a seen person's w_u is fitted anew with V frozen exactly as a new person's is, "
            "where the published code keeps the one learned with V; no penalty towards a reference reward (published "
            "alpha = 0); K = 5 is not tuned by fit; draws belong to what a person compared"
        ),
        version="3",
    )
    search: ClassVar[Mapping[str, Sequence[Any]]] = {"rank": (2, 5, 10, 20), "spread": (0.1, 0.5)}
    chooses = (
        "the ridge of the pooled start among 8, the temperature among 3, and how many steps V and a person's w_u take, "
        "by validation NLL"
    )

    def __init__(
        self,
        *,
        rank: int = 5,
        iterations: int = 200,
        rate: float = 0.5,
        new_iterations: int = 100,
        new_rate: float = 0.1,
        temperature: float | None = None,
        spread: float = 0.1,
    ) -> None:
        self.rank = rank
        self.iterations = iterations
        self.rate = rate
        self.new_iterations = new_iterations
        self.new_rate = new_rate
        self.temperature = temperature
        self.spread = spread

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Learn V; the w_u of seen people serve only to learn it, and `adapt` fits them anew."""
        must_hold(self, self.limits())
        pairs, users = self.begin(world, train)
        val = held_out(val, users)
        theta, _ = pooled_chosen(pairs, val)
        noise = generator("lore", budget.seed).normal(size=(len(theta), self.rank)) * (self.rank > 1)
        start = scattered(theta, self.spread, noise)
        codes = person_draws(pairs.histories, self.rank, budget.seed)
        if self.temperature is not None:
            temperatures = [self.temperature]
        else:
            temperatures = [self.rate / step for step in STEPS[: max(1, budget.trials)]]
        if not len(val):
            temperatures = temperatures[:1]
        runs = [_Run(self, pairs, val, t, Adam([t * start, codes.copy()], self.rate)) for t in temperatures]
        for run in runs:
            run.train(_EARLY)
        best = min(runs, key=lambda run: run.best.score)
        best.train([*_LATE, *range(1000, self.iterations, 500), self.iterations])
        self.gain_ = 1.0 / best.temperature
        self.basis_ = best.best.basis.astype(np.float32)
        self.empty_ = best.best.empty.astype(np.float32)
        self.new_steps_ = best.best.new_steps
        if len(val):
            self.validation_nll_ = best.best.score

    def limits(self) -> Limits:
        """Return by option what is allowed; rank 1 is one reward for everybody."""
        return {
            "rank": whole(),
            "iterations": whole(0),
            "rate": ABOVE,
            "new_iterations": whole(0),
            "new_rate": ABOVE,
            "temperature": or_none(ABOVE, ", to choose it on validation"),
            "spread": number(),
        }

    @property
    def n_trained(self) -> int:
        """Return the number of shared parameters: V."""
        return self.basis_.size

    def codes(self, coordinates: Array) -> Array:
        """Return the mixture softmax(w_u), [n_users, K]."""
        return softmax(coordinates)

    def infer(self, problem: Logistic, budget: Budget) -> Float64:
        """Return w_u [n_users, K] by Adam on each person's mean negative log-likelihood, from the mean seen weights."""
        return next(_mixtures(problem, self.empty_, self.new_rate, [self.new_steps_]))[1]


@dataclass(slots=True, eq=False)
class _Kept:
    """The best iterate so far: V [d, K], the mean logits [K], and how many steps a person's w_u takes from them."""

    score: float
    basis: Array
    empty: Array
    new_steps: int


class _Run:
    """Training at one temperature, which can be taken up again; `best` is scored as `LoRe.adapt` will serve people."""

    def __init__(self, method: LoRe, pairs: Pairs, val: Comparisons, temperature: float, adam: Adam) -> None:
        self.method, self.pairs, self.val, self.temperature, self.adam = method, pairs, val, temperature, adam
        self.x = pairs.world.differences(val) * pairs.scale
        self.user, self.label = pairs.user, pairs.label.astype(np.float32)
        self.share = share_of_person(self.user, pairs.weight)
        self.best = _Kept(float("inf"), adam.point[0], adam.point[1].mean(0), method.new_iterations)

    def train(self, checkpoints: Sequence[int]) -> None:
        """Train up to the last checkpoint within `iterations`, or until three in a row bring no better one."""
        last = self.method.iterations
        worse = 0
        for checkpoint in sorted({min(c, last) for c in checkpoints}):
            while self.adam.step < checkpoint:
                self.adam.advance(self.gradient(self.adam.point), last)
            worse = 0 if self.improved() else worse + 1
            if worse == 3:
                break

    def gradient(self, point: list[Array]) -> list[Array]:
        """Return the gradient of the sum of people's mean NLL in V and in the w_u."""
        v, w = point
        mixture = softmax(w).astype(np.float32)
        projected = self.pairs.project(v)  # (n, K)
        mine = mixture[self.user]
        margin = np.einsum("nk,nk->n", projected, mine) / np.float32(self.temperature)
        residual = self.share * (sigmoid(margin) - self.label) / np.float32(self.temperature)
        d_v = self.pairs.back_project(lambda at: residual[at, None] * mine[at], v.shape[1])
        return [d_v, _through_softmax(mixture, residual[:, None] * projected, self.pairs.offsets)]

    def improved(self) -> bool:
        """Keep the iterate if it is the best so far on validation, or the last one where there is no validation."""
        v, w = self.adam.point
        empty = np.log(softmax(w).mean(0))
        if not len(self.val):
            self.best = _Kept(float("inf"), v.copy(), empty, self.method.new_iterations)
            return True
        projected = self.pairs.project(v / self.temperature)
        problem = Logistic.of(self.pairs, projected, np.zeros(len(projected)))
        asked = self.x @ (v / self.temperature)
        before = self.best.score
        steps = [s for s in _NEW if s < self.method.new_iterations] + [self.method.new_iterations]
        for step, found in _mixtures(problem, empty, self.method.new_rate, steps):
            score = calibrated_nll(np.einsum("nk,nk->n", asked, softmax(found)[self.val.user]), self.val)
            if score < self.best.score:
                self.best = _Kept(score, v.copy(), empty, step)
        return self.best.score < before


def _mixtures(problem: Logistic, empty: Array, rate: float, steps: Sequence[int]) -> Iterator[tuple[int, Float64]]:
    """Yield (step, w_u [n_users, K]) at each of the rising `steps` of fitting everybody's w_u with V frozen."""
    user = np.repeat(np.arange(len(problem.offsets) - 1), np.diff(problem.offsets))
    share = share_of_person(user, problem.weight)
    label = problem.label.astype(np.float32)
    adam = Adam([np.tile(empty.astype(np.float64), (len(problem.offsets) - 1, 1))], rate)
    for until in steps:
        while adam.step < until:
            mixture = softmax(adam.point[0]).astype(np.float32)
            residual = share * (sigmoid(np.einsum("nk,nk->n", problem.design, mixture[user])) - label)
            adam.advance([_through_softmax(mixture, residual[:, None] * problem.design, problem.offsets)])
        yield until, adam.point[0]


def softmax(logits: Array) -> Array:
    """Return exp(logits) normalised over the last axis."""
    e = np.exp(logits - logits.max(-1, keepdims=True, initial=-np.inf))
    return e / e.sum(-1, keepdims=True)


def share_of_person(user: Array, weight: Array) -> Float32:
    """Return each row's share of its person's mean, float32 [n]."""
    total = np.bincount(user, weight)
    return (weight / np.maximum(total, 1e-12)[user]).astype(np.float32)


def _through_softmax(mixture: Array, per_row: Array, offsets: Array) -> Float64:
    """Return d loss / d logits [n_users, K] from d loss / d mixture per row [n, K], rows sorted by person."""
    towards = np.zeros(mixture.shape)
    spoke = offsets[:-1] < offsets[1:]
    if spoke.any():
        towards[spoke] = np.add.reduceat(per_row, offsets[:-1][spoke], axis=0)
    return mixture * (towards - (mixture * towards).sum(1, keepdims=True))
