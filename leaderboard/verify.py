"""Every reason why a record, a results folder or a submission is refused. What is read here is hostile input.

Nothing is executed and nothing but JSON and Parquet is opened; sizes are looked at before content.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from datasets_registry.encoders import ENCODERS
from datasets_registry.errors import HetprefError, RequestError
from datasets_registry.protocol import FOLDS, N_SUPPORT_GRID, N_TRAIN_GRID, PROTOCOL
from datasets_registry.text_models import has_text_model
from leaderboard.kernels import MAX_KERNEL_FILES, read_kernel_file
from leaderboard.labels import Labels, Query, affordable
from leaderboard.panel import BUILT_IN
from leaderboard.records import FileRef, RunRecord, canonical_sha256, printable, record_key
from leaderboard.store import MAX_RECORD_BYTES, ResultsFolder

MAX_MARGINS_BYTES = 256 << 20
MAX_FILES = 100_000
MIN_SEEDS = 3
MAX_SEEDS = 3 * FOLDS
MANIFEST = "manifest.json"
_ROUNDING = 1e-6
# What others are measured against: a foreign method of that name would be taken for it by every reader of a table.
RESERVED = frozenset({"random", "length", "pooled-bt", "oracle"})
# Which of hetpref's own are controls; pooled-bt may stand in either place.
_CONTROLS = RESERVED - {"pooled-bt"}
_SAFE = frozenset({".json", ".parquet", ".jsonl", ".md", ".txt"})


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason: where, which field, what was found and what is required."""

    file: str
    field: str
    found: str
    required: str


@dataclass(slots=True)
class _Report:
    labels: Labels
    refusals: list[Refusal] = field(default_factory=list[Refusal])
    lost: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def __call__(self, file: str, name: str, found: object, required: object) -> None:
        told = (file[:300], name[:300], str(found)[:300], str(required)[:300])
        self.refusals.append(Refusal(*(printable(each) for each in told)))

    def close(self) -> list[Refusal]:
        """Return every refusal, after those of datasets that cannot be had: one each, however many records name it."""
        for dataset, names in sorted(self.lost.items()):
            some = names[0] if len(names) == 1 else f"{len(names)} records, the first {names[0]}"
            self(some, "dataset", dataset, f"a dataset and split of the registry: {self.labels.unavailable(dataset)}")
        return self.refusals


def verify(path: Path, labels: Labels | None = None) -> list[Refusal]:
    """Return every reason to refuse a record or kernel file, a results folder or a submission; none means accepted.

    A folder with a manifest is a submission: it must hold nothing but what the manifest names, and enough seeds.
    Raises RequestError when there is nothing at the path.
    """
    report = _Report(labels or Labels())
    if path.is_file() and _in_kernels(path):
        _kernel_file(path, path.parent.parent, report)
    elif path.is_file():
        _record(path, _root_of(path), report)
    elif path.is_dir():
        _folder(path, report)
    else:
        raise RequestError(f"{str(path)!r} does not exist. Give a record, a results folder or a submission")
    return report.close()


def _in_kernels(path: Path) -> bool:
    """Return whether a file stands in the `kernels` of a results folder, not in `records/<dataset>/kernels`."""
    above = [folder.name for folder in path.absolute().parents]
    return above[0] == "kernels" and "records" not in above[1:3]


def _root_of(path: Path) -> Path:
    return path.parents[3] if len(path.parents) > 3 and path.parents[2].name == "records" else path.parent


def _folder(root: Path, report: _Report) -> None:
    manifest = root / MANIFEST
    if manifest.exists() or manifest.is_symlink():
        _bundle(root, report)
    for number, path in enumerate((root / "records").rglob("*")):
        if number >= MAX_FILES:
            report("records", "files", f"more than {MAX_FILES}", f"at most {MAX_FILES}")
            break
        if path.is_symlink():
            report(_name(path, root), "file", "a symbolic link", "a plain file: nothing may leave the folder")
        elif path.is_file() and path.suffix != ".json" and not path.name.endswith(".tmp"):
            report(_name(path, root), "file", path.suffix, "only .json files stand under records/")
    files = [p for p in ResultsFolder(root).record_files() if not p.is_symlink()]
    if not _kernels(root, report) and not files:
        report("records", "files", "none", "records/<dataset>/<method>/<key>.json or kernels/*.json")
    found = [(_name(path, root), record) for path in files if (record := _record(path, root, report))]
    _cells(found, report)
    if manifest.exists():
        _seeds([record for _, record in found], report)


