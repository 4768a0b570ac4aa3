"""The epoch that is best on the test set is reported: the best of 200 looks at the test labels, not a better model.

Beside it stands the epoch with the least validation loss, on the same test people. What the looking alone gives is seen
twice more: by a random scorer, which has nothing to select, and by asking the chosen epoch about people that it was not
chosen on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.pitfalls.figures import Measured, Row
from benchmarks.pitfalls.fits import Asked, Handed, margins, world_of
from benchmarks.pitfalls.scores import Query, Reals, Scores, accuracies, queries, some_people
from datasets_registry import load
from datasets_registry.features import features
from datasets_registry.protocol import Count, generator, hash_keys
from datasets_registry.records import Float32, Float64, PreferenceData
from methods.adam import Adam
from methods.bradley_terry import calibrated_nll, held_out, sigmoid

METHODS = ("random",)
DATASET, ENCODER = "electricity@1", "tabular@1"
EPOCHS, BATCH, RATE = 200, 32, 0.1
Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured: folds and repetitions of training, epochs, and numbers of seen people."""

    folds: Sequence[int] = (0, 1, 2)
    repetitions: int = 3
    epochs: int = EPOCHS
    people: Sequence[Count] = (20, "all")
    n_train: Count = 4


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """One training: the queries, and by epoch the margins on them, float32 [n, epochs], and the validation loss."""

    query: Query
    margins: Float32
    loss: Reals

    @property
    def validated(self) -> int:
        """Return the epoch with the least validation loss."""
        return int(self.loss.argmin())


def measure(note: Note, extent: Extent | None = None) -> Measured:
    """Measure the best of many test evaluations against the validated epoch, of a trained reward and of a coin."""
    extent = extent or Extent()
    data = load(DATASET)
    rows: list[Row] = []
    notes: list[str] = []
    for title, trained in (("a reward trained by Adam", by_adam), ("a random scorer", by_coin)):
        for people in extent.people:
            note(f"{title}, {people} people: {len(extent.folds)} folds x {extent.repetitions}")
            courses = [
                trained(data, fold, people, repetition, extent)
                for fold in extent.folds
                for repetition in range(extent.repetitions)
            ]
            told = f"{title}, {_told(people, courses)}"
            row, apart = _selected(data, told, courses)
            rows += [row, _elsewhere(data, told, courses)]
            notes.append(
                f"{told}: in single runs the best of {extent.epochs} is {apart.min():+.3f} to {apart.max():+.3f} from "
                "the validated epoch."
            )
    setup = {
        "dataset": DATASET,
        "encoder": ENCODER,
        "folds": list(extent.folds),
        "repetitions": extent.repetitions,
        "evaluations": extent.epochs,
        "n_train": extent.n_train,
        "batch": BATCH,
        "rate": RATE,
    }
    return Measured(tuple(rows), tuple(notes), setup)


def by_adam(data: PreferenceData, fold: int, people: Count, repetition: int, extent: Extent) -> Course:
    """Train a pooled linear reward <theta, phi(x)> by Adam at a constant rate, in batches drawn anew each epoch."""
    world = world_of(data, ENCODER, np.asarray(features(data, ENCODER)))
    handed = Handed.of(data, fold, world, n_train=extent.n_train, n_users=people, repetition=repetition)
    query = queries(data, fold, people)
    x, x_val = (world.differences(c).astype(np.float64) for c in (handed.train, handed.val))
    scale = 1 / np.sqrt((x**2).mean(axis=0))
    thetas = scale * _thetas(x * scale, handed.train.label, extent.epochs, handed.seed)  # (epochs, d)
    asked = world.differences(data.comparisons.take(query.rows).hidden())
    return Course(query, (asked @ thetas.T).astype(np.float32), _losses(handed, x_val @ thetas.T))


