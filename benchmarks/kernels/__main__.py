"""`python -m benchmarks.kernels`: measure a grid of kernels, write pytest-benchmark JSON, print the table."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.printing import note, run_command
from datasets_registry.errors import HetprefError, RequestError, unknown

_EPILOG = (
    "Examples: python -m benchmarks.kernels    python -m benchmarks.kernels --only 768x768-r8    "
    "python -m benchmarks.kernels --full --out results/kernels-full"
)


def measure(
    grid: Annotated[str, typer.Option(metavar="quick|full", help="Which cells.")] = "quick",
    full: Annotated[bool, typer.Option("--full", help="The same as --grid full; takes hours, and goes on.")] = False,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Results folder: numbers go to DIR/kernels, figures to DIR/plots.")
    ] = Path("results/kernels"),
    only: Annotated[str, typer.Option(metavar="TEXT", help="Only cells whose name holds this.")] = "",
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what was measured before.")] = False,
) -> None:
    """Measure the batched low-rank kernels against their rivals and against this machine, on one CPU thread.

    Progress goes to stderr, the table to stdout. Stopped, it goes on where it was. Exit codes: 0 done, 1 a contender
    computed something wrong or a part failed, 2 the request was wrong, 130 stopped.
    """
    try:
        right = _measure("full" if full else grid, out, only, fresh)
    except KeyboardInterrupt:
        # Here, since typer ends on it without a word.
        note(f"stopped; the same command{' without --fresh' if fresh else ''} goes on from here")
        raise typer.Exit(130) from None
    raise typer.Exit(0 if right else 1)


def _measure(grid: str, out: Path, only: str, fresh: bool) -> bool:
    """Measure, print and draw; return whether everything measured was right."""
    import psutil

    from benchmarks.kernels.report import print_report, read_results
    from benchmarks.kernels.run import PLOTS, affordable, prepare, result_path, run_cells
    from benchmarks.kernels.shapes import GRIDS
    from benchmarks.kernels.throughput import write_plots

    if grid not in GRIDS:
        raise unknown("grid", grid, GRIDS)
    for package in ("pytest", "pytest_benchmark"):
        if importlib.util.find_spec(package) is None:
            raise RequestError(f'{package} is not installed; install it with: pip install "hetpref[kernels]"')
    cells = [cell for cell in GRIDS[grid]() if only in cell.name]
    if not cells:
        first = GRIDS[grid]()[0].name
        raise RequestError(f"no cell of the {grid} grid has {only!r} in its name; names are like {first}")
    cells = affordable(cells, psutil.virtual_memory().available, note)
    if not cells:
        raise HetprefError(
            "no cell fits into the memory that is free: nothing was measured. Free some, or choose smaller"
        )
    prepare(out)
    outcome = run_cells(cells, grid, out, fresh, note)
    if not outcome.written:
        raise HetprefError("nothing was measured; what pytest said is above")
    path = result_path(out)
    results = read_results(path)
    print_report([each for each in results if each.cell in outcome.written])
    for line in write_plots(results, out / PLOTS):
        note(line)
    note(f"written: {path}")
    return outcome.right


def main() -> None:
    """Run the command; a wrong request ends with exit code 2 and one line."""
    run_command(measure, "kernels", _EPILOG)


if __name__ == "__main__":
    main()