def _kernels(root: Path, report: _Report) -> int:
    """Check every kernel file, such as a board reads, and return how many there are."""
    files = sorted((root / "kernels").glob("*.json"))
    if len(files) > MAX_KERNEL_FILES:
        report("kernels", "files", len(files), f"at most {MAX_KERNEL_FILES}")
    for path in files[:MAX_KERNEL_FILES]:
        _kernel_file(path, root, report)
    return len(files)


def _kernel_file(path: Path, root: Path, report: _Report) -> None:
    file = read_kernel_file(path)
    for fault in file.faults:
        where = f"{fault.row}: {fault.field}" if fault.row else fault.field
        report(_name(path, root), where, fault.found, fault.required)
    if file.unlisted:
        report(_name(path, root), "rows", f"{file.unlisted} more faults, not listed", "none")


def _bundle(root: Path, report: _Report) -> None:
    """Check that a submission holds what its manifest names, unaltered, and nothing else."""
    try:
        if (root / MANIFEST).is_symlink() or (root / MANIFEST).stat().st_size > 64 << 20:
            raise ValueError("not a plain file of at most 64 MB")
        told: dict[str, Any] = json.loads((root / MANIFEST).read_bytes())
        named: dict[str, str] = {str(k): str(v) for k, v in dict(told["files"]).items()}
        if told.get("protocol") != PROTOCOL:
            report(MANIFEST, "protocol", told.get("protocol"), PROTOCOL)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as why:
        report(MANIFEST, "file", f"{type(why).__name__}: {why}", 'JSON with "protocol" and "files": {path: sha256}')
        return
    there: set[str] = set()
    for path in sorted(root.rglob("*")):
        name = _name(path, root)
        if path.is_symlink():
            report(name, "file", "a symbolic link", "a plain file: nothing may leave the folder")
        elif path.is_file() and name != MANIFEST:
            there.add(name)
            if path.suffix not in _SAFE:
                report(name, "file", path.suffix or "no suffix", f"only {', '.join(sorted(_SAFE))}")
            if name not in named:
                report(name, "manifest", "not named", "every file with its sha256")
            elif path.stat().st_size <= MAX_MARGINS_BYTES and (digest := _sha256(path)) != named[name]:
                report(name, "sha256", digest, named[name])
    for name in sorted(set(named) - there):
        report(name, "manifest", "named, but not there", "the file")


def _record(path: Path, root: Path, report: _Report) -> RunRecord | None:
    """Check one record and its margins; returns it when its form is right, whatever else is wrong."""
    name = _name(path, root)
    try:
        if path.stat().st_size > MAX_RECORD_BYTES:
            report(name, "size", path.stat().st_size, f"at most {MAX_RECORD_BYTES} bytes")
            return None
        raw = path.read_bytes()
        told = json.loads(raw)
    except (OSError, ValueError, RecursionError) as why:
        report(name, "file", f"{type(why).__name__}: {why}", "one JSON object")
        return None
    protocol = cast(dict[str, Any], told).get("protocol") if isinstance(told, dict) else None
    if protocol != PROTOCOL:
        report(name, "protocol", protocol, PROTOCOL)
    try:
        record = RunRecord.model_validate_json(raw, strict=True)
    except ValidationError as why:
        for each in why.errors(include_url=False):
            report(name, ".".join(map(str, each["loc"])) or "file", repr(each["input"]), each["msg"])
        return None
    _identity(name, path, record, report)
    _split(name, root, record, report)
    return record


