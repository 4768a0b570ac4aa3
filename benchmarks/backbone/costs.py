"""What was measured, and the file that holds it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets_registry.atomic_write import write_atomically
from datasets_registry.errors import DataError

P_SHARE, LOCAL, GLOBAL = "p-share-lora", "lora-local", "lora-global"
BY_PERSON, ONE, GATHERED = "PEFT, person by person", "PEFT, one adapter", "gather and bmm"
ALL, LAST, TABLE, MEMORY = "all layers", "last 2 layers", "people in the table", "memory"
GROUPS = (ALL, LAST, TABLE, MEMORY)


@dataclass(frozen=True, slots=True)
class Timed:
    """The steps of one trainer: processor seconds and loss of each timed one, in the order of the rounds.

    `people` are in the table, `present` of them in the batch, which has `sequences` texts. `flops` are a step's
    matrix products', those of low-rank kernels and of attention left out; counted for `lora-global` alone.
    """

    group: str
    trainer: str
    people: int
    present: int
    sequences: int
    flops: int | None
    seconds: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def median(self) -> float:
        """Return the median of the seconds."""
        return statistics.median(self.seconds)


@dataclass(frozen=True, slots=True)
class Peak:
    """By how many bytes a step raised the memory of its process at most; `factor_bytes` of it are people's own factors.

    That is their rows and the rows' gradients, for who is in the batch. `bytes` is None where the system does not tell.
    """

    trainer: str
    people: int
    present: int
    bytes: int | None
    factor_bytes: int


@dataclass(frozen=True, slots=True)
class Cost:
    """All that a run measured; `told` says when, where, with what code, on which trunk and texts."""

    told: Mapping[str, Any]
    steps: tuple[Timed, ...]
    peaks: tuple[Peak, ...]

    def timed(self, group: str, trainer: str, people: int | None = None) -> Timed | None:
        """Return what was measured of a trainer in a group, with so many people in the table; None if nothing was."""
        for each in self.steps:
            if (each.group, each.trainer) == (group, trainer) and people in (None, each.people):
                return each
        return None


def ratio(over: Timed, under: Timed) -> float:
    """Return the median over rounds of one trainer's seconds over another's; both took every round's turn."""
    return statistics.median(a / b for a, b in zip(over.seconds, under.seconds, strict=True))


def write_cost(cost: Cost, path: Path) -> None:
    """Write what was measured as JSON."""
    made = {**cost.told, "steps": [asdict(s) for s in cost.steps], "peaks": [asdict(p) for p in cost.peaks]}
    write_atomically(path, (json.dumps(made, indent=1, allow_nan=False) + "\n").encode())


def read_cost(path: Path) -> Cost:
    """Return what a file holds; raises DataError where it is none of this benchmark."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        steps = [Timed(**{**s, **{k: tuple(s[k]) for k in ("seconds", "losses")}}) for s in told.pop("steps")]
        peaks = [Peak(**p) for p in told.pop("peaks")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as why:
        raise DataError(f"{path} is no file of the backbone benchmark ({why}); measure again") from why
    return Cost(told, tuple(steps), tuple(peaks))
