"""Runs the benchmark in parts, each a pytest of its own, and joins their files: a run that is stopped goes on there."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kernels.options import measured_with
from benchmarks.kernels.shapes import Cell
from benchmarks.meters import device_class
from datasets_registry.atomic_write import write_atomically
from datasets_registry.errors import RequestError

_BENCHMARK = Path(__file__).resolve().with_name("bench_lowrank.py")
# Beside `kernels/`, which holds nothing but results.
_PARTS, PLOTS = ".kernel-parts", "kernel-plots"
CELLS_PER_PART = 12
# Whatever makes a library take more than one thread would measure something else.
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}


def result_path(out: Path) -> Path:
    """Return where a results folder has the kernel benchmark of this machine."""
    return out / "kernels" / f"{device_class('cpu')}.json"


def affordable(cells: Sequence[Cell], available: int, note: Callable[[str], None]) -> list[Cell]:
    """Return the cells that fit into `available` bytes of memory, and say which do not.

    At most six times the operands are there at once: they, the right gradients, a contender's, and its copies.
    """
    kept = [cell for cell in cells if 6 * cell.operand_bytes <= available]
    if lost := [cell.name for cell in cells if cell not in set(kept)]:
        note(f"left out, for want of memory ({available / 2**30:.0f} GiB): {len(lost)} cells, such as {lost[0]}")
    return kept


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to: the names of the cells that it wrote, and whether everything measured was right."""

    written: frozenset[str]
    right: bool


def prepare(out: Path) -> None:
    """Make the folders of a run; raises RequestError where nothing can be written."""
    try:
        for folder in (out / "kernels", out / _PARTS, out / PLOTS):
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as why:
        raise RequestError(f"{out} cannot be written: {why.strerror or why}; give another folder with --out") from why


def run_cells(cells: Sequence[Cell], limits: str, out: Path, fresh: bool, note: Callable[[str], None]) -> Outcome:
    """Measure cells into `result_path(out)`, in the folders that `prepare` made.

    Parts that were measured before with the same code, packages and processor are taken from `.kernel-parts`; `fresh`
    measures them again. Other cells that the file has, measured with the same, stay in it.
    """
    whole = [cells[i : i + CELLS_PER_PART] for i in range(0, len(cells), CELLS_PER_PART)]
    parts = {out / _PARTS / f"{_part_name(part, limits)}.json": part for part in whole}
    if fresh:
        # All of them at once: a run that is stopped must not go on with what it was told to forget.
        for path in parts:
            path.unlink(missing_ok=True)
    told: list[dict[str, Any]] = []
    right = True
    with tempfile.TemporaryDirectory() as folder:
        for number, (path, part) in enumerate(parts.items(), 1):
            found = _read(path)
            if found is None:
                note(f"part {number} of {len(parts)}: {len(part)} cells")
                passed, found = _measure(part, limits, Path(folder))
                right = right and passed
                if passed and found:
                    write_atomically(path, json.dumps(found).encode())
            else:
                note(f"part {number} of {len(parts)} was measured before and is not measured again")
            told += [found] if found else []
    measured = [each for part in told for each in part["benchmarks"]]
    if not measured:
        return Outcome(frozenset(), False)
    kept = _others(result_path(out), {cell.name for cell in cells}, note)
    # Each part has a date and a commit of its own, and every row names its commit.
    head = {name: value for name, value in told[0].items() if name not in ("datetime", "commit_info")}
    joined = {**head, "benchmarks": kept + measured}
    write_atomically(result_path(out), (json.dumps(joined, indent=1, allow_nan=False) + "\n").encode())
    return Outcome(frozenset(each["extra_info"]["cell"] for each in measured), right)


def _others(path: Path, measured: Set[str], note: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return the rows of an earlier file that stay, of other cells measured with the same; say what becomes of them."""
    earlier = _read(path)
    if earlier is None:
        return []
    try:
        rows = [each for each in earlier["benchmarks"] if each["extra_info"]["cell"] not in measured]
        count = len({each["extra_info"]["cell"] for each in rows})
    except (KeyError, TypeError):
        rows, count = [], 0
    same = earlier.get("measured_with") == measured_with()
    if count and same:
        note(f"{count} other cells, measured before with the same code on this machine, stay in {path}")
    elif count:
        note(f"{count} other cells were measured with other code or on another machine and are no longer in {path}")
    return rows if same else []


def _part_name(part: Sequence[Cell], limits: str) -> str:
    context = [json.dumps(measured_with(), sort_keys=True), limits, *(cell.name for cell in part)]
    return hashlib.sha256("\n".join(context).encode()).hexdigest()[:24]


def _read(path: Path) -> dict[str, Any] | None:
    """Return a part that is whole, else None."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return told if isinstance(told["benchmarks"], list) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _measure(part: Sequence[Cell], limits: str, run: Path) -> tuple[bool, dict[str, Any] | None]:
    """Run pytest on cells; return whether all was right, and its JSON. The parts of a run share the folder `run`."""
    with tempfile.TemporaryDirectory() as folder:
        chosen, written = Path(folder) / "cells.txt", Path(folder) / "part.json"
        chosen.write_text("\n".join(cell.name for cell in part), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", str(_BENCHMARK), "-q", "-s", "--no-header", "--tb=line"]
        # Whatever pytest is configured to do where this is started is not for this run.
        command += ["-c", os.devnull, "--rootdir", str(_BENCHMARK.parent), "--import-mode=importlib"]
        command += ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly", "-p", "benchmarks.kernels.options"]
        command += ["--benchmark-quiet", f"--benchmark-json={written}"]
        command += [
            f"--kernel-cells={chosen}",
            f"--kernel-limits={limits}",
            f"--kernel-roofline={run / 'roofline.json'}",
        ]
        # Started from a test's worker process, pytest-benchmark would take itself for one, too, and measure nothing.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=inherited | _ONE_THREAD)
        if done.returncode:
            print(done.stdout[-4000:], file=sys.stderr)
        return not done.returncode, _read(written)
