"""The heterogeneity index of a dataset: what people gain when each has weights of their own, over one pooled model.

Both models are Bradley-Terry on the same frozen features: one pooled logistic regression, and per person the ridge
solution shrunk to the pooled one, its strength chosen on inner clusters. The gain in macro accuracy is cross-validated
over the *train and validation* clusters of the seen people of every fold: no query comparison of a fold is read for
it. `python -m datasets_registry.heterogeneity [names...]` measures the built-in datasets and writes `measured.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets_registry.atomic_write import write_atomically
from datasets_registry.errors import DataError
from datasets_registry.protocol import FOLDS, PROTOCOL, generator
from datasets_registry.records import Float32, Float64, PreferenceData
from datasets_registry.splits import Split, split

MEASURED = Path(__file__).with_name("measured.json")
MOST_FEATURES = 64
# Ridge strengths towards the pooled weights, strongest first; infinity is the pooled model itself.
STRENGTHS: tuple[float, ...] = (np.inf, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3)
POOLED_RIDGE = 1.0
INNER_FOLDS = 4
NEWTON_STEPS = 12
DRAWS = 2_000
BATCH_VALUES = 4_000_000
BUILT_IN: dict[str, str] = {
    "electricity@1": "tabular@1",
    "train@1": "tabular@1",
    "swissmetro@1": "tabular@1",
    "movielens100k@1": "tabular@1",
    "planted@1": "tabular@1",
    "llmfao@1": "minilm-l6@1",
    "polis-bowling-green@1": "minilm-l6@1",
}


@dataclass(frozen=True, slots=True)
class Heterogeneity:
    """Gain in macro accuracy of personal over pooled weights, with its 95 % interval (bootstrap over people)."""

    index: float
    low: float
    high: float
    n_users: int


@dataclass(frozen=True, slots=True, eq=False)
class People:
    """Comparisons sorted by person: x float64 [n, d] differences, y float64 [n], user int [n] in 0..n_users-1."""

    x: Float64
    y: Float64
    user: NDArray[np.int64]
    n_users: int

    def batches(self) -> Iterator[tuple[NDArray[np.int64], Float64, Float64, Float64]]:
        """Yield (people, x [people, rows, d], y, present [people, rows]), padded among people of like size."""
        count = np.bincount(self.user, minlength=self.n_users)
        start = np.cumsum(count) - count
        order = np.argsort(count, kind="stable")
        order = order[count[order] > 0]
        at = 0
        while at < len(order):
            widest = count[order[at:]]
            # Sizes ascend, so the padded size of the first k people is k times the k-th count; Newton's d x d
            # curvature is larger than that where people said little.
            cost = np.arange(1, len(widest) + 1) * np.maximum(widest, self.x.shape[1]) * self.x.shape[1]
            people = order[at : at + max(1, int(np.searchsorted(cost, BATCH_VALUES)))]
            at += len(people)
            place = np.arange(count[people].max())
            present = place < count[people, None]
            rows = np.where(present, start[people, None] + place, 0)
            yield people, self.x[rows], self.y[rows], present.astype(np.float64)


def heterogeneity(data: PreferenceData, features: Float32, folds: Sequence[int] = tuple(range(FOLDS))) -> Heterogeneity:
    """Return the heterogeneity index of a dataset on given features, float32 [n_items, d].

    Above 64 columns, features are projected on their first 64 principal components. Raises DataError when a fold has
    fewer than three train and validation clusters, which cross-validation needs.
    """
    table = projected(np.asarray(features, np.float64))
    total = np.zeros(len(data.users))
    times = np.zeros(len(data.users))
    for fold in folds:
        gain = _gain_of_fold(data, table, split(data, fold))
        scored = ~np.isnan(gain)
        total[scored] += gain[scored]
        times += scored
    if not times.any():
        raise DataError(f"{data.id}: nobody has a comparison without a tie in the train and validation clusters")
    gain = total[times > 0] / times[times > 0]
    rng = generator(PROTOCOL, data.id, "heterogeneity")
    draws = np.array([gain[rng.integers(0, len(gain), len(gain))].mean() for _ in range(DRAWS)])
    low, high = np.quantile(draws, [0.025, 0.975])
    return Heterogeneity(float(gain.mean()), float(low), float(high), len(gain))


def measured(dataset_id: str) -> dict[str, Any] | None:
    """Return {encoder, index, low, high, n_users, protocol} as measured for a built-in dataset, or None."""
    return _all_measured().get(dataset_id)


def projected(table: Float64) -> Float64:
    """Return features centred over items, on at most 64 principal components, float64 [n_items, k]."""
    table = table - table.mean(axis=0)
    if table.shape[1] <= MOST_FEATURES:
        return table
    _, vectors = np.linalg.eigh(table.T @ table)
    return table @ vectors[:, ::-1][:, :MOST_FEATURES]


def fit_pooled(x: Float64, y: Float64, ridge: float = POOLED_RIDGE) -> Float64:
    """Return the logistic weights of everybody, float64 [d]."""
    everybody = People(x, y, np.zeros(len(y), np.int64), 1)
    return fit_personal(everybody, np.zeros(x.shape[1]), ridge, np.zeros((1, x.shape[1])))[0]


def fit_personal(people: People, centre: Float64, strength: float, start: Float64) -> Float64:
    """Return argmin_u sum log loss + strength / 2 |theta_u - centre|^2 for every person, float64 [n_users, d].

    Newton's method over all people at once, from `start` [n_users, d], with step halving; without comparisons a person
    has `centre`. y may be soft. centre: [d].
    """
    theta = np.broadcast_to(centre, (people.n_users, len(centre))).copy()
    if np.isinf(strength):
        return theta
    for who, x, y, present in people.batches():
        theta[who] = _newton(x, y, present, centre, strength, start[who])
    return theta


def _newton(x: Float64, y: Float64, present: Float64, centre: Float64, strength: float, theta: Float64) -> Float64:
    loss = _loss(x, y, present, centre, strength, theta)
    ridge = strength * np.eye(x.shape[2])
    for _ in range(NEWTON_STEPS):
        margin = _times(x, theta)
        chance = _sigmoid(margin)
        slope = _times_t(x, (chance - y) * present) + strength * (theta - centre)
        weight = chance * (1 - chance) * present
        curve = np.matmul(x.transpose(0, 2, 1) * weight[:, None, :], x) + ridge  # (people, d, d)
        step = np.linalg.solve(curve, slope[..., None])[..., 0]
        size, before = np.ones(len(theta)), loss
        waiting = np.ones(len(theta), bool)
        for _ in range(6):
            moved = theta - size[:, None] * step
            new = _loss(x, y, present, centre, strength, moved)
            taken = waiting & (new <= before + 1e-12)
            theta, loss = np.where(taken[:, None], moved, theta), np.where(taken, new, loss)
            waiting &= ~taken
            if not waiting.any():
                break
            size[waiting] /= 2
        if float((before - loss).max(initial=0.0)) < 1e-9:
            break
    return theta


def _loss(x: Float64, y: Float64, present: Float64, centre: Float64, strength: float, theta: Float64) -> Float64:
    margin = _times(x, theta)
    data = ((np.logaddexp(0, margin) - y * margin) * present).sum(axis=1)
    return data + strength / 2 * ((theta - centre) ** 2).sum(axis=1)


def _times(x: Float64, theta: Float64) -> Float64:
    return np.matmul(x, theta[..., None])[..., 0]  # (people, rows)


def _times_t(x: Float64, residual: Float64) -> Float64:
    return np.matmul(residual[:, None, :], x)[:, 0, :]  # (people, d)


def _sigmoid(margin: Float64) -> Float64:
    return 0.5 * (1 + np.tanh(0.5 * margin))


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    """Train and validation rows of a fold, sorted by person: x [n, d], soft y [n], person 0..n_users-1, unit, group."""

    x: Float64
    y: Float64
    user: NDArray[np.int64]
    unit: NDArray[np.int64]
    group: NDArray[np.int64]
    n_users: int

    def people(self, rows: NDArray[np.bool_]) -> People:
        return People(self.x[rows], self.y[rows], self.user[rows], self.n_users)

    def margins(self, theta: Float64, rows: NDArray[np.bool_]) -> Float64:
        return np.einsum("nd,nd->n", self.x[rows], theta[self.user[rows]])

    def accuracy(self, margin: Float64, rows: NDArray[np.bool_] | slice = slice(None)) -> Float64:
        """Return the mean over a person's units of the accuracy in the unit, [n_users]; NaN where there is none."""
        y, user, unit = self.y[rows], self.user[rows], self.unit[rows]
        told = y != 0.5
        correct = np.where(margin == 0, 0.5, (margin > 0) == (y > 0.5))[told]
        n_units = int(self.unit.max(initial=0)) + 1
        pair, at = np.unique(user[told] * n_units + unit[told], return_inverse=True)
        who, by_unit = pair // n_units, np.bincount(at, correct) / np.bincount(at)
        count = np.bincount(who, minlength=self.n_users)
        return np.where(count > 0, np.bincount(who, by_unit, minlength=self.n_users) / np.maximum(count, 1), np.nan)


