"""The shape of `leaderboard.json`: typed, versioned, and without a clock; costs stand apart from what was measured."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer

from leaderboard.records import Count, DatasetId, Name, Regime, Sha256, Text

BOARD_VERSION = 1
DECIMALS = 6
Budget = Count | Literal["all"]
Badge = Literal["verified", "rescored", "reported"]


def rounded(value: float | None) -> float | None:
    """Return a number as it stands in the file: six decimals, no minus zero, None for what does not exist.

    >>> rounded(0.12345678), rounded(float("nan")), rounded(-1e-9)
    (0.123457, None, 0.0)
    """
    if value is None or value != value or value in (float("inf"), float("-inf")):
        return None
    return round(float(value), DECIMALS) + 0.0


class Shape(BaseModel):
    """Base of every part of the file: frozen, no unknown fields, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Interval(Shape):
    """A value and its 95 % interval; what does not exist is left out of the file."""

    value: float | None = None
    low: float | None = None
    high: float | None = None

    @model_serializer
    def _what_exists(self) -> dict[str, float]:
        told = {"value": self.value, "low": self.low, "high": self.high}
        return {name: number for name, number in told.items() if number is not None}


class RankInterval(Shape):
    """An ordinal and its 95 % interval."""

    value: int
    low: int
    high: int


class Place(Shape):
    """Which row: an entrant under a setting. `label` tells configurations of one method apart."""

    method: Name
    label: Text
    dataset: DatasetId
    encoder: Text
    regime: Regime
    n_train: Budget
    n_support: Count | None
    n_users: Budget
    imbalance: Literal["zipf"] | None
    control: Literal["user_shuffle"] | None


class Row(Place):
    """One row of the table; the metrics are those of protocol.md. Controls and much-imputed rows have no rank.

    `imputed` is the share of seeds that took the margins of pooled Bradley-Terry; `people` the 5, 25, 50, 75 and 95 %
    points of the accuracy of persons; `records` the first 16 characters of the keys of the records it came from.
    """

    level: Literal["feature", "backbone", "prompt"]
    role: Literal["method", "control"]
    version: Text
    config: dict[str, Any]
    seeds: list[int]
    n_mean: float
    acc_macro: Interval
    acc_micro: Interval
    gain: Interval
    harm: Interval
    worst10: Interval
    specificity: Interval
    aulc: Interval
    n_at_gain: Interval
    nll: Interval
    nll_t: Interval
    brier: Interval
    brier_t: Interval
    ece: Interval
    ece_t: Interval
    regret: Interval
    closed_gap: Interval
    people: list[float]
    rank: RankInterval | None
    tier: int | None
    badge: Badge
    imputed: float
    failed: int
    headline: bool
    records: list[str]


class CurvePoint(Shape):
    """One budget of a curve; `n_mean` is what people really had."""

    n: Budget
    n_mean: float
    acc_macro: Interval
    gain: Interval


class Curve(Shape):
    """Accuracy against data per person; `n_train` is null where it is the axis."""

    method: Name
    label: Text
    role: Literal["method", "control"]
    dataset: DatasetId
    encoder: Text
    regime: Regime
    axis: Literal["n_train", "n_support"]
    n_train: Budget | None
    n_users: Budget
    imbalance: Literal["zipf"] | None
    points: list[CurvePoint]


class Overall(Shape):
    """A method over all datasets of a regime, at the headline budgets; `complete` if it has every dataset."""

    method: Name
    label: Text
    regime: Regime
    datasets: int
    complete: bool
    gain: Interval
    gain_rank: float
    aulc_rank: float | None


class CostRow(Place):
    """What a row cost: the median over seeds on one device class. Not compared across classes."""

    device_class: Text
    device: Text
    threads: Count
    seeds: list[int]
    fit_s: float | None
    adapt_s_per_user: float | None
    comparisons_per_s: float | None
    trained_params: float | None
    params_per_user: float | None
    state_bytes_per_user: float | None
    peak_device_bytes: float | None
    peak_rss_delta_bytes: float | None


class Failure(Place):
    """A cell that did not give margins, and the first line of why."""

    seed: int
    status: Text
    reason: Text


class Skipped(Shape):
    """A file that was left out, and why."""

    name: Text
    reason: Text


class RecordsDigest(Shape):
    """How many records, and the sha256 over their keys, margins and statuses."""

    count: int
    sha256: Sha256


class Leaderboard(Shape):
    """The whole file."""

    schema_version: Literal[1] = BOARD_VERSION
    protocol: Text
    records: RecordsDigest
    datasets: list[dict[str, Any]]
    methods: list[dict[str, Any]]
    rows: list[Row]
    overall: list[Overall]
    curves: list[Curve]
    failures: list[Failure]
    skipped: list[Skipped]
    kernels: list[dict[str, Any]]
    ledger: list[dict[str, Any]]
    costs: list[CostRow] = Field(default_factory=list[CostRow])
