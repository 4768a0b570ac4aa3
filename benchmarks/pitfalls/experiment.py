"""Runs pitfalls into a folder, one file each, so that what was measured is not measured again."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.code_digest import files_sha256, source_sha256
from benchmarks.meters import environment, source
from benchmarks.pitfalls.figures import Kept, Report, write_json, write_report
from benchmarks.pitfalls.registry import PITFALLS, Note, Pitfall
from benchmarks.pitfalls.report import block, renew
from datasets_registry.errors import HetprefError, RequestError, unknown
from datasets_registry.protocol import PROTOCOL
from methods.registry import find

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE, RECORDED = ROOT / "docs" / "pitfalls.md", ROOT / "docs" / "board" / "pitfalls.json"
# What every pitfall's figures depend on, besides its own file and its methods.
_SHARED = ("benchmarks/pitfalls/fits.py", "benchmarks/pitfalls/scores.py", "benchmarks/choice_sets.py")
_SCORING = ("labels", "metrics", "panel", "statistics")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a run was asked for: names of pitfalls (None: all), whether to measure anew, quickly, and to record."""

    only: Sequence[str] | None = None
    fresh: bool = False
    quick: bool = False
    record: bool = False


def run(out: Path, wanted: Wanted, note: Note) -> tuple[Report, dict[str, str]]:
    """Measure what is not there yet; return the report, and by name why a pitfall failed.

    Writes `NAME.json` for each, then `pitfalls.json` and `pitfalls.md`. Raises RequestError for an unknown name, and
    where what is asked for cannot be recorded.
    """
    chosen = _chosen(wanted)
    failed: dict[str, str] = {}
    kept: list[Kept] = []
    for pitfall in chosen:
        path, key = out / f"{pitfall.name}.json", key_of(pitfall, quick=wanted.quick)
        found = None if wanted.fresh else _standing(path, key)
        if found is not None:
            note(f"{pitfall.name}: found measured")
            kept.append(found)
            continue
        note(f"{pitfall.name}: {pitfall.title}")
        began = time.process_time()
        try:
            measured = (pitfall.quick if wanted.quick else pitfall.measure)(note)
        except HetprefError as why:
            # Even a RequestError: what a pitfall asks for is its own, and a package that is missing stops no other.
            failed[pitfall.name] = str(why)
            note(f"{pitfall.name} failed: {why}")
            continue
        kept.append(Kept(pitfall.name, key, round(time.process_time() - began, 1), measured))
        write_json(path, kept[-1].to_dict())
    report = Report(_told(), tuple(kept))
    write_report(report, out / "pitfalls.json")
    (out / "pitfalls.md").write_text(block(report), encoding="utf-8")
    if wanted.record and not failed:
        write_report(report, RECORDED)
        renew(PAGE, report)
        note(f"recorded: {RECORDED} and {PAGE}")
    return report, failed


def key_of(pitfall: Pitfall, *, quick: bool = False) -> str:
    """Return the sha256 of all that a pitfall's figures depend on: protocol, extent, code, and packages."""
    packages = {k: v for k, v in environment().packages.items() if k != "hetpref"}
    told = [PROTOCOL, quick, packages, [source_sha256(find(name)) for name in pitfall.methods]]
    files = [pitfall.file, *(ROOT / name for name in _SHARED)]
    files += [ROOT / "leaderboard" / f"{name}.py" for name in _SCORING]
    digest = files_sha256((path.name, path) for path in files)
    return hashlib.sha256(json.dumps([*told, digest], sort_keys=True).encode()).hexdigest()


def _chosen(wanted: Wanted) -> list[Pitfall]:
    for name in wanted.only or ():
        if name not in PITFALLS:
            raise unknown("pitfall", name, PITFALLS)
    if wanted.record and (wanted.quick or wanted.only):
        raise RequestError("--record writes what the documentation tells: leave out --quick and --only")
    if wanted.record and not PAGE.is_file():
        raise RequestError(f"--record writes into a checkout of the project, and {PAGE} is not there")
    return [each for name, each in PITFALLS.items() if wanted.only is None or name in wanted.only]


def _standing(path: Path, key: str) -> Kept | None:
    """Return what a file holds, if it was measured with this code and extent."""
    try:
        found = Kept.of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if found.key == key else None


def _told() -> dict[str, Any]:
    where, code = environment(), source()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "protocol": PROTOCOL,
        "device_class": where.device_class,
        "machine": platform.system(),
        "environment": {"python": where.python, "packages": dict(where.packages)},
        "source": {"commit": code.commit, "dirty": code.dirty},
    }
