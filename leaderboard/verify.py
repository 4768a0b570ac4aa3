"""Every reason why a record, a results folder or a submission is refused. What is read here is hostile input.

Nothing is executed and nothing but JSON, Parquet and zip is opened; sizes are looked at before content.
"""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from pydantic import ValidationError

from datasets_registry.errors import HetprefError, RequestError
from datasets_registry.protocol import FOLDS, N_SUPPORT_GRID, N_TRAIN_GRID, PROTOCOL, Count
from datasets_registry.splits import mean_units
from leaderboard.archives import is_archive, unpack
from leaderboard.bundles import MANIFEST, check_contents, check_counts, list_bundle, read_manifest
from leaderboard.identity import MAX_SEEDS, check_identity
from leaderboard.kernels import MAX_KERNEL_BYTES, MAX_KERNEL_FILES, read_kernel_file
from leaderboard.labels import Labels, affordable
from leaderboard.margins_files import check_margins
from leaderboard.plain_files import Folder, UnfitFileError, read_inside, walk
from leaderboard.records import RunRecord
from leaderboard.refusals import Refusal, Report, shown
from leaderboard.store import MAX_RECORD_BYTES
from leaderboard.strict_json import parse

__all__ = ["MANIFEST", "MAX_SEEDS", "MIN_SEEDS", "UNFORESEEN", "Refusal", "verify"]

MAX_FILES = 100_000
# A dataset that is simulated costs memory and seconds, and a name is all that it takes to ask for one.
MAX_DATASETS = 64
MIN_SEEDS = 3
UNFORESEEN = "what verify foresaw: the input is refused, and worth a report to whoever keeps hetpref"
_ROUNDING = 1e-6
_T = TypeVar("_T")


def verify(path: Path, labels: Labels | None = None) -> list[Refusal]:
    """Return every reason to refuse a record or kernel file, a results folder or a submission; none means accepted.

    A folder with a manifest is a submission, and so is a .zip of one: it must hold nothing but what the manifest names,
    and enough seeds. Raises RequestError when there is nothing at the path.
    """
    report = Report(labels or Labels())
    path = path.absolute()
    if path.is_dir():
        _folder(path, report)
    elif path.is_file() and is_archive(path):
        _guarded(path.name, report, lambda: _archive(path, report))
    elif path.is_file() and _in_kernels(path):
        _kernel_file(path, path.parent.parent, report)
    elif os.path.lexists(path):
        root = _root_of(path)
        _records([path.relative_to(root).as_posix()], Folder(root), report)
    else:
        raise RequestError(f"{str(path)!r} does not exist. Give a record, a results folder or a submission")
    return report.close()


def _guarded(name: str, report: Report, check: Callable[[], _T]) -> _T | None:
    """Return what a check returns; whatever it raises is a reason, since a crash would hide all the others."""
    try:
        return check()
    except Exception as why:
        report(name, "file", f"{type(why).__name__}: {why}", UNFORESEEN)
        return None


def _in_kernels(path: Path) -> bool:
    """Return whether a file stands in the `kernels` of a results folder, not in `records/<dataset>/kernels`."""
    above = [folder.name for folder in path.parents]
    return above[0] == "kernels" and "records" not in above[1:3]


def _root_of(path: Path) -> Path:
    return path.parents[3] if len(path.parents) > 3 and path.parents[2].name == "records" else path.parent


def _archive(path: Path, report: Report) -> None:
    with tempfile.TemporaryDirectory(prefix="hetpref-verify-") as fresh:
        root = unpack(path, Path(fresh), report)
        if root is not None:
            _folder(root, report, submitted=True)


def _folder(root: Path, report: Report, *, submitted: bool = False) -> None:
    folder = Folder(root)
    if submitted or os.path.lexists(root / MANIFEST):
        _submission(folder, report)
        return
    names = _record_names(root, report)
    if not _kernels(root, report) and not names:
        report("records", "files", "none", "records/<dataset>/<method>/<key>.json or kernels/*.json")
    _records(names, folder, report)


def _submission(folder: Folder, report: Report) -> None:
    manifest = _guarded(MANIFEST, report, lambda: read_manifest(folder, report))
    entries = list_bundle(folder, report)
    names = [e.name for e in entries if e.name.startswith("records/")]
    for name in names:
        if name.count("/") != 3 or not name.endswith(".json"):
            report(name, "file", "no record", "only records/<dataset>/<method>/<key>.json stand under records/")
    names = [name for name in names if name.count("/") == 3 and name.endswith(".json")]
    _kernels(folder.root, report)
    if not names:
        report("records", "files", "none", "records/<dataset>/<method>/<key>.json")
    found = _records(names, folder, report)
    if manifest is not None:
        margins = frozenset(name for _, record in found for name in record.files)
        _guarded(MANIFEST, report, lambda: check_contents(folder, entries, manifest, margins, report))
        _guarded(MANIFEST, report, lambda: check_counts(manifest, found, len(names), report))
    _guarded("records", report, lambda: _seeds([record for _, record in found], report))


