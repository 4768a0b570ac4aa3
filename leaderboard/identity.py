"""What a record says of itself, checked without the data: names, hashes, seeds, roles, and where its files stand."""

from __future__ import annotations

import re

from datasets_registry.encoders import ENCODERS
from datasets_registry.protocol import FOLDS
from datasets_registry.text_models import has_text_model
from leaderboard.panel import BUILT_IN
from leaderboard.records import RunRecord, canonical_sha256, record_key
from leaderboard.refusals import Report

MAX_SEEDS = 3 * FOLDS
MAX_CONTROLS = 8
# What others are measured against: a foreign method of that name would be taken for it by every reader of a table.
RESERVED = frozenset({"random", "length", "pooled-bt", "oracle"})
# Which of hetpref's own are controls; pooled-bt may stand in either place.
_CONTROLS = RESERVED - {"pooled-bt"}
_DIST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
_COLUMN = re.compile(r"[a-z][a-z0-9_]{0,31}")


def check_identity(name: str, record: RunRecord, report: Report) -> None:
    """Report every reason against a record, by its name in its folder, that needs no data to be seen."""
    _check_method(name, record, report)
    _check_place(name, record, report)
    _check_outcome(name, record, report)
    if record.dataset.encoder not in ENCODERS and not has_text_model(record.dataset.encoder):
        known = f"one of {', '.join(sorted(ENCODERS))}, or a model of the hub"
        report(name, "dataset.encoder", record.dataset.encoder, known)
    split = record.split
    if record.seed >= MAX_SEEDS or split.fold != record.seed % FOLDS:
        found = f"seed {record.seed} on fold {split.fold}"
        report(name, "seed", found, f"seed < {MAX_SEEDS} on fold seed mod {FOLDS}")
    if split.draw != 0:
        # Otherwise the luckiest of many draws could be handed in.
        report(name, "split.draw", split.draw, "0, the draw of the protocol")
    if (split.n_support is None) != (split.regime == "seen"):
        report(name, "split.n_support", split.n_support, f"null in the seen regime only ({split.regime})")
    if (split.n_support_mean is None) != (split.n_support is None):
        report(name, "split.n_support_mean", split.n_support_mean, "null where n_support is, and only there")


def _check_method(name: str, record: RunRecord, report: Report) -> None:
    method = record.method
    if (digest := canonical_sha256(method.config)) != method.config_sha256:
        report(name, "method.config_sha256", method.config_sha256, f"the hash of the parameters, {digest}")
    if method.name in RESERVED and method.dist != BUILT_IN:
        reserved = f"{BUILT_IN}: the name {method.name!r} is reserved for its own control; choose another"
        report(name, "method.dist", method.dist, reserved)
    if not _DIST.fullmatch(method.dist):
        report(name, "method.dist", method.dist, "the name of a Python distribution")
    elif method.dist != BUILT_IN and re.sub(r"[-_.]+", "-", method.dist).lower() == BUILT_IN:
        report(name, "method.dist", method.dist, f"{BUILT_IN}, spelled so, or another distribution")
    ours = method.dist == BUILT_IN and method.name != "pooled-bt"
    if ours and method.role != (role := "control" if method.name in _CONTROLS else "method"):
        report(name, "method.role", method.role, f"{role}, as {method.name} of {BUILT_IN} is")


def _check_place(name: str, record: RunRecord, report: Report) -> None:
    """Check the key and that record and margins stand where these say; nobody's file can be another's then."""
    dataset, method = record.dataset.name, record.method.name
    if name != (place := f"records/{dataset}/{method}/{record.key}.json"):
        report(name, "path", name, place)
    if (key := record_key(record.fit_key, record.split.regime, record.split.n_support)) != record.key:
        report(name, "key", record.key, f"the hash of fit_key, regime and n_support, {key}")
    if record.margins is None:
        return
    own = f"margins/{dataset}/{method}/"
    if record.margins.path != (place := f"{own}{record.key}.parquet"):
        report(name, "margins.path", record.margins.path, place)
    validation = record.margins.validation
    if validation is None:
        return
    path = validation.path
    if not path.startswith(own) or path.count("/") != 3 or not path.endswith(".parquet") or path == place:
        report(name, "margins.validation.path", path, f"{own}<fit_key>.parquet")


def _check_outcome(name: str, record: RunRecord, report: Report) -> None:
    """Check that the status fits what there is, that controls are measured and that truncated texts are counted."""
    margins = record.margins
    if record.status == "ok" and margins is None:
        report(name, "margins", "none", "a margins file, since status is ok")
    if record.status != "ok" and margins is not None:
        report(name, "margins", "a file", f"none, since status is {record.status}")
    if record.status != "ok" and not (record.reason or "").strip():
        report(name, "reason", record.reason, f"why the status is {record.status}")
    if "truncated" not in record.counts.model_fields_set:
        report(name, "counts.truncated", "nothing", "how many texts were cut, 0 where none was")
    if margins is None:
        return
    if record.control is None and "wrong_user" not in margins.control:
        report(name, "margins.control", sorted(margins.control), "the control wrong_user")
    wrong = {k: v for k, v in margins.control.items() if k != v or k in ("row", "margin") or not _COLUMN.fullmatch(k)}
    if wrong or len(margins.control) > MAX_CONTROLS:
        required = f"at most {MAX_CONTROLS} controls, each in a column of its own name"
        report(name, "margins.control", wrong or len(margins.control), required)