def _identity(name: str, path: Path, record: RunRecord, report: _Report) -> None:
    method = record.method
    if (digest := canonical_sha256(method.config)) != method.config_sha256:
        report(name, "method.config_sha256", method.config_sha256, f"the hash of the parameters, {digest}")
    if method.name in RESERVED and method.dist != BUILT_IN:
        reserved = f"{BUILT_IN}: the name {method.name!r} is reserved for its own control; choose another"
        report(name, "method.dist", method.dist, reserved)
    place = (record.dataset.name, method.name, f"{record.key}.json")
    if path.parts[-3:] != place:
        report(name, "path", "/".join(path.parts[-3:]), "/".join(place))
    if (key := record_key(record.fit_key, record.split.regime, record.split.n_support)) != record.key:
        report(name, "key", record.key, f"the hash of fit_key, regime and n_support, {key}")
    if record.dataset.encoder not in ENCODERS and not has_text_model(record.dataset.encoder):
        known = f"one of {', '.join(sorted(ENCODERS))}, or a model of the hub"
        report(name, "dataset.encoder", record.dataset.encoder, known)
    ours = method.dist == BUILT_IN and method.name != "pooled-bt"
    if ours and method.role != (role := "control" if method.name in _CONTROLS else "method"):
        report(name, "method.role", method.role, f"{role}, as {method.name} of {BUILT_IN} is")
    if record.seed >= MAX_SEEDS or record.split.fold != record.seed % FOLDS:
        report(
            name,
            "seed",
            f"seed {record.seed} on fold {record.split.fold}",
            f"seed < {MAX_SEEDS} on fold seed mod {FOLDS}",
        )
    if record.status == "ok" and record.margins is None:
        report(name, "margins", "none", "a margins file, since status is ok")
    if record.status != "ok" and record.margins is not None:
        report(name, "margins", "a file", f"none, since status is {record.status}")
    if record.status != "ok" and not record.reason:
        report(name, "reason", record.reason, f"why the status is {record.status}")
    if record.margins and record.control is None and "wrong_user" not in record.margins.control:
        report(name, "margins.control", sorted(record.margins.control), "the control wrong_user")
    if (record.split.n_support is None) != (record.split.regime == "seen"):
        report(name, "split.n_support", record.split.n_support, f"null in the seen regime only ({record.split.regime})")


def _split(name: str, root: Path, record: RunRecord, report: _Report) -> None:
    """Check dataset, split, counts and margins against the registry."""
    at, dataset, labels = record.split, record.dataset, report.labels
    if labels.unavailable(dataset.name) is not None:
        report.lost[dataset.name].append(name)
        return
    try:
        if (digest := labels.digest(dataset.name)) != dataset.sha256:
            report(name, "dataset.sha256", dataset.sha256, digest)
        digest = labels.split(dataset.name, at.fold, at.draw).digest
        if digest != at.sha256:
            report(name, "split.sha256", at.sha256, f"the registry's, {digest}")
        _budget(name, record, report)
        people = labels.people(dataset.name, at.fold, at.draw, at.n_users)
        query = labels.query(dataset.name, at.fold, at.draw, at.regime, people)
        validation = labels.validation(dataset.name, at.fold, at.draw, people, at.n_train)
    except HetprefError as why:
        report(name, "dataset", dataset.name, f"a dataset and split of the registry: {why}")
        return
    counts = (len(set(query.user.tolist())), len(query.starts), len(query))
    if counts != (record.counts.users, record.counts.units, record.counts.comparisons):
        told = (record.counts.users, record.counts.units, record.counts.comparisons)
        report(name, "counts", told, f"people, units and comparisons of the split: {counts}")
    if record.margins:
        columns = ["margin", *record.margins.control.values()]
        _margins(name, root, "margins", record.margins, query, columns, report)
        if record.margins.validation:
            _margins(name, root, "margins.validation", record.margins.validation, validation, ["margin"], report)


def _budget(name: str, record: RunRecord, report: _Report) -> None:
    """Check that people and budgets are such as the split has."""
    at, dataset, labels = record.split, record.dataset.name, report.labels
    everybody = len(labels.split(dataset, at.fold, at.draw).seen)
    if not 1 <= at.n_users <= everybody:
        report(name, "split.n_users", at.n_users, f"from 1 to the split's {everybody} seen people")
    if not affordable(at.n_train, N_TRAIN_GRID, lambda: labels.units(dataset, at.fold, at.draw, "seen")):
        report(name, "split.n_train", at.n_train, _allowed(N_TRAIN_GRID, "seen"))
    if at.regime == "seen" or at.n_support is None:
        return
    have = labels.units(dataset, at.fold, at.draw, at.regime)
    if not affordable(at.n_support, N_SUPPORT_GRID, lambda: have):
        report(name, "split.n_support", at.n_support, _allowed(N_SUPPORT_GRID, at.regime))
    # The records of a regime name no support units, so that what people had of them on average must be the split's.
    mean = float(np.minimum(have, at.n_support).mean()) if len(have) else 0.0
    if at.n_support_mean is None or abs(at.n_support_mean - mean) > _ROUNDING:
        report(name, "split.n_support_mean", at.n_support_mean, f"{mean:.6f}, as the split gives in {at.regime}")


def _allowed(grid: tuple[int, ...], regime: str) -> str:
    return f"one of {', '.join(map(str, grid))}, all, or as many units as half of the people have in {regime}"


