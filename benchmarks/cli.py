"""The command line. Every heavy import is inside the command that needs it: `--help` and the listings start at once."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.export import app as export_app
from benchmarks.fetch_command import fetch
from benchmarks.options import JsonFlag, Names, Out, split_names
from benchmarks.printing import plain, print_json, print_table
from benchmarks.submission_commands import COMMANDS
from benchmarks.tune_command import tune
from datasets_registry.errors import HetprefError, RequestError, unknown

app = typer.Typer(
    name="hetpref",
    help="Benchmark suite and leaderboard for reward models learned from heterogeneous preferences.",
    epilog="Start with: hetpref run smoke    Then: hetpref run quick    A method of your own: hetpref new my-method",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(export_app, name="export")
app.command()(tune)
app.command()(fetch)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        from datasets_registry.protocol import PROTOCOL

        print(f"hetpref {version('hetpref')}, protocol {PROTOCOL}")
        raise typer.Exit


@app.callback()
def whole(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print version and protocol.")
    ] = False,
) -> None:
    """Benchmark suite and leaderboard for reward models learned from heterogeneous preferences."""


@app.command()
def datasets(as_json: JsonFlag = False) -> None:
    """List the datasets, with what each is and what it may be used for.

    Example: hetpref datasets --json
    """
    from datasets_registry import cards
    from datasets_registry.heterogeneity import measured

    rows = cards()
    index = {row.name: measured(row.name) for row in rows}
    if as_json:
        return print_json([{**plain(row), "heterogeneity": index[row.name]} for row in rows])
    shown: list[list[str]] = []
    for row in rows:
        if row.card is None:
            shown.append([row.name, f"unavailable: {row.unavailable}", "", "", row.dist])
            continue
        told = index[row.name]
        gain = f"{told['index']:+.3f} [{told['low']:+.3f}, {told['high']:+.3f}]" if told else "-"
        shown.append([row.name, row.card.population, gain, row.card.encoder, row.card.licence])
    print_table(["dataset", "who and what", "heterogeneity", "encoder", "licence"], shown)
    print("heterogeneity: what a fit per person gains over one for all, in accuracy (cross-validated, 95 % interval)")


@app.command()
def methods(
    as_json: JsonFlag = False,
    page: Annotated[
        Path | None, typer.Option("--page", metavar="FILE", help="Write the built-in ones as a Markdown page.")
    ] = None,
) -> None:
    """List the methods, built-in and plugged in.

    Example: hetpref methods --json
    """
    from methods.registry import listing

    rows = listing()
    if page is not None:
        from benchmarks.method_page import method_page
        from datasets_registry.atomic_write import write_atomically

        write_atomically(page, method_page(rows).encode())
        return print(f"written: {page}", file=sys.stderr)
    if as_json:
        return print_json(rows)
    shown = [
        [r.name, f"unavailable: {r.unavailable}", "", r.dist]
        if r.spec is None
        else [r.name, r.spec.title, f"{r.spec.level}, {r.spec.adaptation}", r.spec.citation]
        for r in rows
    ]
    print_table(["method", "what", "how", "source"], shown)


@app.command()
def suites(as_json: JsonFlag = False) -> None:
    """List the suites, and after them the experiments, that `hetpref run` knows.

    Example: hetpref suites
    """
    from benchmarks.experiments import EXPERIMENTS
    from benchmarks.suites import load_suite, suite_names

    rows = [load_suite(name).summary for name in suite_names()] + [e.summary for e in EXPERIMENTS.values()]
    if as_json:
        return print_json(rows)
    shown = [[r["name"], r["title"], ", ".join(r["datasets"]), str(len(r["methods"])), str(r["seeds"])] for r in rows]
    print_table(["suite", "what", "datasets", "methods", "seeds"], shown)


@app.command()
def run(
    context: typer.Context,
    suite: Annotated[
        str, typer.Argument(help="A suite's or an experiment's name, or a path to a .toml file.")
    ] = "quick",
    methods: Names = None,
    datasets: Names = None,
    seeds: Annotated[int | None, typer.Option(min=1, max=15, help="Repetitions; seed s runs on fold s mod 5.")] = None,
    encoder: Annotated[str | None, typer.Option(metavar="ID", help="See all datasets through this encoder.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N, for methods that can use it.")] = None,
    lm: Annotated[
        str | None,
        typer.Option("--lm", metavar="NAME", help="The language model of prompt methods, as hf:OWNER/NAME."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Cells side by side, one thread each: one per core, or 1 on a GPU.")
    ] = None,
    out: Out = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run finished cells again.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed cells again.")] = False,
    time_limit: Annotated[float | None, typer.Option(min=1, help="Seconds a cell may take.")] = None,
    memory_limit: Annotated[int | None, typer.Option(min=64, help="Megabytes a cell may add.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the cells, and their memory.")] = False,
    pages: Annotated[bool, typer.Option(help="Draw plots and the page, too.")] = True,
    kernels: Annotated[
        bool | None,
        typer.Option(help="End with the kernel benchmark, if the suite has it; by default where it is run whole."),
    ] = None,
    record: Annotated[bool, typer.Option("--record", help="Renew an experiment's page and its JSON in docs.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run a suite, write its records and leaderboard, and print the table.

    A run that was stopped goes on where it was: finished cells are found by their content and not run again.

    Example: hetpref run quick --methods p-share-lora-linear,pooled-bt --datasets electricity --seeds 3
    """
    from benchmarks.experiments import EXPERIMENTS

    if suite in EXPERIMENTS:
        given = [k for k in context.params if getattr(context.get_parameter_source(k), "name", "") == "COMMANDLINE"]
        return EXPERIMENTS[suite].run(given, out, fresh=fresh, record=record, as_json=as_json)
    if record:
        raise RequestError(f"--record is for experiments ({', '.join(EXPERIMENTS)}), and {suite!r} is none")
    from benchmarks.display import LiveProgress
    from benchmarks.kernel_step import measure_kernels
    from benchmarks.language_model import answered_by
    from benchmarks.runner import Options, run_suite
    from benchmarks.suites import load_suite, narrowed

    limits = {"seeds": seeds, "device": device, "time_limit_s": time_limit, "memory_limit_mb": memory_limit}
    wanted = narrowed(load_suite(suite), split_names(datasets), encoder, **limits)
    wanted = answered_by(wanted, split_names(methods), lm)
    folder = out or Path("results") / wanted.name
    # Side by side on one GPU, cells would take each other's memory, and their timings would mean nothing.
    by_itself = 1 if wanted.device.startswith("cuda") else os.cpu_count() or 1
    options = Options(split_names(methods), jobs or by_itself, fresh, retry_failed)
    progress = LiveProgress()
    if dry_run:
        return _print_cells(wanted, options, progress, as_json=as_json)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        summary = run_suite(wanted, folder, options, progress)
        progress.close()
        # Whoever asks for some methods or datasets has not asked for kernels.
        whole = not (methods or datasets) if kernels is None else kernels
        right = not (whole and summary.planned) or measure_kernels(wanted, folder, fresh, progress.note)
    except KeyboardInterrupt:
        progress.note("stopped. Finished cells are kept; the same command goes on from here")
        raise typer.Exit(130) from None
    finally:
        progress.close()
    for what, why in summary.unavailable.items():
        progress.note(f"left out: {what}: {why}")
    if not summary.planned:
        progress.note("nothing could be run: no dataset of the suite could be had, or no method")
        raise typer.Exit(1)
    _write_board([folder], folder, as_json=as_json, draft=True, pages=pages)
    progress.note(
        f"{summary.planned} cells: {summary.executed} run, {summary.found} found finished, "
        f"{len(summary.failed)} failed, {summary.skipped.total()} measurements skipped. All of it is in {folder}"
    )
    if summary.failed:
        progress.note("Failed cells are kept as records; run them again with --retry-failed")
    raise typer.Exit(summary.exit_code or int(not right))


