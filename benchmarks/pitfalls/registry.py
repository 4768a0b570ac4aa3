"""The pitfalls, one entry each: adding one is adding its file and its entry here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.pitfalls import best_of_test, init_scale, label_thresholds, list_formatting
from benchmarks.pitfalls.figures import Measured

Note = Callable[[str], None]
Measure = Callable[[Note], Measured]


@dataclass(frozen=True, slots=True)
class Pitfall:
    """A published defect, and how it is measured.

    `methods` are the catalogue's that it fits: their code is part of what a kept figure depends on. `quick` measures
    the same in seconds, on so little that its figures mean nothing.
    """

    name: str
    title: str
    methods: tuple[str, ...]
    measure: Measure
    quick: Measure

    @property
    def file(self) -> Path:
        """Return the file of the pitfall."""
        return Path(inspect.getfile(inspect.unwrap(self.measure)))


PITFALLS: dict[str, Pitfall] = {
    each.name: each
    for each in (
        Pitfall(
            name="list-formatting",
            title="Rejected responses rendered as a stringified list",
            methods=list_formatting.METHODS,
            measure=list_formatting.measure,
            quick=lambda note: list_formatting.measure(note, ("electricity@1",), "tiny-bert@1", (0,)),
        ),
        Pitfall(
            name="best-of-test",
            title="The best of 200 test evaluations reported",
            methods=best_of_test.METHODS,
            measure=best_of_test.measure,
            quick=lambda note: best_of_test.measure(note, best_of_test.Extent((0,), 1, 20, (20,))),
        ),
        Pitfall(
            name="label-thresholds",
            title="Each person's threshold chosen on their test labels",
            methods=label_thresholds.METHODS,
            measure=label_thresholds.measure,
            quick=lambda note: label_thresholds.measure(note, label_thresholds.Extent((0,), ("random", "pooled-bt"))),
        ),
        Pitfall(
            name="init-scale",
            title="Variants compared whose first factors differ 64-fold in scale",
            methods=init_scale.METHODS,
            measure=init_scale.measure,
            quick=lambda note: init_scale.measure(
                note,
                init_scale.Extent("tiny-bert@1", (0,), 8, 1, {**init_scale.TRAINING, "max_tokens": None}),
            ),
        ),
    )
}
