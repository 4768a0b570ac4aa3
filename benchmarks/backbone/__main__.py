"""`python -m benchmarks.backbone`: measure training steps side by side, write JSON, print the tables."""

from __future__ import annotations

import importlib.util
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.printing import note, run_command
from datasets_registry.errors import RequestError, unknown

if TYPE_CHECKING:
    from benchmarks.backbone.workloads import Workload

_ROOT = Path(__file__).resolve().parent.parent.parent
_EPILOG = (
    'Examples: python -m benchmarks.backbone    python -m benchmarks.backbone --only "last 2 layers" --rounds 9    '
    "python -m benchmarks.backbone --encoder minilm-l6@1    python -m benchmarks.backbone --record"
)


def measure(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Results folder.")] = Path("results/backbone"),
    only: Annotated[
        str, typer.Option(metavar="PART", help='"all layers", "last 2 layers", "people in the table" or "memory".')
    ] = "",
    rounds: Annotated[int, typer.Option(min=1, help="How many steps of each are timed.")] = 3,
    encoder: Annotated[
        str, typer.Option(metavar="ID", help="A text model; without it, random weights in MiniLM's shape, as costly.")
    ] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="A tiny model: seconds, and numbers that mean nothing.")
    ] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Write docs/board/backbone-cost.json and docs/backbone.md, too.")
    ] = False,
) -> None:
    """Measure what a training step costs: ours, PEFT's and the authors' layer, in turns, on one CPU thread.

    About four minutes and 6 GB of memory. Progress goes to stderr, the tables to stdout. Exit codes: 0 done, 1 two that
    train the same did not, or a part failed, 2 the request was wrong, 130 stopped.
    """
    try:
        _measure(out, only, rounds, encoder, quick, record)
    except KeyboardInterrupt:
        # Here, since typer ends on it without a word.
        note("stopped; nothing was written")
        raise typer.Exit(130) from None


def _measure(out: Path, only: str, rounds: int, encoder: str, quick: bool, record: bool) -> None:
    """Measure, write and print."""
    from benchmarks.backbone.costs import GROUPS, MEMORY, Cost, write_cost
    from benchmarks.backbone.report import print_report, renew

    if only and only not in GROUPS:
        raise unknown("part", only, GROUPS)
    if record and (quick or only):
        raise RequestError("--record writes what the documentation tells: leave out --quick and --only")
    if quick and encoder:
        raise RequestError("--quick has a tiny model of its own: leave out --encoder")
    for package in ("peft", "pytest", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise RequestError(f'{package} is not installed; install it with: pip install "hetpref[kernels,encoders]"')
    page, recorded = _ROOT / "docs" / "backbone.md", _ROOT / "docs" / "board" / "backbone-cost.json"
    if record and not page.is_file():
        raise RequestError(f"--record writes into a checkout of the project, and {page} is not there")

    from benchmarks.backbone.measure import entries, gemm_rate, measure_group, measure_memory
    from benchmarks.meters import device_class

    trunk = encoder or None
    chosen = {group: entries(group, trunk, quick) for group in GROUPS if only in ("", group)}
    # First, while this process has started no thread of a tokenizer.
    peaks = measure_memory(chosen[MEMORY], note) if MEMORY in chosen else []
    steps = [t for g, who in chosen.items() if g != MEMORY for t in measure_group(g, who, rounds, note)]
    told = {**_told(next(iter(chosen.values()))[0].work, rounds), "gemm_flops_per_s": gemm_rate()}
    cost = Cost(told, tuple(steps), tuple(peaks))
    path = out / f"{device_class('cpu')}.json"
    write_cost(cost, path)
    print_report(cost)
    note(f"written: {path}")
    if record:
        write_cost(cost, recorded)
        renew(page, cost)
        note(f"recorded: {recorded} and {page}")


def _told(work: Workload, rounds: int) -> dict[str, Any]:
    """Return when, where and with what it was measured."""
    from benchmarks.backbone.workloads import RANDOM
    from benchmarks.kernels.options import measured_with
    from benchmarks.meters import device_class, source

    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device_class": device_class("cpu"),
        "clock": "process_time",
        "interleaved": True,
        "threads": 1,
        "rounds": rounds,
        "trunk": work.trunk or RANDOM,
        "texts": {
            "sequences": work.sequences,
            "comparisons": work.comparisons,
            "people": work.present,
            "shortest": work.shortest,
            "longest": work.longest,
            "rank": work.rank,
        },
        "measured_with": measured_with() | {"code_sha256": _code_sha256(), "commit": source().commit},
    }


def _code_sha256() -> str:
    """Return the digest of what the numbers depend on: backbone, kernels (compiled or not), and the benchmark."""
    from benchmarks.code_digest import files_sha256

    rooms = (_ROOT / "methods" / "backbone", _ROOT / "methods" / "lowrank", Path(__file__).parent)
    files = sorted(p for room in rooms for p in room.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return files_sha256((p.relative_to(_ROOT).as_posix(), p) for p in files)


def main() -> None:
    """Run the command; a wrong request ends with exit code 2 and one line."""
    run_command(measure, "backbone", _EPILOG)


if __name__ == "__main__":
    main()
