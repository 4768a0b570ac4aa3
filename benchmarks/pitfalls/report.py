"""The tables of the pitfalls: on a terminal, and as Markdown between the marks of a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.pitfalls.figures import Figure, Kept, Report, Row
from benchmarks.pitfalls.registry import PITFALLS
from benchmarks.renewed_page import renew_between
from leaderboard.table_cells import table_line

START, END = "<!-- hetpref-pitfalls -->", "<!-- /hetpref-pitfalls -->"
NONE = "Nothing was recorded yet: `hetpref run pitfalls --record`."
COLUMNS = ["", "inflated", "honest", "difference"]


def cells(row: Row) -> list[str]:
    """Return the cells of a row."""
    return [
        row.what,
        shown(row.inflated, signed=row.signed),
        shown(row.honest, signed=row.signed),
        shown(row.difference, signed=True),
    ]


def shown(figure: Figure, *, signed: bool = False) -> str:
    """Return a figure with its interval, where it has one.

    >>> shown(Figure(0.5)), shown(Figure(-0.01, -0.02, 0.0), signed=True)
    ('0.500', '-0.010 [-0.020, +0.000]')
    """
    form = "+.3f" if signed else ".3f"
    # + 0.0: a negative zero has no sign to tell
    value, low, high = (None if v is None else round(v, 3) + 0.0 for v in (figure.value, figure.low, figure.high))
    return f"{value:{form}}" + ("" if low is None or high is None else f" [{low:{form}}, {high:{form}}]")


def setup_of(kept: Kept) -> str:
    """Return in one line how a pitfall was set up."""
    return "; ".join(f"{name} {value}" for name, value in _flat(kept.measured.setup)) + "."


def told_of(report: Report) -> str:
    """Return in a sentence when, where and with what it was measured."""
    told = report.told
    packages = told["environment"]["packages"]
    commit = told["source"]["commit"]
    at = "no commit" if commit is None else f"commit {commit[:12]}"
    at += " and changes" if told["source"]["dirty"] else ""
    seconds = sum(kept.seconds for kept in report.pitfalls)
    versions = ", ".join(f"{name} {packages[name]}" for name in ("numpy", "torch", "transformers") if name in packages)
    return (
        f"Protocol {told['protocol']}, {told['date']}, {told['device_class']}, Python {told['environment']['python']}, "
        f"{versions}, {at}; {seconds:.0f} processor seconds in all."
    )


def print_report(report: Report) -> None:
    """Print the tables on stdout."""
    from benchmarks.printing import print_table

    for kept in report.pitfalls:
        print(f"\n{PITFALLS[kept.name].title} ({kept.name})")
        print_table(COLUMNS, [cells(row) for row in kept.measured.rows])
        for said in kept.measured.notes:
            print(f"  {said}")
    print(f"\n{told_of(report)}")


def block(report: Report | None) -> str:
    """Return the tables as Markdown, for between the marks of docs/pitfalls.md."""
    if report is None:
        return f"\n{NONE}\n"
    lines = ["", told_of(report)]
    for kept in report.pitfalls:
        lines += ["", f"### {PITFALLS[kept.name].title}", "", f"`{kept.name}`: {setup_of(kept)}", ""]
        lines += [_line(COLUMNS), _line(["---", "---:", "---:", "---:"])]
        lines += [_line(cells(row)) for row in kept.measured.rows]
        lines += ["", *(f"- {said}" for said in kept.measured.notes)]
    return "\n".join([*lines, ""])


def renew(page: Path, report: Report) -> None:
    """Put the tables between the marks of a page; raises RequestError where the page has none."""
    renew_between(page, START, END, block(report))


def _flat(setup: Mapping[str, Any]) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    for name, value in sorted(setup.items()):
        if isinstance(value, Mapping):
            out += _flat(value)
        else:
            out.append((name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)))
    return out


def _line(given: list[str]) -> str:
    return table_line(each.replace("|", "&#124;") for each in given)
