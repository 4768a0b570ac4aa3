"""Runs the measurement of a record again: on its own cell, and on a fold that a salt assigns.

A split depends on nothing but the names of people and prompts, so a dataset whose names are hashed with a salt is split
as nobody could know who wrote the method: that is the fold on which a gain must show again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.cells import Cell, Fit, MethodEntry, Prepared, Task, method_entries, split_of
from benchmarks.executor import Limits, LocalExecutor, Outcome
from benchmarks.meters import must_be_there
from benchmarks.payloads import build_payload
from benchmarks.recording import write_cell
from benchmarks.runner import Progress, prepare
from benchmarks.suites import DatasetPlan, MethodPlan, Suite
from datasets_registry.errors import MethodError, RequestError
from datasets_registry.protocol import Regime, Repetition
from datasets_registry.records import PreferenceData
from datasets_registry.splits import REGIMES
from leaderboard.records import RunRecord
from leaderboard.store import ResultsFolder

REFERENCE = "pooled-bt"


@dataclass(frozen=True, slots=True)
class Rerun:
    """What came of it: the record of the same measurement, and whether the code is that of the record.

    `salted` is the dataset that the records of `method` and of pooled Bradley-Terry in the second folder were measured
    on; None where no salt was given.
    """

    again: RunRecord
    same_code: bool
    salted: PreferenceData | None


def rerun(
    record: RunRecord,
    results: Path,
    beside: Sequence[RunRecord],
    salt: str | None,
    out: Path,
    device: str,
    limits: Limits,
    progress: Progress,
) -> Rerun:
    """Measure a record again into `out / "same"`, and with a salt into `out / "salted"`, with the reference beside it.

    `results` is the folder of the record, in which the method may not look. `beside` are records of the same fit, whose
    measurements are repeated too, since a fit may be asked in turn. Raises RequestError where the method, version or
    dataset here is not that of the record, MethodError where a cell fails.
    """
    must_be_there(device)
    entry, reference = _entries(record)
    at = record.split
    regimes: tuple[Regime, ...] = tuple(r for r in REGIMES if any(b.split.regime == r for b in [record, *beside]))
    plan = DatasetPlan(record.dataset.name, record.dataset.encoder, n_train=(at.n_train,), regimes=regimes)
    ready = prepare(plan, progress, [entry, reference])
    if ready.digest != record.dataset.sha256:
        raise RequestError(
            f"{record.dataset.name} has other content here ({ready.digest[:12]}…) than the record's "
            f"({record.dataset.sha256[:12]}…); install the release that the record was measured with"
        )
    cell = _cell(record, beside, ready, entry, device)
    cells = [(cell, out / "same")]
    other: PreferenceData | None = None
    if salt is not None:
        other = salted(ready.data, salt)
        elsewhere = replace(ready, data=other, digest=other.digest, splits={})
        cells += [(_cell(record, [], elsewhere, each, device), out / "salted") for each in (reference, entry)]
    written = dict(_run(cells, limits, results, progress))
    again = next(r for r in written[id(cell)] if _task(r) == _task(record))
    return Rerun(again, cell.fit_key == record.fit_key, other)


def salted(data: PreferenceData, salt: str) -> PreferenceData:
    """Return the dataset with the names of people and prompt clusters hashed with a salt, and nothing else changed."""

    def hashed(names: Sequence[str], kind: str) -> tuple[str, ...]:
        return tuple(hashlib.sha256("\x1f".join((salt, kind, name)).encode()).hexdigest()[:24] for name in names)

    users = replace(data.users, ids=hashed(data.users.ids, "person"))
    return replace(data, users=users, clusters=hashed(data.clusters, "cluster"))


def _entries(record: RunRecord) -> tuple[MethodEntry, MethodEntry]:
    """Return the record's method as it is installed here, and the reference."""
    told = record.method
    plans = (MethodPlan(told.name, dict(told.config)), MethodPlan(REFERENCE, {}))
    suite = Suite("rerun", "", (), plans, 1, 1, 64)
    entries, failed = method_entries(suite, None)
    if failed:
        raise RequestError(f"{next(iter(failed))} cannot be run here: {next(iter(failed.values()))}")
    entry = entries[0]
    if (entry.dist, entry.version) != (told.dist, told.version):
        raise RequestError(
            f"the record is of {told.name} {told.version} of {told.dist!r}; installed here is {entry.version} of "
            f"{entry.dist!r}. Install what was submitted"
        )
    return entry, entries[1]


def _cell(record: RunRecord, beside: Sequence[RunRecord], ready: Prepared, entry: MethodEntry, device: str) -> Cell:
    at, repetition = record.split, Repetition(record.seed)
    split = split_of(ready, repetition)
    asked = sorted({_task(r) for r in [record, *beside]}, key=lambda t: (REGIMES.index(t.regime), t.n_support or 0))
    n_users = "all" if at.n_users >= len(split.seen) else at.n_users
    fit = Fit(at.n_train, n_users, at.imbalance, record.control, tuple(asked))
    return Cell(ready, split, repetition, fit, entry, device)


def _task(record: RunRecord) -> Task:
    return Task(record.split.regime, record.split.n_support)


def _run(
    cells: Sequence[tuple[Cell, Path]], limits: Limits, results: Path, progress: Progress
) -> Iterator[tuple[int, list[RunRecord]]]:
    where = {id(cell): folder for cell, folder in cells}
    models = any("backbone" in cell.method.cls.spec.needs for cell, _ in cells)
    tickets = ((cell, lambda cell=cell: build_payload(cell, limits.seconds)) for cell, _ in cells)
    with LocalExecutor(1, limits, ["benchmarks.preload_models"] if models else [], results=results) as executor:
        outcome: Outcome
        for cell, outcome in executor.run(tickets):
            progress.ended(cell, outcome)
            if outcome.failed:
                raise MethodError(f"{cell.title}: {outcome.status}: {outcome.headline}")
            yield id(cell), write_cell(ResultsFolder(where[id(cell)]), cell, outcome)
