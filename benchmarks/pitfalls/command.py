"""The command `python -m benchmarks.pitfalls`, and what `hetpref run pitfalls` calls."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.options import JsonFlag, Names, split_names
from benchmarks.printing import note, print_json

NAME = "pitfalls"
TITLE = "Published defects, made on purpose: the inflated figure of each beside the honest one"
OUT = Path("results") / NAME
EPILOG = (
    "Examples: python -m benchmarks.pitfalls    python -m benchmarks.pitfalls --only init-scale --fresh    "
    "python -m benchmarks.pitfalls --record"
)


def measure(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Results folder.")] = OUT,
    only: Names = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what is measured.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Seconds, and figures that mean nothing.")] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Write docs/board/pitfalls.json and docs/pitfalls.md, too.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make the published defects on purpose, and show the figure that each gives beside the honest one.

    list-formatting, best-of-test, label-thresholds, init-scale. Under five minutes on two cores. Progress goes to
    stderr, tables (or JSON) to stdout; a run that was stopped goes on where it was. Exit codes: 0 done, 1 a pitfall
    could not be measured, 2 the request was wrong, 130 stopped.
    """
    from benchmarks.pitfalls.experiment import Wanted, run
    from benchmarks.pitfalls.report import print_report

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        report, failed = run(out, Wanted(split_names(only), fresh, quick, record), note)
    except KeyboardInterrupt:
        # Here, since typer ends on it without a word.
        note("stopped. What is measured is kept; the same command goes on from here")
        raise typer.Exit(130) from None
    if as_json:
        print_json({**report.told, "pitfalls": [kept.to_dict() for kept in report.pitfalls]})
    else:
        print_report(report)
    note(f"written: {out / 'pitfalls.json'}")
    if failed:
        if record:
            note("nothing was recorded, since a pitfall failed")
        raise typer.Exit(1)
