"""Taking a submission into a results folder: verified, measured against the ledger, copied, and written down.

What stood there of another version is moved to `superseded/`, never deleted.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datasets_registry.atomic_write import write_atomically
from datasets_registry.errors import DataError, HetprefError, RequestError
from leaderboard.agreement import ACCURACY, DECISIONS, compare_margins
from leaderboard.labels import Labels
from leaderboard.ledger import KEY, Submitted, Verified, append, margins_of, read_ledger, standing
from leaderboard.plain_files import read_inside
from leaderboard.records import RunRecord, canonical_sha256
from leaderboard.store import MAX_MARGINS_BYTES, ResultsFolder, read_record
from leaderboard.verify import MANIFEST, Refusal, verify


@dataclass(frozen=True, slots=True)
class Acceptance:
    """How it ended: the ledger's new line, or every reason why the submission was refused and nothing changed."""

    entry: Submitted | None
    refusals: list[Refusal]


def accept(bundle: Path, results: Path, labels: Labels | None = None) -> Acceptance:
    """Take a submission into a results folder and its ledger, or refuse it for every reason there is.

    The bundle is hostile input and is verified first; nothing is written before all is known to be right. Raises
    RequestError where there is no bundle, DataError where the folder's ledger is broken.
    """
    labels = labels or Labels()
    if not (bundle / MANIFEST).is_file():
        raise RequestError(f"{str(bundle)!r} is no submission: it has no {MANIFEST}. Make one: hetpref submit METHOD")
    if results.resolve().is_relative_to(bundle.resolve()) or bundle.resolve().is_relative_to(results.resolve()):
        raise RequestError(f"{bundle} and {results} are one folder, or one is inside the other; give two")
    entries = read_ledger(results)
    refusals = verify(bundle, labels)
    if refusals:
        return Acceptance(None, refusals)
    submitted = {path: read_record(path) for path in ResultsFolder(bundle).record_files()}
    records = list(submitted.values())
    there = _standing_records(results)
    last = standing(entries, (records[0].method.name, records[0].method.dist))
    refusals = [*_replayed(records, there), *_superseded(records, entries)]
    if last is not None and last.version == records[0].method.version:
        refusals += _altered(bundle, records, results, there, labels)
    if refusals:
        return Acceptance(None, refusals)
    named: dict[str, str] = json.loads((bundle / MANIFEST).read_bytes())["files"]
    contents = _contents(bundle, submitted, named)
    _set_aside(results, there, records)
    _copy(contents, results)
    entry = append(results, Submitted, _told(named, records, last))
    assert isinstance(entry, Submitted)
    return Acceptance(entry, [])


def _told(named: dict[str, str], records: Sequence[RunRecord], last: Submitted | None) -> dict[str, Any]:
    method = records[0].method
    return {
        "date": datetime.now(UTC).date(),
        "method": method.name,
        "dist": method.dist,
        "version": method.version,
        "bundle": canonical_sha256(named),
        "attempt": last.attempt + 1 if last else 1,
        "supersedes": last.version if last and last.version != method.version else None,
        "failed": sum(r.status not in ("ok", "skipped") for r in records),
        "truncated": sum(r.counts.truncated for r in records),
        "dirty": any(r.source.dirty for r in records),
        "commits": sorted({r.source.commit or "unknown" for r in records}),
        "margins": margins_of(records),
    }


def _standing_records(results: Path) -> dict[Path, RunRecord]:
    out: dict[Path, RunRecord] = {}
    for path in ResultsFolder(results).record_files():
        try:
            out[path] = read_record(path)
        except DataError:
            continue  # the board names it
    return out


def _replayed(records: Sequence[RunRecord], there: dict[Path, RunRecord]) -> list[Refusal]:
    """Refuse a method that has another's margins, byte for byte, in every measurement of a dataset.

    Some may be equal by right: what has no data of a new person may answer as the pooled model does.
    """
    owner: dict[str, tuple[str, str]] = {}
    for other in there.values():
        if other.margins:
            owner[other.margins.sha256] = (other.method.name, other.method.dist)
    mine = (records[0].method.name, records[0].method.dist)
    sources: dict[tuple[str, str], list[tuple[str, str] | None]] = defaultdict(list)
    for record in records:
        if record.margins and record.split.n_support != 0:
            found = owner.get(record.margins.sha256)
            sources[record.dataset.name, record.dataset.encoder].append(None if found == mine else found)
    out: list[Refusal] = []
    for (dataset, encoder), found in sorted(sources.items()):
        whose = sorted({each for each in found if each is not None})
        if None not in found and whose:
            names = ", ".join(f"{name} of {dist}" for name, dist in whose)
            required = "margins of its own: a method that answers as another does, in every bit, is that other"
            out.append(Refusal(f"records/{dataset}", f"margins.sha256 ({encoder})", f"those of {names}", required))
    return out


