"""Options that several commands take, and how lists of names are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from datasets_registry.errors import RequestError

JsonFlag = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]
Names = Annotated[str | None, typer.Option(metavar="A,B", help="Only these, comma-separated.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where to write.")]


def split_names(names: str | None) -> list[str] | None:
    """Return the names of a comma-separated list, each once; None for None. Raises RequestError for an empty list."""
    if names is None:
        return None
    chosen = [n.strip() for n in names.split(",") if n.strip()]
    if not chosen:
        raise RequestError("an empty list of names was given; give at least one, or leave the option out")
    return list(dict.fromkeys(chosen))
