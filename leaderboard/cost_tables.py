"""What a board says of costs, as tables: the columns that anybody measured, and the section of `leaderboard.md`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from leaderboard.panel import regime_order
from leaderboard.rows import CostRow, Leaderboard
from leaderboard.table_cells import escaped, number, table_line

_PLACE = ("device class", "dataset", "regime", "method")


@dataclass(frozen=True, slots=True)
class CostColumn:
    """A cost as a column: its title, its field in `CostRow`, how a number is written, and what it is multiplied by."""

    title: str
    field: str
    form: str
    times: float = 1.0

    def cell(self, row: CostRow) -> str:
        """Return the cell of a row, a dash where nobody measured it."""
        value: float | None = getattr(row, self.field)
        return number(None if value is None else self.times * value, self.form)


COST_COLUMNS = (
    CostColumn("fit s", "fit_s", ".3g"),
    CostColumn("trained comparisons per s", "train_comparisons_per_s", ",.1f"),
    CostColumn("adapt ms per person", "adapt_s_per_user", ".3g", 1000),
    CostColumn("comparisons per s", "comparisons_per_s", ",.0f"),
    CostColumn("parameters", "trained_params", ",.0f"),
    CostColumn("per person", "params_per_user", ",.0f"),
    CostColumn("state bytes per person", "state_bytes_per_user", ",.0f"),
    CostColumn("memory MiB", "peak_rss_delta_bytes", ",.0f", 2**-20),
    CostColumn("device MiB", "peak_device_bytes", ",.0f", 2**-20),
)
COST_READING = (
    "Medians over seeds; compare them only within one device class. Seconds are of the processor on a CPU, of the wall "
    "on a GPU; memory is what a cell's process added to its own at its peak."
)


def cost_columns(costs: Sequence[CostRow]) -> list[CostColumn]:
    """Return the columns in which some row has a number: most methods tell no training rate, and most use no GPU."""
    return [column for column in COST_COLUMNS if any(getattr(c, column.field) is not None for c in costs)]


def cost_section(board: Leaderboard) -> list[str]:
    """Return the section of `leaderboard.md`: the costs of the headline rows; none without."""
    headline = {(r.label, r.dataset, r.encoder, r.regime, r.n_train, r.n_support) for r in board.rows if r.headline}
    shown = [c for c in board.costs if (c.label, c.dataset, c.encoder, c.regime, c.n_train, c.n_support) in headline]
    if not shown:
        return []
    columns, named = cost_columns(shown), several_encoders(shown)
    out = ["## Costs", "", COST_READING, ""]
    out.append(table_line((*_PLACE, *(column.title for column in columns))))
    out.append(table_line([*("---" for _ in _PLACE), *("---:" for _ in columns)]))
    for c in sorted(shown, key=lambda c: (c.device_class, c.dataset, c.encoder, regime_order(c.regime), c.label)):
        dataset = f"{c.dataset} ({c.encoder})" if c.dataset in named else c.dataset
        place = (escaped(c.device_class), escaped(dataset), c.regime, escaped(c.label))
        out.append(table_line((*place, *(column.cell(c) for column in columns))))
    return [*out, ""]


def several_encoders(costs: Sequence[CostRow]) -> set[str]:
    """Return the datasets that are seen through more than one encoder: their name does not say which row it is."""
    encoders: dict[str, set[str]] = defaultdict(set)
    for c in costs:
        encoders[c.dataset].add(c.encoder)
    return {dataset for dataset, found in encoders.items() if len(found) > 1}
