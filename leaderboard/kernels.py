"""Kernel records: from pytest-benchmark files under `kernels/` to typed rows, each the timings of one cell in one run.

What is read here is hostile input: sizes are looked at before content, and a file or a row that is not as it must be is
left out with every reason. Ratios are formed within one run on one device, and never across device classes.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from datasets_registry.errors import printable
from leaderboard.kernel_summaries import MODES
from leaderboard.records import Count, Name
from leaderboard.rows import (
    KernelGrad,
    KernelMode,
    KernelName,
    KernelRole,
    KernelRow,
    KernelRun,
    KernelTiming,
    significant,
)

MAX_KERNEL_BYTES = 64 << 20  # pytest-benchmark keeps every round of every row
MAX_KERNEL_FILES = 1000
MAX_KERNEL_ROWS = 10_000
_MOST_FAULTS = 20
# The names that give a file weight where several measured one cell: invented ones must not displace an honest file.
_KNOWN_RIVALS = frozenset({"loop", "gather-bmm", "padded-bmm", "bucket-bmm", "grouped-mm", "peft", "plain loop"})
# What a row takes from its benchmarks as it is; it is the same in all of them but for the work of dense gradients.
_AS_TOLD = (
    *("kernel", "variant", "cell", "mode", "tokens", "users", "active", "d_in", "d_out", "rank", "routing"),
    *("dtype", "device_class", "device", "threads"),
)
_ROLES = ("ours", "rival", "anchor")
# Bounds far beyond any machine, within which no ratio of two of them is zero or without end.
Work = Annotated[float, Field(ge=0, le=2**53, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=1e-12, le=1e6, allow_inf_nan=False)]
Bounded = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=1, le=1e21, allow_inf_nan=False)]


class _Read(BaseModel):
    """Base of what is read from a foreign file: exact types, no NaN; what is not asked for is ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class KernelEnvironment(_Read):
    """With what it ran."""

    python: KernelName
    packages: Annotated[dict[KernelName, KernelName], Field(max_length=200)]


class KernelSource(_Read):
    """Which commit of the code, and whether the tree had changes."""

    commit: KernelName | None
    dirty: bool


class KernelInfo(_Read):
    """What a benchmark says of itself in `extra_info`: one backend on one cell in one mode.

    `cell` names the cell without backend and mode; `flops` and `bytes` are the least work, `floor_s` the time for it at
    the `gemm_flops_per_s` and `bandwidth_bytes_per_s` measured in the same run, `plan_s` the time to plan the batch.
    """

    kernel: Name
    backend: KernelName
    role: KernelRole
    variant: KernelName
    mode: KernelMode
    grad: KernelGrad | None
    dtype: KernelName
    tokens: Annotated[Count, Field(ge=1)]
    users: Count
    active: Count
    d_in: Count
    d_out: Count
    rank: Count
    routing: KernelName
    flops: Work
    bytes: Work
    floor_s: Seconds
    gemm_flops_per_s: Rate
    bandwidth_bytes_per_s: Rate
    error: Bounded | None
    repeatable: bool | None
    extra_peak_bytes: Count | None
    plan_s: Bounded | None
    device: KernelName
    device_class: KernelName
    threads: Annotated[Count, Field(ge=1)]
    environment: KernelEnvironment
    source: KernelSource
    cell: KernelName

    @property
    def place(self) -> tuple[Any, ...]:
        """Return the cell and mode on its device, in the order of rows."""
        device = (self.device_class, self.device, self.threads)
        shape = (self.d_in, self.d_out, self.rank, self.users, self.tokens, self.active, self.routing)
        return *device, self.kernel, self.dtype, self.variant, *shape, self.cell, MODES.index(self.mode)

    @property
    def entrant(self) -> tuple[int, str, str]:
        """Return who was timed, in the order of timings."""
        return _ROLES.index(self.role), self.backend, self.grad or ""


class _Stats(_Read):
    median: Seconds
    iqr: Bounded
    rounds: Annotated[int, Field(ge=1)]


