"""What was measured of pitfalls, and the files that hold it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets_registry.atomic_write import write_atomically
from datasets_registry.errors import DataError

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its 95 % interval over people; None where it is exact, or where the probe states none."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One thing seen both ways: with the defect, by the protocol, and the paired difference of the two.

    `signed` marks figures that are themselves differences of accuracies, not accuracies.
    """

    what: str
    inflated: Figure
    honest: Figure
    difference: Figure
    signed: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """What one pitfall gave: rows, what else was found in sentences, and how it was set up, ready for JSON."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    setup: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kept:
    """A measured pitfall as it is kept: `key` says of what code and extent, `seconds` are processor seconds."""

    name: str
    key: str
    seconds: float
    measured: Measured

    def to_dict(self) -> dict[str, Any]:
        """Return the record, ready for JSON."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Kept:
        """Return the record that `to_dict` was made from."""
        if told["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version {told['schema_version']!r}, expected {SCHEMA_VERSION}")
        m = told["measured"]
        rows = tuple(
            Row(
                **{
                    **row,
                    **{name: Figure(**row[name]) for name in ("inflated", "honest", "difference")},
                }
            )
            for row in m["rows"]
        )
        measured = Measured(rows, tuple(m["notes"]), m["setup"])
        return cls(told["name"], told["key"], told["seconds"], measured)


@dataclass(frozen=True, slots=True)
class Report:
    """All pitfalls of a run; `told` says when, where and with what code they were measured."""

    told: Mapping[str, Any]
    pitfalls: tuple[Kept, ...]


def write_json(path: Path, told: Mapping[str, Any]) -> None:
    """Write a file of this package, whole or not at all."""
    write_atomically(path, (json.dumps(told, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def write_report(report: Report, path: Path) -> None:
    """Write a report as JSON."""
    write_json(path, {**report.told, "pitfalls": [kept.to_dict() for kept in report.pitfalls]})


def read_report(path: Path) -> Report:
    """Return what a file holds; raises DataError where it is none of this experiment."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        pitfalls = tuple(Kept.of(each) for each in told.pop("pitfalls"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as why:
        raise DataError(f"{path} is no file of the pitfalls ({why}); measure again") from why
    return Report(told, pitfalls)
