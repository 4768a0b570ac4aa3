"""What a re-run must show for the badge `verified`, and the line of the ledger that grants it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from datasets_registry.errors import DataError, RequestError
from datasets_registry.records import PreferenceData
from leaderboard.agreement import ACCURACY, DECISIONS, GainAgreement, MarginAgreement, compare_margins
from leaderboard.labels import Labels
from leaderboard.ledger import KEY, Submitted, Verified, append, margins_of, read_ledger, standing
from leaderboard.metrics import METRICS
from leaderboard.panel import POOLED
from leaderboard.records import RunRecord
from leaderboard.rows import Interval, rounded
from leaderboard.scoring import gather, panels
from leaderboard.store import ResultsFolder, read_record


@dataclass(frozen=True, slots=True)
class Line:
    """One check as a person reads it."""

    what: str
    then: str
    now: str
    allowed: str
    agrees: bool


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a re-run compares with its record; `salted` is None where no salt was given."""

    rerun: MarginAgreement
    salted: GainAgreement | None

    @property
    def agrees(self) -> bool:
        """Return whether everything that was looked at agrees."""
        return self.rerun.agrees and (self.salted is None or self.salted.agrees)

    @property
    def lines(self) -> list[Line]:
        """Return every check."""
        same, other = self.rerun, self.salted
        apart = abs(same.accuracy_now - same.accuracy_then)
        out = [
            Line("decisions turned", "", f"{same.decisions:.2%}", f"{DECISIONS:.0%}", same.decisions <= DECISIONS),
            Line(
                "accuracy", f"{same.accuracy_then:.4f}", f"{same.accuracy_now:.4f}", f"± {ACCURACY}", apart <= ACCURACY
            ),
        ]
        if other is not None:
            least = f"at least {other.least:+.4f}"
            out.append(
                Line("gain on a salted fold", f"{other.submitted:+.4f}", f"{other.found:+.4f}", least, other.agrees)
            )
        return out


def results_of(path: Path) -> Path:
    """Return the results folder of a record's file; raises RequestError where it stands in none."""
    above = path.absolute().parents
    if len(above) < 4 or above[2].name != "records":
        raise RequestError(f"{str(path)!r} is in no results folder: DIR/records/<dataset>/<method>/<key>.json is one")
    return above[3]


def fellows(record: RunRecord, root: Path) -> list[RunRecord]:
    """Return the other records of the same fit."""
    out: list[RunRecord] = []
    for path in sorted((root / "records" / record.dataset.name / record.method.name).glob("*.json")):
        try:
            other = read_record(path)
        except DataError:
            continue
        if other.fit_key == record.fit_key and other.key != record.key:
            out.append(other)
    return out


def agreement(
    record: RunRecord,
    root: Path,
    again: RunRecord,
    same: Path,
    salted: PreferenceData | None,
    elsewhere: Path,
    labels: Labels | None = None,
) -> Agreement:
    """Compare a record of `root` with `again` in the folder `same`, and its row's gain with that in `elsewhere`.

    `salted` is the dataset that `elsewhere` was measured on. Raises RequestError where the record has no margins, or no
    gain since pooled Bradley-Terry was not measured beside it.
    """
    labels = labels or Labels()
    if record.margins is None or again.margins is None:
        raise RequestError(f"record {record.key[:KEY]} has no margins (status {record.status}); give one that has")
    at = record.split
    people = labels.people(record.dataset.name, at.fold, at.draw, at.n_users)
    query = labels.query(record.dataset.name, at.fold, at.draw, at.regime, people)
    then, now = ResultsFolder(root).read_margins(record.margins), ResultsFolder(same).read_margins(again.margins)
    found = compare_margins(query, then, now)
    if salted is None:
        return Agreement(found, None)
    submitted = gain_of(record, root, labels)
    shown = gain_of(record, elsewhere, Labels(load=lambda name: salted))
    compared = GainAgreement.of(submitted, shown)
    if compared is None:
        raise RequestError(
            f"the gain of {record.method.name} cannot be told: {POOLED} was not measured beside it in {root}. Run it "
            f"there with the same suite, or accept the submission into results that have it"
        )
    return Agreement(found, compared)


def gain_of(record: RunRecord, root: Path, labels: Labels) -> Interval:
    """Return the gain of the row that a record is of, with its interval, over all seeds that stand in a folder."""
    gathered = gather([root], labels)
    at, method = record.split, record.method
    people = labels.people(record.dataset.name, at.fold, at.draw, at.n_users)
    gathered.located = [
        e
        for e in gathered.located
        if (e.entrant.method == method.name or e.entrant.method == POOLED)
        and (e.setting.dataset, e.setting.encoder, e.setting.regime)
        == (record.dataset.name, record.dataset.encoder, at.regime)
        and (e.setting.n_train, e.setting.n_support, e.setting.n_users) == (at.n_train, at.n_support, people)
        and e.record.control == record.control
    ]
    for panel in panels(gathered, labels):
        estimate = METRICS["gain"](panel)
        low, high = estimate.bounds()
        for k, column in enumerate(panel.columns):
            first = next(iter(column.records.values())).method
            if (first.name, first.dist, first.config_sha256) == (method.name, method.dist, method.config_sha256):
                return Interval(
                    value=rounded(float(estimate.value[k])), low=rounded(float(low[k])), high=rounded(float(high[k]))
                )
    return Interval()


def must_be_grantable(record: RunRecord, root: Path) -> Submitted:
    """Return the submission that a record is of; raises RequestError where the ledger has none, or other margins."""
    last = standing(read_ledger(root), (record.method.name, record.method.dist))
    if last is None:
        raise RequestError(
            f"the ledger of {root} has no submission of {record.method.name} of {record.method.dist}; `verified` is "
            f"granted to what was accepted: hetpref accept BUNDLE --results {root}"
        )
    if last.margins.get(record.key[:KEY]) != next(iter(margins_of([record]).values())):
        raise RequestError(f"record {record.key[:KEY]} is not as it was submitted in line {last.number} of the ledger")
    return last


def grant_verified(record: RunRecord, root: Path, found: Agreement, salt: str, reviewer: str) -> Verified:
    """Write the line that grants `verified` to the submission of a record; raises RequestError where nothing agrees."""
    last = must_be_grantable(record, root)
    if not found.agrees or found.salted is None:
        raise RequestError("`verified` needs a re-run that agrees, and one on a salted fold that does")
    method = record.method
    told = {"method": method.name, "dist": method.dist, "version": method.version, "bundle": last.bundle}
    told |= {"date": datetime.now(UTC).date(), "record": record.key, "reviewer": reviewer, "salt": salt}
    entry = append(root, Verified, {**told, "rerun": found.rerun, "salted": found.salted})
    assert isinstance(entry, Verified)
    return entry
