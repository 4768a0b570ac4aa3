"""Intervals, corrected differences, tiers and ranks. The person is the unit.

People are resampled, once per draw from all people of a (dataset, regime): a person keeps their weight in every seed
and for every method, so that differences are paired without more ado. Their units and the seeds are not drawn again:
the mean over a person's units varies between people by the noise of units too, so that people alone carry both, and
further stages of units and of seeds would count the same noise again. Where 300 people have 3 units in each of 3 seeds,
three nested stages give 1.3 to 1.9 times the true standard error, the more the less people differ.

What people alone do not carry is what they share: where many answer the same prompt, its difficulty is common to them.
So every quantity's draws are widened about its estimate by the ratio of a two-way cluster-robust standard error, people
x prompts (Cameron, Gelbach and Miller 2011, "Robust inference with multiway clustering"), to that of people alone. The
intervals are for the fits that were made: seeds are averaged, the chance of training again is not in them.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr  # pyright: ignore[reportMissingTypeStubs]

from datasets_registry.protocol import generator

Reals = NDArray[np.float64]
Index = NDArray[np.int64]
DRAWS = 10_000
LEVEL = 0.95
_CHUNK_VALUES = 1_500_000


def _heads(ordered: Index) -> Index:
    """Return where each run of equal values begins, int64 [n_runs]."""
    new = np.ones(len(ordered), dtype=bool)
    new[1:] = ordered[1:] != ordered[:-1]
    return np.flatnonzero(new).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """Who was asked what in one query set, int64 [n_units] each: `person`, ascending, indexes the people of the panel.

    `prompt` is the dataset's unit id, the choice situation that people may share. A pair occurs once.
    """

    person: Index
    prompt: Index

    @property
    def starts(self) -> Index:
        """Return the first unit of each person present, int64 [n_present]."""
        return _heads(self.person)

    @property
    def present(self) -> Index:
        """Return the people who have units here, ascending."""
        return self.person[self.starts]

    @property
    def sizes(self) -> Index:
        """Return the number of units of each person present."""
        return np.diff(np.append(self.starts, len(self.person)))

    def sums(self, values: Reals) -> Reals:
        """Add unit values [n_units, k] within people: [n_present, k]."""
        return np.add.reduceat(values, self.starts, axis=0) if len(values) else values

    def means(self, values: Reals) -> Reals:
        """Average unit values [n_units, k] within people: [n_present, k]."""
        return self.sums(values) / self.sizes[:, None]


@dataclass(frozen=True, eq=False)
class Sample:
    """What is averaged: `values[s]`, float64 [n_units, k], over `units[s]`, for every seed s.

    `given`, bool [n_seeds, k]: which column has which seed; the values of one that has not are ignored.
    """

    units: Sequence[Units]
    values: Sequence[Reals]
    given: NDArray[np.bool_]

    @cached_property
    def people(self) -> list[Reals]:
        """Return the means over people's units per seed, float64 [n_present, k], 0 where a column lacks the seed."""
        each = zip(self.units, self.values, self.given, strict=True)
        return [np.where(given, units.means(values), 0.0) for units, values, given in each]


