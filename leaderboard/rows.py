"""The shape of `leaderboard.json`: typed, versioned, and without a clock; costs stand apart from what was measured."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from leaderboard.records import Amount, Count, DatasetId, Name, Regime, Sha256, Text

BOARD_VERSION = 1
DECIMALS = 6
Budget = Count | Literal["all"]
Badge = Literal["verified", "rescored", "reported"]
COSTS = (
    "fit_s",
    "adapt_s_per_user",
    "comparisons_per_s",
    "train_comparisons_per_s",
    "trained_params",
    "params_per_user",
    "state_bytes_per_user",
    "peak_device_bytes",
    "peak_rss_delta_bytes",
)
RARE_COSTS = frozenset({"train_comparisons_per_s"})
# One short line of printable ASCII, not blank and with no space at its ends: nothing that looks like another name.
KernelName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=120,
        pattern=r"^[!-~]([ -~]*[!-~])?$",
    ),
]
KernelRole = Literal["ours", "rival", "anchor"]
KernelMode = Literal["forward", "backward", "both"]
KernelGrad = Literal["rows", "dense"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def rounded(value: float | None) -> float | None:
    """Return a number as it stands in the file: six decimals, no minus zero, None for what does not exist.

    >>> rounded(0.12345678), rounded(float("nan")), rounded(-1e-9)
    (0.123457, None, 0.0)
    """
    if value is None or value != value or value in (float("inf"), float("-inf")):
        return None
    return round(float(value), DECIMALS) + 0.0


def significant(value: float, digits: int = 4) -> float:
    """Return a number with so many significant digits: what is measured in seconds or rates needs no decimals.

    >>> significant(0.000123456), significant(98765.4), significant(0.0)
    (0.0001235, 98770.0, 0.0)
    """
    return float(f"{value:.{digits}g}")


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
    imbalance: Literal["zipf"] | None = None
    control: Literal["user_shuffle"] | None = None


class Row(Place):
    """One row of the table; the metrics are those of protocol.md. Controls and much-imputed rows have no rank.

    `imputed` is the share of seeds that took the margins of pooled Bradley-Terry, or ties; `people` the 5, 25, 50, 75
    and 95 % points of the accuracy of persons; `records` the first 16 characters of the keys of the records it came
    from. `skipped` counts the seeds that the method was unable to be measured in, which are imputed too; `transductive`
    tells that it needs support on prompts that seen people compared; `attempts` counts the submissions of the entrant.
    These three stand in the file where there is such a thing.
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
    skipped: int = 0
    transductive: bool = False
    attempts: int = 0
    headline: bool
    records: list[str]

    @model_serializer(mode="wrap")
    def _what_is_so(self, every: SerializerFunctionWrapHandler) -> dict[str, Any]:
        told: dict[str, Any] = every(self)
        rare = ("skipped", "transductive", "attempts")
        return {name: value for name, value in told.items() if value or name not in rare}


class CurvePoint(Shape):
    """One budget of a curve; `n_mean` is what people really had."""

    n: Budget
    n_mean: float
    acc_macro: Interval
    gain: Interval


class Curve(Shape):
    """Accuracy against data per person; `n_train` is null where it is the axis. Budgets not measured have no point."""

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
    """What a row cost: the median over seeds on one device class, null where nobody measured it.

    Not compared across classes. A cost that few methods tell is left out of the file where it is null.
    """

    device_class: Text
    device: Text
    threads: Count
    seeds: list[int]
    fit_s: float | None = None
    adapt_s_per_user: float | None = None
    comparisons_per_s: float | None = None
    train_comparisons_per_s: float | None = None
    trained_params: float | None = None
    params_per_user: float | None = None
    state_bytes_per_user: float | None = None
    peak_device_bytes: float | None = None
    peak_rss_delta_bytes: float | None = None

    @model_serializer
    def _what_was_measured(self) -> dict[str, Any]:
        return {name: value for name, value in dict(self).items() if value is not None or name not in RARE_COSTS}


class Failure(Place):
    """A measurement that gave no margins, failed or skipped, and the first line of why."""

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


class KernelTiming(Shape):
    """How one backend did on a cell: median and interquartile range in seconds; `fraction` is floor over median.

    `grad` says which gradients of the factors it made, of active users ("rows") or of all ("dense"); `floor_s` stands
    here where it is not that of the row, since dense gradients are more bytes to write. `error` is the relative one
    against float64. What does not exist is left out of the file.
    """

    backend: KernelName
    role: KernelRole
    grad: KernelGrad | None = None
    median_s: Positive
    iqr_s: Amount
    fraction: Positive
    tokens_per_s: Amount
    floor_s: Positive | None = None
    error: Amount | None = None
    repeatable: bool | None = None
    extra_peak_bytes: Count | None = None

    @model_serializer
    def _what_exists(self) -> dict[str, Any]:
        return {name: value for name, value in dict(self).items() if value is not None}


class KernelRow(Shape):
    """One cell in one mode on one device: its shape, its roofline, and every backend, all timed in one run.

    `flops` and `bytes` are the least work there is, `floor_s` the time that this machine needs for it at the measured
    `gemm_flops_per_s` and `bandwidth_bytes_per_s`; `plan_s` is what planning the batch took, once for all layers;
    `run` names the run among `kernel_runs`.
    """

    kernel: Name
    variant: KernelName
    cell: KernelName
    mode: KernelMode
    tokens: Count
    users: Count
    active: Count
    d_in: Count
    d_out: Count
    rank: Count
    routing: KernelName
    dtype: KernelName
    device_class: KernelName
    device: KernelName
    threads: Count
    flops: Count
    bytes: Count
    floor_s: Positive
    gemm_flops_per_s: Positive
    bandwidth_bytes_per_s: Positive
    plan_s: Amount | None
    run: Text
    timings: list[KernelTiming]


class KernelRatio(Shape):
    """How many times faster a backend of ours was than a rival, as the geometric mean over the cells both were in."""

    backend: KernelName
    cells: int
    ratio: Positive


class KernelWorst(Shape):
    """The cell in which a backend of ours did worst against the fastest rival there."""

    ratio: Positive
    cell: KernelName
    rival: KernelName


class KernelSummary(Shape):
    """A backend of ours over all cells of one device, dtype, variant and mode; never over several device classes.

    `ratio` is the geometric mean over cells of the fastest rival's median over ours, in the `compared` of the `cells`
    that have a rival; `fraction` the median fraction of the roofline; `error` the largest; `repeatable` is true if
    every cell was bitwise so.
    """

    kernel: Name
    device_class: KernelName
    device: KernelName
    threads: Count
    dtype: KernelName
    variant: KernelName
    mode: KernelMode
    backend: KernelName
    grad: KernelGrad | None
    cells: int
    compared: int
    ratio: Positive | None
    worst: KernelWorst | None
    rivals: list[KernelRatio]
    fraction: Positive
    error: Amount | None
    repeatable: bool | None


class KernelRun(Shape):
    """The run that kernel rows came from: `run` is the beginning of the sha256 of its file."""

    run: Text
    python: KernelName
    packages: dict[KernelName, KernelName]
    commit: KernelName | None
    dirty: bool
    cells: int


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
    kernels: list[KernelRow]
    kernel_summaries: list[KernelSummary] = Field(default_factory=list[KernelSummary])
    kernel_runs: list[KernelRun] = Field(default_factory=list[KernelRun])
    ledger: list[dict[str, Any]]
    costs: list[CostRow] = Field(default_factory=list[CostRow])
