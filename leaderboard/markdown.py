"""The board as Markdown for a README or a pull request, and as plain text for a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from datasets_registry.errors import RequestError
from leaderboard.rows import CostRow, Curve, Interval, Leaderboard, Row

START, END = "<!-- hetpref results -->", "<!-- /hetpref results -->"
_HEAD = (
    "tier",
    "rank",
    "method",
    "accuracy",
    "gain",
    "worst 10 %",
    "harm",
    "specificity",
    "AULC",
    "n@gain",
    "NLL (T)",
    "",
)
READING = """Accuracy is the mean over people of the mean over their units (a person and a prompt); brackets are 95 %
intervals of a bootstrap over seeds, people and units. Gain is the paired difference to pooled Bradley-Terry on the same
features. Methods of one tier cannot be told apart after Holm's correction: read the tier first, then the rank, whose
95 % interval is beside it. Worst 10 % is the accuracy of the lowest tenth of people; harm is the share of people served
worse than by the pooled model by more than a standard error; specificity is what is lost with another person's state;
AULC is the area under accuracy over log2(1 + n); n@gain is the least data per person with a gain of at least one point.
Controls are in *italics* and not ranked. `imputed`: cells that failed or are missing count as pooled Bradley-Terry;
above 10 % there is no rank. `reported`: measured on a tree with uncommitted changes, therefore not ranked."""


def markdown(board: Leaderboard) -> str:
    """Return `leaderboard.md`."""
    parts = [f"# hetpref leaderboard, protocol {board.protocol}", _summary(board), "", READING, ""]
    if board.overall:
        parts += ["## Overall", "", *_overall(board), ""]
    for (dataset, encoder, regime), rows in headline_tables(board):
        parts += [f"## {dataset}, {regime} people", "", _caption(rows[0], encoder), "", *_table(rows), ""]
        curves = [c for c in board.curves if (c.dataset, c.encoder, c.regime) == (dataset, encoder, regime)]
        parts += _curve_table(curves, rows[0])
    parts += _cost_section(board) + _flags(board)
    return "\n".join(parts).rstrip() + "\n"


def headline_tables(board: Leaderboard) -> list[tuple[tuple[str, str, str], list[Row]]]:
    """Return the rows of each headline table by (dataset, encoder, regime)."""
    tables: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in board.rows:
        if row.headline:
            tables[row.dataset, row.encoder, row.regime].append(row)
    return list(tables.items())


def text(board: Leaderboard) -> str:
    """Return the headline tables as plain text."""
    from io import StringIO

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = StringIO()
    console = Console(file=out, width=176, color_system=None, highlight=False)
    for (dataset, encoder, regime), rows in headline_tables(board):
        table = Table(
            title=Text(f"{dataset}, {regime} people: {_caption(rows[0], encoder)}"), title_justify="left", box=None
        )
        for name in _HEAD:
            table.add_column(name, justify="left" if name in ("method", "") else "right", no_wrap=True)
        for row in rows:
            table.add_row(*(Text(cell) for cell in _cells(row)))
        console.print(table)
        console.print()
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    lines += [line.replace("`", "") for line in _flags(board) if line and not line.startswith("#")]
    return "\n".join(lines)


def renew_readme(readme: Path, board: Leaderboard) -> None:
    """Replace what stands between the two markers of a Markdown file by the headline tables.

    Raises RequestError when the file or a marker is missing, and leaves the file as it is.
    """
    try:
        before = readme.read_text(encoding="utf-8")
    except OSError as why:
        raise RequestError(f"{readme} cannot be read: {why.strerror}. Give a Markdown file with --readme") from why
    start, end = before.find(START), before.find(END)
    if start < 0 or end < start:
        raise RequestError(f"{readme} has no results block; put the lines {START} and {END} where it belongs")
    after = before[: start + len(START)] + "\n" + readme_block(board) + before[end:]
    readme.write_text(after, encoding="utf-8")


def readme_block(board: Leaderboard) -> str:
    """Return the headline tables as they stand in a README, with a final newline."""
    parts = [_summary(board), ""]
    for (dataset, encoder, regime), rows in headline_tables(board):
        parts += [f"**{dataset}, {regime} people** ({_caption(rows[0], encoder)})", "", *_table(rows), ""]
    return "\n".join(parts).rstrip() + "\n"


def number(value: float | None, form: str = ".3f") -> str:
    """Return a number, or a dash where there is none."""
    return "–" if value is None else format(value, form)


def bracketed(cell: Interval, form: str = ".3f") -> str:
    """Return a value with its interval.

    >>> bracketed(Interval(value=0.5, low=0.4, high=0.6))
    '0.500 [0.400, 0.600]'
    """
    if cell.low is None or cell.high is None:
        return number(cell.value, form)
    return f"{number(cell.value, form)} [{number(cell.low, form)}, {number(cell.high, form)}]"


def notes(row: Row) -> str:
    """Return the flags of a row in words."""
    told = [row.badge] if row.badge != "rescored" else []
    told += [f"imputed {row.imputed:.0%}"] if row.imputed else []
    told += [f"failed {row.failed}"] if row.failed else []
    return ", ".join(told)


def _cells(row: Row) -> list[str]:
    rank = f"{row.rank.value} [{row.rank.low}–{row.rank.high}]" if row.rank else "–"
    return [
        str(row.tier) if row.tier else "–",
        rank,
        row.label,
        bracketed(row.acc_macro),
        bracketed(row.gain, "+.3f"),
        number(row.worst10.value),
        number(row.harm.value, ".0%"),
        number(row.specificity.value, "+.3f"),
        number(row.aulc.value),
        number(row.n_at_gain.value, "g"),
        number(row.nll_t.value if row.nll_t.value is not None else row.nll.value),
        notes(row),
    ]


def _table(rows: Sequence[Row]) -> list[str]:
    out = [_line(_HEAD), _line(["---:" if name not in ("method", "") else "---" for name in _HEAD])]
    for row in rows:
        cells = [escaped(cell) for cell in _cells(row)]
        if row.role == "control" or row.control:
            cells[2] = f"*{cells[2]}*"
        out.append(_line(cells))
    return out


def escaped(cell: str) -> str:
    r"""Return text that Markdown and HTML take as text.

    >>> escaped("a|b <script>")
    'a\\|b &lt;script&gt;'
    """
    one_line = " ".join(cell.split())
    safe = one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\`*_[]|":
        safe = safe.replace(mark, "\\" + mark)
    return safe.replace("\\[", "[").replace("\\]", "]") if "](" not in one_line else safe


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _summary(board: Leaderboard) -> str:
    n = len({row.method for row in board.rows})
    return f"{board.records.count} records, {len(board.datasets)} datasets, {n} methods and controls."


def _caption(row: Row, encoder: str) -> str:
    told = [f"encoder {encoder}", f"n_train {row.n_train}"]
    told += [f"n_support {row.n_support}"] if row.n_support is not None else []
    told += [f"{row.n_users} people"] if row.n_users != "all" else []
    return ", ".join([*told, f"seeds {len(row.seeds)}"])


def _overall(board: Leaderboard) -> Iterable[str]:
    yield _line(("regime", "method", "datasets", "mean gain", "mean rank by gain", "mean rank by AULC"))
    yield _line(("---", "---", "---:", "---:", "---:", "---:"))
    for row in board.overall:
        some = "" if row.complete else " (not all)"
        cells = (bracketed(row.gain, "+.3f"), number(row.gain_rank, ".1f"), number(row.aulc_rank, ".1f"))
        yield _line((row.regime, escaped(row.label), f"{row.datasets}{some}", *cells))


def _curve_table(curves: Sequence[Curve], headline: Row) -> list[str]:
    """Return accuracy by budget, for the curves that the headline table stands on."""
    shown = [
        c
        for c in curves
        if c.n_users == headline.n_users and c.imbalance == headline.imbalance and c.n_train in (None, headline.n_train)
    ]
    budgets: dict[str, float] = {str(p.n): p.n_mean for c in shown for p in c.points}
    if len(budgets) < 2:
        return []
    names = sorted(budgets, key=lambda n: (n == "all", budgets[n]))
    out = [f"Accuracy by {shown[0].axis}:", "", _line(("method", *names)), _line(("---", *("---:" for _ in names)))]
    for curve in shown:
        found = {str(p.n): p.acc_macro.value for p in curve.points}
        if len(found) > 1:
            out.append(_line((escaped(curve.label), *(number(found.get(n)) for n in names))))
    return [*out, ""]


def _cost_section(board: Leaderboard) -> list[str]:
    headline = {(r.label, r.dataset, r.encoder, r.regime, r.n_train, r.n_support) for r in board.rows if r.headline}
    shown = [c for c in board.costs if (c.label, c.dataset, c.encoder, c.regime, c.n_train, c.n_support) in headline]
    if not shown:
        return []
    head = ("device class", "dataset", "regime", "method", "fit s", "adapt ms per person", "comparisons per s")
    head = (*head, "parameters", "per person", "state bytes per person")
    out = ["## Costs", "", "Medians over seeds; compare them only within one device class.", "", _line(head)]
    out.append(_line("---" if i < 4 else "---:" for i in range(len(head))))
    for c in sorted(shown, key=lambda c: (c.device_class, c.dataset, c.encoder, c.regime, c.label)):
        out.append(_line((escaped(c.device_class), escaped(c.dataset), c.regime, escaped(c.label), *cost_cells(c))))
    return [*out, ""]


def cost_cells(c: CostRow) -> list[str]:
    """Return the cost columns as text."""
    adapt = None if c.adapt_s_per_user is None else 1000 * c.adapt_s_per_user
    cells = [number(c.fit_s, ".3g"), number(adapt, ".3g"), number(c.comparisons_per_s, ",.0f")]
    return cells + [number(v, ",.0f") for v in (c.trained_params, c.params_per_user, c.state_bytes_per_user)]


def _flags(board: Leaderboard) -> list[str]:
    out: list[str] = []
    if board.failures:
        out += ["## Failed cells", ""]
        out += [
            f"- {escaped(f.label)} on {escaped(f.dataset)}, {f.regime}, n_train {f.n_train}, seed {f.seed}: "
            f"{f.status}: {escaped(f.reason)}"
            for f in board.failures[:50]
        ]
        out += [f"- and {len(board.failures) - 50} more"] if len(board.failures) > 50 else []
        out.append("")
    if board.skipped:
        out += ["## Left out", "", *(f"- {escaped(s.name)}: {escaped(s.reason)}" for s in board.skipped[:50]), ""]
    if any(row.badge == "reported" and row.role == "method" and not row.rank for row in board.rows if not row.imputed):
        out += [
            "## Not ranked",
            "",
            "Rows marked `reported` were measured on a tree with uncommitted changes: commit and run again.",
        ]
    return out