def _margins(
    name: str, root: Path, where: str, ref: FileRef, query: Query, columns: list[str], report: _Report
) -> None:
    """Check a margins file: in place, unaltered, Parquet of numbers, each row of the split once, all finite."""
    pa: Any = importlib.import_module("pyarrow")
    pq: Any = importlib.import_module("pyarrow.parquet")
    say: Callable[[str, object, object], None] = lambda part, found, required: report(  # noqa: E731
        name, f"{where}.{part}", found, required
    )
    path = root / ref.path
    if not path.resolve().is_relative_to(root.resolve()) or path.is_symlink():
        return say("path", ref.path, "a plain file inside the folder")
    try:
        if path.stat().st_size > MAX_MARGINS_BYTES:
            return say("size", path.stat().st_size, f"at most {MAX_MARGINS_BYTES} bytes")
        raw = path.read_bytes()
    except OSError as why:
        return say("path", f"{ref.path}: {why.strerror}", "a file that can be read")
    if (digest := hashlib.sha256(raw).hexdigest()) != ref.sha256:
        say("sha256", digest, ref.sha256)
    try:
        file = pq.ParquetFile(io.BytesIO(raw))
        types: dict[str, str] = {f.name: str(f.type) for f in file.schema_arrow}
        if file.metadata.num_rows != len(query):
            say("rows", file.metadata.num_rows, f"{len(query)}: exactly the split's, each once")
            return
        for wanted, kind in [("row", "int32"), *((c, "float") for c in columns)]:
            if types.get(wanted) != kind:
                say("columns", f"{wanted}: {types.get(wanted)}", f"a column {wanted!r} of type {kind}")
        if len(types) < len(file.schema_arrow):
            return say("columns", ", ".join(f.name for f in file.schema_arrow), "each name once")
        present = [c for c in dict.fromkeys(["row", *columns]) if types.get(c) == ("int32" if c == "row" else "float")]
        table = file.read(columns=present, use_threads=False)
        found: dict[str, NDArray[Any]] = {c: np.asarray(table.column(c)) for c in present}
    except (pa.ArrowException, OSError, ValueError) as why:
        return say("file", f"{type(why).__name__}: {why}", "Parquet")
    if "row" in found and not np.array_equal(np.sort(found["row"]), query.rows):
        say("rows", query.difference(found["row"]), "exactly the split's, each once")
    for column in columns:
        if column in found and found[column].dtype.kind == "f" and not np.isfinite(found[column]).all():
            say(column, f"{int((~np.isfinite(found[column])).sum())} not finite", "finite numbers")
    return None


def _cells(found: list[tuple[str, RunRecord]], report: _Report) -> None:
    """Check that no cell has two records, and that a method is in one role and level."""
    first: dict[tuple[Any, ...], str] = {}
    roles: dict[tuple[str, str], dict[tuple[str, str], str]] = defaultdict(dict)
    for name, record in found:
        if (there := first.setdefault(record.cell, name)) != name:
            report(name, "cell", f"a second record of the cell of {there}", "one record per cell")
        method = record.method
        roles[method.name, method.dist].setdefault((method.role, method.level), name)
    for (method, _), told in sorted(roles.items()):
        if len(told) > 1:
            said = "; ".join(f"{role}, {level} in {name}" for (role, level), name in sorted(told.items()))
            report("records", "method.role", f"{method} is {said}", "one role and level per method")


def _seeds(records: list[RunRecord], report: _Report) -> None:
    """Check that every setting of a submission has the first seeds of the protocol, without a gap, and enough."""
    seeds: dict[tuple[Any, ...], set[int]] = defaultdict(set)
    for r in records:
        if r.control is None:
            s = r.split
            at = (r.dataset.name, r.dataset.encoder, s.regime, s.n_train, s.n_support, s.imbalance)
            seeds[r.method.name, r.method.dist, r.method.config_sha256, *at].add(r.seed)
    wrong: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for setting, found in seeds.items():
        if len(found) < MIN_SEEDS or found != set(range(len(found))):
            title = ", ".join(str(part) for part in setting[3:] if part is not None)
            wrong[setting[0], tuple(sorted(found))].append(title)
    for (method, found), titles in sorted(wrong.items()):
        some = titles[0] if len(titles) == 1 else f"{len(titles)} settings, such as {min(titles)}"
        said = f"{', '.join(map(str, found)) or 'none'} of {method} in {some}"
        report("records", "seeds", said, f"seeds 0 to {MIN_SEEDS - 1} at least, no gap")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _name(path: Path, root: Path) -> str:
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return path.name
