"""The board in a README: the blocks between markers, renewed from a leaderboard.

A board of few tables stands there whole. One of many is summed up: a row per method with its means over datasets, then
accuracies and tiers, dataset by dataset.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Literal

from datasets_registry.errors import RequestError
from datasets_registry.protocol import Regime
from leaderboard.kernel_tables import END as KERNELS_END
from leaderboard.kernel_tables import START as KERNELS_START
from leaderboard.kernel_tables import kernels_block
from leaderboard.markdown import bracketed, budgets_at_gain, caption, headline_tables, method_table, summary
from leaderboard.panel import regime_order
from leaderboard.rows import CostRow, Interval, Leaderboard, Overall, Row
from leaderboard.table_cells import escaped, number, people_title, table_line

START, END = "<!-- hetpref results -->", "<!-- /hetpref results -->"
Block = Literal["results", "kernels"]
BLOCKS: dict[str, tuple[Block, ...]] = {"all": ("results", "kernels"), "results": ("results",), "kernels": ("kernels",)}
# More headline tables than that are summed up.
_MOST_TABLES = 6


def renew_readme(readme: Path, board: Leaderboard, blocks: Sequence[Block] = ("results", "kernels")) -> None:
    """Replace what stands between the markers of a Markdown file, for each of `blocks` that the board has rows for.

    Raises RequestError when the file or a marker is missing, and leaves the file as it is.
    """
    try:
        page = readme.read_text(encoding="utf-8")
    except OSError as why:
        raise RequestError(f"{readme} cannot be read: {why.strerror}. Give a Markdown file with --readme") from why
    if "results" in blocks:
        page = _renewed(readme, page, "results", START, END, readme_block(board))
    if "kernels" in blocks and (KERNELS_START in page or KERNELS_END in page):
        page = _renewed(readme, page, "kernels", KERNELS_START, KERNELS_END, kernels_block(board))
    readme.write_text(page, encoding="utf-8")


def _renewed(readme: Path, page: str, name: str, opening: str, closing: str, block: str) -> str:
    start, end = page.find(opening), page.find(closing)
    if start < 0 or end < start:
        raise RequestError(f"{readme} has no {name} block; put the lines {opening} and {closing} where it belongs")
    return page[: start + len(opening)] + "\n" + block + page[end:]


def readme_block(board: Leaderboard) -> str:
    """Return the results as they stand in a README, with a final newline: without the user-shuffle fits."""
    tables = [(at, [r for r in rows if r.control is None]) for at, rows in headline_tables(board)]
    parts = [summary(board), ""]
    if len(tables) <= _MOST_TABLES:
        budget = budgets_at_gain(board)
        for (dataset, encoder, regime), rows in tables:
            title = f"**{dataset}, {people_title(regime)}** ({caption(rows[0], encoder)})"
            parts += [title, "", *method_table(rows, budget), ""]
    else:
        headline = [row for _, rows in tables for row in rows]
        parts += [*_means(board, headline), ""]
        regimes: set[Regime] = {row.regime for row in headline}
        for regime in sorted(regimes, key=regime_order):
            here = [(at[0], rows) for at, rows in tables if at[2] == regime]
            parts += [f"**Accuracy, {people_title(regime)}** (the tier in brackets)", "", *_matrix(here), ""]
    return "\n".join(parts).rstrip() + "\n"


def _means(board: Leaderboard, headline: Sequence[Row]) -> Iterable[str]:
    """Yield a row per method: means over datasets of seen and unseen people, and the median cost."""
    yield "**Means over datasets** (gain over pooled Bradley-Terry, 95 % interval; from mean rank on: seen people)"
    yield ""
    yield table_line(
        ("method", "gain, seen", "gain, unseen", "mean rank", "worst 10 %", "specificity", "fit s", "bytes per person")
    )
    yield table_line(("---", *["---:"] * 7))
    whole: dict[str, dict[str, Overall]] = defaultdict(dict)
    for each in board.overall:
        whole[each.label][each.regime] = each
    most = max((each.datasets for each in board.overall), default=0)
    named = {(r.label, r.dataset, r.encoder, r.n_train): r for r in headline if r.regime == "seen"}
    costs: dict[str, list[CostRow]] = defaultdict(list)
    for cost in board.costs:
        if cost.regime == "seen" and (cost.label, cost.dataset, cost.encoder, cost.n_train) in named:
            costs[cost.label].append(cost)
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in named.values():
        by_label[row.label].append(row)
    order = sorted(whole, key=lambda label: _order(whole[label]))
    for label in order:
        told, rows = whole[label], by_label[label]
        seen, unseen = told.get("seen"), told.get("unseen")
        fewest = min((each.datasets for each in told.values() if each.regime in ("seen", "unseen")), default=0)
        some = "" if fewest == most else f" ({fewest} of {most} datasets)"
        yield table_line(
            (
                escaped(label) + some,
                _gain(seen),
                _gain(unseen),
                number(seen.gain_rank if seen else None, ".1f"),
                _mean(rows, lambda r: r.worst10, ".3f"),
                _mean(rows, lambda r: r.specificity, "+.3f"),
                _median([c.fit_s for c in costs[label]], ".2g"),
                _median([c.state_bytes_per_user for c in costs[label]], ",.0f"),
            )
        )


def _order(told: dict[str, Overall]) -> tuple[bool, float]:
    """Return the order of a method: those of most datasets first, by gain over seen and unseen people."""
    those = [each for name, each in told.items() if name in ("seen", "unseen")]
    gains = [each.gain.value for each in those if each.gain.value is not None]
    complete = all(each.complete for each in those)
    return not complete, -mean(gains) if gains else 0.0


def _gain(each: Overall | None) -> str:
    return "–" if each is None else bracketed(each.gain, "+.3f")


def _mean(rows: Sequence[Row], of: Callable[[Row], Interval], form: str) -> str:
    found = [value for row in rows if (value := of(row).value) is not None]
    return number(mean(found) if found else None, form)


def _median(values: Sequence[float | None], form: str) -> str:
    found = [value for value in values if value is not None]
    return number(median(found) if found else None, form)


def _matrix(tables: Sequence[tuple[str, Sequence[Row]]]) -> Iterable[str]:
    """Yield a table of methods x datasets: accuracies, and tiers where there is one."""
    datasets = [name for name, _ in tables]
    yield table_line(("method", *map(escaped, datasets)))
    yield table_line(("---", *["---:"] * len(datasets)))
    cells: dict[str, dict[str, Row]] = defaultdict(dict)
    for name, rows in tables:
        for row in rows:
            cells[row.label][name] = row
    for label in sorted(cells, key=lambda each: _by_rank(cells[each])):
        control = any(row.role == "control" for row in cells[label].values())
        told = [_accuracy(cells[label].get(name)) for name in datasets]
        yield table_line((f"*{escaped(label)}*" if control else escaped(label), *told))


def _by_rank(rows: dict[str, Row]) -> tuple[bool, float, float]:
    """Return the order of a line: methods before controls, by mean rank, then by mean accuracy."""
    ranks = [row.rank.value for row in rows.values() if row.rank]
    accuracy = [row.acc_macro.value or 0.0 for row in rows.values()]
    return not ranks, mean(ranks) if ranks else 0.0, -mean(accuracy)


def _accuracy(row: Row | None) -> str:
    if row is None or row.imputed >= 1:
        return "–"
    return number(row.acc_macro.value) + (f" ({row.tier})" if row.tier else "")
