"""Protocol 2026.1: the constants that can move a number, and the hashing that assigns everything."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

PROTOCOL = "2026.1"
FOLDS = 5
SEEN_SHARE = 0.80
PSEUDO_UNSEEN_SHARE = 0.10
N_TRAIN_GRID: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
N_SUPPORT_GRID: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32)
N_USERS_GRID: tuple[int, ...] = (32, 128, 512)

Count = int | Literal["all"]
Regime = Literal["seen", "unseen", "known-prompts"]


@dataclass(frozen=True, slots=True)
class Repetition:
    """One repetition of a benchmark: seed s runs on fold s mod 5 as method seed s // 5.

    So `--seeds 3` covers three folds of people and prompts, and `--seeds 15` is the full 5 folds x 3 seeds.
    """

    seed: int
    draw: int = 0

    @property
    def fold(self) -> int:
        """Return the fold of people and prompts."""
        return self.seed % FOLDS

    @property
    def repetition(self) -> int:
        """Return the number of the method seed within the fold."""
        return self.seed // FOLDS


def seed_of(*context: object) -> int:
    """Return a 63-bit seed from named context: sha256 of its parts, never `hash()` or a shared generator.

    >>> seed_of("2026.1", "electricity@1", 0, 0) == seed_of("2026.1", "electricity@1", 0, 0)
    True
    """
    return int.from_bytes(_digest(context)[:8], "big") >> 1


def generator(*context: object) -> np.random.Generator:
    """Return a generator seeded from named context."""
    return np.random.Generator(np.random.Philox(seed_of(*context)))


def hash_keys(ids: Iterable[str], *context: object) -> NDArray[np.uint64]:
    """Return one uint64 per id, from sha256 of (context, id): sorting by it is the seeded permutation."""
    prefix = hashlib.sha256(_frame(context))
    keys: list[int] = []
    for each in ids:
        h = prefix.copy()
        h.update(each.encode())
        keys.append(int.from_bytes(h.digest()[:8], "big"))
    return np.array(keys, dtype=np.uint64)


def mix(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Combine two columns of sha256 keys into one (splitmix64 finaliser): a key per (user, unit), vectorised."""
    with np.errstate(over="ignore"):
        z = a ^ (b * np.uint64(0x9E3779B97F4A7C15))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _frame(context: tuple[object, ...]) -> bytes:
    return "\x1f".join(str(part) for part in context).encode() + b"\x1e"


def _digest(context: tuple[object, ...]) -> bytes:
    return hashlib.sha256(_frame(context)).digest()
