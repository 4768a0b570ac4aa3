"""What a load read: the files behind a dataset, where each was found, noted by the sources for whoever asks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Origin = Literal["mirror", "cache", "download"]


@dataclass(frozen=True, slots=True)
class Receipt:
    """One file that a source handed out: its name there, where it lies now, and how it came."""

    name: str
    path: Path
    origin: Origin

    @property
    def size(self) -> int:
        """Return the size in bytes."""
        return self.path.stat().st_size

    @property
    def sha256(self) -> str:
        """Return the sha256 of the file as it lies there now."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


_asked: ContextVar[list[Receipt] | None] = ContextVar("receipts", default=None)


@contextmanager
def receipts() -> Iterator[list[Receipt]]:
    """Give a list that is filled with a receipt for every file that sources hand out inside the block.

    >>> with receipts() as found:
    ...     note([("table", Path("table.parquet"))], "cache")
    >>> [(each.name, each.origin) for each in found]
    [('table', 'cache')]
    """
    found: list[Receipt] = []
    token = _asked.set(found)
    try:
        yield found
    finally:
        _asked.reset(token)


def note(files: Iterable[tuple[str, Path]], origin: Origin) -> None:
    """Note files as (name, path), each once, where somebody asks for receipts; else do nothing."""
    found = _asked.get()
    if found is None:
        return
    for name, path in files:
        if all(each.path != path for each in found):
            found.append(Receipt(name, path, origin))
