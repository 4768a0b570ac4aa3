"""The board: everything that may be claimed from results folders, and the files it is written to."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from datasets_registry.atomic_write import write_atomically
from datasets_registry.errors import DataError, HetprefError, RequestError, printable
from datasets_registry.protocol import PROTOCOL
from leaderboard.entrant_labels import labeller
from leaderboard.kernel_summaries import summarised
from leaderboard.kernels import gather_kernels
from leaderboard.labels import Labels
from leaderboard.ledger import LEDGER, Submitted, Verified, badged, ledger_rows, read_ledger
from leaderboard.panel import count_order, regime_order
from leaderboard.ranking import Labeller, Scored, headlines, overall, place, score
from leaderboard.rows import COSTS, CostRow, Failure, Leaderboard, RecordsDigest, Row, Skipped, rounded
from leaderboard.scoring import Gathered, Located, gather, panels

SITE_EXTRA = 'pip install "hetpref[site]"'


@dataclass(frozen=True, slots=True)
class Board:
    """A leaderboard and how it is written; `ledger` is the file of submissions that it was built with, if any."""

    leaderboard: Leaderboard
    ledger: bytes | None = None

    def to_json(self) -> str:
        """Return `leaderboard.json`: stable order, fixed float format, no clock."""
        told = self.leaderboard.model_dump(mode="json")
        return "{\n" + ",\n".join(f"{_json(key)}:{_lines(value)}" for key, value in told.items()) + "\n}\n"

    def to_markdown(self) -> str:
        """Return `leaderboard.md`."""
        from leaderboard.markdown import markdown

        return markdown(self.leaderboard)

    def to_text(self) -> str:
        """Return the headline tables for a terminal."""
        from leaderboard.markdown import text

        return text(self.leaderboard)

    def write(self, out: Path, *, pages: bool = True) -> list[str]:
        """Write JSON, Markdown, CSV and, if the extra is there, plots and the page; return what was left out."""
        from leaderboard.comma import kernels_csv, to_csv

        write_atomically(out / "leaderboard.json", self.to_json().encode())
        write_atomically(out / "leaderboard.md", self.to_markdown().encode())
        write_atomically(out / "leaderboard.csv", to_csv(self.leaderboard).encode())
        if self.leaderboard.kernels:
            write_atomically(out / "kernels.csv", kernels_csv(self.leaderboard).encode())
        else:
            (out / "kernels.csv").unlink(missing_ok=True)
        if self.ledger is not None:
            write_atomically(out / LEDGER, self.ledger)
        if not pages:
            return []
        if importlib.util.find_spec("vl_convert") is None:
            return [f"plots and site/index.html were left out: vl-convert-python is not installed. {SITE_EXTRA}"]
        from leaderboard.kernel_plots import left_out
        from leaderboard.plots import write_plots
        from leaderboard.site import site

        write_plots(self.leaderboard, out / "plots")
        write_atomically(out / "site" / "index.html", site(self.leaderboard).encode())
        return [told] if (told := left_out(self.leaderboard)) else []


def build_board(
    folders: Sequence[Path],
    methods: Sequence[Mapping[str, Any]] = (),
    labels: Labels | None = None,
    *,
    rank_dirty: bool = False,
) -> Board:
    """Score every record of results folders and put them on one board.

    `methods` are the cards of methods (at least `name`; `title` is shown), which the caller takes from their registry.
    A row measured on a dirty tree is `reported` and has no rank, unless `rank_dirty` asks for a draft for oneself.
    Raises DataError on records of another protocol, RequestError where there are no records at all.
    """
    labels = labels or Labels()
    folders = [Path(f) for f in folders]
    for folder in folders:
        if not folder.is_dir():
            raise RequestError(
                f"results folder {str(folder)!r} does not exist. Make one: hetpref run quick --out {folder}"
            )
    gathered = gather(folders, labels)
    kernels = gather_kernels(folders)
    for name, reason in kernels.skipped:
        gathered.skip(name, reason)
    if not gathered.located and not gathered.skipped and not kernels.rows:
        given = ", ".join(str(f) for f in folders)
        expected = "records/<dataset>/<method>/<key>.json or kernels/*.json"
        raise RequestError(f"there are no records in {given}: expected {expected}")
    entries, ledger = _ledger(folders)
    labelled = labeller((each.entrant, each.record.method.config) for each in gathered.located)
    shown = headlines([e.setting for e in gathered.located])
    scored = Scored()
    for panel in panels(gathered, labels):
        part = score(panel, labelled, shown, rank_dirty=rank_dirty)
        scored.rows += part.rows
        scored.curves += part.curves
        scored.standings += part.standings
    names = sorted({each.setting.dataset for each in gathered.located})
    entered = {each.entrant.method for each in gathered.located}
    board = Leaderboard(
        protocol=PROTOCOL,
        records=RecordsDigest(count=len(gathered.located), sha256=gathered.sha256),
        datasets=[dataset_card(name, labels) for name in names],
        methods=sorted((_plain(m) for m in methods if m.get("name") in entered), key=lambda m: str(m["name"])),
        rows=sorted(badged(scored.rows, [e.record for e in gathered.located], entries), key=row_order),
        overall=overall(scored.standings),
        curves=sorted(scored.curves, key=lambda c: (c.dataset, c.encoder, regime_order(c.regime), c.label, str(c))),
        failures=failures(gathered, labelled),
        skipped=[
            Skipped(name=printable(name)[:4000], reason=printable(reason)[:4000])
            for name, reason in sorted(gathered.skipped)
        ],
        kernels=kernels.rows,
        kernel_summaries=summarised(kernels.rows),
        kernel_runs=kernels.runs,
        ledger=ledger_rows(entries),
        costs=costs(gathered, labelled),
    )
    return Board(board, ledger)


def _ledger(folders: Sequence[Path]) -> tuple[list[Submitted | Verified], bytes | None]:
    """Return the ledger of the folders and its file; raises RequestError where several have one."""
    having = sorted({f.resolve() for f in folders if (f / LEDGER).exists()})
    if len(having) > 1:
        told = ", ".join(str(f) for f in having)
        raise RequestError(f"{told} have a ledger each, and two chains are not one; build a board from one of them")
    return (read_ledger(having[0]), (having[0] / LEDGER).read_bytes()) if having else ([], None)


def read_board(path: Path) -> Leaderboard:
    """Read a `leaderboard.json`, or the one in a folder; raises DataError when it is none."""
    file = path / "leaderboard.json" if path.is_dir() else path
    try:
        return Leaderboard.model_validate_json(file.read_bytes())
    except (OSError, ValueError) as why:
        raise DataError(f"{file} is not a leaderboard.json: {str(why)[:300]}") from why


def row_order(row: Row) -> tuple[Any, ...]:
    """Return the order of rows: by table, then tier and rank, then unranked ones by accuracy."""
    budgets = tuple(count_order(n) for n in (row.n_users, row.n_train, row.n_support))
    rank = row.rank.value if row.rank else 1 << 30
    table = (row.dataset, row.encoder, regime_order(row.regime), row.imbalance or "", *budgets)
    return (*table, row.tier or 1 << 30, rank, -(row.acc_macro.value or 0.0), row.label)


def dataset_card(name: str, labels: Labels) -> dict[str, Any]:
    """Return what a dataset is and how large, with its measured heterogeneity where the registry has one."""
    data = labels.data(name)
    card = _plain(dataclasses.asdict(data.card))
    card |= {
        "id": name,
        "people": len(data.users),
        "items": len(data.items),
        "comparisons": len(data.comparisons),
        "ties": int((data.comparisons.label == 0.5).sum()),
        "heterogeneity": None,
    }
    try:
        measured: Callable[[str], Any] = importlib.import_module("datasets_registry.heterogeneity").measured
        card["heterogeneity"] = _plain(measured(name))
    except (ImportError, AttributeError, HetprefError):
        pass
    return card


def failures(gathered: Gathered, labelled: Labeller) -> list[Failure]:
    """Return the cells that gave no margins, failed or skipped."""
    out = [
        Failure(
            **place(e.entrant, e.setting, labelled(e.entrant)),
            seed=e.record.seed,
            status=e.record.status,
            reason=(e.record.reason or "").strip().split("\n")[0][:300],
        )
        for e in gathered.located
        if e.record.status != "ok"
    ]
    return out


def costs(gathered: Gathered, labelled: Labeller) -> list[CostRow]:
    """Return the median cost over seeds of every row, one per device class."""
    groups: dict[tuple[Any, ...], list[Located]] = defaultdict(list)
    for each in gathered.located:
        if each.record.status == "ok":
            groups[each.setting, each.entrant, each.record.environment.device_class].append(each)
    out: list[CostRow] = []
    for (setting, entrant, device_class), members in groups.items():
        medians: dict[str, Any] = {}
        for name in COSTS:
            told = [v for m in members if (v := getattr(m.record.cost, name)) is not None]
            medians[name] = rounded(float(np.median(told))) if told else None
        environment = members[0].record.environment
        out.append(
            CostRow(
                **place(entrant, setting, labelled(entrant)),
                **medians,
                device_class=device_class,
                device=environment.device,
                threads=environment.threads,
                seeds=[m.record.seed for m in members],
            )
        )
    return sorted(out, key=lambda c: (c.dataset, c.encoder, regime_order(c.regime), c.label, c.device_class, str(c)))


def _plain(value: Any) -> Any:
    """Return a JSON value of cards: sets sorted, tuples as lists, floats rounded."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, set | frozenset):
        return sorted(str(v) for v in cast(set[Any], value))
    if isinstance(value, list | tuple):
        return [_plain(v) for v in cast(list[Any], value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return rounded(value)
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def _lines(value: Any) -> str:
    """Return a list with an element per line, so that a changed row is a changed line and the file stays small."""
    if not isinstance(value, list) or not value:
        return _json(value)
    return "[\n" + ",\n".join(_json(each) for each in cast(list[Any], value)) + "\n]"
