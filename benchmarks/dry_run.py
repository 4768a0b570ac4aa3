"""A dry run: every cell of a suite with the memory it is expected to take, before anything is encoded or trained.

A dataset that is not on this machine is planned from the suite's own grids and its card, so that a run on a larger
machine can be looked at from a smaller one. No features are made, and no model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.cells import Fit, Grids, MethodEntry, Prepared, fits, method_entries, plan_cells, runnable
from benchmarks.runner import Options, Progress, Summary, leave_out
from benchmarks.suites import DatasetPlan, Suite, must_be_known
from datasets_registry.errors import HetprefError, RequestError
from datasets_registry.protocol import N_SUPPORT_GRID, N_TRAIN_GRID, SEEN_SHARE

# Set for the process of a dry run: what the hub's client and pip would fetch is looked for on this machine only.
NO_DOWNLOADS = {"HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1"}
_UNITS = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
_REASON = 70


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """A cell that would be run.

    `people` are those that are trained on, None where nobody knows how many; `memory` is in bytes by part, None where
    the method does not tell it; `missing` is why the data are not here, None when they are: without them the number of
    people is the card's. `fit_key` is None without the data, and where the hub would have to be asked for a revision.
    """

    cell: str
    fit_key: str | None
    measurements: int
    people: int | None
    memory: dict[str, int] | None
    missing: str | None
    seed: int

    @property
    def line(self) -> str:
        """Return the cell as one line for a person."""
        memory = f": {amounts(self.memory)}" if self.memory else ""
        why = (self.missing or "").partition("\n")[0]
        short = why if len(why) <= _REASON else why[:_REASON].rstrip() + "…"
        return f"{self.cell}{memory}" + (f" (data not on this machine: {short})" if self.missing else "")


def dry_run(suite: Suite, options: Options, progress: Progress, summary: Summary) -> list[PlannedCell]:
    """Return the cells of a suite in the order of a run; what is left out is told in `summary`, as a run tells it.

    Raises RequestError for an unknown method, option, dataset or encoder.
    """
    entries, unavailable = method_entries(suite, options.methods)
    summary.unavailable.update(unavailable)
    cells: list[PlannedCell] = []
    for plan in suite.datasets:
        leave_out(plan, entries, progress, summary)
        try:
            cells += _planned(suite, plan, entries, progress)
        except RequestError:
            raise
        except HetprefError as why:
            summary.unavailable[plan.name] = str(why)
    return sorted(cells, key=lambda c: c.seed)


def _planned(suite: Suite, plan: DatasetPlan, entries: list[MethodEntry], progress: Progress) -> list[PlannedCell]:
    from datasets_registry import find_dataset, load
    from datasets_registry.encoders import ENCODERS

    must_be_known(plan.encoder)
    find_dataset(plan.name)
    try:
        data = load(plan.name)
    except HetprefError as why:
        progress.note(f"{plan.name} is planned from its card, since a dry run does not download it: {why}")
        return list(_without_data(suite, plan, entries, str(why)))
    out: list[PlannedCell] = []
    for cell in plan_cells(suite, Prepared(plan, data, data.digest, None), entries):
        people = len(cell.split.seen) if cell.fit.n_users == "all" else cell.fit.n_users
        memory = estimated(cell.method, plan.encoder, people)
        key = cell.fit_key if plan.encoder in ENCODERS else None
        out.append(PlannedCell(cell.title, key, len(cell.fit.tasks), people, memory, None, cell.repetition.seed))
    return out


def _without_data(suite: Suite, plan: DatasetPlan, entries: list[MethodEntry], why: str) -> Iterator[PlannedCell]:
    """Yield the cells of a dataset as its card has it; where the suite gives no grid, of the protocol's whole one."""
    from datasets_registry import canonical_id, find_dataset

    card, name = find_dataset(plan.name).card, canonical_id(plan.name)
    seen = round(SEEN_SHARE * card.people) or None
    grids = Grids.of(plan, suite.regimes_of(plan), (*N_TRAIN_GRID, "all"), lambda _: N_SUPPORT_GRID, seen)
    for seed in range(suite.seeds):
        for entry in runnable(entries, plan, truth=card.simulated):
            for fit in fits(plan, grids, entry, shuffle=suite.user_shuffle and seed == 0):
                people = _people(fit, grids)
                memory = None if people is None else estimated(entry, plan.encoder, people)
                title = fit.title(entry, name, seed)
                yield PlannedCell(title, None, len(fit.tasks), people, memory, why, seed)


def _people(fit: Fit, grids: Grids) -> int | None:
    return grids.people if fit.n_users == "all" else fit.n_users


def estimated(entry: MethodEntry, encoder: str, people: int) -> dict[str, int] | None:
    """Return the bytes that a fit of a method on so many people will take, by part; None where it does not tell."""
    told = entry.cls(**entry.config).memory_estimate(encoder, people)
    return None if told is None else {part: int(size) for part, size in told.items()}


def amounts(memory: Mapping[str, int]) -> str:
    """Return bytes by part as one phrase, all in the unit of their sum.

    >>> amounts({"weights": 12 << 30, "adapters": 1 << 20, "activations": 18 << 30})
    'about 30.0 GiB: weights 12.0, adapters <0.1, activations 18.0'
    """
    total = sum(memory.values())
    unit, size = next(((unit, size) for unit, size in _UNITS if total >= size), _UNITS[-1])
    shown = {part: value / size for part, value in memory.items()}
    parts = [f"{part} {'<0.1' if 0 < value < 0.05 else f'{value:.1f}'}" for part, value in shown.items()]
    return f"about {total / size:.1f} {unit}: {', '.join(parts)}"


def largest(cells: list[PlannedCell]) -> str:
    """Return what the cell that takes most is expected to take, as the end of a sentence; nothing where none tells."""
    told = [cell.memory for cell in cells if cell.memory]
    return f", of which the largest takes {amounts(max(told, key=lambda m: sum(m.values())))}" if told else ""