def bootstrap(n_people: int, samples: Sequence[Sample], *context: object, draws: int = DRAWS) -> list[Reals]:
    """Return the bootstrap draws of each sample's means over seeds of means over people, float64 [k, draws].

    A column that lacks a seed is averaged over those it has; where a draw has nobody of any of them, the point estimate
    takes its place. The people drawn are the same for all samples, seeds and columns.
    """
    out = [np.empty((each.given.shape[1], draws)) for each in samples]
    points = [point(each) for each in samples]
    means = [each.people for each in samples]
    presents = {id(units): units.present for each in samples for units in each.units}
    chunk = int(np.clip(_CHUNK_VALUES // max(n_people, 1), 16, draws))

    def draw(at: int) -> None:
        size = min(chunk, draws - at)
        people = _counts(generator(*context, "bootstrap", at), size, n_people)
        heads = {key: people[:, here].sum(axis=1, keepdims=True) for key, here in presents.items()}
        weights = {key: people[:, here] / np.maximum(heads[key], 1) for key, here in presents.items()}
        for target, sample, values, centre in zip(out, samples, means, points, strict=True):
            total, mass = np.zeros((size, len(centre))), np.zeros((size, len(centre)))
            for units, value, given in zip(sample.units, values, sample.given, strict=True):
                total += weights[id(units)] @ value
                mass += (heads[id(units)] > 0) * given
            np.divide(total, mass, out=total, where=mass > 0)
            target[:, at : at + size] = np.where(mass > 0, total, centre).T

    # Every chunk has a generator of its own, so that the order in which threads take them changes nothing. The threads
    # are ours, not the BLAS library's: its own would fight with them for the cores.
    with _one_blas_thread(), ThreadPoolExecutor(2) as pool:
        list(pool.map(draw, range(0, draws, chunk)))
    return out


def _one_blas_thread() -> AbstractContextManager[Any]:
    return cast(Any, importlib.import_module("threadpoolctl")).threadpool_limits(1, user_api="blas")


def _counts(rng: np.random.Generator, draws: int, n: int) -> Reals:
    """Draw n of n with replacement, `draws` times: how often each came, float64 [draws, n]."""
    if n <= 1:
        return np.ones((draws, n))
    picked = rng.integers(0, n, (draws, n)) + np.arange(draws)[:, None] * n
    return np.bincount(picked.ravel(), minlength=draws * n).reshape(draws, n).astype(np.float64)


def point(sample: Sample) -> Reals:
    """Return the plain estimate: the mean over seeds of the mean over people, float64 [k]; NaN without a seed."""
    total = np.zeros(sample.given.shape[1])
    for people in sample.people:
        total += people.mean(axis=0) if len(people) else 0
    n = sample.given.sum(axis=0)
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)


@dataclass(frozen=True, slots=True, eq=False)
class Crossing:
    """Who met which prompt in any seed: the cells of people x prompts, ascending by person, then prompt.

    `base` is above every prompt id, `key` = person * base + prompt, int64 [n_cells]; `person_starts` the first cell of
    each person; `by_prompt` the cells in order of prompts, and `prompt_starts` the first of each prompt therein.
    """

    base: int
    key: Index
    person_starts: Index
    by_prompt: Index
    prompt_starts: Index

    @classmethod
    def of(cls, units: Sequence[Units]) -> Self:
        """Return the cells in which the units of any seed lie."""
        base = 1 + max((int(each.prompt.max(initial=0)) for each in units), default=0)
        key = np.unique(np.concatenate([each.person * base + each.prompt for each in units]))
        prompt = key % base
        by_prompt = np.argsort(prompt, kind="stable").astype(np.int64)
        return cls(base, key, _heads(key // base), by_prompt, _heads(prompt[by_prompt]))

    @property
    def nested(self) -> bool:
        """Return whether every prompt is one person's own: then prompts add nothing to people."""
        return len(self.prompt_starts) == len(self.key)

    def people(self, influence: Reals) -> Reals:
        """Add influences [n_cells, k] within people: [n_people, k]."""
        return np.add.reduceat(influence, self.person_starts, axis=0)

    def prompts(self, influence: Reals) -> Reals:
        """Add influences [n_cells, k] within prompts: [n_prompts, k]."""
        return np.add.reduceat(influence[self.by_prompt], self.prompt_starts, axis=0)

    def influence(self, sample: Sample) -> Reals:
        """Return what each cell contributes to a sample's estimate beyond its mean, float64 [n_cells, k].

        A unit of seed s has weight 1 / (S U_s k_su) times its distance from the mean of its seed: S seeds, U_s people,
        k_su units of the person. What is linear in estimates has the same combination of influences.
        """
        out = np.zeros((len(self.key), sample.given.shape[1]))
        seeds = np.maximum(sample.given.sum(axis=0), 1)
        for units, values, people, given in zip(sample.units, sample.values, sample.people, sample.given, strict=True):
            if len(values):
                weight = np.repeat(1 / (len(people) * units.sizes), units.sizes)[:, None]
                place = np.searchsorted(self.key, units.person * self.base + units.prompt)
                out[place] += weight * (np.where(given, values, 0.0) - people.mean(axis=0)) / seeds
        return out

    def widening(self, influence: Reals) -> Reals:
        """Return by how much the standard error over people grows where prompts are shared, float64 [k], at least 1.

        f^2 = 1 + G/(G-1) (V_prompts - V_cells) / V_people, each V the sum of squared influences added within it and G
        the number of prompts. 1 with fewer than two prompts, and where people do not vary: a factor cannot widen that.
        """
        out = np.ones(influence.shape[1])
        if self.nested:
            return out
        prompts = self.prompts(influence)
        shared = (prompts**2).sum(axis=0) - (influence**2).sum(axis=0)
        more = np.maximum(_few((prompts != 0).sum(axis=0)) * shared, 0.0)
        people = (self.people(influence) ** 2).sum(axis=0)
        return np.sqrt(1 + np.divide(more, people, out=np.zeros_like(more), where=people > 0))

    def shared_variance(self, influence: Reals) -> Reals:
        """Return what prompts add to the variance of every difference of two of the columns, float64 [k, k]."""
        k = influence.shape[1]
        if self.nested:
            return np.zeros((k, k))
        # Differences from the group's mean keep the variances from cancelling in floating point.
        influence = influence - influence.mean(axis=1, keepdims=True)
        prompts = self.prompts(influence)
        with _one_blas_thread():
            product = prompts.T @ prompts - influence.T @ influence
            silent = (prompts == 0).astype(np.float64)
            n_prompts = len(prompts) - np.rint(silent.T @ silent)
        own = np.diag(product)
        return np.maximum(_few(n_prompts) * (own[:, None] + own[None, :] - 2 * product), 0.0)


def _few(groups: NDArray[Any]) -> Reals:
    """Return the small-sample factor G/(G-1); 0 for fewer than two groups."""
    return np.where(groups > 1, groups / np.maximum(groups - 1, 1), 0.0)


def widened(value: Reals, draws: Reals, factor: Reals | None) -> Reals:
    """Return draws [k, draws] stretched about the estimate [k] by a factor [k]; unchanged where that is 1 or None."""
    if factor is None or (factor == 1).all():
        return draws
    centre = value[:, None]
    return centre + factor[:, None] * (draws - centre)


def interval(draws: Reals, level: float = LEVEL) -> tuple[Reals, Reals]:
    """Return the percentile interval of each row of draws [k, draws]: low [k], high [k]."""
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=-1)
    return low, high


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """A metric of every column: `value` [k], NaN where it does not exist, and its bootstrap draws over people.

    draws: [k, draws]; factor: [k], by how much shared prompts widen them about the value. `within` is where the metric
    can lie: widened draws may leave it, the interval is cut there.
    """

    value: Reals
    draws: Reals | None = None
    factor: Reals | None = None
    within: tuple[float, float] = (-np.inf, np.inf)

    def bounds(self) -> tuple[Reals, Reals]:
        """Return the 95 % interval, NaN where there are no draws."""
        if self.draws is None:
            return np.full(len(self.value), np.nan), np.full(len(self.value), np.nan)
        # Stretching is monotone, so that it may as well be done to two quantiles as to all draws.
        ends = (widened(self.value, end[:, None], self.factor)[:, 0] for end in interval(self.draws))
        low, high = (np.clip(end, *self.within) for end in ends)
        return np.where(np.isnan(self.value), np.nan, low), np.where(np.isnan(self.value), np.nan, high)

    def widened(self, k: int) -> Reals:
        """Return the draws of column k, [draws], as its interval is made of them."""
        assert self.draws is not None
        return widened(self.value[[k]], self.draws[[k]], None if self.factor is None else self.factor[[k]])[0]


@dataclass(frozen=True, slots=True, eq=False)
class Pairwise:
    """All pairs (i, j) of a group: difference, its standard error and the p-value after Holm, each [k, k]."""

    difference: Reals
    error: Reals
    p: Reals


def pairwise(values: Reals, draws: Reals, shared: Reals | float = 0.0) -> Pairwise:
    """Compare all pairs of a group on the same draws, Holm-corrected over the pairs.

    values: [k], draws: [k, draws] over people, shared: [k, k] the variance of each difference that prompts add to it
    (`Crossing.shared_variance`). The p-value is normal with the standard error of the paired difference: ten thousand
    draws cannot resolve the tail that a correction over hundreds of pairs asks for.
    """
    k = len(values)
    # Differences from the group's mean keep the variances from cancelling in floating point.
    centred = draws - draws.mean(axis=1, keepdims=True)
    centred -= centred.mean(axis=0)
    with _one_blas_thread():
        covariance = centred @ centred.T / max(draws.shape[1] - 1, 1)
    variance = np.diag(covariance)
    error = np.sqrt(np.maximum(variance[:, None] + variance[None, :] - 2 * covariance, 0) + shared)
    error[error < 1e-9] = 0.0
    difference = values[:, None] - values[None, :]
    apart = np.abs(difference) > 1e-12
    z = np.divide(np.abs(difference), error, out=np.where(apart, np.inf, 0.0), where=error > 0)
    raw = 2 * ndtr(-z)
    p = np.ones((k, k))
    upper = np.triu_indices(k, 1)
    p[upper] = holm(raw[upper])
    return Pairwise(difference, error, np.minimum(p, p.T))


def holm(p: Reals) -> Reals:
    """Return Holm's step-down adjusted p-values (Holm 1979).

    >>> holm(np.array([0.01, 0.04, 0.03])).round(6).tolist()
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p, kind="stable")
    scaled = p[order] * (len(p) - np.arange(len(p)))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0) if len(p) else scaled
    return adjusted


def tiers(values: Reals, p: Reals, alpha: float = 1 - LEVEL) -> Index:
    """Return a tier per entry, 1 the best: its best leads a tier, all that are not separable from it share it.

    Then the best of those that are left leads the next. So whoever is in tier t is significantly worse than the leader
    of every tier above, and t <= the lower end of its rank interval. Two things do not follow. A noisy entry can
    share a tier with a better one that a precise entry between them is shut out of: it may yet be as good as the best.
    And two that share a tier with a noisy leader may be separable from each other, even have disjoint rank intervals:
    a tier says who may be as good as its leader, not that its members are alike.

    >>> tiers(np.array([0.7, 0.6, 0.69]), np.array([[1, 0.01, 0.8], [0.01, 1, 0.01], [0.8, 0.01, 1]])).tolist()
    [1, 2, 1]
    """
    tier = np.zeros(len(values), dtype=np.int64)
    left = np.argsort(-values, kind="stable")
    current = 0
    while len(left):
        current += 1
        apart = (p[left[0], left] < alpha) & (left != left[0])
        tier[left[~apart]] = current
        left = left[apart]
    return tier


def ranks(values: Reals) -> Index:
    """Return competition ranks, 1 the greatest; equal values share one.

    >>> ranks(np.array([0.5, 0.7, 0.5])).tolist()
    [2, 1, 2]
    """
    return np.searchsorted(np.sort(-values), -values, side="left") + 1


def rank_bounds(values: Reals, p: Reals, alpha: float = 1 - LEVEL) -> tuple[Index, Index]:
    """Return the interval of each entry's rank: 1 + how many are significantly better, k - how many are worse.

    From the same corrected p-values [k, k] as the tiers, so that the two cannot contradict each other; at level
    1 - alpha for all entries of the table at once. The ordinal (`ranks`) is always inside.

    >>> [bound.tolist() for bound in rank_bounds(np.array([0.7, 0.6]), np.array([[1, 0.2], [0.2, 1]]))]
    [[1, 1], [2, 2]]
    """
    apart = p < alpha
    better = (apart & (values[None, :] > values[:, None])).sum(axis=1)
    worse = (apart & (values[None, :] < values[:, None])).sum(axis=1)
    return (1 + better).astype(np.int64), (len(values) - worse).astype(np.int64)
