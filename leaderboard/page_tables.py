"""What the page holds as tables: every cell as it is read, the headline as HTML, all of it for what is built later.

A cell is written once, here, as text. The template writes the headline rows, so that they are read without scripts; the
script builds the other budgets and the costs from the same text when somebody looks at them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from leaderboard.cost_tables import cost_columns
from leaderboard.figure_style import Table, slug
from leaderboard.headline_plots import at, costs_by_place
from leaderboard.markdown import bracketed, budgets_at_gain, measured, notes
from leaderboard.page_figures import column, keys_packed
from leaderboard.rows import CostRow, Interval, Leaderboard, Row
from leaderboard.table_cells import number, people_title

Kind = Literal["number", "text", "method", "people", "badge"]
HEADLINE, CONTROL = 1, 2
HeadlineRow = tuple[int, int, list[str]]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: how its cells are read and sorted, what it means, and how a cell is written."""

    title: str
    kind: Kind
    meaning: str
    cell: Callable[[Row], str]
    field: str | None = None


def _metric(title: str, field: str, form: str, meaning: str, *, interval: bool = False) -> Column:
    def cell(row: Row) -> str:
        told: Interval = measured(row, getattr(row, field))
        return bracketed(told, form) if interval else number(told.value, form)

    return Column(title, "number", meaning, cell, field)


def _rank(row: Row) -> str:
    return f"{row.rank.value} [{row.rank.low}–{row.rank.high}]" if row.rank else "–"


def _people(row: Row) -> str:
    return " ".join(f"{100 * p:.0f}" for p in row.people) if len(row.people) == 5 and row.imputed < 1 else "–"


def _trained_on(row: Row) -> str:
    return f"{row.n_users}{f', {row.imbalance}' if row.imbalance else ''}"


def _flags(row: Row) -> str:
    return notes(row.model_copy(update={"badge": "rescored"}))


# These stand first in every table, in this order: the style sheet hides a headline table's budgets by their place.
PLACE = (
    Column("Tier", "number", "methods of one tier cannot be told apart from its best", lambda r: str(r.tier or "–")),
    Column("Rank", "number", "with its 95 % interval", _rank),
    Column("Method", "method", "its configuration in brackets where there are several", lambda r: r.label),
    Column("n train", "number", "units per person in training", lambda r: str(r.n_train)),
    Column(
        "n support",
        "number",
        "units that a new person is asked first",
        lambda r: "–" if r.n_support is None else str(r.n_support),
    ),
    Column("Trained on", "number", "how many people training had", _trained_on),
)
METRICS = (
    _metric("Accuracy", "acc_macro", ".3f", "mean over people of the mean over their units", interval=True),
    _metric("Gain", "gain", "+.3f", "paired difference to pooled Bradley-Terry on the same features", interval=True),
    _metric("Worst 10 %", "worst10", ".3f", "accuracy of the lowest tenth of people, cross-fitted"),
    _metric("Harm", "harm", ".0%", "share of people worse than pooled by more than one standard error"),
    _metric("Specificity", "specificity", "+.3f", "accuracy lost with another person's state"),
    _metric("AULC", "aulc", ".3f", "area under accuracy over log2(1 + n), normalised"),
    _metric("n@gain", "n_at_gain", "g", "least data per person with a gain of a point, interval above 0"),
    _metric("NLL (T)", "nll_t", ".3f", "log loss after one temperature fitted on validation"),
    _metric("ECE (T)", "ece_t", ".3f", "calibration error after one temperature"),
    _metric("Regret", "regret", ".3f", "best-of-n regret against the true utilities (simulated data)"),
    _metric("Gap closed", "closed_gap", ".0%", "share of the way from pooled to the oracle (simulated data)"),
)
END = (
    Column("Over people", "people", "5, 25, 50, 75 and 95 % points of the accuracy of persons, in per cent", _people),
    Column("Level", "text", "what the method trains", lambda r: r.level),
    Column("Badge", "badge", "who measured it: see the ledger and how to read", lambda r: r.badge),
    Column("Notes", "text", "", _flags),
)


@dataclass(frozen=True, slots=True)
class PageTable:
    """A headline table as the page has it: what the script is told of it, and its headline rows.

    A headline row is its place among all rows, its flags (`HEADLINE`, `CONTROL`) and its cells.
    """

    data: dict[str, Any]
    headline: list[HeadlineRow]


