"""A submission: one method's records and margins in a folder of their own, verified, and where it would rank."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from datasets_registry.atomic_write import write_atomically
from datasets_registry.errors import DataError, RequestError, unknown
from datasets_registry.protocol import PROTOCOL
from leaderboard.board import build_board
from leaderboard.bundles import counts_of
from leaderboard.compare import OVERALL, Difference, against
from leaderboard.labels import Labels
from leaderboard.records import RunRecord
from leaderboard.rows import Row
from leaderboard.store import ResultsFolder, read_record
from leaderboard.verify import MANIFEST, Refusal, verify


@dataclass(frozen=True, slots=True)
class Submission:
    """A bundle, the reasons why it would be refused, and where it would stand on the board of the results it came from.

    `differences` gives by the label of another entrant the paired differences to it; `pull_request` is where its text
    was written.
    """

    folder: Path
    refusals: list[Refusal]
    rows: list[Row]
    differences: dict[str, list[Difference]]
    pull_request: Path

    @property
    def text(self) -> str:
        """Return the report for a person."""
        from leaderboard.markdown import bracketed
        from leaderboard.pull_request import budget_of, difference_of, standing_of

        out = [f"bundled into {self.folder}"]
        for row in self.rows:
            flag = f" ({row.badge})" if row.badge == "reported" else ""
            named = "" if row.label == row.method else f"{row.label}: "
            out.append(
                f"{named}{row.dataset}, {row.regime}, {budget_of(row)}: {standing_of(row)}{flag}, accuracy "
                f"{bracketed(row.acc_macro)}, gain {bracketed(row.gain, '+.3f')}"
            )
        for other, found in self.differences.items():
            told = ", ".join(f"{each.regime} {difference_of(each)}" for each in found if each.dataset == OVERALL)
            out.append(f"against {other}: {told}")
        if self.differences:
            out.append("(accuracy, paired, mean over datasets; *: the 95 % interval excludes 0)")
        if self.refusals:
            n = len(self.refusals)
            out.append(f"it would be refused for {n} reason{'s' if n > 1 else ''}:")
            out += [f"  {r.file}: {r.field}: found {r.found}; required {r.required}" for r in self.refusals]
        else:
            out.append("verified: it would be accepted as it is")
        out.append(f"the text of a pull request is in {self.pull_request}")
        return "\n".join(out)


def submit(
    method: str, results: Path, out: Path, labels: Labels | None = None, card: Mapping[str, Any] | None = None
) -> Submission:
    """Bundle a method's records from a results folder, verify the bundle, preview its rows and what it beats.

    `card` is the method's from its registry, for the text of a pull request, which is written beside the bundle. Raises
    RequestError when the method has no records there, or when `out` holds anything but a bundle of the method.
    """
    from leaderboard.pull_request import pull_request

    labels = labels or Labels()
    folder = bundle(method, results, out)
    rows = [r for r in build_board([results], labels=labels).leaderboard.rows if r.method == method and r.headline]
    rows = [r for r in rows if r.control is None]
    differences: dict[str, list[Difference]] = {}
    for label in sorted({r.label for r in rows}):
        for other, found in against(label, results, labels).items():
            differences[other if label == method else f"{other} ({label})"] = found
    refusals = verify(folder, labels)
    text = out.parent / f"{out.name}.md"
    manifest = json.loads((folder / MANIFEST).read_bytes())
    write_atomically(text, pull_request(manifest, card or {}, rows, differences, refusals).encode())
    return Submission(folder, refusals, rows, differences, text)


def bundle(method: str, results: Path, out: Path) -> Path:
    """Copy a method's records and the margins they name into `out`, with a manifest of sha256 digests.

    Of several records of one cell, the one that counts on the board is taken.
    """
    source = ResultsFolder(results)
    if not (results / "records").is_dir():
        raise RequestError(
            f"{str(results)!r} is no results folder: it has no records/. Run a suite first: hetpref run quick"
        )
    known = sorted({p.parent.name for p in source.record_files()})
    if method not in known:
        raise unknown("method", method, known, then="These have records in this folder")
    _check_replaceable(out, results, method)
    records = _that_count((p, read_record(p)) for p in source.record_files() if p.parent.name == method)
    names: list[str] = []
    for path, record in records:
        names += [path.relative_to(results).as_posix(), *record.files]
    contents = {name: _content(results, name) for name in sorted(set(names))}
    if out.exists():
        shutil.rmtree(out)
    for name, raw in contents.items():
        write_atomically(out / name, raw)
    digests = {name: hashlib.sha256(raw).hexdigest() for name, raw in contents.items()}
    told = {"schema_version": 1, "protocol": PROTOCOL, "method": method, "records": len(records), "files": digests}
    told |= counts_of([record for _, record in records])
    write_atomically(out / MANIFEST, (json.dumps(told, indent=1, sort_keys=True) + "\n").encode())
    return out


def _that_count(found: Iterable[tuple[Path, RunRecord]]) -> list[tuple[Path, RunRecord]]:
    """Return one record per cell, in the order of paths."""
    best: dict[tuple[Any, ...], tuple[Path, RunRecord]] = {}
    for path, record in found:
        there = best.get(record.cell)
        if there is None or record.preference < there[1].preference:
            best[record.cell] = path, record
    return sorted(best.values(), key=lambda each: each[0])


def _content(results: Path, name: str) -> bytes:
    origin = results / name
    if not origin.resolve().is_relative_to(results.resolve()) or not origin.is_file():
        raise DataError(f"{name} is named by a record, but is no file of {results}. Run the cell again")
    return origin.read_bytes()


def _check_replaceable(out: Path, results: Path, method: str) -> None:
    """Raise RequestError unless `out` is new, empty, or a submission of the method and nothing else."""
    if results.resolve().is_relative_to(out.resolve()) or out.resolve().is_relative_to((results / "records").resolve()):
        raise RequestError(f"{out} holds the results themselves, or is among them; give another folder with --out")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise RequestError(f"{out} is a file or a link; give a folder with --out")
    if not out.exists() or not any(out.iterdir()):
        return
    other = "give another folder with --out"
    try:
        told: Any = json.loads((out / MANIFEST).read_bytes())
        named = {str(name) for name in dict(cast(dict[str, Any], told["files"]))}
        if told["schema_version"] != 1 or not isinstance(told["protocol"], str):
            raise ValueError("another schema")
        owner = told["method"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as why:
        raise RequestError(f"{out} exists and is not a submission; {other}") from why
    if owner != method:
        raise RequestError(f"{out} is a submission of another method, {str(owner)[:64]!r}, not of {method!r}; {other}")
    there = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_symlink() or not p.is_dir()}
    if foreign := sorted(there - named - {MANIFEST}):
        listed = ", ".join(foreign[:5])
        raise RequestError(f"{out} holds files that no submission wrote: {listed}. Move them, or {other}")
