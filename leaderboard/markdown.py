"""The board as Markdown, and as plain text for a terminal."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from datasets_registry.errors import printable
from leaderboard.cost_tables import cost_section
from leaderboard.kernel_tables import kernel_sections, kernel_text
from leaderboard.rows import Curve, Failure, Interval, Leaderboard, Row, Skipped
from leaderboard.table_cells import escaped, number, people_title, table_line

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
# What a narrow terminal leaves out, in this order: the first for whole names, the last only for clipped ones.
_DROPPED = ("NLL (T)", "n@gain", "AULC", "harm", "worst 10 %", "specificity")
_DROPPED_LAST = ("", "rank", "gain")
_LEAST_NAME, _MOST_NAME = 12, 48
_GAP = 2
TERMINAL_WIDTH = 176
_MOST_LINES = 50
READING = """Accuracy is the mean over people of the mean over their units (a person and a prompt); brackets are 95 %
intervals of a bootstrap over people, widened for prompts that people share. Gain is the paired difference to pooled
Bradley-Terry on the same features. Methods of one tier cannot be told apart from its best after Holm's correction:
read the tier first, then the rank, whose 95 % interval is beside it. Worst 10 % is the accuracy of the lowest tenth
of people; harm is the share of people served worse than by the pooled model by more than a standard error;
specificity is what is lost with another person's state; AULC is the area under accuracy over log2(1 + n); n@gain is
the least data per person with a gain of at least one point, "all" with the mean that people have. A dash: there is no
such number; of a tenth of fewer than ten people none is told. Controls are in *italics* and not ranked. `imputed`:
cells that failed or are missing count as pooled Bradley-Terry, or as ties for who is below it; above 10 % there is no
rank, and of 100 % no number.
`reported`: measured on a tree with uncommitted changes, therefore not ranked."""
_READING_KNOWN = """Support on known prompts: what a new person said is on prompts that seen people compared, not on
prompts that nobody was trained on, as it is for unseen people; the people and the queries are the same."""
_READING_TRANSDUCTIVE = """`transductive`: the method serves a new person through what seen people said of the same
items, so that it needs support on known prompts: compare it in those tables."""
_READING_SKIPPED = """`skipped`: the method is unable to serve this by its own nature, for the reason at the end; such
cells are missing ones."""


def markdown(board: Leaderboard) -> str:
    """Return `leaderboard.md`."""
    parts = [f"# hetpref leaderboard, protocol {board.protocol}", summary(board), ""]
    parts += [reading(board), ""] if board.rows else []
    budget = budgets_at_gain(board)
    if board.overall:
        parts += ["## Overall", "", *_overall(board), ""]
    for (dataset, encoder, regime), rows in headline_tables(board):
        title = f"## {dataset}, {people_title(regime)}"
        parts += [title, "", caption(rows[0], encoder), "", *method_table(rows, budget), ""]
        curves = [c for c in board.curves if (c.dataset, c.encoder, c.regime) == (dataset, encoder, regime)]
        parts += _curve_table(curves, rows[0])
    parts += cost_section(board) + kernel_sections(board) + _submissions(board) + _flags(board, escaped)
    return "\n".join(parts).rstrip() + "\n"


def reading(board: Leaderboard) -> str:
    """Return how the tables are read: what every board has, and what this one has besides."""
    told = [READING]
    told += [_READING_KNOWN] if any(row.regime == "known-prompts" for row in board.rows) else []
    told += [_READING_TRANSDUCTIVE] if any(row.transductive for row in board.rows) else []
    told += [_READING_SKIPPED] if any(row.skipped for row in board.rows) else []
    return "\n".join(told)


def headline_tables(board: Leaderboard) -> list[tuple[tuple[str, str, str], list[Row]]]:
    """Return the rows of each headline table by (dataset, encoder, regime)."""
    tables: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in board.rows:
        if row.headline:
            tables[row.dataset, row.encoder, row.regime].append(row)
    return list(tables.items())


def text(board: Leaderboard, width: int | None = None) -> str:
    """Return the headline tables as plain text that fits `width`, by default the terminal's.

    Where there is no room, columns are left out from the right, and then the names of methods are clipped.
    """
    from io import StringIO

    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = width or shutil.get_terminal_size((TERMINAL_WIDTH, 24)).columns
    budget = budgets_at_gain(board)
    tables = [
        (f"{dataset}, {people_title(regime)}: {caption(rows[0], encoder)}", [_cells(row, budget(row)) for row in rows])
        for (dataset, encoder, regime), rows in headline_tables(board)
    ]
    lines = [_HEAD, *([printable(cell) for cell in line] for _, lines in tables for line in lines)]
    shown, room = _fitting([max(map(cell_len, column)) for column in zip(*lines, strict=True)], width)
    out = StringIO()
    console = Console(file=out, width=max(width, TERMINAL_WIDTH), color_system=None, highlight=False)
    for title, lines in tables:
        table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False)
        for name in (_HEAD[i] for i in shown):
            side, most = ("left" if name in ("method", "") else "right"), (room if name == "method" else None)
            table.add_column(name, justify=side, no_wrap=True, overflow="ellipsis", max_width=most)
        for line in lines:
            table.add_row(*(Text(printable(line[i])) for i in shown))
        console.print(Text(title), soft_wrap=True)
        console.print(table)
        console.print()
    told = [line.rstrip() for line in out.getvalue().splitlines()]
    told += kernel_text(board)
    told += [line for line in _flags(board, printable) if line and not line.startswith("#")]
    return "\n".join(told)


def _fitting(widths: Sequence[int], width: int) -> tuple[list[int], int]:
    """Return the columns that fit, and how wide the names of methods may be."""
    shown, name = list(range(len(_HEAD))), _HEAD.index("method")
    longest = widths[name]

    def room() -> int:
        return width - sum(widths[i] + _GAP for i in shown if i != name)

    for wanted, names in ((min(_MOST_NAME, longest), _DROPPED), (min(_LEAST_NAME, longest), _DROPPED_LAST)):
        for each in names:
            if room() < wanted:
                shown.remove(_HEAD.index(each))
    return shown, max(_LEAST_NAME, room())


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
    told = ["transductive"] if row.transductive else []
    told += [row.badge] if row.badge != "rescored" else []
    told += [f"imputed {row.imputed:.0%}"] if row.imputed else []
    told += [f"failed {row.failed}"] if row.failed else []
    told += [f"skipped {row.skipped}"] if row.skipped else []
    told += [f"{row.attempts} attempts"] if row.attempts > 1 else []
    return ", ".join(told)


def measured(row: Row, cell: Interval) -> Interval:
    """Return a number of a row, or none where every cell was imputed: it would be that of pooled Bradley-Terry."""
    return Interval() if row.imputed >= 1 else cell


def budgets_at_gain(board: Leaderboard) -> Callable[[Row], str]:
    """Return what says n@gain as a budget of the grid; "all" has its mean in brackets, as in "all (28.7)"."""
    every: dict[tuple[object, ...], float] = {}
    for curve in board.curves:
        place = (curve.label, curve.dataset, curve.encoder, curve.regime, curve.n_users, curve.imbalance)
        for point in curve.points:
            if point.n == "all":
                every[place] = point.n_mean

    def told(row: Row) -> str:
        n = measured(row, row.n_at_gain).value
        mean = every.get((row.label, row.dataset, row.encoder, row.regime, row.n_users, row.imbalance))
        if n is None:
            return number(n)
        return f"all ({n:.3g})" if n == mean or n != int(n) else f"{n:.0f}"

    return told


def _cells(row: Row, at_gain: str) -> list[str]:
    rank = f"{row.rank.value} [{row.rank.low}–{row.rank.high}]" if row.rank else "–"
    nll = row.nll_t if row.nll_t.value is not None else row.nll
    return [
        str(row.tier) if row.tier else "–",
        rank,
        row.label,
        bracketed(measured(row, row.acc_macro)),
        bracketed(measured(row, row.gain), "+.3f"),
        number(measured(row, row.worst10).value),
        number(measured(row, row.harm).value, ".0%"),
        number(measured(row, row.specificity).value, "+.3f"),
        number(measured(row, row.aulc).value),
        at_gain,
        number(measured(row, nll).value),
        notes(row),
    ]


def method_table(rows: Sequence[Row], budget: Callable[[Row], str]) -> list[str]:
    """Return the lines of a headline table; controls are in italics."""
    out = [table_line(_HEAD), table_line(["---:" if name not in ("method", "") else "---" for name in _HEAD])]
    for row in rows:
        cells = [escaped(cell) for cell in _cells(row, budget(row))]
        if row.role == "control" or row.control:
            cells[2] = f"*{cells[2]}*"
        out.append(table_line(cells))
    return out


def summary(board: Leaderboard) -> str:
    """Return how much the board stands on."""
    n = len({row.method for row in board.rows})
    told = f"{board.records.count} records, {len(board.datasets)} datasets, {n} methods and controls."
    return told if board.rows or not board.kernels else f"{len(board.kernels)} cells of kernels, no records of methods."


def caption(row: Row, encoder: str) -> str:
    """Return the setting that a headline table is of."""
    told = [f"encoder {encoder}", f"n_train {row.n_train}"]
    told += [f"n_support {row.n_support}"] if row.n_support is not None else []
    told += [f"{row.n_users} people"] if row.n_users != "all" else []
    return ", ".join([*told, f"seeds {len(row.seeds)}"])


def _overall(board: Leaderboard) -> Iterable[str]:
    yield table_line(("regime", "method", "datasets", "mean gain", "mean rank by gain", "mean rank by AULC"))
    yield table_line(("---", "---", "---:", "---:", "---:", "---:"))
    transductive = {row.label for row in board.rows if row.transductive}
    for row in board.overall:
        some = "" if row.complete else " (not all)"
        cells = (bracketed(row.gain, "+.3f"), number(row.gain_rank, ".1f"), number(row.aulc_rank, ".1f"))
        label = escaped(row.label) + (" (transductive)" if row.label in transductive else "")
        yield table_line((row.regime, label, f"{row.datasets}{some}", *cells))


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
    out = [
        f"Accuracy by {shown[0].axis}:",
        "",
        table_line(("method", *names)),
        table_line(("---", *("---:" for _ in names))),
    ]
    for curve in shown:
        found = {str(p.n): p.acc_macro.value for p in curve.points}
        if len(found) > 1:
            out.append(table_line((escaped(curve.label), *(number(found.get(n)) for n in names))))
    return [*out, ""]


def _submissions(board: Leaderboard) -> list[str]:
    """Return the section of the ledger, a line each; none without one."""
    if not board.ledger:
        return []
    out = ["## Submissions", "", "The ledger, oldest first: see docs/guarantees.md for what the badges mean.", ""]
    out += [table_line(("", "date", "what", "method", "version", "told")), table_line(["---:", *["---"] * 5])]
    for entry in board.ledger:
        cells = (entry["number"], entry["date"], entry["event"], entry["method"], entry["version"], _told(entry))
        out.append(table_line(escaped(str(cell)) for cell in cells))
    return [*out, ""]


def _told(entry: Mapping[str, Any]) -> str:
    if entry["event"] == "verified":
        return f"re-run by {entry['reviewer']}, {entry['rerun']['decisions']:.2%} of decisions turned"
    told = [f"attempt {entry['attempt']}", f"{entry['records']} records"]
    told += [f"supersedes {entry['supersedes']}"] if entry["supersedes"] else []
    told += [f"{entry['failed']} failed"] if entry["failed"] else []
    return ", ".join(told)


def failed(board: Leaderboard) -> list[Failure]:
    """Return the measurements that should have been made and failed."""
    return [each for each in board.failures if each.status != "skipped"]


def unable(board: Leaderboard) -> list[Failure]:
    """Return the measurements that were skipped, since the method is unable to serve them."""
    return [each for each in board.failures if each.status == "skipped"]


def failure_lines(failures: Sequence[Failure]) -> list[str]:
    """Return a line per kind of failure: method, dataset and reason, with the cells it happened in or their number.

    Where all of what was skipped is of one regime, that is said: it is why a table lacks the method.
    """
    groups: dict[tuple[str, str, str, str], list[Failure]] = defaultdict(list)
    for each in failures:
        groups[each.label, each.dataset, each.status, each.reason].append(each)
    out: list[str] = []
    for (label, dataset, status, reason), same in groups.items():
        regimes = {each.regime for each in same}
        some = f"{len(same)} cells" + (f" ({same[0].regime})" if status == "skipped" and len(regimes) == 1 else "")
        if len(same) == 1:
            support = "" if same[0].n_support is None else f", n_support {same[0].n_support}"
            some = f"{same[0].regime}, n_train {same[0].n_train}{support}, seed {same[0].seed}"
        most = 300 if status == "skipped" else 160  # it is no traceback, and says what to do
        out.append(f"{label} on {dataset}, {some}: {status}: {clipped(reason, most)}")
    return out


def skipped_lines(skipped: Sequence[Skipped]) -> list[str]:
    """Return a line per reason why something was left out, with the name of it or how many there are."""
    groups: dict[str, list[str]] = defaultdict(list)
    for each in skipped:
        groups[each.reason].append(each.name)
    return [f"{n[0] if len(n) == 1 else f'{len(n)} records'}: {clipped(reason)}" for reason, n in groups.items()]


def clipped(reason: str, most: int = 160) -> str:
    """Return the beginning of a reason, on one line.

    >>> clipped("no memory", 5)
    'no m…'
    """
    one_line = " ".join(printable(reason).split())
    return one_line if len(one_line) <= most else one_line[: most - 1].rstrip() + "…"


def _flags(board: Leaderboard, form: Callable[[str], str]) -> list[str]:
    out: list[str] = []
    sections = (
        ("Failed cells", failure_lines(failed(board))),
        ("Skipped: what a method is unable to serve", failure_lines(unable(board))),
        ("Left out", skipped_lines(board.skipped)),
    )
    for title, lines in sections:
        if lines:
            out += [f"## {title}", "", *(f"- {form(line)}" for line in lines[:_MOST_LINES])]
            out += [f"- and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
            out.append("")
    if any(row.badge == "reported" and row.role == "method" and not row.rank for row in board.rows if not row.imputed):
        out += [
            "## Not ranked",
            "",
            "Rows marked reported were measured on a tree with uncommitted changes: commit and run again.",
        ]
    return out
