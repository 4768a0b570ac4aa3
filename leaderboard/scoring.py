"""From a results folder to panels: records are read, checked against the registry, grouped and completed.

A cell that failed or is missing takes the margins of pooled Bradley-Terry under the same setting and seed, and is
marked as imputed. What cannot be read is listed and skipped; records of another protocol are refused.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit  # pyright: ignore[reportMissingTypeStubs]

from datasets_registry.errors import DataError, HetprefError
from datasets_registry.protocol import PROTOCOL, Count
from leaderboard.labels import Labels, Query, Reals
from leaderboard.panel import POOLED, Block, Column, Entrant, Panel, Setting, built_in, correctness
from leaderboard.records import FileRef, RunRecord, canonical_sha256, printable
from leaderboard.store import ResultsFolder, read_record

Row = tuple[Entrant, Setting]


@dataclass(frozen=True, slots=True)
class Located:
    """A record and the folder it was read from."""

    record: RunRecord
    folder: ResultsFolder
    setting: Setting

    @property
    def entrant(self) -> Entrant:
        """Return who was measured."""
        m = self.record.method
        return Entrant(m.name, m.dist, m.version, m.config_sha256, m.role, m.level, self.record.control)


@dataclass(slots=True)
class Gathered:
    """Every record that counts, and what was left out and why."""

    located: list[Located] = field(default_factory=list["Located"])
    skipped: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def skip(self, name: str, reason: str) -> None:
        """List something that was left out, and say so on stderr."""
        name, reason = printable(name), printable(reason)
        self.skipped.append((name, reason))
        print(f"hetpref leaderboard: skipped {name}: {reason}", file=sys.stderr)

    @property
    def sha256(self) -> str:
        """Return the digest of what was measured: keys, margins and statuses, not timings."""
        told = [(r.key, r.margins.sha256 if r.margins else None, r.status) for r in self.records]
        return canonical_sha256(sorted(told, key=str))

    @property
    def records(self) -> list[RunRecord]:
        """Return the records."""
        return [each.record for each in self.located]


def gather(folders: Sequence[Path], labels: Labels) -> Gathered:
    """Read all records of results folders; the outcome does not depend on the order of folders or files.

    Raises DataError when a record is of another protocol: results of different protocols are never mixed.
    """
    out = Gathered()
    lost: dict[str, list[str]] = defaultdict(list)
    best: dict[tuple[Entrant, Setting, int], Located] = {}
    for folder in sorted({f.resolve() for f in folders}):
        store = ResultsFolder(folder)
        for path in store.record_files():
            name = "/".join(path.parts[-4:])
            try:
                record = read_record(path)
            except DataError as why:
                out.skip(name, str(why))
                continue
            if record.protocol != PROTOCOL:
                raise DataError(
                    f"{name} was measured under protocol {record.protocol!r}, this leaderboard is of {PROTOCOL!r}; "
                    "results of different protocols are never mixed: run again, or read it with a release of "
                    f"protocol {record.protocol!r}"
                )
            if labels.unavailable(record.dataset.name) is not None:
                lost[record.dataset.name].append(name)
                continue
            try:
                each = Located(record, store, _setting(record, labels))
            except HetprefError as why:
                out.skip(name, str(why))
                continue
            place = (each.entrant, each.setting, record.seed)
            if place in best:
                each, worse = sorted((best[place], each), key=lambda e: e.record.preference)
                if worse.record != each.record:
                    out.skip(
                        f"record {worse.record.key[:16]}", f"superseded by {each.record.key[:16]} of the same cell"
                    )
            best[place] = each
    for dataset, names in lost.items():
        some = names[0] if len(names) == 1 else f"{len(names)} records of {dataset}"
        out.skip(some, labels.unavailable(dataset) or "")
    out.located = sorted(best.values(), key=lambda e: (e.setting.order, e.entrant.order, e.record.seed))
    out.skipped.sort()
    return out


def _setting(record: RunRecord, labels: Labels) -> Setting:
    """Return the setting of a record; raises DataError when its dataset or split is not the registry's."""
    split, dataset = record.split, record.dataset
    if (digest := labels.digest(dataset.name)) != dataset.sha256:
        raise DataError(
            f"dataset {dataset.name} has other content here ({digest[:12]}…) than the record's ({dataset.sha256[:12]}…)"
        )
    if (digest := labels.split(dataset.name, split.fold, split.draw).digest) != split.sha256:
        raise DataError(f"the split is not the registry's: {split.sha256[:12]}… instead of {digest[:12]}…")
    people = labels.people(dataset.name, split.fold, split.draw, split.n_users)
    return Setting(dataset.name, dataset.encoder, split.regime, split.n_train, split.n_support, people, split.imbalance)