def _gain_of_fold(data: PreferenceData, table: Float64, s: Split) -> Float64:
    """Return each person's cross-validated gain, float64 [n_users]; NaN for people who are not seen or not scored."""
    c = data.comparisons
    rows = np.concatenate([s.train(), s.validation()])
    rows = rows[np.argsort(c.user[rows], kind="stable")]
    seen, user = np.unique(c.user[rows], return_inverse=True)
    x = table[c.first[rows]] - table[c.second[rows]]
    x /= max(float(np.sqrt((x**2).mean())), 1e-12)  # so that a strength means the same for every encoder
    group = _cluster_groups(s, s.row_cluster[rows])
    said = _Judged(x, c.label[rows].astype(np.float64), user, c.unit[rows].astype(np.int64), group, len(seen))
    mine, pooled = np.full((2, len(rows)), np.nan)
    n_groups = int(group.max()) + 1
    for held in range(n_groups):
        test = group == held
        strength = _strength(said, held, (held + 1) % n_groups)
        others = said.people(~test)
        centre = np.broadcast_to(fit_pooled(others.x, others.y), (len(seen), x.shape[1]))
        pooled[test] = said.margins(centre, test)
        mine[test] = said.margins(fit_personal(others, centre[0], strength, centre), test)
    gain = np.full(len(data.users), np.nan)
    gain[seen] = said.accuracy(mine) - said.accuracy(pooled)
    return gain


