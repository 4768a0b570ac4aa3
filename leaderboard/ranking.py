"""From a panel to rows: metrics, ranks and tiers within each setting, curves, and the material of the overall table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaderboard.metrics import METRICS, Estimate, curves, person_accuracy
from leaderboard.panel import Column, Entrant, Panel, Setting, count_order, regime_order
from leaderboard.records import Regime, RunRecord
from leaderboard.rows import Badge, Curve, CurvePoint, Interval, Overall, RankInterval, Row, rounded
from leaderboard.statistics import interval, pairwise, point, rank_bounds, ranks, tiers

MAX_IMPUTED = 0.10
LEAST_TENTH = 10
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
Labeller = Callable[[Entrant], str]


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """One entrant at one dataset's headline, for the overall table: gain with its draws, and AULC."""

    label: str
    method: str
    regime: Regime
    group: str
    gain: float
    aulc: float
    draws: NDArray[np.float32]


@dataclass(slots=True)
class Scored:
    """What panels gave: rows, curves and standings."""

    rows: list[Row] = field(default_factory=list[Row])
    curves: list[Curve] = field(default_factory=list[Curve])
    standings: list[Standing] = field(default_factory=list[Standing])


def place(entrant: Entrant, setting: Setting, label: str) -> dict[str, Any]:
    """Return the fields that name a row."""
    return {
        "method": entrant.method,
        "label": label,
        "dataset": setting.dataset,
        "encoder": setting.encoder,
        "regime": setting.regime,
        "n_train": setting.n_train,
        "n_support": setting.n_support,
        "n_users": setting.n_users,
        "imbalance": setting.imbalance,
        "control": entrant.control,
    }


def score(panel: Panel, labelled: Labeller, headlines: set[Setting], *, rank_dirty: bool = False) -> Scored:
    """Compute every metric of a panel and rank the entrants of each of its settings."""
    estimates = {name: metric(panel) for name, metric in METRICS.items()}
    cells = {name: _intervals(estimate) for name, estimate in estimates.items()}
    people = person_accuracy(panel)
    out = Scored()
    members: dict[Setting, list[int]] = defaultdict(list)
    for k, column in enumerate(panel.columns):
        members[column.setting].append(k)
    for setting, columns in members.items():
        rankable = [k for k in columns if _rankable(panel, k, rank_dirty)]
        placed = _ranked(panel, rankable)
        for k in columns:
            out.rows.append(_row(panel, k, {n: c[k] for n, c in cells.items()}, people[:, k], placed.get(k), labelled))
        if setting in headlines:
            out.rows[-len(columns) :] = [r.model_copy(update={"headline": True}) for r in out.rows[-len(columns) :]]
            out.standings += [_standing(panel, k, estimates, labelled) for k in rankable]
    for columns in curves(panel, complete=False):
        out.curves.append(_curve(panel, columns, cells, labelled))
    return out


def _intervals(estimate: Estimate) -> list[Interval]:
    low, high = estimate.bounds()
    return [
        Interval(value=rounded(v), low=rounded(a), high=rounded(b))
        for v, a, b in zip(estimate.value.tolist(), low.tolist(), high.tolist(), strict=True)
    ]


def badge_of(records: Sequence[RunRecord]) -> Badge:
    """Return the badge of a row: margins are re-scored here, but a dirty tree is at most reported."""
    return "reported" if any(r.source.dirty for r in records) else "rescored"


def _imputed(panel: Panel, k: int) -> float:
    expected = max(int(panel.given[:, k].sum()), len(panel.columns[k].records))
    lost = int(panel.imputed[:, k].sum()) + expected - int(panel.given[:, k].sum())
    return lost / max(expected, 1)


def _rankable(panel: Panel, k: int, rank_dirty: bool) -> bool:
    column = panel.columns[k]
    clean = rank_dirty or badge_of(list(column.records.values())) != "reported"
    method = column.entrant.role == "method" and column.entrant.control is None
    return method and clean and bool(panel.given[:, k].any()) and _imputed(panel, k) <= MAX_IMPUTED


def _ranked(panel: Panel, columns: list[int]) -> dict[int, tuple[RankInterval, int]]:
    """Return rank and tier by accuracy, both from one matrix of corrected differences."""
    if not columns:
        return {}
    values = point(panel.own)[columns]
    shared = panel.crossing.shared_variance(panel.influence("own")[:, columns])
    p = pairwise(values, panel.draws["own"][columns], shared).p
    ordinal, tier = ranks(values), tiers(values, p)
    low, high = rank_bounds(values, p)
    told = zip(columns, ordinal.tolist(), low.tolist(), high.tolist(), tier.tolist(), strict=True)
    return {k: (RankInterval(value=o, low=a, high=b), t) for k, o, a, b, t in told}


