"""Does a re-run agree with what was submitted? On the same cell in its margins, on a salted fold in its gain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaderboard.labels import Query
from leaderboard.panel import correctness
from leaderboard.records import Part
from leaderboard.rows import Interval, rounded
from leaderboard.statistics import Units

# A float32 fit on another processor turns a few decisions that were near 0; more is another fit.
DECISIONS = 0.01
ACCURACY = 0.005
# Two estimates of one gain, on other people and prompts, are further apart than this once in 400 times.
STANDARD_ERRORS = 3.0
_TWO_SIDED = 1.959963984540054


class MarginAgreement(Part):
    """The same cell, run again: share of decisions that turned, and accuracy then and now."""

    decisions: float
    accuracy_then: float
    accuracy_now: float

    @property
    def agrees(self) -> bool:
        """Return whether both lie within the tolerance."""
        return self.decisions <= DECISIONS and abs(self.accuracy_now - self.accuracy_then) <= ACCURACY


class GainAgreement(Part):
    """The same configuration on people and prompts that a salt assigns: the gain that was submitted, and that found."""

    submitted: float
    found: float
    error: float

    @property
    def least(self) -> float:
        """Return the least gain that chance allows where the submitted one is true."""
        return self.submitted - max(STANDARD_ERRORS * self.error, ACCURACY)

    @property
    def agrees(self) -> bool:
        """Return whether the found gain is not less than chance allows; more is no fault."""
        return self.found >= self.least

    @classmethod
    def of(cls, submitted: Interval, found: Interval) -> GainAgreement | None:
        """Compare two gains with their intervals; None where one does not exist."""
        if submitted.value is None or found.value is None:
            return None
        error = math.hypot(_error(submitted), _error(found))
        return cls(submitted=submitted.value, found=found.value, error=rounded(error) or 0.0)


def compare_margins(query: Query, then: Mapping[str, NDArray[Any]], now: Mapping[str, NDArray[Any]]) -> MarginAgreement:
    """Compare two margins files (columns `row`, `margin`) of one query set; raises DataError for one of another."""
    both = np.stack([query.align(each["row"], each["margin"]) for each in (then, now)], axis=1)
    told = query.label != 0.5
    right = np.full(both.shape, np.nan)
    right[told] = correctness(both[told], query.label[told])
    turned = np.sign(both[:, 0]) != np.sign(both[:, 1])
    accuracy = _macro(query, right, told)
    return MarginAgreement(
        decisions=rounded(float(turned.mean())) or 0.0,
        accuracy_then=rounded(float(accuracy[0])) or 0.0,
        accuracy_now=rounded(float(accuracy[1])) or 0.0,
    )


def _macro(query: Query, right: NDArray[np.float64], told: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the mean over people of the mean over their units of what is right, float64 [k]; ties are left out."""
    count = np.add.reduceat(told.astype(np.float64), query.starts)
    units = np.add.reduceat(np.where(told[:, None], np.nan_to_num(right), 0.0), query.starts)
    there = count > 0
    asked = Units(query.person[there], query.unit[there])
    return asked.means(units[there] / count[there, None]).mean(axis=0)


def _error(interval: Interval) -> float:
    if interval.low is None or interval.high is None:
        return 0.0
    return (interval.high - interval.low) / (2 * _TWO_SIDED)
