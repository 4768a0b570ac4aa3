"""The ledger of submissions: append-only lines of JSON, each holding the digest of the one before.

A line is never changed or taken out: another submission, another version or a re-run is another line. Whoever edits one
breaks the chain there, and everything after it says so. `submissions.jsonl` stands in a results folder, is written by
`hetpref accept` and `hetpref rerun --grant`, and is published beside the board.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date as Date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from datasets_registry.atomic_write import write_atomically
from datasets_registry.errors import DataError, printable
from leaderboard.agreement import GainAgreement, MarginAgreement
from leaderboard.plain_files import UnfitFileError, read_plain
from leaderboard.records import Count, Name, Part, RunRecord, Sha256, Text, canonical_sha256
from leaderboard.rows import Badge, Row

LEDGER = "submissions.jsonl"
MAX_LEDGER_BYTES = 64 << 20
BEGINNING = "0" * 64
KEY = 16  # hex digits of a record's key, as the rows of a board name it
Key = Annotated[str, Field(pattern=rf"^[0-9a-f]{{{KEY}}}$")]
Margins = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]


class Line(Part):
    """What every line tells: its place, whose it is, and the digest of the line before and of itself."""

    schema_version: Literal[1] = 1
    number: Annotated[int, Field(ge=1)]
    date: Date
    method: Name
    dist: Text
    version: Text
    bundle: Sha256
    previous: Sha256
    sha256: Sha256

    @property
    def entrant(self) -> tuple[str, str]:
        """Return whose line it is: method and distribution, in any version."""
        return self.method, self.dist


class Submitted(Line):
    """A bundle was accepted: its `attempt` of this entrant, and which version it supersedes.

    `margins` gives by the beginning of a record's key the sha256 of its margins file, "" for one that has none.
    """

    event: Literal["submitted"] = "submitted"
    attempt: Annotated[int, Field(ge=1)]
    supersedes: Text | None
    failed: Count
    truncated: Count
    dirty: bool
    commits: list[Text]
    margins: dict[Key, Margins]


class Verified(Line):
    """A record of a bundle was re-run by `reviewer`, who has read the source, and agreed, here and on a salted fold."""

    event: Literal["verified"] = "verified"
    record: Sha256
    reviewer: Text
    salt: Text
    rerun: MarginAgreement
    salted: GainAgreement


Entry = Annotated[Submitted | Verified, Field(discriminator="event")]
_ENTRY: TypeAdapter[Submitted | Verified] = TypeAdapter(Entry)


def read_ledger(folder: Path) -> list[Submitted | Verified]:
    """Return the lines of a results folder's ledger, oldest first; none where there is no such file.

    Raises DataError that names the first line that is not as it was written.
    """
    path = folder / LEDGER
    if not path.exists() and not path.is_symlink():
        return []
    try:
        raw = read_plain(path, MAX_LEDGER_BYTES).decode()
    except (UnfitFileError, UnicodeDecodeError) as why:
        raise DataError(f"{path} cannot be read: {printable(str(why))[:200]}. Restore it") from why
    out: list[Submitted | Verified] = []
    for number, line in enumerate(raw.splitlines(), start=1):
        where = f"{path.name}, line {number}"
        restore = "Restore it: it is append-only"
        try:
            entry = _ENTRY.validate_json(line, strict=True)
        except ValidationError as why:
            first = why.errors(include_url=False)[0]
            told = printable(f"{'.'.join(map(str, first['loc'])) or 'line'}: {first['msg']}")[:300]
            raise DataError(f"{where} is no entry of a ledger ({told}). {restore}") from why
        before = out[-1].sha256 if out else BEGINNING
        if entry.number != number or entry.previous != before:
            raise DataError(f"{where} does not follow the line before it: one was taken out or put in. {restore}")
        if entry.sha256 != _digest(entry):
            raise DataError(f"{where} was changed: its digest is {_digest(entry)}, it says {entry.sha256}. {restore}")
        out.append(entry)
    return out


def append(folder: Path, kind: type[Submitted] | type[Verified], told: Mapping[str, Any]) -> Submitted | Verified:
    """Write one more line, chained to the last, and return it; the others are written back as they were."""
    standing = read_ledger(folder)
    chained = {
        **told,
        "number": len(standing) + 1,
        "previous": standing[-1].sha256 if standing else BEGINNING,
        "sha256": BEGINNING,
    }
    entry = kind.model_validate(chained)
    entry = entry.model_copy(update={"sha256": _digest(entry)})
    lines = [json.dumps(e.model_dump(mode="json"), sort_keys=True, allow_nan=False) for e in (*standing, entry)]
    write_atomically(folder / LEDGER, ("\n".join(lines) + "\n").encode())
    return entry


def _digest(entry: Submitted | Verified) -> str:
    told = entry.model_dump(mode="json")
    del told["sha256"]
    return canonical_sha256(told)


def standing(entries: Sequence[Submitted | Verified], entrant: tuple[str, str]) -> Submitted | None:
    """Return the last submission of an entrant, which is the one that counts."""
    return next((e for e in reversed(entries) if isinstance(e, Submitted) and e.entrant == entrant), None)


def ledger_rows(entries: Sequence[Submitted | Verified]) -> list[dict[str, Any]]:
    """Return what a board tells of a ledger: every line without its list of margins, and how many there are."""
    out: list[dict[str, Any]] = []
    for entry in entries:
        told = entry.model_dump(mode="json")
        if isinstance(entry, Submitted):
            told["records"] = len(told.pop("margins"))
        out.append(told)
    return out


def badged(rows: Sequence[Row], records: Sequence[RunRecord], entries: Sequence[Submitted | Verified]) -> list[Row]:
    """Return the rows with the attempts of their entrants, and `verified` where the ledger grants it.

    A row is verified if all records of it are of its entrant's last submission, have the margins that were submitted,
    and that submission agreed with a re-run.
    """
    known = {r.key[:KEY]: r for r in records}
    granted = {e.bundle for e in entries if isinstance(e, Verified)}
    out: list[Row] = []
    for row in rows:
        mine = [known[key] for key in row.records if key in known]
        last = standing(entries, (row.method, mine[0].method.dist)) if mine else None
        if last is None:
            out.append(row)
            continue
        as_submitted = all(last.margins.get(r.key[:KEY]) == _margins_of(r) for r in mine)
        verified = row.badge == "rescored" and last.bundle in granted and as_submitted
        badge: Badge = "verified" if verified else row.badge
        out.append(row.model_copy(update={"badge": badge, "attempts": last.attempt}))
    return out


def margins_of(records: Sequence[RunRecord]) -> dict[str, str]:
    """Return the sha256 of margins by the beginning of a record's key, as a line of the ledger holds them."""
    return {r.key[:KEY]: _margins_of(r) for r in sorted(records, key=lambda r: r.key)}


def _margins_of(record: RunRecord) -> str:
    return record.margins.sha256 if record.margins else ""
