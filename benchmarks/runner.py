"""Runs a suite into a results folder: prepare once, skip what is finished, run the rest, write every record.

Nothing finished is lost: a record is written when its cell ends, to a temporary name first, and a later run finds it by
its content key. A dataset, method or cell that fails is reported and the others go on.
"""

from __future__ import annotations

import fcntl
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.cells import Cell, MethodEntry, Prepared, method_entries, plan_cells, runnable, without_model
from benchmarks.executor import DONE, Limits, LocalExecutor, Outcome, first_line
from benchmarks.meters import must_be_there, source
from benchmarks.payloads import build_payload
from benchmarks.recording import StandingRecords, write_cell
from benchmarks.suites import DatasetPlan, Suite
from datasets_registry.atomic_write import write_atomically
from datasets_registry.errors import DataError, HetprefError, RequestError
from datasets_registry.protocol import PROTOCOL
from leaderboard.records import RunRecord, record_key
from leaderboard.store import ResultsFolder, read_record


@dataclass(frozen=True, slots=True)
class Options:
    """What a run was asked for besides its suite."""

    methods: list[str] | None = None
    jobs: int = 1
    fresh: bool = False
    retry_failed: bool = False


class Progress(Protocol):
    """What shows a run to a person."""

    def note(self, text: str) -> None:
        """Say one thing."""

    def planned(self, total: int, finished: int) -> None:
        """Tell how many cells there are and how many were found finished."""

    def ended(self, cell: Cell, outcome: Outcome) -> None:
        """Tell that a cell ended."""


@dataclass(slots=True)
class Summary:
    """How a run ended.

    `unavailable` tells why a dataset or method could not be had, which is a failure; `unsuited` why a method was left
    out on a dataset that it is not made for, by (method, dataset), which is none. Nor is what `skipped` counts: the
    measurements that a method is unable to make, by (method, why).
    """

    planned: int = 0
    found: int = 0
    executed: int = 0
    failed: list[str] = field(default_factory=list[str])
    unavailable: dict[str, str] = field(default_factory=dict[str, str])
    unsuited: dict[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    skipped: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])

    def note_skipped(self, records: Iterable[RunRecord]) -> None:
        """Count the records that were skipped."""
        self.skipped.update((r.method.name, r.reason or "") for r in records if r.status == "skipped")

    @property
    def skipped_lines(self) -> list[str]:
        """Return how many measurements were skipped and why, a line per method and reason."""
        return [
            f"{n} measurement{'' if n == 1 else 's'} of {method} skipped: {first_line(why, 400)}"
            for (method, why), n in sorted(self.skipped.items())
        ]

    @property
    def exit_code(self) -> int:
        """Return 1 when something measured failed, else 0."""
        return 1 if self.failed or self.unavailable else 0


def run_suite(suite: Suite, out: Path, options: Options, progress: Progress) -> Summary:
    """Run a suite into `out`.

    Raises RequestError when this machine lacks the suite's device, or `out` holds results of another protocol or suite.
    """
    must_be_there(suite.device)
    summary = Summary()
    folder = ResultsFolder(out)
    with _claimed(out, suite):
        cells = planned_cells(suite, options, progress, summary)
        _run_cells(suite, folder, cells, options, progress, summary)
    for line in summary.skipped_lines:
        progress.note(line)
    return summary


def _run_cells(
    suite: Suite, folder: ResultsFolder, cells: list[Cell], options: Options, progress: Progress, summary: Summary
) -> None:
    todo: list[Cell] = []
    elsewhere = 0
    for cell in cells:
        standing = [] if options.fresh else _standing(folder, cell)
        status = next((r.status for r in standing if r.status not in DONE), "ok")
        if not standing or (options.retry_failed and status != "ok"):
            todo.append(cell)
            continue
        if status != "ok":
            summary.failed.append(f"{cell.title}: {status} in an earlier run")
        summary.note_skipped(standing)
        kind = standing[0].environment.device_class.partition("-")[0]
        elsewhere += "backbone" in cell.method.cls.spec.needs and kind != suite.device.partition(":")[0]
    summary.planned, summary.found = len(cells), len(cells) - len(todo)
    progress.planned(len(cells), summary.found)
    if elsewhere:
        progress.note(f"{elsewhere} of these were not measured on {suite.device}; --fresh measures them there")
    _write_manifests(folder.root, {id(c.prepared): c.prepared for c in cells}.values())
    if not todo:
        return
    limits = Limits(suite.time_limit_s, suite.memory_limit_mb << 20)
    standing_records = StandingRecords(folder)
    models = any("backbone" in cell.method.cls.spec.needs for cell in todo)
    preload = ["benchmarks.preload_models"] if models else []
    with LocalExecutor(options.jobs, limits, preload, results=folder.root) as executor:
        for cell, outcome in executor.run(_tickets(todo, limits)):
            records = write_cell(folder, cell, outcome)
            for record in records:
                standing_records.supersede(record)
            summary.executed += 1
            summary.note_skipped(records)
            if outcome.failed:
                summary.failed.append(f"{cell.title}: {outcome.status}: {outcome.headline}")
            progress.ended(cell, outcome)


