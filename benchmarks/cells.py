"""A cell: one fit, and the measurements that share it. Planning a suite is listing its cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    """A dataset made ready once per suite: content, digest, where its features lie (None if no method reads them).

    `encoder_revision` is told for an encoder whose id does not pin it, as a branch of the hub does not; `truncated`
    counts the texts that the encoder cut.
    """

    plan: DatasetPlan
    data: PreferenceData
    digest: str
    features: Path | None
    encoder_revision: str | None = None
    truncated: int = 0
    splits: dict[tuple[int, int], Split] = field(default_factory=dict[tuple[int, int], Split])


@dataclass(frozen=True, slots=True)
class MethodEntry:
    """A method that a suite runs: its class, options, and what identifies its code (`source_sha256`)."""

    cls: type[Method]
    config: dict[str, Any]
    dist: str
    version: str
    source_sha256: str

    @property
    def title(self) -> str:
        """Return what a person calls it: the name, and the options that are not the method's defaults."""
        defaults = self.cls.hyperparameters()
        own = [f"{k}={v}" for k, v in self.config.items() if k not in defaults or defaults[k] != v]
        return self.cls.spec.name + (f" ({', '.join(own)})" if own else "")


@dataclass(frozen=True, slots=True)
class Task:
    """One measurement of a cell: a regime and, for new people, the size of their support."""

    regime: Regime
    n_support: int | None

    @property
    def title(self) -> str:
        """Return a short name for progress and errors."""
        return self.regime if self.n_support is None else f"{self.regime}+{self.n_support}"


@dataclass(frozen=True, slots=True)
class Fit:
    """What a cell fits on, as a budget of the dataset's grids, and the measurements that are made with it."""

    n_train: Count
    n_users: Count
    imbalance: Literal["zipf"] | None
    control: str | None
    tasks: tuple[Task, ...]

    def title(self, entry: MethodEntry, dataset: str, seed: int) -> str:
        """Return what a person calls the cell of a method, dataset and seed that fits on this."""
        people = "" if self.n_users == "all" else f", n_users {self.n_users}"
        skewed = ", zipf" if self.imbalance else ""
        shuffled = " (user-shuffle)" if self.control else ""
        return f"{entry.title} on {dataset}, n_train {self.n_train}{people}{skewed}, seed {seed}{shuffled}"


@dataclass(frozen=True, slots=True)
class Grids:
    """The budgets that a dataset is run at, what is measured with each fit, and how many people can be seen.

    `people` is None where that is not known.
    """

    n_train: tuple[Count, ...]
    tasks: tuple[Task, ...]
    people: int | None

    @classmethod
    def of(
        cls,
        plan: DatasetPlan,
        regimes: Sequence[Regime],
        n_train: Sequence[Count],
        n_support: Callable[[Regime], Sequence[int]],
        people: int | None,
    ) -> Grids:
        """Return the grids of a plan; where it names none, `n_train` and what `n_support` returns for a regime."""
        tasks: list[Task] = []
        for regime in regimes:
            if regime == "seen":
                tasks.append(Task(regime, None))
            else:
                tasks += [Task(regime, n) for n in plan.n_support or n_support(regime)]
        return cls(plan.n_train or tuple(n_train), tuple(tasks), people)


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One fit: a dataset, a split, a budget with its measurements, a method, and the device it may use."""

    prepared: Prepared
    split: Split
    repetition: Repetition
    fit: Fit
    method: MethodEntry
    device: str = "cpu"

    @property
    def title(self) -> str:
        """Return what a person calls this cell."""
        return self.fit.title(self.method, self.prepared.data.id, self.repetition.seed)

    @property
    def fit_key(self) -> str:
        """Return the content key of the fit: everything that can change a margin, and nothing else.

        The device is left out: margins of a GPU differ from those of a CPU by rounding, as those of two processors do,
        which no key tells apart either. So a run that was begun on one goes on on the other; its records say where each
        was measured, and costs are compared within one class of device only.
        """
        return canonical_sha256(
            {
                "protocol": PROTOCOL,
                "dataset": [self.prepared.data.id, self.prepared.digest],
                "encoder": [self.prepared.plan.encoder, self.prepared.encoder_revision],
                "split": self.split.digest,
                "seed": [self.repetition.seed, self.repetition.draw],
                "budget": [self.fit.n_train, self.fit.n_users, self.fit.imbalance],
                "method": [self.method.cls.spec.name, self.method.dist, self.method.version, self.method.config],
                "source": self.method.source_sha256,
                "control": self.fit.control,
            }
        )


def plan_cells(suite: Suite, ready: Prepared, methods: list[MethodEntry]) -> Iterator[Cell]:
    """Yield every cell of one dataset of a suite, without those of methods that cannot run on it (`runnable`).

    Raises DataError when the dataset cannot be split.
    """
    entries = runnable(methods, ready.plan, truth=ready.data.truth is not None)
    for seed in range(suite.seeds):
        repetition = Repetition(seed)
        split = split_of(ready, repetition)
        regimes = suite.regimes_of(ready.plan)
        grids = Grids.of(ready.plan, regimes, split.budgets(), split.support_budgets, len(split.seen))
        for entry in entries:
            for fit in fits(ready.plan, grids, entry, shuffle=suite.user_shuffle and seed == 0):
                yield Cell(ready, split, repetition, fit, entry, suite.device)


def runnable(methods: list[MethodEntry], plan: DatasetPlan, *, truth: bool) -> list[MethodEntry]:
    """Return the methods that run on a dataset: those that need its truth only where it has one (`truth`)."""
    return [m for m in methods if (truth or "truth" not in m.cls.spec.needs) and without_model(m, plan) is None]


def without_model(method: MethodEntry, plan: DatasetPlan) -> str | None:
    """Return why a method that trains inside a text model has none in a plan's encoder, None where it can run."""
    if "backbone" not in method.cls.spec.needs:
        return None
    from datasets_registry.encoders import ENCODERS
    from datasets_registry.text_models import has_text_model

    if has_text_model(plan.encoder):
        return None
    others = [name for name in ENCODERS if has_text_model(name)]
    instead = f"; use --encoder {others[0]}" if others else ""
    return f"{method.cls.spec.name} trains inside a text model, and {plan.encoder} has none{instead}"