@app.command()
def leaderboard(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Results folders.")],
    out: Out = None,
    readme: Annotated[Path | None, typer.Option(help="Also renew the results of this Markdown file.")] = None,
    block: Annotated[str, typer.Option(help="What to renew there: all, results or kernels.")] = "all",
    as_json: JsonFlag = False,
) -> None:
    """Build leaderboard.json, leaderboard.md and the page from results folders.

    Example: hetpref leaderboard results/quick --out board --readme README.md
    """
    from leaderboard.readme import BLOCKS, renew_readme

    if block not in BLOCKS:
        raise unknown("block", block, BLOCKS)
    board = _write_board(folders, out or folders[0], as_json=as_json)
    if readme is not None:
        renew_readme(readme, board.leaderboard, BLOCKS[block])
        print(f"renewed {block} in {readme}", file=sys.stderr)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A")],
    second: Annotated[str, typer.Argument(metavar="B")],
    results: Annotated[Path, typer.Option("--results", metavar="DIR", help="A results folder.")],
    as_json: JsonFlag = False,
) -> None:
    """Print the paired difference of two methods, per dataset and in all, with its 95 % interval.

    Example: hetpref compare p-share-lora-linear per-user-bt --results results/quick
    """
    from leaderboard.compare import compare as compared

    rows = [plain(row) for row in compared(first, second, results)]
    if as_json:
        return print_json(rows)
    several = len({r["encoder"] for r in rows if r["encoder"]}) > 1
    shown = [
        [
            f"{r['dataset']} ({r['encoder']})" if several and r["encoder"] else r["dataset"],
            r["regime"] or "",
            _or_dash(r["n_train"]),
            _or_dash(r["n_support"]),
            f"{r['difference']:+.4f}",
            f"[{r['low']:+.4f}, {r['high']:+.4f}]",
            "" if r["low"] <= 0 <= r["high"] else (first if r["difference"] > 0 else second),
        ]
        for r in rows
    ]
    print_table(["dataset", "regime", "n_train", "n_support", f"{first} - {second}", "95 % interval", "ahead"], shown)


