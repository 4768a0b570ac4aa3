"""The report: what a step costs by who trains and what is adapted, how it grows with people, memory, and the goals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.backbone.costs import (
    ALL,
    BY_PERSON,
    GATHERED,
    GLOBAL,
    LAST,
    LOCAL,
    ONE,
    P_SHARE,
    TABLE,
    Cost,
    Timed,
    ratio,
)
from benchmarks.renewed_page import renew_between
from leaderboard.table_cells import table_line

START, END = "<!-- hetpref backbone cost -->", "<!-- /hetpref backbone cost -->"
NONE = "Nothing was recorded yet: `python -m benchmarks.backbone --record`."
# Who trains the same model, ours first; what of it is whose.
_SAME = (
    ("one adapter shared", GLOBAL, ONE),
    ("A each, B and head shared", P_SHARE, GATHERED),
    ("A, B and head each", LOCAL, BY_PERSON),
)


@dataclass(frozen=True, slots=True)
class Shown:
    """A table: its title, columns and rows."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def tables(cost: Cost) -> list[Shown]:
    """Return the tables that have something to show."""
    goals_found = [[goal, found, verdict] for goal, found, verdict in goals(cost)]
    found = [
        Shown(
            "Processor seconds a step, and how many times ours",
            ["trained", "by", *(f"{g}{more}" for g in (ALL, LAST) for more in (", s", ", x ours"))],
            _step_rows(cost),
        ),
        Shown(
            "Processor seconds a step by how many people are in the table, last 2 layers",
            ["by", *(f"{n:,} people" for n in _table_sizes(cost)), "ratio"],
            _table_rows(cost),
        ),
        Shown(
            f"Peak memory of a step of {LOCAL}, all layers",
            ["people in the batch", "MB", "their rows and gradients, MB", "the rest, MB"],
            _memory_rows(cost),
        ),
        Shown("Goals", ["goal", "found", ""], goals_found),
    ]
    return [each for each in found if each.rows]


def _step_rows(cost: Cost) -> list[list[str]]:
    out: list[list[str]] = []
    for trained, ours, rival in _SAME:
        for name in (ours, rival):
            cells: list[str] = []
            for group in (ALL, LAST):
                mine, of_ours = cost.timed(group, name), cost.timed(group, ours)
                cells.append("-" if mine is None else f"{mine.median:.3g}")
                both = mine is not None and of_ours is not None and name != ours
                cells.append(f"{ratio(mine, of_ours):.2f}" if both and mine and of_ours else "")
            if set(cells) - {"-", ""}:
                out.append([trained, name, *cells])
    floors: list[str] = []
    for group in (ALL, LAST):
        shared = cost.timed(group, GLOBAL)
        floors += [f"{shared.flops / cost.told['gemm_flops_per_s']:.3g}" if shared and shared.flops else "-", ""]
    return [*out, ["", f"the matrix products of {GLOBAL}, at full speed", *floors]] if out else out


def _table_sizes(cost: Cost) -> list[int]:
    return sorted({each.people for each in cost.steps if each.group == TABLE})


def _table_rows(cost: Cost) -> list[list[str]]:
    out: list[list[str]] = []
    for name in (P_SHARE, GATHERED):
        found = [each for n in _table_sizes(cost) if (each := cost.timed(TABLE, name, n)) is not None]
        if found:
            out.append([name, *(f"{each.median:.3g}" for each in found), f"{ratio(found[-1], found[0]):.2f}"])
    return out


def _memory_rows(cost: Cost) -> list[list[str]]:
    return [
        [str(p.present), *(f"{n / 1e6:,.0f}" for n in (p.bytes, p.factor_bytes, p.bytes - p.factor_bytes))]
        for p in cost.peaks
        if p.bytes is not None
    ]


def goals(cost: Cost) -> list[tuple[str, str, str]]:
    """Return every goal with what was found, and "met" or "missed"; what was not measured is left out."""
    out: list[tuple[str, str, str]] = []

    def judge(goal: str, found: float | None, met: Callable[[float], bool]) -> None:
        if found is not None:
            out.append((goal, f"{found:.3g}x", "met" if met(found) else "missed"))

    def times(over: Timed | None, under: Timed | None) -> float | None:
        return ratio(over, under) if over and under else None

    for group in (ALL, LAST):
        judge(
            f"{group}: {BY_PERSON} takes at least 3 times as long as {LOCAL}",
            times(cost.timed(group, BY_PERSON), cost.timed(group, LOCAL)),
            lambda x: x >= 3,
        )
        for own in (P_SHARE, LOCAL):
            for shared in (GLOBAL, ONE):
                judge(
                    f"{group}: {own} takes at most 1.25 times as long as {shared}",
                    times(cost.timed(group, own), cost.timed(group, shared)),
                    lambda x: x <= 1.25,
                )
    if len(sizes := _table_sizes(cost)) > 1:
        judge(
            f"{P_SHARE} with {sizes[-1]:,} people in the table takes at most 1.5 times as long as with {sizes[0]}",
            times(cost.timed(TABLE, P_SHARE, sizes[-1]), cost.timed(TABLE, P_SHARE, sizes[0])),
            lambda x: x <= 1.5,
        )
    known = [(p.present, p.bytes - p.factor_bytes) for p in cost.peaks if p.bytes is not None]
    if len(known) > 1:
        (few, least), (many, most) = known[0], known[-1]
        judge(
            f"without their rows and gradients, {many} people in the batch take at most 1.03 times the memory of {few}",
            most / least,
            lambda x: x <= 1.03,
        )
    return out


def told_of(cost: Cost) -> str:
    """Return in a sentence or two on what, how and where it was measured."""
    t, with_ = cost.told, cost.told["measured_with"]
    texts, packages = t["texts"], with_["packages"]
    return (
        f"Trunk: {t['trunk']}. A step: {texts['sequences']} texts of {texts['shortest']} to {texts['longest']} tokens "
        f"in {texts['comparisons']} comparisons, by {texts['people']} people where nothing else is said; rank "
        f"{texts['rank']}, query and value projections, float32. Medians of {t['rounds']} rounds, in turns, on "
        f"{t['threads']} thread of {with_['cpu']} ({t['device_class']}), torch {packages['torch']}, PEFT "
        f"{packages['peft']}, {t['date']}."
    )


def print_report(cost: Cost) -> None:
    """Print the tables on stdout."""
    from benchmarks.printing import print_table

    for shown in tables(cost):
        print(f"\n{shown.title}")
        print_table(shown.columns, shown.rows)
    print(f"\n{told_of(cost)}")


def block(cost: Cost | None) -> str:
    """Return the tables as Markdown, for between the marks of docs/backbone.md."""
    if cost is None:
        return f"\n{NONE}\n"
    lines = ["", told_of(cost)]
    for shown in tables(cost):
        lines += ["", f"**{shown.title}**", "", table_line(shown.columns), table_line(["---"] * len(shown.columns))]
        lines += [table_line(row) for row in shown.rows]
    return "\n".join([*lines, ""])


def renew(page: Path, cost: Cost) -> None:
    """Put the tables between the marks of a page; raises RequestError where the page has none."""
    renew_between(page, START, END, block(cost))
