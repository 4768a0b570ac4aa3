"""A cell: one fit, and the measurements that share it. Planning a suite is listing its cells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.code_digest import source_sha256
from benchmarks.suites import DatasetPlan, MethodPlan, Suite
from datasets_registry.protocol import PROTOCOL, Count, Regime, Repetition
from datasets_registry.records import PreferenceData
from datasets_registry.splits import Split
from leaderboard.records import canonical_sha256
from methods.interface import Method


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A dataset made ready once per suite: content, digest, and where its features lie."""

    plan: DatasetPlan
    data: PreferenceData
    digest: str
    features: Path
    splits: dict[tuple[int, int], Split] = field(default_factory=dict[tuple[int, int], Split])


@dataclass(frozen=True, slots=True)
class MethodEntry:
    """A method that a suite runs: its class, options, and what identifies its code (`source_sha256`)."""

    cls: type[Method]
    config: dict[str, Any]
    dist: str
    version: str
    source_sha256: str


@dataclass(frozen=True, slots=True)
class Task:
    """One measurement of a cell: a regime and, for unseen people, the size of their support."""

    regime: Regime
    n_support: int | None

    @property
    def title(self) -> str:
        """Return a short name for progress and errors."""
        return self.regime if self.n_support is None else f"{self.regime}+{self.n_support}"


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One fit: a dataset, a split, a budget, a method; `tasks` are the measurements made with it."""

    prepared: Prepared
    split: Split
    repetition: Repetition
    n_train: Count
    n_users: Count
    imbalance: Literal["zipf"] | None
    method: MethodEntry
    control: str | None
    tasks: tuple[Task, ...]

    @property
    def title(self) -> str:
        """Return what a person calls this cell."""
        shuffled = " (user-shuffle)" if self.control else ""
        return (
            f"{self.method.cls.spec.name} on {self.prepared.data.id}, n_train {self.n_train}, "
            f"seed {self.repetition.seed}{shuffled}"
        )

    @property
    def fit_key(self) -> str:
        """Return the content key of the fit: everything that can change a margin, and nothing else."""
        return canonical_sha256(
            {
                "protocol": PROTOCOL,
                "dataset": [self.prepared.data.id, self.prepared.digest],
                "encoder": self.prepared.plan.encoder,
                "split": self.split.digest,
                "seed": [self.repetition.seed, self.repetition.draw],
                "budget": [self.n_train, self.n_users, self.imbalance],
                "method": [self.method.cls.spec.name, self.method.dist, self.method.version, self.method.config],
                "source": self.method.source_sha256,
                "control": self.control,
            }
        )


def plan_cells(suite: Suite, ready: Prepared, methods: list[MethodEntry]) -> Iterator[Cell]:
    """Yield every cell of one dataset of a suite; raises DataError when the dataset cannot be split."""
    for seed in range(suite.seeds):
        split = _split(ready, Repetition(seed))
        for entry in methods:
            if "truth" in entry.cls.spec.needs and ready.data.truth is None:
                continue
            yield from _cells_of(ready, split, Repetition(seed), entry, shuffle=suite.user_shuffle and seed == 0)


def _split(ready: Prepared, repetition: Repetition) -> Split:
    from datasets_registry.splits import split

    at = (repetition.fold, repetition.draw)
    if at not in ready.splits:
        ready.splits[at] = split(ready.data, fold=repetition.fold, draw=repetition.draw)
    return ready.splits[at]


def _cells_of(
    ready: Prepared, split: Split, repetition: Repetition, entry: MethodEntry, *, shuffle: bool
) -> Iterator[Cell]:
    n_train = ready.plan.n_train or tuple(split.budgets())
    n_support = ready.plan.n_support or tuple(split.support_budgets())
    tasks = (Task("seen", None), *(Task("unseen", n) for n in n_support))
    for n_users in ready.plan.n_users:
        if n_users != "all" and n_users >= len(split.seen):
            continue
        for imbalance in ready.plan.imbalance:
            skewed = "zipf" if imbalance == "zipf" else None
            for n in n_train:
                if skewed and n == "all":
                    continue
                yield Cell(ready, split, repetition, n, n_users, skewed, entry, None, tasks)
    if shuffle and entry.cls.spec.adaptation != "none" and entry.cls.spec.role == "method":
        yield Cell(ready, split, repetition, n_train[-1], "all", None, entry, "user_shuffle", tasks[:1])


def method_entries(suite: Suite, chosen: list[str] | None) -> tuple[list[MethodEntry], dict[str, str]]:
    """Return the methods to run and, for those that cannot be loaded, why; a wrong name raises RequestError."""
    from datasets_registry.errors import MethodError
    from methods.registry import create, find, origin

    known = {m.name for m in suite.methods}
    plans = [m for m in suite.methods if chosen is None or m.name in chosen]
    plans += [MethodPlan(name, {}) for name in chosen or [] if name not in known]
    entries: list[MethodEntry] = []
    failed: dict[str, str] = {}
    for plan in plans:
        try:
            config = create(plan.name, **plan.config).config
            cls = find(plan.name)
            entries.append(MethodEntry(cls, config, *origin(plan.name), source_sha256(cls)))
        except MethodError as why:
            failed[plan.name] = str(why)
    return entries, failed
