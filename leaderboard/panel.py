"""Panels: matrices of comparisons x columns, on which every metric is computed at once.

A panel holds everything that was asked the same questions: one dataset, one regime, one set of people. A column of it
is an entrant (a method and its configuration) under one setting (encoder and budget), a block one seed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets_registry.protocol import PROTOCOL, Count, Regime, mix
from datasets_registry.records import PreferenceData
from datasets_registry.splits import REGIMES
from leaderboard.labels import Index, Query, Reals
from leaderboard.records import RunRecord
from leaderboard.statistics import DRAWS, Crossing, Sample, Units, bootstrap

POOLED = "pooled-bt"
ORACLE = "oracle"
BUILT_IN = "hetpref"


def count_order(count: Count | None) -> tuple[int, int]:
    """Return the sort key of a budget: none, numbers, "all"."""
    return (-1, 0) if count is None else (1, 0) if count == "all" else (0, count)


def regime_order(regime: Regime) -> int:
    """Return the sort key of a regime: seen people come first."""
    return REGIMES.index(regime)


@dataclass(frozen=True, slots=True)
class Setting:
    """What is compared with what: only records of one setting stand in one table."""

    dataset: str
    encoder: str
    regime: Regime
    n_train: Count
    n_support: int | None
    n_users: Count
    imbalance: str | None

    @property
    def order(self) -> tuple[Any, ...]:
        """Return the sort key."""
        counts = count_order(self.n_users), count_order(self.n_train), count_order(self.n_support)
        return self.dataset, self.encoder, regime_order(self.regime), self.imbalance or "", *counts

    @property
    def curve(self) -> tuple[Any, ...]:
        """Return what is shared by the settings of one sample-efficiency curve."""
        fixed = self.dataset, self.encoder, self.regime, self.n_users, self.imbalance
        return fixed if self.regime == "seen" else (*fixed, self.n_train)

    @property
    def n(self) -> Count:
        """Return the budget that varies along the curve: support for new people, training for seen ones."""
        return self.n_train if self.regime == "seen" else (self.n_support or 0)


@dataclass(frozen=True, slots=True)
class Entrant:
    """A method, where it comes from, its version and configuration; `control` marks the fit with permuted people.

    Methods of one name from two distributions are two entrants: neither can supersede the other.
    """

    method: str
    dist: str
    version: str
    config_sha256: str
    role: str
    level: str
    control: str | None

    @property
    def order(self) -> tuple[str, ...]:
        """Return the sort key."""
        return self.method, self.dist, self.version, self.config_sha256, self.control or ""


@dataclass(frozen=True, slots=True)
class Column:
    """One entrant under one setting, and its records by seed."""

    entrant: Entrant
    setting: Setting
    records: dict[int, RunRecord]

    @property
    def had(self) -> dict[int, float]:
        """Return the budget that people really had along the curve, by seed."""
        seen = self.setting.regime == "seen"
        told = {seed: r.split for seed, r in self.records.items()}
        return {seed: s.n_train_mean if seen else s.n_support_mean or 0.0 for seed, s in told.items()}

    @property
    def preference(self) -> tuple[Any, ...]:
        """Return the key by which the column of a built-in is chosen where a setting has several; the least wins.

        The most recent version; of it the configuration with the fewest values other than None (None: the method's own
        choice), which is the default; of equals the one whose digest comes first. Nothing that was measured matters.
        """
        numbers = [-int(n) for n in re.findall(r"\d{1,9}", self.entrant.version)[:8]]
        config = [r.method.config for r in self.records.values()][:1]
        set_by_hand = sum(v is not None for each in config for v in each.values())
        return *numbers, *[0] * (8 - len(numbers)), set_by_hand, *self.entrant.order


def built_in(columns: Sequence[Column], name: str) -> dict[Setting, list[int]]:
    """Return, per setting, the columns of hetpref's own method of a name, in order of preference.

    A method of that name from another distribution is none: nobody else's can be the reference of a gain.
    """
    found: dict[Setting, list[int]] = defaultdict(list)
    for k, column in enumerate(columns):
        entrant = column.entrant
        if (entrant.method, entrant.dist, entrant.control) == (name, BUILT_IN, None):
            found[column.setting].append(k)
    return {setting: sorted(some, key=lambda k: columns[k].preference) for setting, some in found.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """One seed of a panel: margins float32 [n, k] of one's own state and of another user's (NaN where not given).

    `given`, `imputed`: bool [k]; `inverse_temperature`: float64 [k], NaN where there are no validation margins.
    """

    seed: int
    query: Query
    margins: NDArray[np.float32]
    wrong: NDArray[np.float32]
    given: NDArray[np.bool_]
    imputed: NDArray[np.bool_]
    inverse_temperature: Reals


def correctness(margins: NDArray[np.float32], label: Reals) -> Reals:
    """Return 1(right) + .5 1(margin 0) per comparison, float64 [n, k]; `label` has no ties.

    A column whose decision never changes while the labels do is a constant, or always prefers `first`: it says nothing
    about anybody's preference, so every one of its predictions counts as a tie and it gets exactly .5.
    """
    sign = np.sign(margins)
    first = label > 0.5
    if first.any() and not first.all():
        unmoved = (sign == sign[:1]).all(axis=0) & ~np.isnan(sign[0])
        sign = np.where(unmoved, np.float32(0), sign)
    return 0.5 + 0.5 * np.where(first[:, None], sign, -sign).astype(np.float64)


class Panel:
    """All columns of one (dataset, regime, set of people), one block per seed; what is costly is computed once."""

    def __init__(self, data: PreferenceData, columns: Sequence[Column], blocks: Sequence[Block]) -> None:
        self.data = data
        self.columns = tuple(columns)
        self.blocks = tuple(blocks)
        self.people = np.unique(np.concatenate([b.query.person for b in self.blocks]))  # (n_people,)
        self.given = np.stack([b.given for b in self.blocks])  # (n_seeds, k)
        self.imputed = np.stack([b.imputed for b in self.blocks])  # (n_seeds, k)
        self._units: dict[tuple[int, bytes], Units] = {}
        self._influences: dict[str, Reals] = {}

    @property
    def context(self) -> tuple[object, ...]:
        """Return what the draws are seeded from: nothing that depends on the methods."""
        setting = self.columns[0].setting
        return PROTOCOL, setting.dataset, setting.regime, setting.n_users if setting.regime == "seen" else "all"

    def units(self, block: Block, keep: NDArray[np.bool_]) -> Units:
        """Return the units kept of a block, shared by the blocks that have the same query set."""
        key = (id(block.query), keep.tobytes())
        if key not in self._units:
            person = np.searchsorted(self.people, block.query.person[keep]).astype(np.int64)
            self._units[key] = Units(person, block.query.unit[keep])
        return self._units[key]

    def sample(self, values: Sequence[Reals]) -> Sample:
        """Return unit values [n_units, k] per block as a sample; units that are NaN throughout are left out."""
        units: list[Units] = []
        kept: list[Reals] = []
        given = self.given.copy()
        for s, (block, value) in enumerate(zip(self.blocks, values, strict=True)):
            keep = np.asarray(~np.isnan(value).all(axis=1))
            here = self.units(block, keep)
            value = value[keep]
            given[s] &= ~np.isnan(value).any(axis=0) & bool(keep.any())
            units.append(here)
            kept.append(np.where(given[s], value, 0.0))
        return Sample(units, kept, given)

    def accuracies(self, margins: Sequence[NDArray[np.float32]]) -> list[Reals]:
        """Return the accuracy per unit, float64 [n_units, k] per block; NaN where all labels of a unit are ties."""
        out: list[Reals] = []
        for block, margin in zip(self.blocks, margins, strict=True):
            query = block.query
            decided = query.label != 0.5
            right = np.zeros(margin.shape)
            right[decided] = correctness(margin[decided], query.label[decided])
            n = np.add.reduceat(decided.astype(np.float64), query.starts)[:, None]
            total = np.add.reduceat(right, query.starts, axis=0)
            out.append(np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0))
        return out

    @cached_property
    def own_accuracy(self) -> list[Reals]:
        """Return the accuracy per unit with one's own state."""
        return self.accuracies([b.margins for b in self.blocks])

    @cached_property
    def own(self) -> Sample:
        """Return the sample of accuracies with one's own state."""
        return self.sample(self.own_accuracy)

    @cached_property
    def wrong(self) -> Sample:
        """Return the sample of accuracies with another user's state."""
        return self.sample(self.accuracies([b.wrong for b in self.blocks]))

    @cached_property
    def reference(self) -> Index:
        """Return, per column, the column of pooled Bradley-Terry under the same setting; -1 where there is none."""
        return self._named(POOLED)

    @cached_property
    def oracle(self) -> Index:
        """Return, per column, the column of the oracle under the same setting; -1 where there is none."""
        return self._named(ORACLE)

    def _named(self, name: str) -> Index:
        found = built_in(self.columns, name)
        return np.array([found.get(c.setting, [-1])[0] for c in self.columns], dtype=np.int64)

    def paired(self, other: Index) -> NDArray[np.bool_]:
        """Return which columns have a partner `other` that was measured in the same seeds, bool [k]."""
        return (other >= 0) & (self.given == self.given[:, other]).all(axis=0)

    @cached_property
    def mismatched(self) -> Index:
        """Return the columns whose seeds are not those of their reference."""
        return np.flatnonzero((self.reference >= 0) & ~self.paired(self.reference)).astype(np.int64)

    @cached_property
    def samples(self) -> dict[str, Sample]:
        """Return the samples of accuracy ("own", "wrong") and of every measure of the metrics' registry, by name."""
        from leaderboard.metrics import measures

        averaged = {name: self.sample(values) for name, values in measures(self).items()}
        samples = {"own": self.own, "wrong": self.wrong, **averaged}
        if len(some := self.mismatched):
            pooled, own = self.reference[some], self.own
            given = own.given[:, some] & own.given[:, pooled]
            samples["mismatched"] = Sample(own.units, [v[:, some] for v in own.values], given)
            samples["mismatched pooled"] = Sample(own.units, [v[:, pooled] for v in own.values], given)
        return samples

    @cached_property
    def draws(self) -> dict[str, Reals]:
        """Return bootstrap draws over people [k, draws] of every sample, all on the same people, not yet widened."""
        drawn = bootstrap(len(self.people), list(self.samples.values()), *self.context, draws=DRAWS)
        return dict(zip(self.samples, drawn, strict=True))

    @cached_property
    def crossing(self) -> Crossing:
        """Return who met which prompt."""
        return Crossing.of([self.units(b, np.ones(len(b.query.starts), dtype=bool)) for b in self.blocks])

    def influence(self, name: str) -> Reals:
        """Return the influence of every cell of people x prompts on each estimate of a sample, float64 [n_cells, k]."""
        if name not in self._influences:
            self._influences[name] = self.crossing.influence(self.samples[name])
        return self._influences[name]

    @cached_property
    def n_mean(self) -> dict[Setting, float]:
        """Return the budget that people really had along the curve in each setting, the same for every entrant.

        The split decides it, not the method; so it is the mean over all seeds that anyone has in the setting, of what
        the records of that seed say (the median, which one wrong record does not move).
        """
        told: dict[Setting, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for column in self.columns:
            for seed, n in column.had.items():
                told[column.setting][seed].append(n)
        means = {s: [float(np.median(by[seed])) for seed in sorted(by)] for s, by in told.items()}
        return {c.setting: float(np.mean(means[c.setting])) if c.setting in means else 0.0 for c in self.columns}

    @cached_property
    def halves(self) -> list[NDArray[np.bool_]]:
        """Return which half of their person's units each unit is in, bool [n_units] per block, by hash.

        A unit that occurs in several seeds is in the same half in each.
        """
        pairs = [np.stack([b.query.person, b.query.unit]) for b in self.blocks]
        every, inverse = np.unique(np.concatenate(pairs, axis=1), axis=1, return_inverse=True)
        key = mix(every[0].astype(np.uint64), every[1].astype(np.uint64))
        order = np.lexsort((key, every[0]))
        person = every[0][order]
        start = np.maximum.accumulate(np.where(np.append(True, person[1:] != person[:-1]), np.arange(len(order)), 0))
        half = np.empty(len(order), dtype=bool)
        half[order] = (np.arange(len(order)) - start) % 2 == 1
        return np.split(half[inverse.ravel()], np.cumsum([p.shape[1] for p in pairs])[:-1])