def page_tables(board: Leaderboard, *, every_budget: bool = True) -> list[PageTable]:
    """Return what the page tells of every (dataset, encoder, regime): its columns, rows and costs, as text.

    Without `every_budget` it is the headline alone.
    """
    rows: dict[Table, list[Row]] = defaultdict(list)
    for row in board.rows:
        if every_budget or row.headline:
            rows[row.dataset, row.encoder, row.regime].append(row)
    costs: dict[Table, list[CostRow]] = defaultdict(list)
    there = {at(row) for each in rows.values() for row in each}
    for cost in board.costs:
        if every_budget or at(cost) in there:
            costs[cost.dataset, cost.encoder, cost.regime].append(cost)
    at_gain = budgets_at_gain(board)
    by_place = costs_by_place(board.costs)
    taken: set[str] = set()
    out: list[PageTable] = []
    for table, mine in rows.items():
        name = slug("-".join(table))
        name = name if name not in taken else f"{name}-{len(taken)}"
        taken.add(name)
        data, headline = _table(table, mine, at_gain, by_place)
        out.append(PageTable(data | {"id": name, "costs": _costs(mine, costs[table])}, headline))
    return out


def _table(
    table: Table,
    rows: Sequence[Row],
    at_gain: Callable[[Row], str],
    by_place: dict[tuple[Any, ...], list[CostRow]],
) -> tuple[dict[str, Any], list[HeadlineRow]]:
    """Return what the script is told of a table, and its headline rows."""
    shown = [c for c in METRICS if any(getattr(r, c.field or "").value is not None for r in rows)]
    columns = [*PLACE, *shown, *END]
    cells: list[list[str]] = []
    meta: list[tuple[int, int, int, str]] = []
    runs: dict[str, int] = {}
    devices: dict[tuple[str, ...], int] = {}
    for row in rows:
        flags = HEADLINE * row.headline + CONTROL * (row.role == "control" or row.control is not None)
        device = tuple(sorted({cost.device_class for cost in by_place.get(at(row), [])}))
        run = json.dumps({"method": row.method, "version": row.version, "seeds": row.seeds, "config": row.config})
        cells.append([at_gain(row) if c.field == "n_at_gain" else c.cell(row) for c in columns])
        where = (devices.setdefault(device, len(devices)), runs.setdefault(run, len(runs)))
        meta.append((flags, *where, keys_packed(row.records)))
    dataset, encoder, regime = table
    data = {
        "dataset": dataset,
        "encoder": encoder,
        "regime": regime,
        "title": people_title(regime).capitalize(),
        "caption": _caption(rows),
        "columns": [[c.title, c.kind, c.meaning] for c in columns],
        "level": len(columns) - 3,
        "devices": [list(each) for each in devices],
        "runs": [json.loads(run) for run in runs],
        "meta": meta,
        "cells": [column(texts) for texts in zip(*cells, strict=True)],
    }
    headline = [(i, m[0], texts) for i, (m, texts) in enumerate(zip(meta, cells, strict=True)) if m[0] & HEADLINE]
    return data, headline


def _caption(rows: Sequence[Row]) -> str:
    """Return in words what the rows of a headline table have in common."""
    first = next((r for r in rows if r.headline), rows[0])
    told = [f"trained on {first.n_train} units per person"]
    told += [f"{first.n_support} of support"] if first.n_support is not None else []
    told += [f"{first.n_users} people in training"] if first.n_users != "all" else []
    told += [f"{first.imbalance} imbalance"] if first.imbalance else []
    return ", ".join([*told, f"seeds: {len(first.seeds)}", f"encoder {first.encoder}"])


def _costs(rows: Sequence[Row], costs: Sequence[CostRow]) -> dict[str, Any] | None:
    """Return the costs of a table, each with the index of its row; none without costs.

    Where there is no such row it is -1, and the method and its budget stand before the costs.
    """
    if not costs:
        return None
    index = {at(row): i for i, row in enumerate(rows)}
    shown = cost_columns(costs)
    order = sorted(costs, key=lambda c: (c.device_class, index.get(at(c), len(index)), c.label, str(c)))
    devices = {name: i for i, name in enumerate(dict.fromkeys(c.device_class for c in order))}
    told: list[list[Any]] = []
    for c in order:
        row = index.get(at(c), -1)
        place = [c.label, str(c.n_train), "–" if c.n_support is None else str(c.n_support)] if row < 0 else []
        told.append([row, devices[c.device_class], *place, *(cost.cell(c) for cost in shown)])
    return {"devices": list(devices), "columns": [c.title for c in shown], "rows": told}
