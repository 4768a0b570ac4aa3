"""Runs a suite into a results folder: prepare once, skip what is finished, run the rest, write every record.

Nothing finished is lost: a record is written when its cell ends, to a temporary name first, and a later run finds it by
its content key. A dataset, method or cell that fails is reported and the others go on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.cells import Cell, Prepared, Task, method_entries, plan_cells, record_key
from benchmarks.executor import Limits, LocalExecutor, Outcome
from benchmarks.meters import environment, source
from benchmarks.payloads import build_payload, columns_of, rows_of
from benchmarks.suites import DatasetPlan, Suite
from datasets_registry.errors import DataError, HetprefError, RequestError
from datasets_registry.protocol import PROTOCOL
from leaderboard.records import (
    Cost,
    Counts,
    DatasetPart,
    Margins,
    MethodPart,
    RunRecord,
    SplitPart,
    canonical_sha256,
)
from leaderboard.store import ResultsFolder, read_record, write_atomically


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
    """How a run ended."""

    planned: int = 0
    found: int = 0
    executed: int = 0
    failed: list[str] = field(default_factory=list[str])
    unavailable: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def exit_code(self) -> int:
        """Return 1 when something measured failed, else 0."""
        return 1 if self.failed or self.unavailable else 0


def run_suite(suite: Suite, out: Path, options: Options, progress: Progress) -> Summary:
    """Run a suite into `out`; raises RequestError when `out` holds results of another protocol or suite."""
    summary = Summary()
    folder = ResultsFolder(out)
    _claim(out, suite)
    cells = planned_cells(suite, options, progress, summary)
    todo: list[Cell] = []
    for cell in cells:
        standing = None if options.fresh else _standing(folder, cell)
        if standing is None or (options.retry_failed and standing != "ok"):
            todo.append(cell)
        elif standing != "ok":
            summary.failed.append(f"{cell.title}: {standing} in an earlier run")
    summary.planned, summary.found = len(cells), len(cells) - len(todo)
    progress.planned(len(cells), summary.found)
    _write_manifests(out, {id(c.prepared): c.prepared for c in cells}.values())
    limits = Limits(suite.time_limit_s, suite.memory_limit_mb << 20)
    with LocalExecutor(options.jobs, limits) as executor:
        for cell, outcome in executor.run(_tickets(todo, limits)):
            _write(folder, cell, outcome)
            summary.executed += 1
            if outcome.status != "ok":
                summary.failed.append(f"{cell.title}: {outcome.status}: {(outcome.reason or '').splitlines()[0]}")
            progress.ended(cell, outcome)
    return summary


def planned_cells(
    suite: Suite, options: Options, progress: Progress, summary: Summary | None = None
) -> list[Cell]:
    """Return the cells of a suite; a dataset or method that cannot be had is told in `summary.unavailable`."""
    summary = summary or Summary()
    entries, unavailable = method_entries(suite, options.methods)
    summary.unavailable.update(unavailable)
    cells: list[Cell] = []
    for plan in suite.datasets:
        try:
            ready = prepare(plan, progress)
            cells += plan_cells(suite, ready, entries)
        except RequestError:
            raise
        except HetprefError as why:
            summary.unavailable[plan.name] = str(why)
            progress.note(f"{plan.name} is left out: {why}")
    # Seeds outermost, so that an early stop leaves whole tables.
    return sorted(cells, key=lambda c: c.repetition.seed)


def prepare(plan: DatasetPlan, progress: Progress) -> Prepared:
    """Load a dataset, refuse it if its format leaks the answer, and make its features."""
    from datasets_registry import load
    from datasets_registry.features import features_path
    from datasets_registry.probes import checked_probe

    progress.note(f"preparing {plan.name} with {plan.encoder}")
    data = load(plan.name)
    report = checked_probe(data, plan.encoder)
    if report.refusals:
        raise DataError(f"{data.id} is refused by the format probe: {'; '.join(report.refusals)}")
    return Prepared(plan, data, data.digest, features_path(data, plan.encoder))


def _tickets(todo: list[Cell], limits: Limits) -> Iterator[tuple[Cell, Callable[[], Any]]]:
    for cell in todo:
        yield cell, lambda cell=cell: build_payload(cell, limits.seconds)


def _claim(out: Path, suite: Suite) -> None:
    """Write who this folder belongs to, or refuse one that belongs to another protocol or suite."""
    path = out / "run.json"
    told = {"protocol": PROTOCOL, "suite": suite.name}
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as why:
            raise DataError(f"{path} cannot be read ({why}); delete it to use this folder") from why
        for key, value in told.items():
            if found.get(key) != value:
                raise RequestError(
                    f"{out} holds results of {key} {found.get(key)!r}, this run is {key} {value!r}; results of "
                    "different ones are never mixed. Give another folder with --out"
                )
    write_atomically(path, (json.dumps(told, indent=1) + "\n").encode())


def _write_manifests(out: Path, prepared: Iterable[Prepared]) -> None:
    """Write the manifest of every split, and check one that is there."""
    from datasets_registry.splits import check_manifest

    for ready in prepared:
        for (fold, draw), split in ready.splits.items():
            path = out / "splits" / ready.data.id / f"fold{fold}-draw{draw}.json"
            if path.exists():
                check_manifest(json.loads(path.read_text(encoding="utf-8")), split)
            else:
                write_atomically(path, (json.dumps(split.manifest(), indent=1, sort_keys=True) + "\n").encode())


def _standing(folder: ResultsFolder, cell: Cell) -> str | None:
    """Return how a cell ended if every record of it stands whole in the folder with its margins, else None."""
    fit_key = cell.fit_key
    status = "ok"
    for task in cell.tasks:
        path = folder.record_path(cell.prepared.data.id, cell.method.cls.spec.name, record_key(fit_key, task))
        if not path.exists():
            return None
        try:
            record = read_record(path)
            if record.margins is not None:
                folder.read_margins(record.margins)
                if record.margins.validation is not None:
                    folder.read_margins(record.margins.validation)
        except DataError:
            return None
        if record.status != "ok":
            status = record.status
    return status


def _write(folder: ResultsFolder, cell: Cell, outcome: Outcome) -> None:
    """Write the records of a cell, margins first, so that a record never points to a file that is not there."""
    fit_key = cell.fit_key
    validation = None
    if outcome.answer is not None and "validation/margin" in outcome.answer.arrays:
        rows = cell.split.validation(cell.n_users, cell.n_train)
        name = folder.margins_name(cell.prepared.data.id, cell.method.cls.spec.name, fit_key)
        validation = folder.write_margins(name, columns_of(outcome.answer, "validation", cell, rows))
    for task in cell.tasks:
        key = record_key(fit_key, task)
        margins = None
        rows = rows_of(cell, task)
        if outcome.answer is not None:
            columns = columns_of(outcome.answer, task.title, cell, rows)
            name = folder.margins_name(cell.prepared.data.id, cell.method.cls.spec.name, key)
            ref = folder.write_margins(name, columns)
            control = {c: c for c in columns if c not in ("row", "margin")}
            margins = Margins(path=ref.path, sha256=ref.sha256, control=control, validation=validation)
        folder.write_record(_record(cell, task, key, fit_key, outcome, margins))


def _record(
    cell: Cell, task: Task, key: str, fit_key: str, outcome: Outcome, margins: Margins | None
) -> RunRecord:
    from datasets_registry.splits import mean_units

    data, spec, split = cell.prepared.data, cell.method.cls.spec, cell.split
    rows = rows_of(cell, task)
    said = data.comparisons.take(rows)
    units = len({*zip(said.user.tolist(), said.unit.tolist(), strict=True)})
    train = split.train(cell.n_train, cell.n_users, cell.imbalance)
    trained = split.seen if cell.n_users == "all" else split.seen[: cell.n_users]
    support = None if task.n_support is None else mean_units(data, split.support(task.n_support), split.unseen)
    return RunRecord(
        protocol=PROTOCOL,
        key=key,
        fit_key=fit_key,
        method=MethodPart(
            name=spec.name,
            dist=cell.method.dist,
            version=cell.method.version,
            level=spec.level,
            role=spec.role,
            config=cell.method.config,
            config_sha256=canonical_sha256(cell.method.config),
        ),
        dataset=DatasetPart(
            name=data.id,
            sha256=cell.prepared.digest,
            encoder=cell.prepared.plan.encoder,
            licence=data.card.licence,
        ),
        split=SplitPart(
            fold=split.fold,
            draw=split.draw,
            regime=task.regime,
            n_train=cell.n_train,
            n_support=task.n_support,
            n_users=len(trained),
            imbalance="zipf" if cell.imbalance else None,
            n_train_mean=round(mean_units(data, train, trained), 6),
            n_support_mean=None if support is None else round(support, 6),
            sha256=split.digest,
        ),
        seed=cell.repetition.seed,
        control="user_shuffle" if cell.control else None,
        status=outcome.status,
        reason=outcome.reason,
        counts=Counts(users=len(set(said.user.tolist())), units=units, comparisons=len(rows)),
        margins=margins,
        cost=Cost.model_validate(outcome.answer.cost) if outcome.answer else Cost(),
        environment=environment(),
        source=source(),
    )


