"""Intervals, corrected differences, tiers and ranks. The person is the unit.

The bootstrap is hierarchical: seeds, then people, then units within people. People are drawn once per draw from all
people of a (dataset, regime) and keep their weight in every seed and for every method, so that differences are paired
without more ado. A person drawn k times brings k independent resamples of their units, as in a two-stage bootstrap of
tables; here both stages become one weight per (draw, unit), and a thousand columns are one matrix product.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr  # pyright: ignore[reportMissingTypeStubs]

from datasets_registry.protocol import generator

Reals = NDArray[np.float64]
Index = NDArray[np.int64]
DRAWS = 10_000
LEVEL = 0.95
_CHUNK_VALUES = 1_500_000


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """Who said what in one query set: `person`, int64 [n_units] ascending, indexes the people of the whole panel."""

    person: Index

    @property
    def starts(self) -> Index:
        """Return the first unit of each person present, int64 [n_present]."""
        new = np.ones(len(self.person), dtype=bool)
        new[1:] = self.person[1:] != self.person[:-1]
        return np.flatnonzero(new).astype(np.int64)

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


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """What is resampled: `values[s]`, float64 [n_units or n_present, k], over `units[s]`, for every seed s.

    `given`, bool [n_seeds, k]: which column has which seed. Seeds that share the very same `Units` object share the
    draw of units. At level "people" the rows are person means and units are not drawn again: one stage, for measures
    that are not averages over the same units as accuracy.
    """

    level: Literal["units", "people"]
    units: Sequence[Units]
    values: Sequence[Reals]
    given: NDArray[np.bool_]


def bootstrap(n_people: int, samples: Sequence[Sample], *context: object, draws: int = DRAWS) -> list[Reals]:
    """Return the bootstrap draws of each sample's means over seeds of means over people, float64 [k, draws].

    A column that lacks a seed is averaged over those it has; where a draw has none of them, its place is taken by the
    point estimate. The seeds and people drawn are the same for all samples.
    """
    by_units = {id(each): each for sample in samples if sample.level == "units" for each in sample.units}
    out = [np.empty((each.given.shape[1], draws)) for each in samples]
    points = [point(each) for each in samples]
    known = [[np.where(g, v, 0.0) for g, v in zip(each.given, each.values, strict=True)] for each in samples]
    n_seeds = max((len(each.units) for each in samples), default=0)
    largest = max((len(each.person) for each in by_units.values()), default=1)
    chunk = int(np.clip(_CHUNK_VALUES // max(largest, 1), 16, draws))

    def draw(at: int) -> None:
        size = min(chunk, draws - at)
        rng = generator(*context, "bootstrap", at)
        drawn_seeds, people = _counts(rng, size, n_seeds), _counts(rng, size, n_people)
        weights = {key: _unit_weights(rng, people[:, each.present], each) for key, each in by_units.items()}
        for target, sample, values, centre in zip(out, samples, known, points, strict=True):
            total, mass = np.zeros((size, len(centre))), np.zeros((size, len(centre)))
            for s, each in enumerate(sample.units):
                present = people[:, each.present]
                weight = weights[id(each)] if sample.level == "units" else present
                heads = present.sum(axis=1)
                share = drawn_seeds[:, s] * (heads > 0)
                total += (weight * (share / np.maximum(heads, 1))[:, None]) @ values[s]
                mass += share[:, None] * sample.given[s]
            np.divide(total, mass, out=total, where=mass > 0)
            target[:, at : at + size] = np.where(mass > 0, total, centre).T

    # Every chunk has a generator of its own, so that the order in which threads take them changes nothing. The threads
    # are ours, not the BLAS library's: its own would fight with them for the cores.
    with _one_blas_thread(), ThreadPoolExecutor(2) as pool:
        list(pool.map(draw, range(0, draws, chunk)))
    return out


def _one_blas_thread() -> AbstractContextManager[Any]:
    return cast(Any, importlib.import_module("threadpoolctl")).threadpool_limits(1, user_api="blas")


def point(sample: Sample) -> Reals:
    """Return the plain estimate: the mean over seeds of the mean over people, float64 [k]; NaN without a seed."""
    total = np.zeros(sample.given.shape[1])
    for each, values, given in zip(sample.units, sample.values, sample.given, strict=True):
        people = each.means(values) if sample.level == "units" else values
        total += np.where(given, people.mean(axis=0), 0) if len(people) else 0
    n = sample.given.sum(axis=0)
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)


def _counts(rng: np.random.Generator, draws: int, n: int) -> Reals:
    """Draw n of n with replacement, `draws` times: how often each came, float64 [draws, n]."""
    if n <= 1:
        return np.ones((draws, n))
    picked = rng.integers(0, n, (draws, n)) + np.arange(draws)[:, None] * n
    return np.bincount(picked.ravel(), minlength=draws * n).reshape(draws, n).astype(np.float64)


def _unit_weights(rng: np.random.Generator, people: Reals, units: Units) -> Reals:
    """Return the weight of every unit, float64 [draws, n_units]: a person with m units drawn w times has w m picks."""
    draws, n_units = len(people), len(units.person)
    sizes = units.sizes
    if sizes.max(initial=1) == 1:
        return people
    picks = (people * sizes).astype(np.int64).ravel()
    slot = np.tile(units.starts, draws) + np.repeat(np.arange(draws) * n_units, len(sizes))
    chosen = (rng.random(int(picks.sum())) * np.repeat(np.tile(sizes, draws), picks)).astype(np.int64)
    chosen += np.repeat(slot, picks)
    counts = np.bincount(chosen, minlength=draws * n_units).reshape(draws, n_units)
    return counts / np.repeat(sizes, sizes)


def interval(draws: Reals, level: float = LEVEL) -> tuple[Reals, Reals]:
    """Return the percentile interval of each row of draws [k, draws]: low [k], high [k]."""
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=-1)
    return low, high


@dataclass(frozen=True, slots=True, eq=False)
class Pairwise:
    """All pairs (i, j) of a group: difference, its standard error and the p-value after Holm, each [k, k]."""

    difference: Reals
    error: Reals
    p: Reals


def pairwise(values: Reals, draws: Reals) -> Pairwise:
    """Compare all pairs of a group on the same draws, Holm-corrected over the pairs.

    values: [k], draws: [k, draws]. The p-value is normal with the bootstrap standard error of the paired difference:
    ten thousand draws cannot resolve the tail that a correction over hundreds of pairs asks for.
    """
    k = len(values)
    # Differences from the group's mean keep the variances from cancelling in floating point.
    centred = draws - draws.mean(axis=1, keepdims=True)
    with _one_blas_thread():
        covariance = centred @ centred.T / max(draws.shape[1] - 1, 1)
    variance = np.diag(covariance)
    error = np.sqrt(np.maximum(variance[:, None] + variance[None, :] - 2 * covariance, 0))
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
    """Return a tier per entry, 1 the best: going down, one that is separable from the tier's leader leads the next.

    >>> tiers(np.array([0.7, 0.6, 0.69]), np.array([[1, 0.01, 0.8], [0.01, 1, 0.01], [0.8, 0.01, 1]])).tolist()
    [1, 2, 1]
    """
    tier = np.zeros(len(values), dtype=np.int64)
    leader, current = -1, 0
    for i in np.argsort(-values, kind="stable"):
        if leader < 0 or p[leader, i] < alpha:
            leader, current = int(i), current + 1
        tier[i] = current
    return tier


def ranks(values: Reals) -> Index:
    """Return competition ranks, 1 the greatest; equal values share one.

    >>> ranks(np.array([0.5, 0.7, 0.5])).tolist()
    [2, 1, 2]
    """
    return np.searchsorted(np.sort(-values), -values, side="left") + 1


def rank_interval(draws: Reals, level: float = LEVEL) -> tuple[Index, Index]:
    """Return the interval of the rank of each row of draws [k, draws]: whole numbers low [k], high [k].

    Equal draws share the places they fill: the first of them counts for low, the last for high.
    """
    # Equal margins give draws that may differ in the last bit of a sum.
    downwards = -np.round(draws, 12)
    order = np.argsort(downwards, axis=0, kind="stable")
    ordered = np.take_along_axis(downwards, order, axis=0)
    place = np.arange(1, len(draws) + 1)[:, None]
    edge = np.ones((1, draws.shape[1]), dtype=bool)
    new = np.concatenate([edge, ordered[1:] != ordered[:-1]])
    last = np.concatenate([new[1:], edge])
    first_place = np.maximum.accumulate(np.where(new, place, 0), axis=0)
    last_place = np.minimum.accumulate(np.where(last, place, len(draws))[::-1], axis=0)[::-1]
    best, worst = np.empty_like(first_place), np.empty_like(last_place)
    np.put_along_axis(best, order, first_place, axis=0)
    np.put_along_axis(worst, order, last_place, axis=0)
    tail = (1 - level) / 2
    low = np.quantile(best, tail, axis=1, method="lower")
    high = np.quantile(worst, 1 - tail, axis=1, method="higher")
    return low.astype(np.int64), high.astype(np.int64)
