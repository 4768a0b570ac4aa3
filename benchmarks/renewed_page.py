"""A page of the documentation whose tables are made: what stands between two marks is renewed, the rest is kept."""

from __future__ import annotations

from pathlib import Path

from datasets_registry.atomic_write import write_atomically
from datasets_registry.errors import RequestError


def renew_between(page: Path, start: str, end: str, block: str) -> None:
    """Put a block between the marks of a page; raises RequestError where the page has none."""
    before, opening, rest = page.read_text(encoding="utf-8").partition(start + "\n")
    _, closing, after = rest.partition(end)
    if not opening or not closing:
        raise RequestError(f"{page} has no {start} and {end} on lines of their own; put them where the tables belong")
    write_atomically(page, f"{before}{opening}{block}{closing}{after}".encode())