def fits(plan: DatasetPlan, grids: Grids, entry: MethodEntry, *, shuffle: bool) -> Iterator[Fit]:
    """Yield what a method is fitted on in one repetition: every budget, and with `shuffle` the user-shuffle control.

    The control is fitted on the most people there are in the grid and at its last n_train, where the headline stands,
    and measured on seen people: it is left out where these are not.
    """
    crowds = _crowds(plan, grids)
    for n_users in crowds:
        for imbalance in plan.imbalance:
            skewed = "zipf" if imbalance == "zipf" else None
            for n in grids.n_train:
                if skewed and n == "all":
                    continue
                yield Fit(n, n_users, skewed, None, grids.tasks)
    seen = tuple(task for task in grids.tasks if task.regime == "seen")
    if shuffle and seen and entry.cls.spec.adaptation != "none" and entry.cls.spec.role == "method":
        most = max(crowds, key=lambda n: float("inf") if n == "all" else n)
        yield Fit(grids.n_train[-1], most, None, "user_shuffle", seen)


def _crowds(plan: DatasetPlan, grids: Grids) -> list[Count]:
    """Return the numbers of seen people to fit on; one that is not below the split's stands for all of them."""
    whole = {n: n == "all" or (grids.people is not None and n >= grids.people) for n in plan.n_users}
    return [*(n for n in plan.n_users if not whole[n]), *(["all"] if any(whole.values()) else [])]


def split_of(ready: Prepared, repetition: Repetition) -> Split:
    """Return the split of a dataset for a repetition, made once."""
    from datasets_registry.splits import split

    at = (repetition.fold, repetition.draw)
    if at not in ready.splits:
        ready.splits[at] = split(ready.data, fold=repetition.fold, draw=repetition.draw)
    return ready.splits[at]


def method_entries(suite: Suite, chosen: list[str] | None) -> tuple[list[MethodEntry], dict[str, str]]:
    """Return the methods to run and, for those that cannot be loaded, why; a wrong name raises RequestError."""
    from datasets_registry.errors import MethodError
    from methods.registry import create, origin

    known = {m.name for m in suite.methods}
    plans = [m for m in suite.methods if chosen is None or m.name in chosen]
    plans += [MethodPlan(name, {}) for name in chosen or [] if name not in known]
    entries: list[MethodEntry] = []
    failed: dict[str, str] = {}
    for plan in plans:
        try:
            method = create(plan.name, **plan.config)
            code = source_sha256(type(method), _reads(method))
            entries.append(MethodEntry(type(method), method.config, *origin(plan.name), code))
        except MethodError as why:
            failed[plan.name] = str(why)
    return entries, failed


def _reads(method: Method) -> tuple[str, ...]:
    """Return what a method says that it reads; raises MethodError where it cannot say."""
    from datasets_registry.errors import MethodError

    try:
        return tuple(str(path) for path in method.reads)
    except Exception as why:
        raise MethodError(f"{method.spec.name} cannot say what it reads: {type(why).__name__}: {why}") from why
