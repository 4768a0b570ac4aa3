"""Why something is refused: a reason says where, what was found and what is required, as text that may be shown."""

from __future__ import annotations

import reprlib
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from datasets_registry.errors import printable
from leaderboard.labels import Labels

_MOST_CHARACTERS = 300
# What is listed of one file: beyond it a file is only made to be long, and nobody reads on.
MOST_OF_ONE_FILE = 100


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason: where, which field, what was found and what is required."""

    file: str
    field: str
    found: str
    required: str


@dataclass(slots=True)
class Report:
    """The reasons found so far; `lost` are the records of each dataset that cannot be had."""

    labels: Labels
    refusals: list[Refusal] = field(default_factory=list[Refusal])
    lost: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    _listed: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def __call__(self, file: str, name: str, found: object, required: object) -> None:
        """Add a reason, without control characters and not longer than is read; beyond many of a file, count it."""
        told = tuple(printable(str(part)[:_MOST_CHARACTERS]) for part in (file, name, found, required))
        self._listed[told[0]] += 1
        if self._listed[told[0]] <= MOST_OF_ONE_FILE:
            self.refusals.append(Refusal(*told))

    def close(self) -> list[Refusal]:
        """Return every refusal, after those of datasets that cannot be had: one each, however many records name it."""
        for dataset, names in sorted(self.lost.items()):
            some = names[0] if len(names) == 1 else f"{len(names)} records, the first {names[0]}"
            self(some, "dataset", dataset, f"a dataset and split of the registry: {self.labels.unavailable(dataset)}")
        for file, n in self._listed.items():
            if n > MOST_OF_ONE_FILE:
                self.refusals.append(Refusal(file, "reasons", f"{n - MOST_OF_ONE_FILE} more, not listed", "none"))
        return self.refusals


def shown(value: Any) -> str:
    """Return a foreign value as Python writes it, cut where it is long: a value of megabytes is not written out."""
    return _SHORT.repr(value)
