"""Each person's decision threshold is chosen on their test labels (PReF's rule): with few pairs a coin looks good.

A person's n scores have n + 1 cuts; the one with the most right decisions is reported. For a random scorer and
coin-flip labels, going down the scores moves the number of right decisions like a random walk S, so that the expected
accuracy is 1/2 + E max_k S_k / n, which Spitzer's identity gives exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from benchmarks.pitfalls.figures import Figure, Measured, Row
from benchmarks.pitfalls.fits import Asked, Handed, margins, world_of
from benchmarks.pitfalls.scores import Query, Reals, Scores, queries
from datasets_registry import load
from datasets_registry.features import features
from datasets_registry.protocol import Count
from datasets_registry.records import Float32

METHODS = ("random", "pooled-bt", "per-user-bt")
DATASET, ENCODER = "electricity@1", "tabular@1"
PAIRS = (5, 10, 20, 50)
Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured: folds, and which methods on the first so many seen people."""

    folds: Sequence[int] = (0, 1, 2)
    methods: Sequence[str] = METHODS
    people: Count = "all"


def measure(note: Note, extent: Extent | None = None) -> Measured:
    """Compute what the rule gives a coin, and measure what it gives methods on real choices."""
    extent = extent or Extent()
    rows = [_exact(n) for n in PAIRS]
    data = load(DATASET)
    world = world_of(data, ENCODER, np.asarray(features(data, ENCODER)))
    pairs: list[float] = []
    for method in extent.methods:
        note(f"{method} on {DATASET}")
        runs: list[tuple[Query, Float32]] = []
        for fold in extent.folds:
            query = queries(data, fold, extent.people)
            handed = Handed.of(data, fold, world, n_users=extent.people)
            (margin,) = margins(handed, method, {}, [Asked.of(data.comparisons.take(query.rows))])
            label = data.comparisons.label[query.rows]
            moved = margin - thresholds(margin, label, data.comparisons.user[query.rows])
            runs.append((query, np.stack([moved, margin], axis=1)))
            pairs.append(len(query) / len(np.unique(query.person)))
        scores = Scores(data, ["moved", "plain"], runs)
        rows.append(
            Row(
                f"{method} on {DATASET}, {np.mean(pairs):.1f} test pairs each",
                scores.figure({"moved": 1}),
                scores.figure({"plain": 1}),
                scores.figure({"moved": 1, "plain": -1}),
            )
        )
    notes = (
        "The first rows are exact expectations for independent pairs; the pairs of a choice among four are not.",
        "A decision is right where the margin less the person's threshold has the label's sign; the honest threshold "
        "is 0 for everybody.",
    )
    setup = {"dataset": DATASET, "encoder": ENCODER, "folds": list(extent.folds), "n_train": "all"}
    return Measured(tuple(rows), notes, setup)


def expected(n: int) -> float:
    """Return the expected accuracy that the best of n + 1 cuts gives a random scorer on n coin-flip pairs.

    1/2 + 1/(2n) sum_{k=1}^{n} C(k-1, floor((k-1)/2)) / 2^(k-1), from E max(0, S_1, ..., S_n) = sum_k E|S_k| / (2k).

    >>> [round(expected(n), 2) for n in (5, 10, 20, 50)]
    [0.78, 0.71, 0.66, 0.6]
    """
    return 0.5 + sum(comb(k - 1, (k - 1) // 2) / 2 ** (k - 1) for k in range(1, n + 1)) / (2 * n)


def thresholds(margin: Float32, label: Float32, user: np.ndarray) -> Float32:
    """Return per comparison its person's best threshold on these labels, float32 [n]; label ties are not looked at.

    Right is a margin above the threshold with a label above .5, or below with one below. Of equally good cuts the
    highest is taken; equal margins fall on one side.
    """
    out = np.zeros(len(margin), np.float32)
    for person in np.unique(user):
        mine = user == person
        decided = mine & (label != 0.5)
        out[mine] = _best_cut(margin[decided].astype(np.float64), label[decided] > 0.5)
    return out


def _best_cut(score: Reals, preferred: np.ndarray) -> float:
    if not len(score):
        return 0.0
    order = np.argsort(-score, kind="stable")
    score, preferred = score[order], preferred[order]
    cuts = np.concatenate([[score[0] + 1], (score[:-1] + score[1:]) / 2, [score[-1] - 1]])
    right = (~preferred).sum() + np.concatenate([[0], np.cumsum(np.where(preferred, 1, -1))])  # (n + 1,)
    possible = np.concatenate([[True], score[:-1] > score[1:], [True]])
    return float(cuts[np.where(possible, right, -1).argmax()])


def _exact(n: int) -> Row:
    found = round(expected(n), 6)
    return Row(f"a coin, {n} test pairs each (exact)", Figure(found), Figure(0.5), Figure(round(found - 0.5, 6)))