def _record_names(root: Path, report: Report) -> list[str]:
    """Return the records of a results folder by name; what else stands among them is reported."""
    names: list[str] = []
    if not os.path.lexists(root / "records"):
        return names
    if (root / "records").is_symlink() or not (root / "records").is_dir():
        report("records", "file", "a link, or no folder", "a folder: nothing may leave the results")
        return names
    for entry in walk(root, "records", most=MAX_FILES):
        name = entry.name
        if entry.fault is not None:
            report(name, "file", entry.fault, "a plain file: nothing may leave the folder")
        elif entry.folder or (name.endswith(".tmp") and name.rpartition("/")[2].startswith(".")):
            continue  # a run that was killed leaves temporary files
        elif not name.endswith(".json") or name.count("/") != 3:
            report(name, "file", "no record", "only records/<dataset>/<method>/<key>.json stand under records/")
        else:
            names.append(name)
    return names


def _kernels(root: Path, report: Report) -> int:
    """Check every kernel file, such as a board reads, and return how many there are."""
    files = sorted((root / "kernels").glob("*.json"))
    if len(files) > MAX_KERNEL_FILES:
        report("kernels", "files", len(files), f"at most {MAX_KERNEL_FILES}")
    for path in files[:MAX_KERNEL_FILES]:
        _kernel_file(path, root, report)
    return len(files)


def _kernel_file(path: Path, root: Path, report: Report) -> None:
    name = path.relative_to(root).as_posix()
    _guarded(name, report, lambda: _timings(path, root, name, report))


def _timings(path: Path, root: Path, name: str, report: Report) -> None:
    try:
        parse(read_inside(root, name, MAX_KERNEL_BYTES))
    except (UnfitFileError, ValueError) as why:
        part, found = (why.part, why.found) if isinstance(why, UnfitFileError) else ("file", str(why))
        report(name, part, found, f"a plain file of JSON in UTF-8, at most {MAX_KERNEL_BYTES} bytes")
        return
    file = read_kernel_file(path)
    for fault in file.faults:
        where = f"{fault.row}: {fault.field}" if fault.row else fault.field
        report(name, where, fault.found, fault.required)
    if file.unlisted:
        report(name, "rows", f"{file.unlisted} more faults, not listed", "none")


def _records(names: list[str], folder: Folder, report: Report) -> list[tuple[str, RunRecord]]:
    """Check records and their margins; returns those of the right form, whatever else is wrong, by name."""
    found: list[tuple[str, RunRecord]] = []
    for name in names:
        record = _guarded(name, report, lambda name=name: _record(name, folder, report))
        if record is not None:
            found.append((name, record))
    datasets = list(dict.fromkeys(record.dataset.name for _, record in found))
    if len(datasets) > MAX_DATASETS:
        report("records", "dataset.name", f"{len(datasets)} datasets", f"at most {MAX_DATASETS}")
    known = set(datasets[:MAX_DATASETS])
    groups: dict[tuple[object, ...], list[tuple[str, RunRecord]]] = defaultdict(list)
    for name, record in found:
        s = record.split
        # What the protocol does not have is refused already; splits without end are not computed for it.
        if s.draw == 0 and s.fold < FOLDS and record.dataset.name in known:
            groups[record.dataset.name, s.fold, s.n_users, s.n_train].append((name, record))
    for members in groups.values():
        _measured(members, folder, report)
    _guarded("records", report, lambda: _cells(found, report))
    return found


def _measured(members: list[tuple[str, RunRecord]], folder: Folder, report: Report) -> None:
    """Check records of one dataset, fold and budget against the registry.

    Their queries are let go with them: a submission may ask for more than fits into memory side by side.
    """
    dataset, whole = members[0][1].dataset.name, report.labels

    def split(_: object, fold: int, draw: int) -> Any:
        return whole.split(dataset, fold, draw)

    labels = Labels(load=whole.data, split=split)
    for name, record in members:
        _guarded(name, report, lambda name=name, record=record: _split(name, folder, record, labels, report))