def _row(
    panel: Panel,
    k: int,
    cells: dict[str, Interval],
    people: NDArray[np.float64],
    placed: tuple[RankInterval, int] | None,
    labelled: Labeller,
) -> Row:
    column = panel.columns[k]
    records = list(column.records.values())
    there = people[~np.isnan(people)]
    quantiles: list[float] = [float(np.quantile(there, q)) for q in _QUANTILES] if len(there) else []
    if len(there) < 10 * LEAST_TENTH:  # the lowest tenth of few people says who they are, not how people are served
        cells["worst10"] = Interval()
    told: dict[str, Any] = {**place(column.entrant, column.setting, labelled(column.entrant)), **cells}
    return Row(
        **told,
        level=records[0].method.level,
        role=records[0].method.role,
        version=column.entrant.version,
        config=records[0].method.config,
        seeds=[b.seed for b, given in zip(panel.blocks, panel.given[:, k], strict=True) if given],
        n_mean=rounded(panel.n_mean[column.setting]) or 0.0,
        people=[round(q, 6) + 0.0 for q in quantiles],
        rank=placed[0] if placed else None,
        tier=placed[1] if placed else None,
        badge=badge_of(records),
        imputed=rounded(_imputed(panel, k)) or 0.0,
        failed=sum(r.status not in ("ok", "skipped") for r in records),
        skipped=sum(r.status == "skipped" for r in records),
        transductive=any(r.method.transductive for r in records),
        headline=False,
        records=[r.key[:16] for r in records],
    )


def _curve(panel: Panel, columns: list[int], cells: dict[str, list[Interval]], labelled: Labeller) -> Curve:
    first = panel.columns[columns[0]]
    setting, entrant = first.setting, first.entrant
    by_train = setting.regime == "seen"
    points = [
        CurvePoint(
            n=panel.columns[k].setting.n,
            n_mean=rounded(panel.n_mean[panel.columns[k].setting]) or 0.0,
            acc_macro=cells["acc_macro"][k],
            gain=cells["gain"][k],
        )
        for k in columns
        if _imputed(panel, k) < 1  # it would be a point of pooled Bradley-Terry's
    ]
    return Curve.model_validate(
        {
            **{key: value for key, value in place(entrant, setting, labelled(entrant)).items() if key in _CURVE_PLACE},
            "role": "control" if entrant.control else entrant.role,
            "axis": "n_train" if by_train else "n_support",
            "n_train": None if by_train else setting.n_train,
            "points": points,
        }
    )


_CURVE_PLACE = frozenset({"method", "label", "dataset", "encoder", "regime", "n_users", "imbalance"})


def _standing(panel: Panel, k: int, estimates: dict[str, Estimate], labelled: Labeller) -> Standing:
    column, gains = panel.columns[k], estimates["gain"]
    return Standing(
        label=labelled(column.entrant),
        method=column.entrant.method,
        regime=column.setting.regime,
        group=f"{column.setting.dataset} {column.setting.encoder}",
        gain=float(gains.value[k]),
        aulc=float(estimates["aulc"].value[k]),
        draws=gains.widened(k).astype(np.float32),
    )


def headlines(columns: Sequence[Column] | Sequence[Setting]) -> set[Setting]:
    """Return, per dataset, encoder and regime, the setting of the headline table.

    It has everybody (or the most people), no imbalance, the largest n_train and, for new people, the largest n_support.
    """
    best: dict[tuple[str, str, str], Setting] = {}
    for each in columns:
        s = each.setting if isinstance(each, Column) else each
        group = (s.dataset, s.encoder, s.regime)
        if group not in best or _extent(s) > _extent(best[group]):
            best[group] = s
    return set(best.values())


def _extent(s: Setting) -> tuple[Any, ...]:
    return s.imbalance is None, count_order(s.n_users), count_order(s.n_train), count_order(s.n_support)


def overall(standings: Sequence[Standing]) -> list[Overall]:
    """Return the mean gain, and the mean ranks by gain and by AULC, over the datasets of each regime."""
    out: list[Overall] = []
    regimes: set[Regime] = {s.regime for s in standings}
    for regime in sorted(regimes, key=regime_order):
        groups: dict[str, list[Standing]] = defaultdict(list)
        for s in standings:
            if s.regime == regime and not np.isnan(s.gain):
                groups[s.group].append(s)
        mine: dict[str, list[tuple[Standing, int, int | None]]] = defaultdict(list)
        for members in groups.values():
            by_gain = ranks(np.array([s.gain for s in members])).tolist()
            areas = np.array([s.aulc for s in members])
            by_aulc: list[int | None] = [None] * len(members) if np.isnan(areas).any() else ranks(areas).tolist()
            for s, g, a in zip(members, by_gain, by_aulc, strict=True):
                mine[s.label].append((s, g, a))
        for told in mine.values():
            mean = np.stack([s.draws for s, _, _ in told]).astype(np.float64).mean(axis=0, keepdims=True)
            low, high = interval(mean)
            area = [a for _, _, a in told if a is not None]
            value = float(np.mean([s.gain for s, _, _ in told]))
            out.append(
                Overall(
                    method=told[0][0].method,
                    label=told[0][0].label,
                    regime=told[0][0].regime,
                    datasets=len(told),
                    complete=len(told) == len(groups),
                    gain=Interval(value=rounded(value), low=rounded(low[0]), high=rounded(high[0])),
                    gain_rank=round(float(np.mean([g for _, g, _ in told])), 6),
                    aulc_rank=round(float(np.mean(area)), 6) if len(area) == len(told) else None,
                )
            )
    return sorted(out, key=lambda o: (regime_order(o.regime), not o.complete, o.gain_rank, o.label))