class _Benchmark(_Read):
    stats: _Stats
    extra_info: KernelInfo


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a file or one of its rows is left out; `row` is empty for the whole file."""

    row: str
    field: str
    found: str
    required: str

    @property
    def reason(self) -> str:
        """Return the fault in words."""
        return f"{self.field}: found {self.found}; required {self.required}"


@dataclass(frozen=True, slots=True)
class Timed:
    """One row of a file: what was timed and how long it took, in seconds."""

    info: KernelInfo
    median_s: float
    iqr_s: float


@dataclass(slots=True)
class KernelFile:
    """One file: its rows that are whole, and its faults, the first of many. `run` begins the sha256 of its bytes.

    `folder` is the name of its results folder, `unlisted` how many faults, or rows with any, there are beyond those.
    """

    name: str
    folder: str = ""
    run: str = ""
    unlisted: int = 0
    timed: list[Timed] = field(default_factory=list[Timed])
    faults: list[Fault] = field(default_factory=list[Fault])

    def fault(self, row: str, where: str, found: object, required: str) -> None:
        """Add a fault, as text that may be shown, or count it where enough are listed."""
        if len(self.faults) >= _MOST_FAULTS:
            self.unlisted += 1
            return
        told = (row[:120], where[:120], str(found)[:160], required[:200])
        self.faults.append(Fault(*(" ".join(printable(each).split()) for each in told)))


@dataclass(frozen=True, slots=True)
class Kernels:
    """The kernel rows of results folders, in order, the runs they come from, and what was left out and why."""

    rows: list[KernelRow]
    runs: list[KernelRun]
    skipped: list[tuple[str, str]]


def kernel_files(folder: Path) -> Iterator[Path]:
    """Yield the kernel files of a results folder in a stable order."""
    yield from sorted((folder / "kernels").glob("*.json"))[:MAX_KERNEL_FILES]


def read_kernel_file(path: Path) -> KernelFile:
    """Read a pytest-benchmark file; what is wrong with it or its rows is in `faults`: nothing is raised."""
    folder = printable(path.absolute().parent.parent.name)[:200]
    out = KernelFile(f"kernels/{printable(path.name)[:200]}", folder)
    try:
        if path.is_symlink() or path.parent.is_symlink() or not path.is_file():
            out.fault("", "file", "a link, or no file", "a plain file: nothing may leave the folder")
            return out
        if (size := path.stat().st_size) > MAX_KERNEL_BYTES:
            out.fault("", "size", size, f"at most {MAX_KERNEL_BYTES} bytes")
            return out
        raw = path.read_bytes()
        told: Any = json.loads(raw.decode("utf-8"))
        rows = told["benchmarks"]
        if not isinstance(rows, list):
            raise TypeError("benchmarks is no list")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as why:
        out.fault("", "file", f"{type(why).__name__}: {why}", 'the JSON of pytest-benchmark, with a list "benchmarks"')
        return out
    out.run = hashlib.sha256(raw).hexdigest()[:16]
    every = cast(list[Any], rows)
    if len(every) > MAX_KERNEL_ROWS:
        out.fault("", "benchmarks", f"{len(every)} rows", f"at most {MAX_KERNEL_ROWS}")
        return out
    seen: set[tuple[Any, ...]] = set()
    for number, each in enumerate(every):
        _read_row(out, each, number, seen)
    return out


def _read_row(out: KernelFile, each: Any, number: int, seen: set[tuple[Any, ...]]) -> None:
    name = cast(dict[str, Any], each).get("name") if isinstance(each, dict) else None
    row = name if isinstance(name, str) and name.strip() else f"benchmarks.{number}"
    try:
        told = _Benchmark.model_validate(each)
    except ValidationError as why:
        if len(out.faults) >= _MOST_FAULTS:
            out.unlisted += why.error_count()
            return
        for fault in why.errors(include_url=False):
            found = "nothing" if fault["type"] == "missing" else repr(fault["input"])[:160]
            out.fault(row, ".".join(map(str, fault["loc"])) or "row", found, fault["msg"])
        return
    info = told.extra_info
    who = (info.place, info.backend, info.grad)
    if who in seen:
        out.fault(
            row, "extra_info", "a second timing of this backend on this cell", "one of each backend, mode and grad"
        )
        return
    if info.active > min(info.users, info.tokens):
        most = f"at most users and tokens, {min(info.users, info.tokens)}"
        out.fault(row, "extra_info.active", info.active, most)
        return
    seen.add(who)
    out.timed.append(Timed(info, told.stats.median, told.stats.iqr))


def gather_kernels(folders: Iterable[Path]) -> Kernels:
    """Read every kernel file of results folders; the outcome does not depend on the order of folders or files.

    A cell that several runs measured is taken whole from one of them, so that what is compared was timed side by side:
    from a clean tree before a dirty one, then from where most of the known rivals were timed, then by the digest.
    """
    skipped: list[tuple[str, str]] = []
    files: dict[str, KernelFile] = {}
    read = (read_kernel_file(path) for folder in {f.resolve() for f in folders} for path in kernel_files(folder))
    for file in sorted(read, key=lambda f: (f.run, f.name, f.folder)):
        if file.run in files:
            continue
        skipped += _reasons(file)
        if file.run:
            files[file.run] = file
    found: dict[tuple[Any, ...], list[tuple[KernelFile, list[Timed]]]] = defaultdict(list)
    for _, file in sorted(files.items()):
        cells: dict[tuple[Any, ...], list[Timed]] = defaultdict(list)
        for timed in file.timed:
            cells[timed.info.place].append(timed)
        for place, members in cells.items():
            found[place].append((file, members))
    rows: list[KernelRow] = []
    superseded: dict[tuple[str, str], int] = defaultdict(int)
    for _, candidates in sorted(found.items()):
        (best, members), *others = sorted(candidates, key=_preference)
        rows.append(_row(best.run, members))
        for other, _ in others:
            superseded[other.name, f"{best.folder}/{best.name}"] += 1
    for (worse, better), n in superseded.items():
        cells_of = "1 cell" if n == 1 else f"{n} cells"
        skipped.append((worse, f"{cells_of} also measured in {better}, which counts"))
    used = {row.run for row in rows}
    runs = [_run(file, rows) for run, file in sorted(files.items()) if run in used]
    return Kernels(rows, runs, sorted(skipped))


def _preference(candidate: tuple[KernelFile, Sequence[Timed]]) -> tuple[bool, int, str]:
    file, members = candidate
    known = {t.info.backend for t in members if t.info.role == "rival"} & _KNOWN_RIVALS
    return any(t.info.source.dirty for t in members), -len(known), file.run


def _reasons(file: KernelFile) -> list[tuple[str, str]]:
    """Return a line per reason why rows of a file, or all of it, are left out, and no more lines than a page has."""
    groups: dict[str, list[str]] = defaultdict(list)
    for fault in file.faults:
        groups[fault.reason].append(fault.row)
    out: list[tuple[str, str]] = []
    for reason, named in groups.items():
        some = f": {named[0]}" if named[0] else ""
        out.append((file.name + some, reason if len(named) == 1 else f"{reason} (and {len(named) - 1} more rows)"))
    if file.unlisted:
        out.append((file.name, f"and {file.unlisted} more faults, not listed"))
    return out


def _row(run: str, members: Sequence[Timed]) -> KernelRow:
    """Return the row of one cell; its floor is the least of its timings, whose work nobody can do without."""
    members = sorted(members, key=lambda t: t.info.entrant)
    least = min((t.info for t in members), key=lambda i: (i.floor_s, i.entrant))
    plans = [t.info.plan_s for t in members if t.info.plan_s is not None]
    floor_s = significant(least.floor_s)
    told = {name: getattr(least, name) for name in _AS_TOLD}
    return KernelRow(
        **told,
        flops=round(least.flops),
        bytes=round(least.bytes),
        floor_s=floor_s,
        gemm_flops_per_s=significant(least.gemm_flops_per_s),
        bandwidth_bytes_per_s=significant(least.bandwidth_bytes_per_s),
        plan_s=significant(statistics.median(plans), 3) if plans else None,
        run=run,
        timings=[_timing(each, floor_s) for each in members],
    )


def _timing(each: Timed, floor_s: float) -> KernelTiming:
    info, own = each.info, significant(each.info.floor_s)
    return KernelTiming(
        backend=info.backend,
        role=info.role,
        grad=info.grad,
        median_s=significant(each.median_s),
        iqr_s=significant(each.iqr_s, 3),
        fraction=significant(info.floor_s / each.median_s),
        tokens_per_s=significant(info.tokens / each.median_s),
        floor_s=own if own != floor_s else None,
        error=None if info.error is None else significant(info.error, 3),
        repeatable=info.repeatable,
        extra_peak_bytes=info.extra_peak_bytes,
    )


def _run(file: KernelFile, rows: Sequence[KernelRow]) -> KernelRun:
    first = file.timed[0].info
    commits = {t.info.source.commit for t in file.timed}
    return KernelRun(
        run=file.run,
        python=first.environment.python,
        packages=dict(sorted(first.environment.packages.items())),
        commit=first.source.commit if len(commits) == 1 else None,
        dirty=any(t.info.source.dirty for t in file.timed) or len(commits) > 1,
        cells=sum(row.run == file.run for row in rows),
    )
