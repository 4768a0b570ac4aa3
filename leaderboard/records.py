"""The record of one finished measurement, as it stands in a file: typed, versioned, and without a score.

The runner writes it and the leaderboard reads it; it is the only thing the two share. Numbers of accuracy are computed
from the margins it points to and the registry's labels, never stored here.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from datasets_registry.errors import printable
from datasets_registry.protocol import Regime

SCHEMA_VERSION = 1
# C0 and C1 controls other than tab and newline, and what no XML may hold: they steer terminals and abort renderers.
_TEXT = r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]*$"
MAX_DEPTH = 20
MAX_COUNT = 2**53
_MAX_INT = 2**64 - 1
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+-]*$", max_length=64)]
DatasetId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*@[0-9]+(\+[a-z_]+=[A-Za-z0-9.-]+)*$", max_length=160)]
_SEGMENT = r"[A-Za-z0-9@+=_-][A-Za-z0-9@+=._-]*"  # never "..", never hidden, never absolute
RELATIVE_PATH = rf"^{_SEGMENT}(/{_SEGMENT})*$"
RelativePath = Annotated[str, Field(pattern=RELATIVE_PATH, max_length=300)]
Status = Literal["ok", "failed", "timeout", "out_of_memory", "skipped"]
Text = Annotated[str, Field(max_length=4000, pattern=_TEXT)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object as it is; raises ValueError for controls in its text, NaN, and what is nested too deeply."""
    _check(value, 0)
    return value


