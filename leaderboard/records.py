"""The record of one finished measurement, as it stands in a file: typed, versioned, and without a score.

The runner writes it and the leaderboard reads it; it is the only thing the two share. Numbers of accuracy are computed
from the margins it points to and the registry's labels, never stored here.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)]
DatasetId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*@[0-9]+(\+[a-z_]+=[A-Za-z0-9.-]+)*$", max_length=160)]
_SEGMENT = r"[A-Za-z0-9@+=_-][A-Za-z0-9@+=._-]*"  # never "..", never hidden, never absolute
RelativePath = Annotated[str, Field(pattern=rf"^{_SEGMENT}(/{_SEGMENT})*$", max_length=300)]
Status = Literal["ok", "failed", "timeout", "out_of_memory", "skipped"]
Regime = Literal["seen", "unseen"]
Text = Annotated[str, Field(max_length=4000)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    """Base of every part of a record: frozen, no unknown fields, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MethodPart(Part):
    """Which method, from which distribution, with which configuration."""

    name: Name
    dist: Text
    version: Text
    level: Literal["feature", "backbone", "prompt"]
    role: Literal["method", "control"]
    config: dict[str, Any]
    config_sha256: Sha256


class DatasetPart(Part):
    """Which dataset, by versioned id and content digest, seen through which encoder."""

    name: DatasetId
    sha256: Sha256
    encoder: Text
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
    n_train_mean: float
    n_support_mean: float | None
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

    control: dict[str, str] = Field(default_factory=dict)
    validation: FileRef | None = None


class Cost(Part):
    """What it cost, on the device of `environment`."""

    fit_s: Seconds | None = None
    adapt_s_per_user: Seconds | None = None
    comparisons_per_s: Seconds | None = None
    trained_params: Count | None = None
    params_per_user: float | None = None
    state_bytes_per_user: float | None = None
    peak_device_bytes: Count | None = None
    peak_rss_delta_bytes: Count | None = None


class Environment(Part):
    """Where it ran; costs are compared only within one `device_class`."""

    python: Text
    packages: dict[str, str]
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

    schema_version: Literal[1] = SCHEMA_VERSION
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
    reason: Text | None = None
    counts: Counts
    margins: Margins | None = None
    cost: Cost
    environment: Environment
    source: Source

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
