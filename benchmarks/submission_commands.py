"""The commands of whoever submits and of whoever keeps the board: verify, submit, accept, rerun, publish."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.options import JsonFlag, Out
from benchmarks.printing import plain, print_json, print_table
from datasets_registry.errors import RequestError


def verify(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Records, bundles (a folder or a .zip), or results folders.")
    ],
    as_json: JsonFlag = False,
) -> None:
    """Print every reason why records or a submission are refused.

    Example: hetpref verify results/quick
    """
    from leaderboard.verify import verify as verified

    refused = {str(path): [plain(r) for r in verified(path)] for path in paths}
    if as_json:
        print_json(refused)
    else:
        for path, reasons in refused.items():
            _print_verdict(path, reasons)
    if any(refused.values()):
        raise typer.Exit(1)


def submit(
    method: Annotated[str, typer.Argument(metavar="METHOD")],
    results: Annotated[Path, typer.Option("--results", metavar="DIR", help="The results folder it is in.")],
    out: Out = None,
) -> None:
    """Bundle a method's records, verify the bundle, and show where it would rank and what it beats.

    Example: hetpref submit my-method --results results/quick
    """
    from leaderboard.submission import submit as submitted
    from methods.registry import listing

    card = next((asdict(row.spec) for row in listing() if row.name == method and row.spec is not None), None)
    report = submitted(method, results, out or Path("submissions") / method, card=card)
    print(report.text)
    if report.refusals:
        raise typer.Exit(1)


def accept(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A submission, as `hetpref submit` makes it.")],
    results: Annotated[Path, typer.Option("--results", metavar="DIR", help="The results folder that takes it in.")],
    as_json: JsonFlag = False,
) -> None:
    """Take a submission into a results folder and its ledger, or print every reason why not.

    For whoever keeps a board. What stood there of an older version is moved to superseded/, never deleted.

    Example: hetpref accept submissions/my-method --results results/quick
    """
    from leaderboard.acceptance import accept as accepted

    found = accepted(bundle, results)
    reasons = [plain(r) for r in found.refusals]
    entry = None if found.entry is None else found.entry.model_dump(mode="json")
    if as_json:
        print_json({"entry": entry, "refusals": reasons})
    elif found.entry is not None:
        line = found.entry
        print(f"{bundle}: accepted, attempt {line.attempt} of {line.method}, line {line.number} of the ledger")
    else:
        _print_verdict(str(bundle), reasons)
    if reasons:
        raise typer.Exit(1)


def rerun(
    record: Annotated[Path, typer.Argument(metavar="RECORD", help="A record's .json in a results folder.")],
    salt: Annotated[
        str | None, typer.Option(help="Run it on people and prompts that this text assigns, too; nobody may know it.")
    ] = None,
    grant: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="You have read the source: grant `verified` in the ledger if all agrees."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds a fit may take.")] = 3600,
    memory_limit: Annotated[int, typer.Option(min=64, help="Megabytes a fit may add.")] = 16384,
    as_json: JsonFlag = False,
) -> None:
    """Run a record again and say whether it agrees; with a salt also whether its gain shows on an unknown fold.

    Exit code 1 where it does not agree.

    Example: hetpref rerun results/quick/records/electricity@1/my-method/KEY.json --salt "$(openssl rand -hex 8)"
    """
    from benchmarks.display import LiveProgress
    from benchmarks.executor import Limits
    from benchmarks.rerun import rerun as run_again
    from leaderboard.grants import agreement, fellows, grant_verified, must_be_grantable, results_of
    from leaderboard.store import read_record

    if grant is not None and salt is None:
        raise RequestError("--grant needs --salt: `verified` says that a fold which nobody could know was run, too")
    told, root = read_record(record), results_of(record)
    if grant is not None:
        must_be_grantable(told, root)
    progress = LiveProgress()
    with tempfile.TemporaryDirectory(prefix="hetpref-rerun-") as scratch:
        out = Path(scratch)
        try:
            limits = Limits(time_limit, memory_limit << 20)
            ran = run_again(told, root, fellows(told, root), salt, out, device, limits, progress)
        finally:
            progress.close()
        found = agreement(told, root, ran.again, out / "same", ran.salted, out / "salted")
    if not ran.same_code:
        progress.note("the code here is not what the record was measured with: its digest, or a dataset's, differs")
    rows: list[dict[str, Any]] = [plain(line) for line in found.lines]
    if as_json:
        print_json({"agrees": found.agrees, "same_code": ran.same_code, "checks": rows})
    else:
        print_table(
            ["check", "then", "now", "allowed", "verdict"],
            [[r["what"], r["then"], r["now"], r["allowed"], "agrees" if r["agrees"] else "DIFFERS"] for r in rows],
        )
    if not found.agrees:
        raise typer.Exit(1)
    if grant is not None and salt is not None:
        entry = grant_verified(told, root, found, salt, grant)
        progress.note(f"verified: line {entry.number} of the ledger of {root}")


def publish(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with leaderboard.json.")],
    to: Annotated[str, typer.Option("--to", metavar="TARGET", help="A folder, or hf://datasets/OWNER/NAME.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would go.")] = False,
) -> None:
    """Publish a leaderboard: JSON, its schema, checksums, the ledger and the page.

    Example: hetpref publish results/quick --to public
    """
    from leaderboard.publish import publish as published

    for line in published(folder, to, dry_run=dry_run):
        print(line)


def _print_verdict(path: str, reasons: list[dict[str, Any]]) -> None:
    print(f"{path}: {f'refused, reasons: {len(reasons)}' if reasons else 'accepted'}")
    for reason in reasons:
        print("  " + ", ".join(f"{k}: {v}" for k, v in reason.items()))


COMMANDS = (verify, submit, accept, rerun, publish)
