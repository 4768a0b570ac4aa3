"""A submission's manifest, and that the folder holds what it names, unaltered, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from datasets_registry.errors import CONTROL
from datasets_registry.protocol import PROTOCOL
from leaderboard.kernels import MAX_KERNEL_BYTES
from leaderboard.plain_files import Entry, Folder, UnfitFileError, walk
from leaderboard.records import (
    RELATIVE_PATH,
    Count,
    Name,
    Part,
    RelativePath,
    RunRecord,
    Sha256,
    Text,
    whole_number,
)
from leaderboard.refusals import Report, shown
from leaderboard.store import MAX_MARGINS_BYTES, MAX_RECORD_BYTES
from leaderboard.strict_json import parse

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 8 << 20
MAX_BUNDLE_FILES = 20_000
MAX_BUNDLE_BYTES = 4 << 30
MAX_TEXT_BYTES = 4 << 20
_SAFE = frozenset({".json", ".parquet", ".jsonl", ".md", ".txt"})
_NAME = re.compile(RELATIVE_PATH)
_STEERING = re.compile(f"[{CONTROL}]")


class Manifest(Part):
    """What a submission says that it holds; all but `files` can be counted in its records, and is."""

    schema_version: Annotated[Literal[1], BeforeValidator(whole_number)]
    protocol: Text
    method: Name
    records: Count
    files: Annotated[dict[RelativePath, Sha256], Field(max_length=MAX_BUNDLE_FILES)]
    commits: Annotated[list[Text], Field(max_length=1000)]
    dirty: bool
    failed: Count
    truncated: Count


def read_manifest(folder: Folder, report: Report) -> Manifest | None:
    """Return the manifest of a submission, None where it is not one; every reason is reported."""
    try:
        raw = folder.read(MANIFEST, MAX_MANIFEST_BYTES)
        parse(raw)
        manifest = Manifest.model_validate_json(raw, strict=True)
    except UnfitFileError as why:
        report(MANIFEST, why.part, why.found, why.required)
        return None
    except ValidationError as why:
        for each in why.errors(include_url=False):
            report(MANIFEST, ".".join(map(str, each["loc"])) or "file", shown(each["input"]), each["msg"])
        return None
    except ValueError as why:
        report(MANIFEST, "file", why, "one JSON object in UTF-8, as `hetpref submit` writes it")
        return None
    if manifest.protocol != PROTOCOL:
        report(MANIFEST, "protocol", manifest.protocol, PROTOCOL)
    return manifest


def list_bundle(folder: Folder, report: Report) -> list[Entry]:
    """Return the plain files of a submission; every reason against what else stands there is reported."""
    out: list[Entry] = []
    folded: dict[str, str] = {}
    for entry in walk(folder.root, most=MAX_BUNDLE_FILES):
        if entry.fault is not None:
            report(entry.name or ".", "file", entry.fault, "a plain file: nothing may leave the folder")
            continue
        if not _NAME.fullmatch(entry.name) or len(entry.name) > 300:
            report(entry.name, "name", entry.name, "letters, digits and @+=._- in each part, 300 at most")
        if (there := folded.setdefault(entry.name.casefold(), entry.name)) != entry.name:
            report(entry.name, "name", f"differs from {there} in case only", "each name once, in whatever case")
        if entry.folder:
            continue
        if entry.names > 1:
            report(entry.name, "file", f"a hard link, one of {entry.names} names", "a file of its own")
        out.append(entry)
    if (size := sum(entry.size for entry in out)) > MAX_BUNDLE_BYTES:
        report(".", "size", size, f"at most {MAX_BUNDLE_BYTES} bytes in all")
        return []
    return out


def check_contents(
    folder: Folder, entries: Iterable[Entry], manifest: Manifest, margins: frozenset[str], report: Report
) -> None:
    """Check every file against the manifest; `margins` are the files that its records name."""
    there: set[str] = set()
    for entry in entries:
        name = entry.name
        if name == MANIFEST:
            continue
        there.add(name)
        suffix = PurePosixPath(name).suffix
        if suffix not in _SAFE:
            report(name, "file", suffix or "no suffix", f"only {', '.join(sorted(_SAFE))}")
        if name not in margins and (suffix == ".parquet" or name.startswith("margins/")):
            report(name, "file", "named by no record", "margins of a record that is in the submission")
        if name not in manifest.files:
            report(name, "manifest", "not named", "every file with its sha256")
        _check_content(folder, name, suffix, manifest.files.get(name), report)
    for name in sorted(set(manifest.files) - there):
        report(name, "manifest", "named, but not there", "the file")


def _check_content(folder: Folder, name: str, suffix: str, digest: str | None, report: Report) -> None:
    """Check that a file is what the manifest says and, where it is neither record nor margins, that it is text."""
    kernel = name.startswith("kernels/") and suffix == ".json"
    read_before = name.startswith("records/") or suffix == ".parquet" or kernel
    if suffix == ".parquet":
        most = MAX_MARGINS_BYTES
    elif kernel:
        most = MAX_KERNEL_BYTES
    else:
        most = MAX_RECORD_BYTES if name.startswith("records/") else MAX_TEXT_BYTES
    try:
        raw = b"" if read_before and name in folder.digests else folder.read(name, most)
    except UnfitFileError as why:
        report(name, why.part, why.found, why.required)
        return
    if digest is not None and folder.digests[name] != digest:
        report(name, "sha256", folder.digests[name], digest)
    if read_before:
        return
    try:
        if suffix == ".json":
            parse(raw)
        elif _STEERING.search(raw.decode("utf-8").replace("\r\n", "\n")):
            raise ValueError("control characters")
    except ValueError as why:
        report(name, "file", why, "text in UTF-8, or JSON where the name says so")


def check_counts(manifest: Manifest, found: Sequence[tuple[str, RunRecord]], files: int, report: Report) -> None:
    """Check what a manifest says of its records against them; `files` is how many record files there are."""
    records = [record for _, record in found]
    for name, record in found:
        if record.method.name != manifest.method:
            report(name, "method.name", record.method.name, f"{manifest.method}, as the manifest says")
    entrants = sorted({f"{r.method.name} {r.method.version} of {r.method.dist}" for r in records})
    if len(entrants) > 1:
        report(MANIFEST, "method", ", ".join(entrants), "one method of one distribution in one version")
    if manifest.records != files:
        report(MANIFEST, "records", manifest.records, f"the number of its records, {files}")
    if len(records) < files:
        return
    for field, counted in counts_of(records).items():
        if (said := getattr(manifest, field)) != counted:
            report(MANIFEST, field, said, f"what its records say, {counted}")


def counts_of(records: Sequence[RunRecord]) -> dict[str, Any]:
    """Return what a manifest tells of its records besides their number, by its fields."""
    return {
        "commits": sorted({r.source.commit or "unknown" for r in records}),
        "dirty": any(r.source.dirty for r in records),
        "failed": sum(r.status != "ok" for r in records),
        "truncated": sum(r.counts.truncated for r in records),
    }