def _superseded(records: Sequence[RunRecord], entries: Sequence[Submitted | Verified]) -> list[Refusal]:
    """Refuse a version that another one has superseded."""
    method = records[0].method
    versions = [e.version for e in entries if isinstance(e, Submitted) and e.entrant == (method.name, method.dist)]
    if method.version not in versions or versions[-1] == method.version:
        return []
    return [Refusal(MANIFEST, "method.version", method.version, f"a new version: {versions[-1]} has superseded it")]


def _altered(
    bundle: Path, records: Sequence[RunRecord], results: Path, there: dict[Path, RunRecord], labels: Labels
) -> list[Refusal]:
    """Refuse other margins under a version that was submitted before: what is better or worse is a new version."""
    known = {each.cell: each for each in there.values()}
    out: list[Refusal] = []
    for record in records:
        before = known.get(record.cell)
        if before is None or _same(before, record):
            continue
        if (why := _difference(bundle, record, results, before, labels)) is not None:
            version = f"the margins of version {record.method.version} within {DECISIONS:.0%} of decisions and "
            version += f"{ACCURACY} of accuracy, or a new version of the method"
            out.append(Refusal(f"{record.key}.json", "margins", why, version))
    return out


def _same(before: RunRecord, record: RunRecord) -> bool:
    one, other = before.margins, record.margins
    return before.status == record.status and (one.sha256 if one else None) == (other.sha256 if other else None)


def _difference(bundle: Path, record: RunRecord, results: Path, before: RunRecord, labels: Labels) -> str | None:
    if before.margins is None or record.margins is None:
        # A measurement that failed before and is there now is no other result.
        return None if record.margins else f"none (status {record.status}), where there were margins"
    at = record.split
    people = labels.people(record.dataset.name, at.fold, at.draw, at.n_users)
    query = labels.query(record.dataset.name, at.fold, at.draw, at.regime, people)
    try:
        then = ResultsFolder(results).read_margins(before.margins)
        found = compare_margins(query, then, ResultsFolder(bundle).read_margins(record.margins))
    except HetprefError as why:
        return f"not to be compared with what stands there: {why}"
    if found.agrees:
        return None
    turned = f"{found.decisions:.1%} of decisions turned"
    return f"{turned}, accuracy {found.accuracy_then:.4f} before and {found.accuracy_now:.4f} now"


def _set_aside(results: Path, there: dict[Path, RunRecord], records: Sequence[RunRecord]) -> None:
    """Move what stood of this entrant in another version, or of a cell that is submitted again, to `superseded/`."""
    method, new = records[0].method, {r.key for r in records}
    cells = {r.cell for r in records}
    for path, record in there.items():
        if (record.method.name, record.method.dist) != (method.name, method.dist) or record.key in new:
            continue
        if record.method.version != method.version or record.cell in cells:
            aside = results / "superseded" / path.relative_to(results)
            aside.parent.mkdir(parents=True, exist_ok=True)
            path.replace(aside)


def _contents(bundle: Path, submitted: dict[Path, RunRecord], named: dict[str, str]) -> dict[str, bytes]:
    """Return the files of a bundle by name, each as the manifest (`named`) and the records have it; margins come first.

    Raises DataError where one has changed since it was verified.
    """
    names: set[str] = set()
    for path, record in submitted.items():
        names.update([path.relative_to(bundle).as_posix(), *record.files])
    out: dict[str, bytes] = {}
    for name in sorted(names, key=lambda n: (n.startswith("records/"), n)):
        out[name] = read_inside(bundle, name, MAX_MARGINS_BYTES)
        if hashlib.sha256(out[name]).hexdigest() != named.get(name):
            raise DataError(f"{name} of {bundle} changed while it was read; nothing was written")
    return out


def _copy(contents: dict[str, bytes], results: Path) -> None:
    """Write the files of a bundle; one that is replaced is kept under its digest."""
    for name, raw in contents.items():
        target = results / name
        if target.is_file() and (before := target.read_bytes()) != raw:
            aside = results / "superseded" / f"{name}.{hashlib.sha256(before).hexdigest()[:KEY]}"
            aside.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(aside, before)
        write_atomically(target, raw)