def panels(gathered: Gathered, labels: Labels) -> Iterator[Panel]:
    """Yield one panel after the other, so that margins of one are in memory at a time.

    A cell that was skipped counts as one that failed: nobody's row is better for what was left out (`_make_ties`).
    """
    groups: dict[tuple[str, str, Count], list[Located]] = defaultdict(list)
    for each in gathered.located:
        s = each.setting
        groups[s.dataset, s.regime, s.n_users if s.regime == "seen" else "all"].append(each)
    for members in groups.values():
        yield _panel(members, labels, gathered)


def _panel(members: Sequence[Located], labels: Labels, gathered: Gathered) -> Panel:
    rows: dict[Row, dict[int, Located]] = defaultdict(dict)
    seeds_of: dict[Setting, set[int]] = defaultdict(set)
    for each in members:
        rows[each.entrant, each.setting][each.record.seed] = each
        seeds_of[each.setting].add(each.record.seed)
    columns = [Column(e, s, {n: x.record for n, x in sorted(by.items())}) for (e, s), by in rows.items()]
    blocks = [
        _block(seed, [by.get(seed) for by in rows.values()], columns, seeds_of, labels, gathered)
        for seed in sorted({seed for seeds in seeds_of.values() for seed in seeds})
    ]
    _make_ties(blocks, columns)
    return Panel(labels.data(columns[0].setting.dataset), columns, blocks)


def _make_ties(blocks: Sequence[Block], columns: Sequence[Column]) -> None:
    """Turn what was imputed to a column that is below pooled Bradley-Terry in the seeds it has into ties.

    Pooled margins would lift it: who does badly would gain by leaving its worst seed out.
    """
    pooled = built_in(columns, POOLED)
    for k in np.flatnonzero(np.any([b.imputed for b in blocks], axis=0)).tolist():
        reference = pooled[columns[k].setting]
        own = [b for b in blocks if b.given[k] and not b.imputed[k]]
        ahead = [float((a - b).mean()) for block in own for a, b in [_right(block, [k, reference[0]])]]
        if ahead and np.mean(ahead) < 0:
            for block in (b for b in blocks if b.imputed[k]):
                block.margins[:, k], block.wrong[:, k], block.inverse_temperature[k] = 0, 0, 1


def _right(block: Block, columns: Sequence[int]) -> NDArray[np.float64]:
    told = block.query.label != 0.5
    return correctness(block.margins[told][:, columns], block.query.label[told]).T


