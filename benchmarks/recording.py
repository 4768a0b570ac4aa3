"""From an outcome to its records: what a finished cell leaves in the results folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cells import Cell, Task
from benchmarks.executor import Outcome
from benchmarks.meters import environment, source
from benchmarks.payloads import asked, columns_of
from datasets_registry.protocol import PROTOCOL
from datasets_registry.splits import mean_units
from datasets_registry.unit_order import distinct_units
from leaderboard.records import (
    Cost,
    Counts,
    DatasetPart,
    Margins,
    MethodPart,
    RunRecord,
    SplitPart,
    canonical_sha256,
    record_key,
)
from leaderboard.store import ResultsFolder


class StandingRecords:
    """The records that stand in a folder by what they measured, so that a newer one takes the place of an older.

    The older one of the same cell (its code, or a version, was another) is moved to `superseded/`, never deleted.
    """

    def __init__(self, folder: ResultsFolder) -> None:
        self._folder = folder
        self._paths: dict[str, set[Path]] = {}
        for path in folder.record_files():
            try:
                told = json.loads(path.read_bytes())
                self._paths.setdefault(_measured(told), set()).add(path)
            except (OSError, ValueError, KeyError, TypeError):
                continue  # not a whole record: scoring names it

    def supersede(self, record: RunRecord) -> None:
        """Move aside every other record of what this one measured."""
        path = self._folder.record_path(record.dataset.name, record.method.name, record.key)
        place = _measured(record.model_dump(mode="json"))
        for older in self._paths.get(place, set()) - {path}:
            aside = self._folder.root / "superseded" / older.relative_to(self._folder.root)
            aside.parent.mkdir(parents=True, exist_ok=True)
            older.replace(aside)
        self._paths[place] = {path}


def _measured(told: dict[str, Any]) -> str:
    """Return what a record measured, whatever code measured it: method and options, dataset, split, budget, seed."""
    method, split = told["method"], told["split"]
    budget = [split[k] for k in ("fold", "draw", "regime", "n_train", "n_support", "n_users", "imbalance")]
    who = [method[k] for k in ("name", "dist", "config_sha256")]
    data = [told["dataset"][k] for k in ("name", "encoder")]
    return canonical_sha256([*who, *data, *budget, told["seed"], told["control"]])


def write_cell(folder: ResultsFolder, cell: Cell, outcome: Outcome) -> list[RunRecord]:
    """Write and return the records of a cell, margins first, so that no record points to a file that is not there."""
    fit_key = cell.fit_key
    records: list[RunRecord] = []
    validation = None
    if outcome.answer is not None and "validation/margin" in outcome.answer.arrays:
        name = folder.margins_name(cell.prepared.data.id, cell.method.cls.spec.name, fit_key)
        validation = folder.write_margins(name, columns_of(outcome.answer, "validation", cell, "validation"))
    for task in cell.fit.tasks:
        key = record_key(fit_key, task.regime, task.n_support)
        margins = None
        if outcome.answer is not None and outcome.of(task.title)[0] == "ok":
            columns = columns_of(outcome.answer, task.title, cell, task.regime)
            name = folder.margins_name(cell.prepared.data.id, cell.method.cls.spec.name, key)
            ref = folder.write_margins(name, columns)
            control = {c: c for c in columns if c not in ("row", "margin")}
            margins = Margins(path=ref.path, sha256=ref.sha256, control=control, validation=validation)
        records.append(_record(cell, task, key, fit_key, outcome, margins))
        folder.write_record(records[-1])
    return records


def _record(
    cell: Cell, task: Task, key: str, fit_key: str, outcome: Outcome, margins: Margins | None
) -> RunRecord:
    data, spec, split = cell.prepared.data, cell.method.cls.spec, cell.split
    said = data.comparisons.take(asked(cell, task.regime).rows)
    train = split.train(cell.fit.n_train, cell.fit.n_users, cell.fit.imbalance)
    trained = split.seen if cell.fit.n_users == "all" else split.seen[: cell.fit.n_users]
    status, reason = outcome.of(task.title)
    support = None
    if task.n_support is not None:
        support = mean_units(data, split.support(task.n_support, task.regime), split.unseen)
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
            source_sha256=cell.method.source_sha256 or None,
            transductive=spec.transductive,
        ),
        dataset=DatasetPart(
            name=data.id,
            sha256=cell.prepared.digest,
            encoder=cell.prepared.plan.encoder,
            encoder_revision=cell.prepared.encoder_revision,
            licence=data.card.licence,
        ),
        split=SplitPart(
            fold=split.fold,
            draw=split.draw,
            regime=task.regime,
            n_train=cell.fit.n_train,
            n_support=task.n_support,
            n_users=len(trained),
            imbalance="zipf" if cell.fit.imbalance else None,
            n_train_mean=round(mean_units(data, train, trained), 6),
            n_support_mean=None if support is None else round(support, 6),
            sha256=split.digest,
        ),
        seed=cell.repetition.seed,
        control="user_shuffle" if cell.fit.control else None,
        status=status,
        reason=reason,
        counts=Counts(
            users=len(np.unique(said.user)),
            units=distinct_units(said.user, said.unit),
            comparisons=len(said),
            truncated=_truncated(cell, outcome),
        ),
        margins=margins,
        cost=Cost.model_validate(outcome.answer.cost) if outcome.answer and margins else Cost(),
        environment=environment(_worked_on(cell, outcome)),
        source=source(),
    )


def _worked_on(cell: Cell, outcome: Outcome) -> str:
    """Return the device that a cell's costs are of: one that could use a GPU and did not has worked on the CPU."""
    unused = outcome.answer is not None and outcome.answer.cost.get("peak_device_bytes") is None
    return "cpu" if unused else cell.device


def _truncated(cell: Cell, outcome: Outcome) -> int:
    """Return how many of the dataset's texts were cut: by the encoder whose features were read, or by the method."""
    reads = "features" in cell.method.cls.spec.needs
    own = outcome.answer.truncated if outcome.answer is not None else 0
    return own + (cell.prepared.truncated if reads else 0)