def _record(name: str, folder: Folder, report: Report) -> RunRecord | None:
    """Return a record whose form is right, whatever else is wrong with it."""
    try:
        raw = folder.read(name, MAX_RECORD_BYTES)
        told = parse(raw)
    except (UnfitFileError, ValueError) as why:
        part, found = (why.part, why.found) if isinstance(why, UnfitFileError) else ("file", str(why))
        report(name, part, found, f"a plain file of one JSON object in UTF-8, at most {MAX_RECORD_BYTES} bytes")
        return None
    protocol = cast(dict[str, Any], told).get("protocol") if isinstance(told, dict) else None
    if protocol != PROTOCOL:
        report(name, "protocol", shown(protocol), PROTOCOL)
    try:
        record = RunRecord.model_validate_json(raw, strict=True)
    except ValidationError as why:
        for each in why.errors(include_url=False):
            report(name, ".".join(map(str, each["loc"])) or "file", shown(each["input"]), each["msg"])
        return None
    check_identity(name, record, report)
    return record


def _split(name: str, folder: Folder, record: RunRecord, labels: Labels, report: Report) -> None:
    """Check dataset, split, counts and margins against the registry."""
    at, dataset = record.split, record.dataset
    if report.labels.unavailable(dataset.name) is not None:
        report.lost[dataset.name].append(name)
        return
    try:
        data = labels.data(dataset.name)
        if data.id != dataset.name:
            report(name, "dataset.name", dataset.name, f"{data.id}, the one name that these data have")
        if (digest := report.labels.digest(dataset.name)) != dataset.sha256:
            report(name, "dataset.sha256", dataset.sha256, digest)
        digest = labels.split(dataset.name, at.fold, at.draw).digest
        if digest != at.sha256:
            report(name, "split.sha256", at.sha256, f"the registry's, {digest}")
        people = labels.people(dataset.name, at.fold, at.draw, at.n_users)
        _budget(name, record, people, labels, report)
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
        columns = ["margin", *sorted(set(record.margins.control.values()) - {"margin"})]
        check_margins(name, folder, "margins", record.margins, query, columns, report)
        if record.margins.validation:
            ref = record.margins.validation
            check_margins(name, folder, "margins.validation", ref, validation, ["margin"], report)


def _budget(name: str, record: RunRecord, people: Count, labels: Labels, report: Report) -> None:
    """Check that people and budgets are such as the split has, and what people had of them on average."""
    at, dataset = record.split, record.dataset.name
    split = labels.split(dataset, at.fold, at.draw)
    everybody = len(split.seen)
    if not 1 <= at.n_users <= everybody:
        report(name, "split.n_users", at.n_users, f"from 1 to the split's {everybody} seen people")
    if not affordable(at.n_train, N_TRAIN_GRID, lambda: labels.units(dataset, at.fold, at.draw, "seen")):
        report(name, "split.n_train", at.n_train, _allowed(N_TRAIN_GRID, "seen"))
    elif 1 <= at.n_users <= everybody:
        # The board draws curves over it.
        trained = split.train(at.n_train, people, at.imbalance)
        mean = mean_units(labels.data(dataset), trained, split.seen[: at.n_users])
        if abs(at.n_train_mean - mean) > _ROUNDING:
            report(name, "split.n_train_mean", at.n_train_mean, f"{mean:.6f}, as the split gives")
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


def _cells(found: list[tuple[str, RunRecord]], report: Report) -> None:
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


def _seeds(records: list[RunRecord], report: Report) -> None:
    """Check that every setting of a submission has the first seeds of the protocol, without a gap, and enough."""
    seeds: dict[tuple[Any, ...], set[int]] = defaultdict(set)
    for r in records:
        if r.control is None:
            s, m = r.split, r.method
            at = (r.dataset.name, r.dataset.encoder, s.regime, s.n_train, s.n_support, s.imbalance)
            seeds[m.name, m.dist, m.version, m.role, m.level, m.config_sha256, _people(r, report), *at].add(r.seed)
    if records and not seeds:
        report("records", "seeds", "none but those of controls", f"seeds 0 to {MIN_SEEDS - 1} at least, no gap")
    wrong: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for setting, found in seeds.items():
        if len(found) < MIN_SEEDS or found != set(range(len(found))):
            title = ", ".join(str(part) for part in setting[7:] if part is not None)
            wrong[setting[0], tuple(sorted(found))].append(title)
    for (method, found), titles in sorted(wrong.items()):
        some = titles[0] if len(titles) == 1 else f"{len(titles)} settings, such as {min(titles)}"
        said = f"{', '.join(map(str, found)) or 'none'} of {method} in {some}"
        report("records", "seeds", said, f"seeds 0 to {MIN_SEEDS - 1} at least, no gap")


def _people(record: RunRecord, report: Report) -> Count:
    """Return how many seen people a fit had, "all" for everybody: folds differ by one person at most."""
    at = record.split
    if at.draw or at.fold >= FOLDS or report.labels.unavailable(record.dataset.name) is not None:
        return at.n_users
    return report.labels.people(record.dataset.name, at.fold, at.draw, at.n_users)
