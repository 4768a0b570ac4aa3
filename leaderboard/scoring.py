"""From records and margins to panels: matrices of comparisons x columns, on which every metric is computed at once.

A panel holds everything that was asked the same questions: one dataset, one regime, one set of people. A column of it is
an entrant (a method and its configuration) under one setting (encoder and budget), a block one seed. A cell that failed
or is missing takes the margins of pooled Bradley-Terry under the same setting and seed, and is marked as imputed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets_registry.errors import DataError, HetprefError
from datasets_registry.protocol import PROTOCOL, Count, Regime
from leaderboard.labels import Index, Labels, Query, Reals
from leaderboard.records import RunRecord
from leaderboard.statistics import Units
from leaderboard.store import ResultsFolder, read_record

POOLED = "pooled-bt"
ORACLE = "oracle"
MAX_IMPUTED = 0.10


def count_order(count: Count | None) -> tuple[int, int]:
    """Return the sort key of a budget: none, numbers, "all"."""
    return (-1, 0) if count is None else (1, 0) if count == "all" else (0, count)


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
        return self.dataset, self.encoder, self.regime, self.imbalance or "", *counts

    @property
    def curve(self) -> tuple[Any, ...]:
        """Return what is shared by the settings of one sample-efficiency curve."""
        fixed = self.dataset, self.encoder, self.regime, self.n_users, self.imbalance
        return (*fixed, self.n_train) if self.regime == "unseen" else fixed

    @property
    def n(self) -> Count:
        """Return the budget that varies along the curve: support for new people, training for seen ones."""
        return (self.n_support or 0) if self.regime == "unseen" else self.n_train


@dataclass(frozen=True, slots=True, order=True)
class Entrant:
    """A method, its version and configuration; `control` marks the fit with permuted people."""

    method: str
    version: str
    config_sha256: str
    role: str
    level: str
    control: str | None


@dataclass(frozen=True, slots=True)
class Located:
    """A record and the folder it was read from."""

    record: RunRecord
    folder: ResultsFolder
    setting: Setting

    @property
    def entrant(self) -> Entrant:
        """Return who was measured."""
        m = self.record.method
        return Entrant(m.name, m.version, m.config_sha256, m.role, m.level, self.record.control)


@dataclass(frozen=True, slots=True)
class Column:
    """One entrant under one setting, and its records by seed."""

    entrant: Entrant
    setting: Setting
    records: dict[int, RunRecord]

    @property
    def n_mean(self) -> float:
        """Return the budget that people really had along the curve, averaged over seeds."""
        unseen = self.setting.regime == "unseen"
        had = [r.split.n_support_mean or 0.0 if unseen else r.split.n_train_mean for r in self.records.values()]
        return float(np.mean(had)) if had else 0.0


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

    @cached_property
    def truth(self) -> None:  # pragma: no cover
        """Not used."""


class Panel:
    """All columns of one (dataset, regime, set of people), one block per seed."""

    def __init__(self, labels: Labels, columns: Sequence[Column], blocks: Sequence[Block]) -> None:
        self.labels = labels
        self.columns = tuple(columns)
        self.blocks = tuple(blocks)
