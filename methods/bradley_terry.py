"""Bradley-Terry on feature differences: the pooled ridge fit, and one MAP estimate per person, batched over people.

Everything is computed from `Pairs`: differences grouped by person and standardised per feature, so that one penalty
means the same on every encoder. Labels are soft; a tie is .5. Own solvers rather than scikit-learn's, because its
LogisticRegression takes no soft labels (rows would have to be doubled) and no batch of people; a test compares them.

Selection, for every method that tunes on validation: the protocol says macro validation accuracy; what decides here is
the macro validation NLL (`macro_nll`), for personalised methods at the best of six temperatures (`calibrated_nll`).
Accuracy is a step function of what is tuned and ties on a small validation set, NLL is smooth; the temperatures leave
the order of margins to decide and not their size, which the leaderboard calibrates anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets_registry.protocol import mix, seed_of
from datasets_registry.records import Comparisons, Float32, Float64
from methods.interface import Histories, World, places

Array = NDArray[Any]
STRENGTHS: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_BLOCK_BYTES = 32 << 20
_HELD_BYTES = 512 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Standardised differences of a table grouped by person; `user` is the position in `histories`.

    scale: float32 [d], multiplies the raw differences. `held` is the float32 [n, d] design if it fits in 512 MiB, else
    None: then every pass gathers its blocks anew.
    """

    world: World
    histories: Histories
    scale: Float32
    held: Float32 | None

    @classmethod
    def of(cls, world: World, histories: Histories, scale: Float32) -> Pairs:
        """Group and, where memory allows, hold the design."""
        table = histories.table
        if len(table) * len(scale) * 4 > _HELD_BYTES:
            return cls(world, histories, scale, None)
        held = np.empty((len(table), len(scale)), np.float32)
        for at in _blocks(len(table), len(scale)):
            held[at] = world.differences(table.take(at)) * scale
        return cls(world, histories, scale, held)

    @classmethod
    def of_seen(cls, world: World, train: Comparisons) -> tuple[Pairs, Array]:
        """Return the pairs of a training table and the user rows, int64 [n_users], that positions stand for."""
        users = np.unique(train.user).astype(np.int64)
        return cls.of(world, Histories.group(train, users), feature_scale(world, train)), users

    def __len__(self) -> int:
        return len(self.histories.table)

    @property
    def n_users(self) -> int:
        """Return the number of people."""
        return len(self.histories)

    @property
    def user(self) -> Array:
        """Return the position of the person of each row, int32 [n]."""
        return self.histories.table.user

    @property
    def label(self) -> Float64:
        """Return P(first preferred) of each row, float64 [n]."""
        return self.histories.table.label.astype(np.float64)

    @property
    def weight(self) -> Float64:
        """Return the weight of each row, float64 [n]."""
        return self.histories.table.weight.astype(np.float64)

    @property
    def offsets(self) -> Array:
        """Return the bounds of each person's rows, int64 [n_users + 1]."""
        return self.histories.offsets

    def blocks(self) -> Iterator[tuple[slice, Float32]]:
        """Yield row slices with their design, float32 [m, d]."""
        for at in _blocks(len(self), len(self.scale)):
            if self.held is not None:
                yield at, self.held[at]
            else:
                yield at, self.world.differences(self.histories.table.take(at)) * self.scale

    def design(self) -> Float32:
        """Return the whole design, float32 [n, d], whether it is held or not."""
        return self.held if self.held is not None else np.concatenate([x for _, x in self.blocks()])

    def project(self, columns: Array) -> Float32:
        """Return X columns, float32 [n, k], for columns [d, k]."""
        out = np.empty((len(self), columns.shape[1]), np.float32)
        columns = columns.astype(np.float32)
        for at, x in self.blocks():
            np.matmul(x, columns, out=out[at])
        return out

    def back_project(self, values: Callable[[slice], Array], k: int) -> Float64:
        """Return X^T values, float64 [d, k]; `values(rows)` gives one block of values, [m, k]."""
        out = np.zeros((len(self.scale), k))
        for at, x in self.blocks():
            out += x.T @ values(at).astype(np.float32)
        return out

    def of_users(self, positions: Array) -> Pairs:
        """Return the pairs of some of the people, in the order given."""
        return Pairs.of(self.world, Histories.group(self.histories.table, positions), self.scale)

    def as_one(self) -> Pairs:
        """Return the same rows as if one person had said them all."""
        table = self.histories.table.for_users(np.zeros(len(self), np.int32))
        return replace(self, histories=Histories(table, np.array([0, len(self)], np.int64)))


