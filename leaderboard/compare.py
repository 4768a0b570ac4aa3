"""The paired difference of two entrants: per dataset, regime and budget, and over all datasets."""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets_registry.errors import RequestError, unknown
from datasets_registry.protocol import Count
from leaderboard.entrant_labels import labeller
from leaderboard.labels import Labels, Reals
from leaderboard.metrics import estimated
from leaderboard.panel import POOLED, Panel, Setting, regime_order
from leaderboard.ranking import Labeller, headlines
from leaderboard.records import Regime
from leaderboard.rows import rounded
from leaderboard.scoring import Gathered, gather, panels
from leaderboard.statistics import interval, point

OVERALL = "overall"


@dataclass(frozen=True, slots=True)
class Difference:
    """Accuracy of the first minus that of the second, with its 95 % interval; `dataset` is OVERALL for the mean."""

    dataset: str
    encoder: str | None
    regime: Regime
    n_train: Count | None
    n_support: int | None
    n_users: Count | None
    imbalance: str | None
    seeds: int
    difference: float
    low: float
    high: float


def compare(first: str, second: str, results: Path, labels: Labels | None = None) -> list[Difference]:
    """Compare two entrants by label (their name, unless it has several configurations) on the same people and units.

    The overall rows are means over the headline settings of all datasets that have both. What was left out is said on
    stderr. Raises RequestError when a label is not there, when both are one, or when there is no setting in which both
    were measured.
    """
    labels = labels or Labels()
    if first == second:
        raise RequestError(f"{first} is compared with itself; name two methods, such as {first} and {POOLED}")
    if not results.is_dir():
        raise RequestError(
            f"results folder {str(results)!r} does not exist. Make one: hetpref run quick --out {results}"
        )
    gathered = gather([results], labels)
    labelled = labeller((e.entrant, e.record.method.config) for e in gathered.located)
    known = sorted({labelled(e.entrant) for e in gathered.located})
    for name in (first, second):
        if name not in known:
            raise unknown("method", name, known, then="These were measured in this folder")
    gathered.located = [
        e for e in gathered.located if labelled(e.entrant) in (first, second) or e.entrant.method == POOLED
    ]
    out = _differences(gathered, labels, labelled, first, second)[second]
    if not out:
        raise RequestError(f"{first} and {second} have no setting and seeds in common; run both with one suite")
    return out


def against(first: str, results: Path, labels: Labels | None = None) -> dict[str, list[Difference]]:
    """Return the differences of an entrant (by label) to each other method and control, by label, in one pass.

    Only headline settings, and the mean over them per regime, as `compare` gives them; who has none in common is left
    out.
    """
    labels = labels or Labels()
    gathered = gather([results], labels)
    labelled = labeller((e.entrant, e.record.method.config) for e in gathered.located)
    shown = headlines([e.setting for e in gathered.located])
    gathered.located = [e for e in gathered.located if e.setting in shown and e.entrant.control is None]
    found = _differences(gathered, labels, labelled, first, None)
    return {name: rows for name, rows in sorted(found.items()) if rows}


def _differences(
    gathered: Gathered,
    labels: Labels,
    labelled: Labeller,
    first: str,
    second: str | None,
) -> dict[str, list[Difference]]:
    """Return the differences of `first` to `second` by setting, and per regime over all; None stands for every other.

    What is left out of a comparison that was asked for by name is said on stderr.
    """
    shown = headlines([e.setting for e in gathered.located])
    out: dict[str, list[Difference]] = defaultdict(list)
    means: dict[tuple[str, Regime], list[tuple[float, Reals, int]]] = defaultdict(list)
    for panel in panels(gathered, labels):
        own, drawn, influence = point(panel.own), panel.draws["own"], panel.influence("own")
        at: dict[Setting, dict[str, int]] = defaultdict(dict)
        for k, column in enumerate(panel.columns):
            at[column.setting][labelled(column.entrant)] = k
        for setting, columns in at.items():
            for other in [name for name in columns if name != first] if second is None else [second]:
                if not {first, other} & set(columns):
                    continue
                if why := _incomparable(panel, columns, first, other):
                    if second is not None:
                        print(f"hetpref compare: left out {_title(setting)}: {why}", file=sys.stderr)
                    continue
                a, b = columns[first], columns[other]
                if second is not None and (imputed := int(panel.imputed[:, [a, b]].sum())):
                    said = f"{imputed} cells failed, were skipped or are damaged and count as pooled Bradley-Terry"
                    print(f"hetpref compare: {_title(setting)}: {said}", file=sys.stderr)
                apart = own[[a]] - own[[b]], drawn[[a]] - drawn[[b]], influence[:, [a]] - influence[:, [b]]
                difference = estimated(panel, *apart)
                value, draws = float(difference.value[0]), difference.widened(0)
                seeds = int(panel.given[:, a].sum())
                out[other].append(_difference(setting, setting.regime, value, draws, seeds))
                if setting in shown:
                    means[other, setting.regime].append((value, draws, seeds))
    for (other, regime), each in sorted(means.items(), key=lambda item: regime_order(item[0][1])):
        mean = np.mean([d for _, d, _ in each], axis=0)
        value = float(np.mean([v for v, _, _ in each]))
        out[other].append(_difference(None, regime, value, mean, min(s for _, _, s in each)))
    return out


def _incomparable(panel: Panel, columns: dict[str, int], first: str, second: str) -> str | None:
    """Return why two entrants cannot be compared in a setting, None when they can."""
    seeds: dict[str, list[int]] = {}
    for name in (first, second):
        there = panel.given[:, columns[name]].tolist() if name in columns else [False] * len(panel.blocks)
        seeds[name] = [block.seed for block, given in zip(panel.blocks, there, strict=True) if given]
    if seeds[first] and seeds[first] == seeds[second]:
        return None
    return ", ".join(f"{name} has {f'seeds {found}' if found else 'no margins'}" for name, found in seeds.items())


def _title(setting: Setting) -> str:
    support = "" if setting.n_support is None else f", n_support {setting.n_support}"
    return f"{setting.dataset}, {setting.regime}, n_train {setting.n_train}{support}"


def _difference(setting: Setting | None, regime: Regime, value: float, draws: Reals, seeds: int) -> Difference:
    low, high = interval(draws[None])
    return Difference(
        dataset=setting.dataset if setting else OVERALL,
        encoder=setting.encoder if setting else None,
        regime=regime,
        n_train=setting.n_train if setting else None,
        n_support=setting.n_support if setting else None,
        n_users=setting.n_users if setting else None,
        imbalance=setting.imbalance if setting else None,
        seeds=seeds,
        difference=rounded(value) or 0.0,
        low=rounded(float(low[0])) or 0.0,
        high=rounded(float(high[0])) or 0.0,
    )
