"""Scores margins as the leaderboard does; the one module of this package that reads query labels, and it tells them on.

Accuracy, bootstrap over people and widening by shared prompts are the leaderboard's own functions, so that what is
called honest here is what the board would print.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from benchmarks.pitfalls.figures import Figure
from datasets_registry.protocol import Count
from datasets_registry.records import PreferenceData
from datasets_registry.splits import split
from leaderboard.labels import Query, Reals
from leaderboard.metrics import Estimate
from leaderboard.panel import Block, Column, Entrant, Panel, Setting
from leaderboard.statistics import bootstrap, point

__all__ = ["Query", "Reals", "Scores", "accuracies", "queries", "some_people"]


def queries(data: PreferenceData, fold: int, n_users: Count = "all") -> Query:
    """Return the labelled queries of the first `n_users` seen people of a fold."""
    return Query.of(data, split(data, fold).query("seen", n_users))


def some_people(data: PreferenceData, query: Query, chosen: NDArray[np.bool_]) -> Query:
    """Return the queries of some people; chosen: bool [n_users of the dataset]."""
    return Query.of(data, query.rows[chosen[data.comparisons.user[query.rows]]])


class Scores:
    """Accuracies of columns over several runs: `values` [k], the mean over runs of the mean over people.

    Each run is (query, margins), margins float32 [n, k] in the order of `query.rows`; runs of one fold share the query.
    """

    def __init__(
        self, data: PreferenceData, columns: Sequence[str], runs: Sequence[tuple[Query, NDArray[np.floating]]]
    ) -> None:
        self.place = {name: k for k, name in enumerate(columns)}
        k = len(columns)
        setting = Setting(data.id, "", "seen", "all", None, "all", None)
        entrants = [Entrant(name, "hetpref", "", "", "control", "feature", None) for name in columns]
        blocks = [
            Block(
                seed=seed,
                query=query,
                margins=np.asarray(margins, np.float32)[query.order],
                wrong=np.full((len(query), k), np.nan, np.float32),
                given=np.ones(k, bool),
                imputed=np.zeros(k, bool),
                inverse_temperature=np.ones(k),
            )
            for seed, (query, margins) in enumerate(runs)
        ]
        self.panel = Panel(data, [Column(entrant, setting, {}) for entrant in entrants], blocks)
        self.values: Reals = point(self.panel.own)  # (k,)

    @cached_property
    def _drawn(self) -> tuple[Reals, Reals]:
        """Return the bootstrap draws [k, draws] over people, and the influences [n_cells, k]."""
        (draws,) = bootstrap(len(self.panel.people), [self.panel.own], *self.panel.context)
        return draws, self.panel.crossing.influence(self.panel.own)

    def figure(self, weights: Mapping[str, float]) -> Figure:
        """Return a sum of weighted columns with its 95 % interval over people, widened by what prompts they share."""
        draws, influence = self._drawn
        w = np.zeros(len(self.place))
        for name, weight in weights.items():
            w[self.place[name]] += weight
        value = np.array([w @ self.values])
        factor = self.panel.crossing.widening((influence @ w)[:, None])
        low, high = Estimate(value, (w @ draws)[None], factor).bounds()
        return Figure(*(round(float(v[0]), 6) for v in (value, low, high)))


def accuracies(data: PreferenceData, query: Query, margins: NDArray[np.floating]) -> Reals:
    """Return the macro accuracy of each column, float64 [k], of margins [n, k] in the order of `query.rows`."""
    return Scores(data, [str(k) for k in range(margins.shape[1])], [(query, margins)]).values
