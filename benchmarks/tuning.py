"""Chooses hyper-parameters for a suite: at most the same number of trials for every method, on validation units.

A method declares in `search` what may be tried; what its `fit` chooses itself is not in it. One configuration is chosen
per method for all datasets of a suite: that with the smallest mean, over datasets, of how much its macro validation NLL
(at the best of six temperatures, as everywhere) lies above the best one found there. It is measured on the first
repetition with a part of the people, and no query of that repetition is asked. Folds are cut anew, so that some of what
trials were fitted on are queries of the others: 1 to 24 % of them, by dataset. Every trial is kept.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cells import Cell, Fit, MethodEntry, Prepared, method_entries, runnable, split_of
from benchmarks.executor import Limits, LocalExecutor, Outcome
from benchmarks.meters import source
from benchmarks.payloads import asked, build_payload, columns_of
from benchmarks.runner import Progress, prepare
from benchmarks.suites import MethodPlan, Suite
from datasets_registry.atomic_write import write_atomically
from datasets_registry.errors import DataError, HetprefError, RequestError
from datasets_registry.protocol import PROTOCOL, Count, Repetition, seed_of
from leaderboard.records import canonical_sha256

SCHEMA_VERSION = 1
_SAVED_EVERY_S = 20.0
_WORST = 0.6931471805599453  # the NLL of not knowing


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured for a choice: trials per method, comparisons' units per person, and people."""

    trials: int = 20
    n_train: int = 4
    people: int = 128


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """One configuration on one dataset: what is kept of it is found by `key`."""

    method: str
    changed: dict[str, Any]
    cell: Cell
    key: str


def configurations(
    name: str, search: dict[str, Sequence[Any]], base: dict[str, Any], trials: int
) -> list[dict[str, Any]]:
    """Return what to try, as options that differ from the method's defaults: `base` first, then seeded draws.

    Every combination is tried where there are not more than `trials`.

    >>> configurations("any", {"a": (1, 2), "b": (0,)}, {"a": 1, "b": 0}, 20)
    [{'a': 1, 'b': 0}, {'a': 2, 'b': 0}]
    """
    grid = [dict(zip(search, values, strict=True)) for values in itertools.product(*search.values())]
    first = {key: base[key] for key in search if key in base}
    others = [each for each in grid if each != first]
    others.sort(key=lambda each: seed_of("tuning", name, json.dumps(each, sort_keys=True)))
    kept = others[: trials - 1]
    return [{**base, **each} for each in [first, *sorted(kept, key=grid.index)]]


def tune(
    suite: Suite, methods: list[str] | None, extent: Extent, jobs: int, out: Path, progress: Progress
) -> dict[str, Any]:
    """Run the trials that `out` lacks, keep all of them there, and return the choices with what they stand on.

    Raises RequestError where no method of the suite has a search space, or `out` is of another suite or extent.
    """
    told = _opened(out, suite, extent)
    known: dict[str, dict[str, Any]] = told.pop("known")
    plans = [_plan(suite, name) for name in _names(suite, methods)]
    entries = [e for e in method_entries(replace(suite, methods=tuple(plans)), None)[0] if _searchable(e, progress)]
    if not entries:
        raise RequestError(
            f"no method of the suite {suite.name!r} that was asked for has a search space; a method declares one as "
            "`search`, hyper-parameter -> values"
        )
    if silent := sorted(set(methods or ()) - {e.cls.spec.name for e in entries}):
        progress.note(f"nothing to choose for {', '.join(silent)}: no search space, or not to be had")
    trials = list(_trials(suite, entries, plans, extent, progress))
    todo = [trial for trial in trials if trial.key not in known or _to_be_tried_again(known[trial.key])]
    progress.planned(len(trials), len(trials) - len(todo))
    limits = Limits(suite.time_limit_s, suite.memory_limit_mb << 20)
    saved = time.monotonic()
    try:
        with LocalExecutor(jobs, limits, results=out) as executor:
            for trial, outcome in executor.run(_tickets(todo, limits)):
                known[trial.key] = _measured(trial, outcome)
                progress.ended(trial.cell, outcome)
                if time.monotonic() - saved > _SAVED_EVERY_S:
                    write(out, {**told, "known": known})
                    saved = time.monotonic()
    finally:  # what ended before a stop is not tried again
        write(out, {**told, "known": known})
    for method, dataset, n in _alike(trials, known):
        progress.note(f"{n} configurations of {method} have one NLL on {dataset}: it learned nothing there that counts")
    return {**told, "methods": _chosen(trials, known), "source": source().model_dump(mode="json")}


def _alike(trials: list[_Trial], known: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, int]]:
    """Yield method, dataset and number where more than half of a method's trials gave one and the same NLL."""
    told: dict[tuple[str, str], list[float]] = {}
    for trial in trials:
        if (nll := known[trial.key]["nll"]) is not None:
            told.setdefault((trial.method, trial.cell.prepared.data.id), []).append(nll)
    for (method, dataset), found in told.items():
        most = max(map(found.count, set(found)))
        if most > 1 and 2 * most > len(found):
            yield method, dataset, most


def _searchable(entry: MethodEntry, progress: Progress) -> bool:
    """Return whether a method can be tuned; what is wrong with its search space is said, and stops no other."""
    search, known = entry.cls.search, entry.cls.hyperparameters()
    try:
        wrong = [name for name, values in search.items() if name not in known or not list(values)]
    except (AttributeError, TypeError):
        wrong = [repr(search)]
    if wrong:
        progress.note(
            f"{entry.cls.spec.name} is left out: its `search` must give values for hyper-parameters that it has "
            f"({', '.join(known)}); found {', '.join(wrong)}"
        )
    return bool(search) and not wrong


