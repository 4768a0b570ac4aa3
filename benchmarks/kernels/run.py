"""Runs the benchmark in parts, each a pytest of its own, and joins their files: a run that is stopped goes on there."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.kernels.options import code_sha256
from benchmarks.kernels.shapes import Cell
from benchmarks.meters import device_class, source
from datasets_registry.atomic_write import write_atomically

_BENCHMARK = Path(__file__).resolve().with_name("bench_lowrank.py")
CELLS_PER_PART = 30
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


def run_cells(cells: Sequence[Cell], limits: str, out: Path, fresh: bool, note: Callable[[str], None]) -> bool:
    """Measure cells into `result_path(out)`; return whether everything measured was right.

    Parts that were measured before by the same code are taken from `kernels/.parts`; `fresh` measures them again.
    """
    parts = [cells[i : i + CELLS_PER_PART] for i in range(0, len(cells), CELLS_PER_PART)]
    told: list[dict[str, Any]] = []
    right = True
    for number, part in enumerate(parts, 1):
        path = out / "kernels" / ".parts" / f"{_part_name(part, limits)}.json"
        found = None if fresh else _read(path)
        if found is None:
            note(f"part {number} of {len(parts)}: {len(part)} cells")
            passed, found = _measure(part, limits)
            right = right and passed
            if passed and found:
                write_atomically(path, json.dumps(found).encode())
        else:
            note(f"part {number} of {len(parts)} was measured before and is not measured again")
        told += [found] if found else []
    if not told:
        return False
    joined = {**told[0], "benchmarks": [each for part in told for each in part["benchmarks"]]}
    write_atomically(result_path(out), (json.dumps(joined, indent=1, allow_nan=False) + "\n").encode())
    return right


def _part_name(part: Sequence[Cell], limits: str) -> str:
    # What was measured on uncommitted changes is measured again once they are committed.
    context = [code_sha256(), str(source().dirty), limits, *(cell.name for cell in part)]
    return hashlib.sha256("\n".join(context).encode()).hexdigest()[:24]


def _read(path: Path) -> dict[str, Any] | None:
    """Return a part that is whole, else None."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return told if isinstance(told["benchmarks"], list) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _measure(part: Sequence[Cell], limits: str) -> tuple[bool, dict[str, Any] | None]:
    """Run pytest on cells; return whether all was right, and its JSON."""
    with tempfile.TemporaryDirectory() as folder:
        chosen, written = Path(folder) / "cells.txt", Path(folder) / "part.json"
        chosen.write_text("\n".join(cell.name for cell in part), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", str(_BENCHMARK), "-q", "-s", "--no-header", "--tb=line"]
        # Whatever pytest is configured to do where this is started is not for this run.
        command += ["-c", os.devnull, "--rootdir", str(_BENCHMARK.parent), "--import-mode=importlib"]
        command += ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "benchmarks.kernels.options"]
        command += ["--benchmark-quiet", f"--benchmark-json={written}"]
        command += [f"--kernel-cells={chosen}", f"--kernel-limits={limits}"]
        # Started from a test's worker process, pytest-benchmark would take itself for one, too, and measure nothing.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=inherited | _ONE_THREAD)
        if done.returncode:
            print(done.stdout[-4000:], file=sys.stderr)
        return not done.returncode, _read(written)