def _strength(said: _Judged, held: int, inner: int) -> float:
    """Return the strength with the best macro accuracy on the group `inner`, never looking at the group `held`.

    The stronger of equals; infinity, the pooled model, where `inner` has no comparison without a tie.
    """
    validation = said.group == inner
    if not (said.y[validation] != 0.5).any():
        return np.inf
    people = said.people((said.group != held) & ~validation)
    centre = fit_pooled(people.x, people.y)
    theta = np.broadcast_to(centre, (said.n_users, len(centre)))
    best, chosen = -np.inf, np.inf
    for strength in STRENGTHS:
        theta = fit_personal(people, centre, strength, theta)
        score = float(np.nanmean(said.accuracy(said.margins(theta, validation), validation)))
        if score > best + 1e-9:
            best, chosen = score, strength
    return chosen


def _cluster_groups(s: Split, cluster: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return a group 0..k-1 per row, dealt to whole clusters in hash order; k is 4, or the clusters there are."""
    there = np.unique(cluster)
    k = min(INNER_FOLDS, len(there))
    if k < 3:
        raise DataError(f"{s.dataset} fold {s.fold} has {len(there)} train and validation clusters; 3 are needed")
    group = np.empty(len(there), np.int64)
    group[np.argsort(s.cluster_keys[there], kind="stable")] = np.arange(len(there)) % k
    return group[np.searchsorted(there, cluster)]


@cache
def _all_measured() -> dict[str, dict[str, Any]]:
    return json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.exists() else {}


def main(names: Sequence[str]) -> int:
    """Measure the named datasets (default: the built-in ones) into measured.json; return 1 if one failed."""
    from datasets_registry import load
    from datasets_registry.errors import HetprefError
    from datasets_registry.features import features

    found = dict(_all_measured())
    failed = 0
    for name in names or list(BUILT_IN):
        try:
            data = load(name)
            encoder = BUILT_IN.get(data.id, data.card.encoder)
            result = heterogeneity(data, features(data, encoder))
        except HetprefError as why:
            failed += 1
            print(f"{name} was not measured: {why}", file=sys.stderr)
            continue
        found[data.id] = {
            "encoder": encoder,
            "index": round(result.index, 4),
            "low": round(result.low, 4),
            "high": round(result.high, 4),
            "n_users": result.n_users,
            "protocol": PROTOCOL,
        }
        told = found[data.id]
        print(f"{data.id}: {told['index']:+.4f} [{told['low']:+.4f}, {told['high']:+.4f}]", file=sys.stderr)
    write_atomically(MEASURED, (json.dumps(dict(sorted(found.items())), indent=1) + "\n").encode())
    _all_measured.cache_clear()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
