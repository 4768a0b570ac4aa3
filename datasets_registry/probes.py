"""Probes: does the form of a dataset give the answer away? A dataset that does is refused.

The format probe sees the *form* of a response and never its content: the class of the first and of the last character,
lines, list markers, quotes, brackets, and a hash of the skeleton that is left when runs of letters and digits are
erased. Digit runs count as one digit, so that a price is no form. It is a logistic regression on differences,
cross-validated over prompt clusters.

Refused is a dataset where form (or an encoder's norm), added to what is known, beats what is known alone by more than
`MARGIN` in macro accuracy *and* by more than `ERRORS` standard errors of the paired difference, the larger of that over
people and that over clusters. Known is the length or, where items have them and they tell more, the attributes: a text
that is rendered from attributes has a form that follows from its content (a sentence about a car is not one about a
train), which is no leak; a form that tells more than the attributes is one. Length and attributes together are not
known: a length that the attributes do not explain is form (list brackets around one response, say). Three standard
errors is a chance of 1 in 1000 of refusing a clean dataset; .05 is more than style gives in the built-in datasets, and
a leak gives up to .5.

Also refused: labels that lean to `first`, choices that can be read off the item's row, and query situations that stand
verbatim in the training prompts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets_registry.duplicates import Overlap, overlap
from datasets_registry.errors import DataError, HetprefError
from datasets_registry.format_features import FORMAT_NAMES, format_features, lengths
from datasets_registry.protocol import PROTOCOL, generator, hash_keys
from datasets_registry.records import Float32, Float64, PreferenceData
from datasets_registry.splits import split

# Kept reports are those of this rule; a change of rule is a new number.
RULE = 2
MARGIN = 0.05
ERRORS = 3.0
# Five standard deviations of a fair coin: about 6 in 10 million clean datasets are refused.
ORIENTATION_ERRORS = 5.0
ROW_SHARE = 0.95
EXACT_SHARE = 0.01
MOST_COMPARISONS = 20_000
FOLDS = 5


@dataclass(frozen=True, slots=True)
class LengthProbe:
    """Macro accuracy over people of "the longer is preferred" and of its reverse; equal lengths count .5."""

    longer: float
    shorter: float


@dataclass(frozen=True, slots=True)
class FormProbe:
    """Cross-validated macro accuracies: of form with length, of length, of what is known (length or attributes).

    `difference` is what form adds to what is known, with its standard `error`; the dataset is refused by it alone.
    """

    what: str
    accuracy: float
    length: float
    known: float
    difference: float
    error: float
    refuse: bool


@dataclass(frozen=True, slots=True)
class OrientationProbe:
    """Share in which `first` is preferred, with the bounds of a fair coin; share in which the lower item row is."""

    first: float
    low: float
    high: float
    lower_row: float
    n: int
    refuse: bool


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What the probes found; `refusals` gives every reason why the dataset must not be used, in words."""

    dataset: str
    dataset_digest: str
    protocol: str
    n_comparisons: int
    length: LengthProbe
    format: FormProbe
    norm: FormProbe | None
    orientation: OrientationProbe
    overlap: Overlap
    refusals: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report, ready for JSON."""
        return asdict(self) | {"refusals": list(self.refusals)}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> ProbeReport:
        """Return the report that `to_dict` was made from."""
        norm = told["norm"]
        return cls(
            **{
                **told,
                "length": LengthProbe(**told["length"]),
                "format": FormProbe(**told["format"]),
                "norm": None if norm is None else FormProbe(**norm),
                "orientation": OrientationProbe(**told["orientation"]),
                "overlap": Overlap(**told["overlap"]),
                "refusals": tuple(told["refusals"]),
            }
        )


def probe(data: PreferenceData, features: Float32 | None = None) -> ProbeReport:
    """Return what length, form, position and duplicates tell about the labels of a dataset.

    features: float32 [n_items, d] of a frozen *text* encoder adds the probe of its norm; the norm of tabular attributes
    is content. Label ties are left out. At most 20,000 comparisons are used, drawn by a seed.
    """
    sample = _sampled(data)
    size = lengths(data.items.response)
    length = _length_probe(sample, size)
    form = _form_probe(data, sample, "format", size, format_features(data.items.response))
    norm = None
    if features is not None:
        norms = np.linalg.norm(np.asarray(features, np.float64), axis=1, keepdims=True)
        norm = _form_probe(data, sample, "encoder norm", size, norms)
    position = _orientation(data)
    doubles = overlap(data, split(data))
    refusals = [_form_refusal(p) for p in (form, norm) if p is not None and p.refuse]
    if position.refuse:
        refusals.append(_position_refusal(position))
    if doubles.exact > EXACT_SHARE:
        refusals.append(
            f"{doubles.exact:.1%} of the query situations stand verbatim in the training prompts (allowed: "
            f"{EXACT_SHARE:.0%}); put equal prompts in one cluster in the loader"
        )
    return ProbeReport(
        dataset=data.id,
        dataset_digest=data.digest,
        protocol=PROTOCOL,
        n_comparisons=len(sample.user),
        length=length,
        format=form,
        norm=norm,
        orientation=position,
        overlap=doubles,
        refusals=tuple(refusals),
    )


def checked_probe(data: PreferenceData, encoder_id: str = "tabular@1") -> ProbeReport:
    """Return the report of a dataset, kept under HETPREF_HOME by content digest, so that a suite probes it once.

    Features of a text encoder are probed by their norm, too. Raises DataError for data that cannot be probed, and where
    the report cannot be kept.
    """
    from datasets_registry.features import features
    from datasets_registry.sources import home, writable, write_file

    digest = data.digest
    path = home() / "probes" / f"{PROTOCOL}-{RULE}" / f"{digest}-{encoder_id}.json"
    try:
        found = ProbeReport.of(json.loads(path.read_text(encoding="utf-8")))
        if found.dataset_digest == digest:
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass
    writable(path.parent)
    try:
        report = probe(data, None if encoder_id == "tabular@1" else features(data, encoder_id))
    except HetprefError:
        raise
    except Exception as why:
        told = f"{type(why).__name__}: {str(why).partition(chr(10))[0]}"
        raise DataError(
            f"{data.id} cannot be probed for leaks ({told}), and is not used without; look at the texts, attributes "
            "and labels that its loader gives"
        ) from why
    write_file(path, (json.dumps(report.to_dict(), indent=1) + "\n").encode())
    return report


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    """Comparisons without ties, of one seeded sample; `cluster` is that of the unit."""

    user: NDArray[np.int32]
    first: NDArray[np.int32]
    second: NDArray[np.int32]
    label: Float32
    cluster: NDArray[np.int32]


def _sampled(data: PreferenceData) -> _Sample:
    c = data.comparisons
    rows = np.flatnonzero(c.label != 0.5)
    if len(rows) > MOST_COMPARISONS:
        rows = np.sort(generator(PROTOCOL, data.id, "probe").choice(rows, MOST_COMPARISONS, replace=False))
    cluster = data.unit_cluster[c.unit[rows]]
    if len(np.unique(cluster)) < 2:
        raise DataError(
            f"{data.id} has comparisons that are no ties in fewer than two prompt clusters, so that no probe can be "
            "cross-validated; cluster prompts more finely in the loader"
        )
    return _Sample(c.user[rows], c.first[rows], c.second[rows], c.label[rows], cluster)


def _length_probe(sample: _Sample, size: Float64) -> LengthProbe:
    by_length = _macro(_longer(sample, size), sample.user)
    return LengthProbe(longer=by_length, shorter=1 - by_length)


def _longer(sample: _Sample, size: Float64) -> Float64:
    """Return 1, .5 or 0 per comparison: whether the longer response was preferred."""
    longer = np.sign(size[sample.first] - size[sample.second])
    return np.where(longer == 0, 0.5, (longer > 0) == (sample.label > 0.5))


def _form_probe(data: PreferenceData, sample: _Sample, what: str, size: Float64, form: Float64) -> FormProbe:
    """Compare regressions on the differences of length, attributes and `form`, float64 [n_items, k], paired."""
    length = np.log1p(size)[:, None]
    by_length = _cross_validated(data, sample, length)
    by_form = _cross_validated(data, sample, np.hstack([length, form]))
    # A direction of length needs no training, so the baseline must not fall below it by a fold's bad luck.
    longer = _longer(sample, size)
    known, by_all = [by_length, longer, 1 - longer], by_form
    if data.items.attributes is not None:
        attributes = np.asarray(data.items.attributes, np.float64)
        known.append(_cross_validated(data, sample, attributes))
        by_all = _cross_validated(data, sample, np.hstack([length, attributes, form]))
    by_known = max(known, key=lambda correct: _macro(correct, sample.user))
    better = by_all - by_known
    difference = _macro(better, sample.user)
    error = max(_standard_error(better, sample.user), _standard_error(better, sample.cluster))
    return FormProbe(
        what=what,
        accuracy=_macro(by_form, sample.user),
        length=_macro(by_length, sample.user),
        known=_macro(by_known, sample.user),
        difference=difference,
        error=error,
        refuse=bool(difference > MARGIN and difference > ERRORS * error),
    )


def _cross_validated(data: PreferenceData, sample: _Sample, table: Float64) -> Float64:
    """Return 1, .5 or 0 per comparison: whether a model of other clusters scores the preferred item higher."""
    from sklearn.linear_model import LogisticRegression

    spread = table.std(axis=0)
    table = (table - table.mean(axis=0)) / np.where(spread > 0, spread, 1)
    x = table[sample.first] - table[sample.second]
    y = sample.label > 0.5
    fold = _cluster_folds(data, sample.cluster)
    score = np.zeros(len(y))
    for held in np.unique(fold):
        train, test = fold != held, fold == held
        if y[train].all() or not y[train].any():
            # A constant label is position, which the orientation probe sees; the form has nothing to tell.
            continue
        model = LogisticRegression(C=1.0, fit_intercept=False, max_iter=1000).fit(x[train], y[train])
        score[test] = x[test] @ model.coef_[0]
    return np.where(score == 0, 0.5, (score > 0) == y)


def _cluster_folds(data: PreferenceData, cluster: NDArray[np.int32]) -> NDArray[np.int64]:
    there = np.unique(cluster)
    keys = hash_keys((data.clusters[c] for c in there), PROTOCOL, data.id, "probe folds")
    fold = np.empty(len(there), np.int64)
    fold[np.argsort(keys, kind="stable")] = np.arange(len(there)) % FOLDS
    return fold[np.searchsorted(there, cluster)]


def _orientation(data: PreferenceData) -> OrientationProbe:
    c = data.comparisons
    told = c.label != 0.5
    label = c.label[told] > 0.5
    n = len(label)
    first = float(label.mean())
    lower = float((label == (c.first[told] < c.second[told])).mean())
    slack = ORIENTATION_ERRORS * 0.5 / math.sqrt(n)
    leans = abs(first - 0.5) > slack or (n >= 20 and not 1 - ROW_SHARE <= lower <= ROW_SHARE)
    return OrientationProbe(first, max(0.0, 0.5 - slack), min(1.0, 0.5 + slack), lower, n, bool(leans))


def _form_refusal(found: FormProbe) -> str:
    names = f" (features: {', '.join(FORMAT_NAMES)})" if found.what == "format" else ""
    return (
        f"the {found.what} of a response predicts the label with {found.accuracy:.3f}, length alone with "
        f"{found.length:.3f}; it adds {found.difference:.3f} +- {found.error:.3f} to what length or attributes tell "
        f"(allowed: {MARGIN}, or {ERRORS:g} standard errors){names}. Render chosen and rejected responses alike in the "
        "loader"
    )


def _position_refusal(found: OrientationProbe) -> str:
    if found.low <= found.first <= found.high:
        return (
            f"the item in the lower row is preferred in {found.lower_row:.1%} of {found.n} comparisons: the row gives "
            "the answer away; number items by their text, not by which was chosen"
        )
    return (
        f"`first` is preferred in {found.first:.1%} of {found.n} comparisons (a fair coin: {found.low:.1%} to "
        f"{found.high:.1%}); which item is first must not depend on the label"
    )


def _macro(correct: Float64, group: NDArray[Any]) -> float:
    count = np.bincount(group)
    mean = np.bincount(group, correct)[count > 0] / count[count > 0]
    return float(mean.mean())


def _standard_error(value: Float64, group: NDArray[Any]) -> float:
    """Return the standard error of the mean over groups; 0 with a single group, which tells nothing."""
    count = np.bincount(group)
    mean = np.bincount(group, value)[count > 0] / count[count > 0]
    return float(mean.std(ddof=1) / np.sqrt(len(mean))) if len(mean) > 1 else 0.0