def by_coin(data: PreferenceData, fold: int, people: Count, repetition: int, extent: Extent) -> Course:
    """Let every epoch be another coin: the catalogue's `random` with a seed of its own."""
    world = world_of(data, ENCODER)
    handed = Handed.of(data, fold, world, n_train=extent.n_train, n_users=people, repetition=repetition)
    query = queries(data, fold, people)
    asked = [Asked.of(data.comparisons.take(query.rows)), Asked.of(handed.val)]
    found: list[list[Float32]] = []
    for epoch in range(extent.epochs):
        seed = int(generator("pitfalls", "coin", handed.seed, epoch).integers(2**62))
        found.append(margins(Handed(handed.train, handed.val, world, seed), "random", {}, asked))
    on_query, on_val = (np.stack(columns, axis=1) for columns in zip(*found, strict=True))
    return Course(query, on_query, _losses(handed, on_val))


def _thetas(x: Float64, label: Float32, epochs: int, seed: int) -> Float64:
    """Return the weights after each epoch, float64 [epochs, d], of standardised differences x [n, d]."""
    theta = np.zeros(x.shape[1])
    adam, rng = Adam([theta], RATE), generator("pitfalls", "batches", seed)
    out = np.empty((epochs, len(theta)))
    for epoch in range(epochs):
        order = rng.permutation(len(x))
        for rows in np.array_split(order, max(1, len(x) // BATCH)):
            adam.advance([x[rows].T @ (sigmoid(x[rows] @ theta) - label[rows]) / len(rows)])
        out[epoch] = theta
    return out


def _losses(handed: Handed, margin: Float64 | Float32) -> Reals:
    """Return the macro validation NLL of each epoch, float64 [epochs], as the project's methods choose by it."""
    users = np.unique(handed.val.user).astype(np.int64)
    held = held_out(handed.val, users)
    return np.array([calibrated_nll(column, held) for column in margin.T.astype(np.float64)])


def _told(people: Count, courses: Sequence[Course]) -> str:
    n = round(float(np.mean([len(np.unique(course.query.person)) for course in courses])))
    return f"{n} test people" if people == "all" else f"{people} test people"


def _selected(data: PreferenceData, told: str, courses: Sequence[Course]) -> tuple[Row, Reals]:
    """Return the row of one selection by test labels and one by validation, and their difference in each run."""
    runs: list[tuple[Query, Float32]] = []
    apart: list[float] = []
    for course in courses:
        seen = accuracies(data, course.query, course.margins)
        best = int(seen.argmax())
        apart.append(float(seen[best] - seen[course.validated]))
        runs.append((course.query, course.margins[:, [best, course.validated]]))
    scores = Scores(data, ["best", "validated"], runs)
    row = Row(
        f"{told}: best epoch on test, against that on validation",
        scores.figure({"best": 1}),
        scores.figure({"validated": 1}),
        scores.figure({"best": 1, "validated": -1}),
    )
    return row, np.array(apart)


def _elsewhere(data: PreferenceData, told: str, courses: Sequence[Course]) -> Row:
    """Return the row of epochs that are best on half of the people, on that half and on the other, both ways round."""
    half = (hash_keys(data.users.ids, "pitfalls", "halves") & np.uint64(1)).astype(bool)
    runs: list[tuple[Query, Float32]] = []
    for course in courses:
        person = data.comparisons.user[course.query.rows]
        own, other = np.empty((2, len(person)), np.float32)
        for here in (half, ~half):
            inside = here[person]
            if not inside.any():
                continue
            seen = accuracies(data, some_people(data, course.query, here), course.margins[inside])
            chosen = course.margins[:, int(seen.argmax())]
            own[inside], other[~inside] = chosen[inside], chosen[~inside]
        runs.append((course.query, np.stack([own, other], axis=1)))
    scores = Scores(data, ["own", "other"], runs)
    return Row(
        f"{told}: best epoch on half of them, on that half against the other",
        scores.figure({"own": 1}),
        scores.figure({"other": 1}),
        scores.figure({"own": 1, "other": -1}),
    )
