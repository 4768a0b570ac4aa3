"""Cells and lines of Markdown tables: what the tables of methods and of kernels are made of."""

from __future__ import annotations

from collections.abc import Iterable

from datasets_registry.errors import printable


def number(value: float | None, form: str = ".3f") -> str:
    """Return a number, or a dash where there is none."""
    return "–" if value is None else format(value, form)


def escaped(cell: str) -> str:
    r"""Return text that Markdown and HTML take as text.

    >>> escaped("a|b <script>")
    'a\\|b &lt;script&gt;'
    """
    one_line = " ".join(printable(cell).split())
    safe = one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\`*_[]|":
        safe = safe.replace(mark, "\\" + mark)
    return safe.replace("\\[", "[").replace("\\]", "]") if "](" not in one_line else safe


def table_line(cells: Iterable[str]) -> str:
    """Return a line of a table."""
    return "| " + " | ".join(cells) + " |"


def people_title(regime: str) -> str:
    """Return who a table is about.

    >>> people_title("seen"), people_title("known-prompts")
    ('seen people', 'new people, support on known prompts')
    """
    return "new people, support on known prompts" if regime == "known-prompts" else f"{regime} people"