def planned_cells(
    suite: Suite, options: Options, progress: Progress, summary: Summary | None = None
) -> list[Cell]:
    """Return the cells of a suite; a dataset or method that cannot be had is told in `summary.unavailable`."""
    summary = summary or Summary()
    entries, unavailable = method_entries(suite, options.methods)
    summary.unavailable.update(unavailable)
    cells: list[Cell] = []
    for plan in suite.datasets:
        leave_out(plan, entries, progress, summary)
        if not runnable(entries, plan, truth=True):
            continue
        try:
            ready = prepare(plan, progress, entries)
            cells += plan_cells(suite, ready, entries)
        except RequestError:
            raise
        except HetprefError as why:
            summary.unavailable[plan.name] = str(why)
            progress.note(f"{plan.name} is left out: {why}")
    # Seeds outermost, so that an early stop leaves whole tables.
    return sorted(cells, key=lambda c: c.repetition.seed)


def leave_out(plan: DatasetPlan, entries: list[MethodEntry], progress: Progress, summary: Summary) -> None:
    """Say which methods a dataset is run without, because they train inside a text model and its encoder has none."""
    for entry in entries:
        at = entry.cls.spec.name, plan.name
        why = without_model(entry, plan)
        if why is not None and at not in summary.unsuited:
            summary.unsuited[at] = why
            progress.note(f"{plan.name} is run without {at[0]}: {why}")


def prepare(plan: DatasetPlan, progress: Progress, entries: list[MethodEntry] | None = None) -> Prepared:
    """Load a dataset, refuse it if its format leaks the answer, and make its features if a method reads them.

    `entries` are the methods of the suite; None stands for some that read features. Where none does, a text encoder
    (which may be a model of billions of parameters) is not run: the texts, the positions and the prompts are probed as
    ever, and only the probe of the norm of features is left out, since nobody is handed these features. A gain has
    pooled Bradley-Terry as its reference, which reads them, so that no gain is stated where that probe was not made.
    """
    from datasets_registry import load
    from datasets_registry.encoders import ENCODERS, find_encoder
    from datasets_registry.features import features_facts, features_path
    from datasets_registry.probes import checked_probe

    progress.note(f"preparing {plan.name} with {plan.encoder}")
    data = load(plan.name)
    some = None if entries is None else runnable(entries, plan, truth=data.truth is not None)
    read = some is None or any("features" in e.cls.spec.needs for e in some)
    report = checked_probe(data, plan.encoder) if read else checked_probe(data)
    if report.refusals:
        raise DataError(f"{data.id} is refused by the format probe: {'; '.join(report.refusals)}")
    features = features_path(data, plan.encoder) if read else None
    cut = int(features_facts(data, plan.encoder)["truncated"]) if read else 0
    moving = plan.encoder not in ENCODERS
    return Prepared(plan, data, data.digest, features, find_encoder(plan.encoder).revision if moving else None, cut)


def _tickets(todo: list[Cell], limits: Limits) -> Iterator[tuple[Cell, Callable[[], Any]]]:
    for cell in todo:
        yield cell, lambda cell=cell: build_payload(cell, limits.seconds)


@contextmanager
def _claimed(out: Path, suite: Suite) -> Iterator[None]:
    """Hold a results folder for one run; refuse one of another protocol or suite, of somebody else, or in use."""
    path = out / "run.json"
    told = {"protocol": PROTOCOL, "suite": suite.name}
    if path.exists():
        _check_claim(path, told)
    elif out.is_dir() and any(not p.name.startswith(".") for p in out.iterdir()):
        raise RequestError(f"{out} holds files that are not a run's; give an empty or new folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RequestError(
                f"another run is writing to {out}; wait for it, or give another folder with --out"
            ) from None
        write_atomically(path, (json.dumps(told, indent=1) + "\n").encode())
        yield


def _check_claim(path: Path, told: dict[str, str]) -> None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is not a JSON object")
    except ValueError as why:
        raise DataError(f"{path} cannot be read ({why}); delete it to use this folder") from why
    for key, value in told.items():
        if found.get(key) != value:
            raise RequestError(
                f"{path.parent} holds results of {key} {found.get(key)!r}, this run is {key} {value!r}; results of "
                "different ones are never mixed. Give another folder with --out"
            )


def _write_manifests(out: Path, prepared: Iterable[Prepared]) -> None:
    """Write the manifest of every split, and check one that is there."""
    from datasets_registry.splits import check_manifest

    for ready in prepared:
        for (fold, draw), split in ready.splits.items():
            path = out / "splits" / ready.data.id / f"fold{fold}-draw{draw}.json"
            if path.exists():
                try:
                    told = json.loads(path.read_text(encoding="utf-8"))
                except ValueError as why:
                    raise DataError(f"{path} is not a whole manifest ({why}); delete it and run again") from why
                check_manifest(told, split)
            else:
                write_atomically(path, (json.dumps(split.manifest(), indent=1, sort_keys=True) + "\n").encode())


def _standing(folder: ResultsFolder, cell: Cell) -> list[RunRecord]:
    """Return the records of a cell if every one of them stands whole in the folder with its margins, else none."""
    fit_key = cell.fit_key
    records: list[RunRecord] = []
    for task in cell.fit.tasks:
        key = record_key(fit_key, task.regime, task.n_support)
        path = folder.record_path(cell.prepared.data.id, cell.method.cls.spec.name, key)
        if not path.exists():
            return []
        try:
            record = read_record(path)
            if record.margins is not None:
                folder.read_margins(record.margins)
                if record.margins.validation is not None:
                    folder.read_margins(record.margins.validation)
        except DataError:
            return []
        if record.source.dirty and not source().dirty:
            return []  # measured on uncommitted changes, which are committed or gone now
        records.append(record)
    return records