def _check(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    if isinstance(value, str) and printable(value) != value:
        raise ValueError(f"text with control characters: {value[:80]!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no number of JSON")
    if isinstance(value, int) and abs(value) > _MAX_INT:
        raise ValueError("a whole number of more than 64 bits, which other readers of JSON take for another")
    if isinstance(value, dict):
        for key, each in cast(dict[Any, Any], value).items():
            _check(key, depth + 1)
            _check(each, depth + 1)
    elif isinstance(value, list | tuple):
        for each in cast(list[Any], value):
            _check(each, depth + 1)


def whole_number(value: Any) -> Any:
    """Return what is no bool and no float: 1.0 and true equal 1 to Python, and are not the number that stands there."""
    if type(value) is not int:
        raise ValueError("a whole number, and not one that only equals it")
    return value


def _cleaned(value: Any, info: ValidationInfo) -> Any:
    """Return what a method printed without controls where a run makes a record; a file's must have none."""
    return printable(value) if isinstance(value, str) and info.mode == "python" else value


class Part(BaseModel):
    """Base of every part of a record: frozen, no unknown fields, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MethodPart(Part):
    """Which method, from which distribution, with which configuration.

    `source_sha256` is the digest of the code that the margins depend on; null in records that do not tell it.
    `transductive`: a new person is served only through support items that seen people compared.
    """

    name: Name
    dist: Text
    version: Text
    level: Literal["feature", "backbone", "prompt"]
    role: Literal["method", "control"]
    config: Annotated[dict[str, Any], AfterValidator(_plain)]
    config_sha256: Sha256
    source_sha256: Sha256 | None = None
    transductive: bool = False


class DatasetPart(Part):
    """Which dataset, by versioned id and content digest, seen through which encoder.

    `encoder_revision` is the commit or digest of an encoder whose id does not pin it; null for all others.
    """

    name: DatasetId
    sha256: Sha256
    encoder: Text
    encoder_revision: Text | None = None
    licence: Text


class SplitPart(Part):
    """Which people and prompts, and how much data per person.

    `n_train` and `n_support` count units; `n_train_mean` and `n_support_mean` are what people really had, since a
    person with fewer units gives all of them. `n_support` is null in the seen regime. `sha256` is the split's digest.
    """

    fold: Count
    draw: Count
    regime: Regime
    n_train: Count | Literal["all"]
    n_support: Count | None
    n_users: Count
    imbalance: Literal["zipf"] | None = None
    n_train_mean: Amount
    n_support_mean: Amount | None
    sha256: Sha256


class Counts(Part):
    """How much was asked: people, units (user x prompt), comparisons, truncated texts."""

    users: Count
    units: Count
    comparisons: Count
    truncated: Count = 0


class FileRef(Part):
    """A file of the results folder, relative to it, with its digest."""

    path: RelativePath
    sha256: Sha256


class Margins(FileRef):
    """The margins file: Parquet with columns `row` (int32, comparison of the dataset), `margin` and one per control.

    `control` maps a control's name to its column, for example {"wrong_user": "wrong_user"}; `validation` is the file of
    margins on the validation part (columns `row`, `margin`), from which the temperature is fitted.
    """

    control: dict[Text, Text] = Field(default_factory=dict[str, str])
    validation: FileRef | None = None


class Cost(Part):
    """What it cost, on the device of `environment`; seconds are of the processor on a CPU, of the wall on a GPU.

    `comparisons_per_s` is of answering queries; `train_comparisons_per_s` of fitting, every pass over a comparison
    counted, and null for methods that do not tell how many they learned from.
    """

    fit_s: Amount | None = None
    adapt_s_per_user: Amount | None = None
    comparisons_per_s: Amount | None = None
    train_comparisons_per_s: Amount | None = None
    trained_params: Count | None = None
    params_per_user: Amount | None = None
    state_bytes_per_user: Amount | None = None
    peak_device_bytes: Count | None = None
    peak_rss_delta_bytes: Count | None = None


class Environment(Part):
    """Where it ran; costs are compared only within one `device_class`."""

    python: Text
    packages: dict[Text, Text]
    device: Text
    device_class: Text
    dtype: Text
    threads: Count


class Source(Part):
    """Which commit of the code; a dirty tree can be at most `reported`."""

    commit: Text | None
    dirty: bool


class RunRecord(Part):
    """One measurement: a fitted method on one regime and budget. It has no score.

    `key` names the record, `fit_key` the fit that it shares with the other regimes and budgets of its cell; `control`
    is "user_shuffle" for the second fit with permuted people, else null. `seed` is the repetition of the protocol.
    """

    schema_version: Annotated[Literal[1], BeforeValidator(whole_number)] = SCHEMA_VERSION
    kind: Literal["quality"] = "quality"
    protocol: Text
    key: Sha256
    fit_key: Sha256
    method: MethodPart
    dataset: DatasetPart
    split: SplitPart
    seed: Count
    control: Literal["user_shuffle"] | None = None
    status: Status
    reason: Annotated[Text | None, BeforeValidator(_cleaned)] = None
    counts: Counts
    margins: Margins | None = None
    cost: Cost
    environment: Environment
    source: Source

    @property
    def cell(self) -> tuple[Any, ...]:
        """Return what was measured: of several records of one cell at most one counts."""
        m, d, s = self.method, self.dataset, self.split
        entrant = (m.name, m.dist, m.version, m.config_sha256, m.role, m.level, self.control)
        setting = (d.name, d.encoder, s.fold, s.draw, s.regime, s.n_train, s.n_support, s.n_users, s.imbalance)
        return *entrant, *setting, self.seed

    @property
    def files(self) -> list[str]:
        """Return the paths of its margins files, of queries and of validation; none for a record without margins."""
        if self.margins is None:
            return []
        return [self.margins.path, *([self.margins.validation.path] if self.margins.validation else [])]

    @property
    def preference(self) -> tuple[bool, bool, str, str]:
        """Return the key by which one of several records of a cell is chosen; the least wins.

        Finished before failed, a clean tree before a dirty one; then by key: nothing that was measured matters.
        """
        return self.status != "ok", self.source.dirty, self.key, self.to_json()

    def to_json(self) -> str:
        """Return the record as strict JSON with a final newline."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False) + "\n"


def canonical_sha256(value: Any) -> str:
    """Return the sha256 of a JSON value in canonical form (sorted keys, no spaces, no NaN).

    >>> canonical_sha256({"b": 1, "a": 2}) == canonical_sha256({"a": 2, "b": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def record_key(fit_key: str, regime: Regime, n_support: int | None) -> str:
    """Return the key of one measurement of a fit."""
    return canonical_sha256({"fit": fit_key, "regime": regime, "n_support": n_support})
