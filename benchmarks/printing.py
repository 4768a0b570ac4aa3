"""How the command lines print: plain JSON values, tables, notes, and errors as one line."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any

from datasets_registry.errors import HetprefError, RequestError, printable


def plain(value: Any) -> Any:
    """Return a record as plain JSON values: dataclasses and models to dicts, sets to sorted lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, frozenset | set):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    print(json.dumps(plain(value), indent=1, sort_keys=True))


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """Print a table that fits the terminal; text of methods and files is shown, never obeyed."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)


def note(text: str) -> None:
    """Say one thing on stderr, now."""
    print(text, file=sys.stderr, flush=True)


def run_command(function: Callable[..., None], module: str, epilog: str) -> None:
    """Run a function as the command of `python -m benchmarks.MODULE`.

    A wrong request ends with exit code 2 and one line, another error of ours with exit code 1 and one line.
    """
    import typer

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(epilog=epilog)(function)
    try:
        app(prog_name=f"python -m benchmarks.{module}")
    except HetprefError as why:
        note(f"{module}: {why}")
        raise SystemExit(2 if isinstance(why, RequestError) else 1) from None
