"""Every metric of the protocol: one entry each in `METRICS`.

A metric that is an average over units (then people, then seeds) gives `measure`; any other gives `compute`. Within a
unit, comparisons are averaged first. Label ties are left out of accuracies and kept, as soft labels, for calibration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
from scipy.special import expit  # pyright: ignore[reportMissingTypeStubs]

from datasets_registry.errors import HetprefError
from leaderboard.labels import Reals
from leaderboard.panel import Block, Panel, count_order
from leaderboard.statistics import Estimate, point

ECE_BINS = 15
GAIN_WORTH_HAVING = 0.01
_LOSSES = ("nll", "nll_t", "regret")
_DIFFERENCES = ("gain", "specificity")
_SHARES = ("acc_macro", "acc_micro", "harm", "worst10", "aulc", "brier", "brier_t", "ece", "ece_t")


@dataclass(frozen=True, slots=True)
class Metric:
    """A column of the table: its name, how it is titled and read, and how it is computed."""

    name: str
    title: str
    direction: Literal["higher", "lower"]
    meaning: str
    compute: Callable[[Panel], Estimate] | None = None
    measure: Callable[[Panel, Block], Reals | None] | None = None

    def __post_init__(self) -> None:
        if (self.compute is None) == (self.measure is None):
            raise HetprefError(f"metric {self.name!r} must have either `compute` or `measure`, and not both")

    def __call__(self, panel: Panel) -> Estimate:
        """Return the metric of every column of a panel."""
        estimate = self.compute(panel) if self.compute else _averaged(panel, self.name)
        least = 0 if self.name in _SHARES + _LOSSES else -1 if self.name in _DIFFERENCES else -np.inf
        return replace(estimate, within=(least, 1 if self.name in _SHARES + _DIFFERENCES else np.inf))


def measures(panel: Panel) -> dict[str, list[Reals]]:
    """Return the unit values of every metric that is an average, [n_units, k] per block, where they exist."""
    out: dict[str, list[Reals]] = {}
    for metric in METRICS.values():
        if metric.measure:
            values = [metric.measure(panel, block) for block in panel.blocks]
            if all(v is not None for v in values):
                out[metric.name] = [v for v in values if v is not None]
    return out


def estimated(panel: Panel, value: Reals, draws: Reals, influence: Reals) -> Estimate:
    """Return an estimate [k] with draws over people, to be widened by what prompts add to its own influences."""
    return Estimate(value, draws, panel.crossing.widening(influence))


def _averaged(panel: Panel, name: str) -> Estimate:
    if name not in panel.samples:
        return Estimate(np.full(len(panel.columns), np.nan))
    return estimated(panel, point(panel.samples[name]), panel.draws[name], panel.influence(name))


def acc_macro(panel: Panel) -> Estimate:
    """Mean over users of mean over units of 1(s>0) + .5 1(s=0)."""
    return _averaged(panel, "own")


def acc_micro(panel: Panel) -> Estimate:
    """Return the same over comparisons."""
    total, seeds = np.zeros(len(panel.columns)), panel.given.sum(axis=0)
    for block, accuracy in zip(panel.blocks, panel.own_accuracy, strict=True):
        n = np.add.reduceat((block.query.label != 0.5).astype(np.float64), block.query.starts)
        total += np.where(block.given, n @ np.nan_to_num(accuracy) / max(n.sum(), 1), 0)
    return Estimate(np.where(seeds > 0, total / np.maximum(seeds, 1), np.nan))


def gain(panel: Panel) -> Estimate:
    """Paired difference to pooled Bradley-Terry on the same features, split, budget and seed.

    A column that was measured in other seeds than pooled, as the user-shuffle control is, is compared on those of both.
    Each interval is 95 % for its own row; they are not corrected for how many rows there are, and one in twenty
    user-shuffle rows without any gain is expected to exclude 0.
    """
    own, draws, influence = point(panel.own), panel.draws["own"], panel.influence("own")
    value = np.where(panel.reference >= 0, own - own[panel.reference], np.nan)
    draws, influence = draws - draws[panel.reference], influence - influence[:, panel.reference]
    if len(some := panel.mismatched):
        mine, pooled = panel.samples["mismatched"], panel.samples["mismatched pooled"]
        value[some] = point(mine) - point(pooled)
        draws[some] = panel.draws["mismatched"] - panel.draws["mismatched pooled"]
        influence[:, some] = panel.influence("mismatched") - panel.influence("mismatched pooled")
    return estimated(panel, value, draws, influence)


def specificity(panel: Panel) -> Estimate:
    """Accuracy with one's own state minus accuracy with another user's."""
    both = (panel.own.given == panel.wrong.given).all(axis=0)
    value = np.where(both, point(panel.own) - point(panel.wrong), np.nan)
    draws = panel.draws["own"] - panel.draws["wrong"]
    return estimated(panel, value, draws, panel.influence("own") - panel.influence("wrong"))


def person_accuracy(panel: Panel) -> Reals:
    """Return the accuracy of every person over all units of all seeds, [n_people, k], NaN where there are none."""
    k = len(panel.columns)
    total, n = np.zeros((len(panel.people), k)), np.zeros((len(panel.people), k))
    for units, values, given in zip(panel.own.units, panel.own.values, panel.own.given, strict=True):
        total[units.present] += units.sums(values)
        n[units.present] += units.sizes[:, None] * given
    return np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0)


def harm(panel: Panel) -> Estimate:
    """Share of people whose mean paired difference to pooled is below zero by more than one standard error.

    People have few units, so their own variances are hardly estimable: the variance of a unit's paired difference is
    pooled within people, and a person with m units has standard error sqrt(variance / m). With one unit each, the
    variance over all units takes its place. By chance alone about a sixth would be counted where m is large.
    """
    k, p = len(panel.columns), len(panel.people)
    total, square, n = np.zeros((p, k)), np.zeros((p, k)), np.zeros((p, k))
    for units, values, given in zip(panel.own.units, panel.own.values, panel.own.given, strict=True):
        given = given & given[panel.reference]
        difference = np.where(given, values - values[:, panel.reference], 0)
        total[units.present] += units.sums(difference)
        square[units.present] += units.sums(difference**2)
        n[units.present] += units.sizes[:, None] * given
    mean = np.divide(total, n, out=np.zeros((p, k)), where=n > 0)
    freedom = np.maximum(n - 1, 0).sum(axis=0)
    within = (square - n * mean**2).sum(axis=0) / np.maximum(freedom, 1)
    grand = total.sum(axis=0) / np.maximum(n.sum(axis=0), 1)
    over_all = square.sum(axis=0) / np.maximum(n.sum(axis=0), 1) - grand**2
    variance = np.clip(cast(Reals, np.where(freedom > 0, within, over_all)), 0, None)
    error = np.sqrt(variance / np.maximum(n, 1))
    worse = ((mean < -error - 1e-12) & (n > 0)).sum(axis=0) / np.maximum((n > 0).sum(axis=0), 1)
    return Estimate(np.where((panel.reference >= 0) & n.any(axis=0), worse, np.nan))


def worst10(panel: Panel) -> Estimate:
    """Mean accuracy of the lowest tenth of people, cross-fitted: ranked on half of their units, scored on the other.

    People who tie at the border share the places that are left, so that no order among them is invented.
    """
    k, p = len(panel.columns), len(panel.people)
    total, n = np.zeros((2, p, k)), np.zeros((2, p, k))
    for s, (units, values) in enumerate(zip(panel.own.units, panel.own.values, strict=True)):
        keep = ~np.isnan(panel.own_accuracy[s]).all(axis=1)
        for h in (0, 1):
            inside = (panel.halves[s][keep] == h)[:, None]
            total[h, units.present] += units.sums(values * inside)
            n[h, units.present] += units.sums(inside * panel.own.given[s].astype(np.float64))
    mean = np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0)
    both = np.asarray(~np.isnan(mean).any(axis=0))  # (n_people, k)
    scores = np.full((2, k), np.nan)
    for column in np.flatnonzero(both.any(axis=0)):
        halves = mean[:, both[:, column], column]
        for rank_on, score_on in ((0, 1), (1, 0)):
            scores[rank_on, column] = halves[score_on] @ lowest_tenth(halves[rank_on])
    return Estimate(scores.mean(axis=0))


def lowest_tenth(values: Reals) -> Reals:
    """Return the share, summing to one, that each entry has in the lowest tenth (at least one place).

    >>> lowest_tenth(np.array([0.5, 0.2, 0.2, 0.9])).tolist()
    [0.0, 0.5, 0.5, 0.0]
    """
    places = max(1.0, 0.1 * len(values))
    border = np.sort(values)[int(np.ceil(places)) - 1]
    below, at = values < border, values == border
    share = below + at * (places - below.sum()) / at.sum()
    return share / places


def aulc(panel: Panel) -> Estimate:
    """Area under accuracy over log2(1+n), divided by its width; only for entrants with every budget of the curve.

    n is the setting's, the same for every entrant: whoever lacks a seed is not measured over another axis.
    """
    own, own_draws, own_influence = point(panel.own), panel.draws["own"], panel.influence("own")
    value, draws, influence = np.full(len(own), np.nan), np.zeros_like(own_draws), np.zeros_like(own_influence)
    for columns in curves(panel):
        n = np.array([panel.n_mean[panel.columns[c].setting] for c in columns])
        weight = _trapezoid(np.log2(1 + n))
        value[columns] = weight @ own[columns]
        draws[columns] = weight @ own_draws[columns]
        influence[:, columns] = (own_influence[:, columns] @ weight)[:, None]
    return estimated(panel, value, draws, influence)


def _trapezoid(x: Reals) -> Reals:
    """Return the weights of the trapezoid rule over x, summing to one; equal weights where x does not move."""
    width = np.diff(x)
    if len(x) < 2 or width.sum() <= 0:
        return np.full(len(x), 1 / len(x))
    weight = np.zeros(len(x))
    weight[:-1] += width / 2
    weight[1:] += width / 2
    return weight / width.sum()


def curves(panel: Panel, *, complete: bool = True) -> list[list[int]]:
    """Return the columns of every sample-efficiency curve in order of budget; `complete` leaves out those with gaps."""
    budgets: dict[object, set[object]] = {}
    members: dict[object, list[int]] = {}
    for k, column in enumerate(panel.columns):
        budgets.setdefault(column.setting.curve, set()).add(column.setting.n)
        members.setdefault((column.entrant, column.setting.curve), []).append(k)
    out: list[list[int]] = []
    for columns in members.values():
        if not complete or len(columns) == len(budgets[panel.columns[columns[0]].setting.curve]):
            out.append(sorted(columns, key=lambda k: count_order(panel.columns[k].setting.n)))
    return out


def n_at_gain(panel: Panel) -> Estimate:
    """Smallest n whose gain is at least one point with its interval above 0; "all" counts as what people had.

    The first of several looks: each interval is 95 % for its own budget, and nothing is corrected for how many budgets
    were looked at. It describes a curve; a claim that there is a gain belongs to one budget fixed beforehand.
    """
    gains = gain(panel)
    low, _ = gains.bounds()
    value = np.full(len(low), np.nan)
    for columns in curves(panel, complete=False):
        for k in columns:
            if gains.value[k] >= GAIN_WORTH_HAVING and low[k] > 0:
                n = panel.columns[k].setting.n
                value[columns] = panel.n_mean[panel.columns[k].setting] if n == "all" else n
                break
    return Estimate(value)


def _logits(block: Block, *, calibrated: bool) -> Reals:
    m = block.margins.astype(np.float64)
    return m * block.inverse_temperature if calibrated else m


def _by_unit(block: Block, values: Reals) -> Reals:
    size = np.diff(np.append(block.query.starts, len(block.query)))[:, None]
    return np.add.reduceat(values, block.query.starts, axis=0) / size


def _nll(calibrated: bool) -> Callable[[Panel, Block], Reals]:
    def measure(panel: Panel, block: Block) -> Reals:
        logits = _logits(block, calibrated=calibrated)
        softplus = np.maximum(logits, 0) + np.log1p(np.exp(-np.abs(logits)))
        return _by_unit(block, softplus - block.query.label[:, None] * logits)

    return measure


def _brier(calibrated: bool) -> Callable[[Panel, Block], Reals]:
    def measure(panel: Panel, block: Block) -> Reals:
        probability = expit(_logits(block, calibrated=calibrated))
        return _by_unit(block, (probability - block.query.label[:, None]) ** 2)

    return measure


def _ece(calibrated: bool) -> Callable[[Panel], Estimate]:
    def compute(panel: Panel) -> Estimate:
        seeds = panel.given.sum(axis=0)
        total = np.zeros(len(panel.columns))
        for block in panel.blocks:
            for k in np.flatnonzero(block.given):
                beta = block.inverse_temperature[k] if calibrated else 1.0
                total[k] += calibration_error(block.margins[:, k].astype(np.float64) * beta, block.query.label)
        return Estimate(np.where(seeds > 0, total / np.maximum(seeds, 1), np.nan))

    return compute


def calibration_error(logits: Reals, label: Reals, bins: int = ECE_BINS) -> float:
    """Return the expected calibration error over equal-mass bins of the confidence in the preferred side.

    Confidence, not P(first), so that exchanging first and second changes nothing. Equal confidences are averaged before
    they are cut into bins: a constant predictor is compared with the mean of the labels, however they are ordered.
    """
    if np.isnan(logits).any() or not len(logits):
        return float("nan")
    confidence = expit(np.abs(logits))
    target = np.where(logits > 0, label, np.where(logits < 0, 1 - label, 0.5))
    order = np.argsort(confidence, kind="stable")
    confidence, target = confidence[order], target[order]
    starts = np.flatnonzero(np.append(True, confidence[1:] != confidence[:-1]))
    size = np.diff(np.append(starts, len(confidence)))
    gap = confidence - np.repeat(np.add.reduceat(target, starts) / size, size)
    edges = np.unique(np.arange(bins) * len(gap) // bins)
    return float(np.abs(np.add.reduceat(gap, edges)).sum() / len(gap))


def _regret(panel: Panel, block: Block) -> Reals | None:
    """(u_max - u_picked) / (u_max - u_mean) per unit, where the truth gives utilities of the unit's items.

    The pick has the greatest sum of margins over the unit's comparisons (Borda); picks that tie are averaged. Units
    whose comparisons do not hold every pair of their items are left out: where a choice was recorded as the chosen item
    against each other one, the sum over that star favours the chosen one, whoever scores.
    """
    data, query = panel.data, block.query
    attributes = data.items.attributes
    if data.truth is None or attributes is None or data.truth.theta.shape[1] != attributes.shape[1]:
        return None
    unit_of = np.repeat(np.arange(len(query.starts)), np.diff(np.append(query.starts, len(query))))
    pairs = np.stack([np.tile(unit_of, 2), np.concatenate([query.first, query.second])])
    entry, inverse = np.unique(pairs, axis=1, return_inverse=True)
    starts = np.flatnonzero(np.append(True, entry[0][1:] != entry[0][:-1]))
    size = np.diff(np.append(starts, entry.shape[1]))
    theta = data.truth.theta[query.person[entry[0]]].astype(np.float64)
    utility = np.einsum("nd,nd->n", theta, attributes[entry[1]].astype(np.float64))  # (n_entries,)
    score = np.zeros((entry.shape[1], block.margins.shape[1]))
    signed = block.margins.astype(np.float64)
    np.add.at(score, inverse.ravel(), np.concatenate([signed, -signed]))
    best = np.repeat(np.maximum.reduceat(score, starts, axis=0), size, axis=0)
    picked = (score >= best).astype(np.float64)
    chosen = np.add.reduceat(picked * utility[:, None], starts, axis=0) / np.add.reduceat(picked, starts, axis=0)
    top = np.maximum.reduceat(utility, starts)
    spread = top - np.add.reduceat(utility, starts) / size
    either = np.stack([unit_of, np.minimum(query.first, query.second), np.maximum(query.first, query.second)])
    judged = np.bincount(np.unique(either, axis=1)[0], minlength=len(starts))
    whole = (spread > 1e-9) & (judged == size * (size - 1) // 2)
    out = np.full(chosen.shape, np.nan)
    return np.divide(top[:, None] - chosen, spread[:, None], out=out, where=whole[:, None])


def closed_gap(panel: Panel) -> Estimate:
    """(accuracy - pooled) / (oracle - pooled); no interval where the oracle is not clearly above pooled."""
    own, own_draws, influence = point(panel.own), panel.draws["own"], panel.influence("own")
    both = panel.paired(panel.reference) & panel.paired(panel.oracle)
    whole = own[panel.oracle] - own[panel.reference]
    exists = both & (whole > 1e-9)
    part = own - own[panel.reference]
    value = np.divide(part, whole, out=np.full(len(part), np.nan), where=exists)
    if not exists.any():
        return Estimate(value)
    reference = own_draws[panel.reference]
    above = own_draws[panel.oracle] - reference
    draws = np.divide(own_draws - reference, above, out=np.full_like(above, np.nan), where=above > 1e-9)
    # The influence of a ratio a / b is that of a - (a / b) b, over b, which is the same for all people and prompts.
    pooled, share = influence[:, panel.reference], np.nan_to_num(value)
    return estimated(panel, value, draws, influence - pooled - share * (influence[:, panel.oracle] - pooled))


def _registry(metrics: Iterable[Metric]) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


METRICS: dict[str, Metric] = _registry(
    [
        Metric("acc_macro", "Accuracy", "higher", "mean over people of the mean over their units", acc_macro),
        Metric("acc_micro", "Accuracy (micro)", "higher", "the same over comparisons", acc_micro),
        Metric("gain", "Gain", "higher", "accuracy minus pooled Bradley-Terry, paired", gain),
        Metric("harm", "Harm", "lower", "share of people worse than pooled by more than one standard error", harm),
        Metric("worst10", "Worst tenth", "higher", "accuracy of the lowest tenth of people, cross-fitted", worst10),
        Metric("specificity", "Specificity", "higher", "accuracy lost with another user's state", specificity),
        Metric("aulc", "AULC", "higher", "area under accuracy over log2(1+n), normalised", aulc),
        Metric("n_at_gain", "n at gain", "lower", "smallest n with a gain of a point, interval above 0", n_at_gain),
        Metric("nll", "NLL", "lower", "log loss of the probabilities as they are", measure=_nll(False)),
        Metric("nll_t", "NLL (T)", "lower", "log loss after one temperature fitted on validation", measure=_nll(True)),
        Metric("brier", "Brier", "lower", "squared error of the probabilities as they are", measure=_brier(False)),
        Metric("brier_t", "Brier (T)", "lower", "squared error after one temperature", measure=_brier(True)),
        Metric("ece", "ECE", "lower", "calibration error, 15 equal-mass bins", _ece(False)),
        Metric("ece_t", "ECE (T)", "lower", "calibration error after one temperature", _ece(True)),
        Metric("regret", "Regret", "lower", "best-of-n regret where every pair was judged", measure=_regret),
        Metric("closed_gap", "Gap closed", "higher", "share of the way from pooled to the oracle", closed_gap),
    ]
)
