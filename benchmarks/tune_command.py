"""The command `hetpref tune`."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.options import JsonFlag, Names, split_names
from benchmarks.printing import print_json, print_table


def tune(
    suite: Annotated[str, typer.Argument(help="A suite's name, or a path to a .toml file.")],
    methods: Names = None,
    datasets: Names = None,
    trials: Annotated[int, typer.Option(min=1, max=20, help="Configurations tried per method.")] = 20,
    n_train: Annotated[int, typer.Option("--n-train", min=1, help="Units per person that are trained on.")] = 4,
    people: Annotated[int, typer.Option(min=2, help="Seen people that are trained on, at most.")] = 128,
    jobs: Annotated[int | None, typer.Option(min=1, help="Fits side by side: one per core.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Where trials are kept.")] = None,
    record: Annotated[
        Path | None, typer.Option("--record", metavar="FILE", help="Write the choices and all trials there.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Choose hyper-parameters on validation units, with at most the same number of trials for every method.

    Prints the configuration of each method that has a search space, to be written into the suite. What was tried is
    kept, and not tried again unless it failed. Exit code 1 where every trial of a method failed.

    Example: hetpref tune standard --methods vpl,pal-a --trials 20
    """
    from benchmarks.display import LiveProgress
    from benchmarks.suites import load_suite, narrowed
    from benchmarks.tuning import Extent, write
    from benchmarks.tuning import tune as tuned

    wanted = narrowed(load_suite(suite), split_names(datasets))
    progress = LiveProgress()
    file = out or Path("results") / f"{wanted.name}-tuning.json"
    extent = Extent(trials, n_train, people)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        told = tuned(wanted, split_names(methods), extent, jobs or os.cpu_count() or 1, file, progress)
    except KeyboardInterrupt:
        progress.note("stopped. Trials that ended are kept; the same command goes on from here")
        raise typer.Exit(130) from None
    finally:
        progress.close()
    if record is not None:
        write(record, told)
    if as_json:
        print_json(told)
    else:
        rows = [[name, str(len(m["trials"])), str(m["chosen"] or "-")] for name, m in sorted(told["methods"].items())]
        print_table(["method", "tried", "chosen"], rows)
    progress.note(f"the trials are in {file}")
    if none := sorted(name for name, m in told["methods"].items() if m["chosen"] is None):
        progress.note(f"every trial failed of {', '.join(none)}; why stands there. The same command tries them again")
        raise typer.Exit(1)