def _block(
    seed: int,
    located: Sequence[Located | None],
    columns: Sequence[Column],
    seeds_of: dict[Setting, set[int]],
    labels: Labels,
    gathered: Gathered,
) -> Block:
    """Stack the margins of one seed, and impute what is missing."""
    some = next(each for each in located if each)
    at = some.record.split
    query = labels.query(some.setting.dataset, at.fold, at.draw, at.regime, some.setting.n_users)
    k = len(columns)
    margins = np.zeros((len(query), k), dtype=np.float32)
    wrong = np.full((len(query), k), np.nan, dtype=np.float32)
    given = np.zeros(k, dtype=bool)
    for column, each in enumerate(located):
        if each and each.record.status == "ok":
            try:
                margins[:, column], wrong[:, column] = _margins(each, query)
                given[column] = True
            except DataError as why:
                gathered.skip(f"margins of {each.record.key[:16]}", str(why))
    beta = np.array(_temperatures([e if g else None for e, g in zip(located, given, strict=True)], labels, gathered))
    imputed = np.zeros(k, dtype=bool)
    pooled = {s: there[0] for s, some in built_in(columns, POOLED).items() if (there := [n for n in some if given[n]])}
    for column in np.flatnonzero(~given).tolist():
        setting = columns[column].setting
        if seed in seeds_of[setting] and setting in pooled and columns[column].entrant.control is None:
            source = pooled[setting]
            margins[:, column], wrong[:, column] = margins[:, source], margins[:, source]
            beta[column] = beta[source]
            imputed[column] = True
    return Block(seed, query, margins, wrong, given | imputed, imputed, beta)


def _margins(each: Located, query: Query) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    ref = each.record.margins
    if ref is None:
        raise DataError("the record is ok but names no margins file")
    table = each.folder.read_margins(ref)
    for name in ("row", "margin"):
        if name not in table:
            raise DataError(f"margins file {ref.path} has no column {name!r}; it has {', '.join(table)}")
    own = query.align(table["row"], table["margin"])
    column = ref.control.get("wrong_user")
    if column is None or column not in table:
        return own, np.full(len(query), np.nan, dtype=np.float32)
    return own, query.align(table["row"], table[column])


def _temperatures(located: Iterable[Located | None], labels: Labels, gathered: Gathered) -> list[float]:
    """Return the inverse temperature of each column; fits that share a validation file are fitted once."""
    found: dict[str, tuple[Query, NDArray[np.float32]] | None] = {}
    keys: list[str] = []
    for each in located:
        ref: FileRef | None = each.record.margins.validation if each and each.record.margins else None
        keys.append(ref.sha256 if ref else "")
        if each and ref and ref.sha256 not in found:
            at = each.record.split
            try:
                part = labels.validation(each.setting.dataset, at.fold, at.draw, each.setting.n_users, at.n_train)
                table = each.folder.read_margins(ref)
                found[ref.sha256] = (part, part.align(table["row"], table["margin"]))
            except (HetprefError, KeyError) as why:
                gathered.skip(f"validation margins of {each.record.key[:16]}", f"no temperature: {why}")
                found[ref.sha256] = None
    fitted: dict[str, float] = {"": float("nan")} | {key: float("nan") for key in found}
    parts: dict[int, list[str]] = defaultdict(list)
    for key, told in found.items():
        if told:
            parts[id(told[0])].append(key)
    for same in parts.values():
        told = [found[key] for key in same]
        stacked = np.stack([t[1] for t in told if t], axis=1)
        label = next(t[0].label for t in told if t)
        fitted |= dict(zip(same, inverse_temperature(stacked, label).tolist(), strict=True))
    return [fitted[key] for key in keys]


def inverse_temperature(margins: NDArray[np.float32], label: Reals, steps: int = 60) -> Reals:
    """Return the 1/T per column that minimises the log loss of sigma(margin / T), float64 [k], ties as soft labels.

    The loss is convex in 1/T, so that its slope is bisected: 1/T is kept between 0 and 100 over the margins' root mean
    square, since separable margins have no optimum. Margins that are all zero keep 1.
    """
    m = margins.astype(np.float64)
    scale = np.sqrt((m * m).mean(axis=0)) if len(m) else np.zeros(m.shape[1])
    moving = scale > 0
    m = m[:, moving] / scale[moving]
    low, high = np.zeros(m.shape[1]), np.full(m.shape[1], 100.0)
    pull = (m * label[:, None]).sum(axis=0)
    for _ in range(steps):
        middle = (low + high) / 2
        rising = (m * expit(m * middle)).sum(axis=0) > pull
        low, high = np.where(rising, low, middle), np.where(rising, middle, high)
    out = np.ones(margins.shape[1])
    out[moving] = (low + high) / 2 / scale[moving]
    return out
