"""The text of a pull request that hands in a bundle: what it is, what it would get, what it beats, how to check it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leaderboard.compare import Difference
from leaderboard.markdown import bracketed
from leaderboard.rows import Row
from leaderboard.table_cells import escaped, table_line
from leaderboard.verify import Refusal

_CARD = ("title", "equation", "citation", "level", "adaptation", "deviations")


def budget_of(row: Row | Difference) -> str:
    """Return a row's budget in words."""
    support = "" if row.n_support is None else f", n_support {row.n_support}"
    return f"n_train {row.n_train}{support}"


def standing_of(row: Row) -> str:
    """Return tier and rank in words."""
    if row.rank is None:
        return "not ranked"
    return f"tier {row.tier}, rank {row.rank.value} [{row.rank.low}–{row.rank.high}]"


def difference_of(row: Difference) -> str:
    """Return a paired difference with its interval, starred where that excludes 0."""
    star = "" if row.low <= 0 <= row.high else "*"
    return f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]{star}"


def pull_request(
    manifest: Mapping[str, Any],
    card: Mapping[str, Any],
    rows: Sequence[Row],
    differences: Mapping[str, Sequence[Difference]],
    refusals: Sequence[Refusal],
) -> str:
    """Return Markdown; text that a method gives is escaped."""
    name = str(manifest["method"])
    out = [f"# {escaped(name)}", ""]
    out += [f"* **{key}**: {escaped(str(card[key]))}" for key in _CARD if card.get(key)]
    out += ["", "## Where it would stand", ""]
    out.append("Among the methods of the results that it was bundled from; accuracy and gain with 95 % intervals.")
    out += ["", table_line(("method", "dataset", "people", "budget", "place", "accuracy", "gain", "specificity"))]
    out.append(table_line(["---"] * 8))
    for row in rows:
        place = (escaped(row.label), escaped(row.dataset), row.regime, budget_of(row), standing_of(row))
        numbers = (bracketed(row.acc_macro), bracketed(row.gain, "+.3f"), bracketed(row.specificity, "+.3f"))
        out.append(table_line((*place, *numbers)))
    if differences:
        out += ["", "## What it beats", ""]
        out.append("Paired differences in accuracy on the same people and prompts; a star: the interval excludes 0.")
        out += ["", table_line(("against", "dataset", "people", "difference")), table_line(["---"] * 4)]
        for other, found in differences.items():
            out += [
                table_line((escaped(other), escaped(each.dataset), each.regime, difference_of(each))) for each in found
            ]
    out += ["", "## Checks", ""]
    out.append(f"* {manifest['records']} records, {manifest['failed']} failed, {manifest['truncated']} truncated texts")
    out.append(f"* measured at {', '.join(escaped(str(c)) for c in manifest['commits'])}{_tree(manifest)}")
    verdict = f"refused for {len(refusals)} reasons" if refusals else "accepted"
    out.append(f"* `hetpref verify`: {verdict}")
    out.append("* to take it in: `hetpref accept BUNDLE --results DIR`, then `hetpref rerun RECORD --salt SALT`")
    return "\n".join(out) + "\n"


def _tree(manifest: Mapping[str, Any]) -> str:
    return ", with uncommitted changes: it cannot be ranked" if manifest["dirty"] else ""