def feature_scale(world: World, table: Comparisons) -> Float32:
    """Return 1 / root mean square of each feature's difference, float32 [d]; features that hardly differ are capped."""
    d = 0 if world.features is None else world.features.shape[1]
    squares = np.zeros(d)
    for at in _blocks(len(table), d):
        x = world.differences(table.take(at))
        squares += np.einsum("nd,nd->d", x, x, dtype=np.float64)
    size = np.sqrt(squares / max(len(table), 1))
    floor = 1e-3 * float(size.max(initial=0.0))
    return np.where(size > 0, 1.0 / np.maximum(size, floor or 1.0), 0.0).astype(np.float32)


def person_keys(histories: Histories) -> NDArray[np.uint64]:
    """Return a key per person, uint64 [n_users], of what they compared and not of a row number; 0 for no comparison."""
    table = histories.table
    low = np.minimum(table.first, table.second).astype(np.uint64)
    high = np.maximum(table.first, table.second).astype(np.uint64)
    said = histories.lengths > 0
    starts = histories.offsets[:-1][said]
    key = np.zeros(len(histories), np.uint64)
    if len(starts):
        key[said] = np.add.reduceat(mix(low + np.uint64(1), high + np.uint64(1)), starts)
    return key


def person_draws(histories: Histories, k: int, seed: int) -> Float64:
    """Return normal draws, float64 [n_users, k], that belong to what a person compared (`person_keys`).

    So neither renaming people nor another order of them changes a fit that starts from the draws.
    """
    from scipy.special import ndtri

    key = person_keys(histories)
    salt = np.array([seed_of("person-draws", seed, column) for column in range(k)], np.uint64)
    draws = mix(np.repeat(key[:, None], k, 1), np.repeat(salt[None], len(histories), 0))
    return ndtri(((draws >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53)


def some_people(histories: Histories, most: int, *salt: str | int) -> NDArray[np.int64]:
    """Return the positions of at most `most` people, sorted: drawn by `salt` and by what they compared.

    As with `person_draws`, neither renaming people nor another order of them changes who is drawn.
    """
    if len(histories) <= most:
        return np.arange(len(histories))
    key = mix(person_keys(histories), np.full(len(histories), seed_of("people", *salt), np.uint64))
    return np.sort(np.argsort(key, kind="stable")[:most])


def sigmoid(margin: Array) -> Array:
    """Return 1 / (1 + exp(-margin)) without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * margin))


def nll(margin: Array, label: Array) -> Array:
    """Return the negative log-likelihood of soft labels: softplus(margin) - label * margin."""
    return np.maximum(margin, 0.0) + np.log1p(np.exp(-np.abs(margin))) - label * margin


def macro_nll(margin: Array, table: Comparisons) -> float:
    """Return the mean over people of their weighted mean negative log-likelihood."""
    weight = table.weight.astype(np.float64)
    each = np.bincount(table.user, weight * nll(margin.astype(np.float64), table.label))
    total = np.bincount(table.user, weight)
    return float((each[total > 0] / total[total > 0]).mean())


def calibrated_nll(margin: Array, table: Comparisons) -> float:
    """Return `macro_nll` at the best of a few temperatures: what decides is the order of margins, not their size."""
    return min(macro_nll(size * margin, table) for size in (0.5, 0.7, 1.0, 1.4, 2.0, 2.8))


def held_out(val: Comparisons, users: Array) -> Comparisons:
    """Return the validation rows of people in `users` (sorted user rows), `user` being the position there.

    Rows of weight 0 are left out: with nothing else there is nothing to choose by, as with no row at all.
    """
    at = places(users, val.user)
    known = (at >= 0) & (val.weight > 0)
    return val.take(known).for_users(at[known])


def pooled(
    pairs: Pairs,
    ridge: float,
    *,
    weight: Array | None = None,
    start: Array | None = None,
    centre: Array | None = None,
    iterations: int = 200,
) -> Float64:
    """Return argmin_theta sum w NLL(X theta) + ridge/2 |theta - centre|^2, float64 [d], by L-BFGS; centre is 0."""
    from scipy.optimize import minimize

    label, w = pairs.label, pairs.weight if weight is None else weight
    total = max(float(w.sum()), 1e-12)
    middle = np.zeros(len(pairs.scale)) if centre is None else centre

    def objective(theta: Float64) -> tuple[float, Float64]:
        margin = pairs.project(theta[:, None])[:, 0].astype(np.float64)
        residual = w * (sigmoid(margin) - label)
        away = theta - middle
        gradient = pairs.back_project(lambda at: residual[at, None], 1)[:, 0] + ridge * away
        value = float(w @ nll(margin, label)) + 0.5 * ridge * float(away @ away)
        return value / total, gradient / total

    start = middle if start is None else start
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": iterations, "ftol": 1e-9})
    return found.x


def pooled_chosen(pairs: Pairs, val: Comparisons, strengths: Sequence[float] = STRENGTHS) -> tuple[Float64, float]:
    """Return the pooled fit and the ridge with the smallest macro validation NLL; strong to weak, warm-started."""
    val = val.take(val.weight > 0)
    if not len(val):
        return pooled(pairs, 1.0), 1.0
    best: tuple[float, Float64, float] | None = None
    theta: Float64 | None = None
    x = pairs.world.differences(val) * pairs.scale
    for ridge in sorted(strengths, reverse=True):
        theta = pooled(pairs, ridge, start=theta)
        score = macro_nll(x @ theta, val)
        if best is None or score < best[0]:
            best = (score, theta, ridge)
    assert best is not None
    return best[1], best[2]


@dataclass(frozen=True, slots=True, eq=False)
class Logistic:
    """A batch of logistic problems that share their design's width: margin_n = base_n + <design_n, z_user>.

    design: float32 [n, k]; base, label, weight: [n]; offsets int64 [n_users + 1] bounds each person's rows.
    """

    design: Float32
    base: Array
    label: Array
    weight: Array
    offsets: Array

    @classmethod
    def of(cls, pairs: Pairs, design: Float32, base: Array) -> Logistic:
        """Return the problem of these pairs on another design."""
        return cls(design, base, pairs.label, pairs.weight, pairs.offsets)

    def modes(
        self, ridge: float = 1.0, *, start: Float64 | None = None, iterations: int = 25, tolerance: float = 1e-5
    ) -> Float64:
        """Return argmin_z sum w NLL + ridge/2 |z|^2 per person, float64 [n_users, k]; no rows give 0."""
        return self._solve(ridge, start, iterations, tolerance, covariance=False)[0]

    def posteriors(
        self, ridge: float = 1.0, *, start: Float64 | None = None, iterations: int = 25, tolerance: float = 1e-5
    ) -> tuple[Float64, Float64]:
        """Return modes and Laplace covariances, float64 [n_users, k] and [n_users, k, k]."""
        return self._solve(ridge, start, iterations, tolerance, covariance=True)

    def _solve(
        self, ridge: float, start: Float64 | None, iterations: int, tolerance: float, *, covariance: bool
    ) -> tuple[Float64, Float64]:
        n_users, k = len(self.offsets) - 1, self.design.shape[1]
        modes = np.zeros((n_users, k))
        spread = np.zeros((n_users, k, k)) if covariance else np.zeros((0, k, k))
        if covariance:
            spread[:] = np.eye(k) / ridge
        for who, rows, real in _padded(self.offsets, k):
            design = self.design[rows] * real[..., None]  # (people, m, k)
            given = (self.base[rows], self.label[rows], self.weight[rows] * real)
            begin = modes[who] if start is None else start[who]
            if rows.shape[1] >= k:
                z, hessian = _newton(design, given, ridge, begin, iterations, tolerance)
                if covariance:
                    spread[who] = np.linalg.inv(hessian)
            else:
                # fewer rows than unknowns: the mode lies in the span of the rows, so the problem is m x m
                q, r = np.linalg.qr(design.swapaxes(1, 2))  # (people, k, m), (people, m, m)
                inside = _apply(q.swapaxes(1, 2), begin)
                c, hessian = _newton(r.swapaxes(1, 2), given, ridge, inside, iterations, tolerance)
                z = _apply(q, c)
                if covariance:
                    gained = np.linalg.inv(hessian) - np.eye(q.shape[2]) / ridge
                    spread[who] += q @ gained @ q.swapaxes(1, 2)
            modes[who] = z
        return modes, spread


def _apply(matrix: Array, vector: Array) -> Array:
    return np.matmul(matrix, vector[..., None])[..., 0]


def _newton(
    design: Array, given: tuple[Array, Array, Array], ridge: float, z: Float64, iterations: int, tolerance: float
) -> tuple[Float64, Float64]:
    """Return modes and Hessians of a padded batch, by Newton's method with step halving per person."""
    base, label, weight = (g.astype(np.float64) for g in given)
    eye = ridge * np.eye(design.shape[2])
    transposed = design.swapaxes(1, 2)

    def value(margin: Array, at: Float64) -> Array:
        return (weight * nll(margin, label)).sum(1) + 0.5 * ridge * (at * at).sum(1)

    margin = base + _apply(design, z)
    before = value(margin, z)
    hessian = np.broadcast_to(eye, (len(z), *eye.shape))
    for _ in range(iterations):
        p = sigmoid(margin)
        curvature = (weight * p * (1 - p)).astype(design.dtype)
        hessian = np.matmul(transposed * curvature[:, None, :], design).astype(np.float64) + eye
        gradient = _apply(transposed, (weight * (p - label)).astype(design.dtype)) + ridge * z
        step = np.linalg.solve(hessian, gradient[..., None].astype(np.float64))[..., 0]
        change = float(np.abs(step).max(initial=0.0))
        margin = base + _apply(design, z - step)
        after = value(margin, z - step)
        for _ in range(12):
            worse = after > before + 1e-6 * (1.0 + np.abs(before))
            if not worse.any():
                break
            step[worse] *= 0.5
            margin = base + _apply(design, z - step)
            after = value(margin, z - step)
        z, before = z - step, after
        if change < tolerance * (1.0 + float(np.abs(z).max(initial=0.0))):
            break
    return z, hessian


def _padded(offsets: Array, k: int) -> Iterator[tuple[Array, Array, Array]]:
    """Yield (people, row numbers [people, m], which are real), people of like length together, m a power of two.

    Padding wastes at most half of the work, and no loop runs over people.
    """
    lengths = np.diff(offsets)
    last = max(int(offsets[-1]) - 1, 0)
    widths = np.where(lengths > 0, 2 ** np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64), 0)
    for width in np.unique(widths[widths > 0]):
        alike = np.flatnonzero(widths == width)
        m = int(lengths[alike].max())
        many = max(1, _BLOCK_BYTES // (8 * (m * k + k * k)))
        for lo in range(0, len(alike), many):
            who = alike[lo : lo + many]
            place = np.arange(m)
            real = place < lengths[who, None]
            yield who, np.minimum(offsets[who, None] + place, last), real


def _blocks(n: int, d: int) -> Iterator[slice]:
    rows = max(1, _BLOCK_BYTES // (4 * max(d, 1)))
    return (slice(lo, min(lo + rows, n)) for lo in range(0, n, rows))