@app.command()
def check(
    names: Annotated[list[str], typer.Argument(metavar="METHOD...")],
    as_json: JsonFlag = False,
) -> None:
    """Run the conformance suite on methods.

    Example: hetpref check my-method
    """
    from methods.conformance import check as checked
    from methods.registry import find

    results = {name: checked(find(name)) for name in names}
    if as_json:
        print_json({name: [plain(r) for r in rows] for name, rows in results.items()})
    else:
        for name, rows in results.items():
            print(name)
            print_table(["check", "status", "why"], [[r.name, r.status, r.why or ""] for r in rows])
    if any(r.status == "failed" for rows in results.values() for r in rows):
        raise typer.Exit(1)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits and hyphens.")],
    folder: Annotated[Path, typer.Option("--in", metavar="DIR", help="The checkout, or a package's place.")] = Path(),
    plugin: Annotated[bool, typer.Option("--plugin", help="Write a package of its own with an entry point.")] = False,
) -> None:
    """Write a method that runs and passes `hetpref check`, to be made yours, and its test.

    Example: hetpref new my-method && hetpref check my-method && hetpref run smoke --methods my-method,pooled-bt
    """
    from methods.scaffold import scaffold

    for path in scaffold(name, folder, plugin=plugin):
        print(path)


for command in COMMANDS:
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; exit codes: 0 done, 1 something failed, 2 the request was wrong."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app(args=list(arguments) if arguments is not None else None, standalone_mode=True)
    except RequestError as why:
        print(f"hetpref: {why}", file=sys.stderr)
        raise SystemExit(2) from None
    except HetprefError as why:
        print(f"hetpref: {why}", file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as why:
        where = f" {why.filename!r}" if why.filename else ""
        print(f"hetpref: cannot use{where}: {why.strerror or why}; give another path, or make room", file=sys.stderr)
        raise SystemExit(1) from None
    return 0


def _print_cells(suite: Any, options: Any, progress: Any, *, as_json: bool) -> None:
    from benchmarks import dry_run
    from benchmarks.runner import Summary

    os.environ.update(dry_run.NO_DOWNLOADS)
    summary = Summary()
    cells = dry_run.dry_run(suite, options, progress, summary)
    if as_json:
        return print_json(cells)
    for cell in cells:
        print(cell.line)
    for what, why in summary.unavailable.items():
        progress.note(f"left out: {what}: {why}")
    return progress.note(f"{len(cells)} cells{dry_run.largest(cells)}")


def _write_board(folders: list[Path], out: Path, *, as_json: bool, draft: bool = False, pages: bool = True) -> Any:
    """Build, write and print a board; a draft also ranks what was measured on a dirty tree."""
    from leaderboard.board import build_board
    from methods.registry import listing

    specs = [plain(row) for row in listing() if row.spec is not None]
    board = build_board(folders, specs, rank_dirty=draft)
    for line in board.write(out, pages=pages):
        print(line, file=sys.stderr)
    if as_json:
        print(board.to_json())
    else:
        print(board.to_text())
    return board


def _or_dash(value: Any) -> str:
    return "-" if value is None else str(value)


if __name__ == "__main__":
    main()