def _to_be_tried_again(kept: dict[str, Any]) -> bool:
    """Return whether a trial failed for what may be another time; what a method is unable to serve, it always is."""
    return "failed" in kept and not str(kept["failed"]).startswith("skipped")


def _names(suite: Suite, methods: list[str] | None) -> list[str]:
    return methods or list(dict.fromkeys(m.name for m in suite.methods))


def _plan(suite: Suite, name: str) -> MethodPlan:
    return next((m for m in suite.methods if m.name == name), MethodPlan(name, {}))


def _trials(
    suite: Suite, entries: list[MethodEntry], plans: list[MethodPlan], extent: Extent, progress: Progress
) -> Iterator[_Trial]:
    base = {plan.name: plan.config for plan in plans}
    for plan in suite.datasets:
        fitting = runnable(entries, plan, truth=False)
        if not fitting:
            continue
        try:
            ready = prepare(plan, progress, fitting)
        except RequestError:
            raise
        except HetprefError as why:
            progress.note(f"{plan.name} is left out: {why}")
            continue
        for entry in fitting:
            name = entry.cls.spec.name
            start = {**{k: entry.config[k] for k in entry.cls.search}, **base[name]}
            for changed in configurations(name, dict(entry.cls.search), start, extent.trials):
                tried = replace(entry, config={**entry.config, **changed})
                cell = _cell(ready, tried, extent, suite.device)
                yield _Trial(name, changed, cell, canonical_sha256([cell.fit_key, cell.fit.n_train]))


def _cell(ready: Prepared, entry: MethodEntry, extent: Extent, device: str) -> Cell:
    first = Repetition(0)
    whole = split_of(ready, first)
    people: Count = "all" if extent.people >= len(whole.seen) else extent.people
    counted: list[Count] = [n for n in whole.budgets() if n != "all" and n <= extent.n_train]
    return Cell(ready, whole, first, Fit(counted[-1] if counted else "all", people, None, None, ()), entry, device)


def _tickets(todo: list[_Trial], limits: Limits) -> Iterator[tuple[_Trial, Callable[[], Any]]]:
    for trial in todo:
        yield trial, lambda cell=trial.cell: build_payload(cell, limits.seconds)


def _measured(trial: _Trial, outcome: Outcome) -> dict[str, Any]:
    from methods.bradley_terry import calibrated_nll

    told: dict[str, Any] = {
        "method": trial.method,
        "dataset": trial.cell.prepared.data.id,
        "config": trial.changed,
        "nll": None,
    }
    if outcome.answer is None:
        return {**told, "failed": f"{outcome.status}: {outcome.headline[:200]}"}
    given = asked(trial.cell, "validation")
    margin = columns_of(outcome.answer, "validation", trial.cell, "validation")["margin"]
    table = trial.cell.prepared.data.comparisons.take(given.rows)
    nll = calibrated_nll(np.asarray(margin, np.float64), table)
    return {**told, "nll": round(nll, 6), "fit_s": round(float(outcome.answer.cost["fit_s"] or 0.0), 2)}


def _chosen(trials: list[_Trial], known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return per method the chosen configuration, and what was tried: NLL on each dataset, and the mean excess.

    A trial that failed counts as the worst that was measured for the method on that dataset, and at least as not
    knowing, so that failing where one would do badly gains nothing. A method of which every trial failed has no choice.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for trial in trials:
        name = json.dumps(trial.changed, sort_keys=True)
        kept = found.setdefault(trial.method, {}).setdefault(name, {"config": trial.changed, "nll": {}})
        measured, dataset = known[trial.key], trial.cell.prepared.data.id
        kept["nll"][dataset] = measured["nll"]
        if "failed" in measured:
            kept.setdefault("failed", {})[dataset] = measured["failed"]
    out: dict[str, Any] = {}
    for method, tried in found.items():
        names = sorted({dataset for each in tried.values() for dataset in each["nll"]})
        told = [[each["nll"].get(n) for n in names] for each in tried.values()]
        table = np.array([[np.nan if nll is None else nll for nll in row] for row in told])
        if np.isnan(table).all():
            out[method] = {"chosen": None, "trials": list(tried.values())}
            continue
        worst = np.fmax(_WORST, np.fmax.reduce(table, axis=0))
        table = np.where(np.isnan(table), worst, table)
        excess = (table - table.min(0)).mean(1)
        rows = [{**each, "excess": round(float(e), 6)} for each, e in zip(tried.values(), excess, strict=True)]
        out[method] = {"chosen": rows[int(excess.argmin())]["config"], "trials": rows}
    return out


def _opened(out: Path, suite: Suite, extent: Extent) -> dict[str, Any]:
    asked_for = {
        "schema_version": SCHEMA_VERSION,
        "protocol": PROTOCOL,
        "suite": suite.name,
        "trials": extent.trials,
        "n_train": extent.n_train,
        "people": extent.people,
    }
    if not out.exists():
        return {**asked_for, "known": {}}
    try:
        there = json.loads(out.read_text(encoding="utf-8"))
        standing = {key: there[key] for key in asked_for}
        known = dict(there["known"])
    except (ValueError, KeyError, TypeError) as why:
        raise DataError(f"{out} is no tuning file ({why}); give another path with --out") from why
    if standing != asked_for:
        raise RequestError(f"{out} holds the trials of {standing}, not of {asked_for}; give another path with --out")
    return {**asked_for, "known": known}


def write(out: Path, told: dict[str, Any]) -> None:
    """Write trials or choices as JSON."""
    write_atomically(out, (json.dumps(told, indent=1, sort_keys=True) + "\n").encode())
