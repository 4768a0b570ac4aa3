"""The last step of a run whose suite asks for it: the kernel benchmark, in a process of its own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.suites import Suite


def measure_kernels(suite: Suite, folder: Path, fresh: bool, note: Callable[[str], None]) -> bool:
    """Measure the suite's kernel grid into `folder/kernels`; return whether nothing went wrong.

    What the same code measured there before, with the same packages on the same processor, is kept, unless `fresh` asks
    anew. Where pytest-benchmark is not installed the benchmark is left out, with a note that says what to install.
    """
    if suite.kernels is None:
        return True
    lacking = [name for name in ("pytest", "pytest_benchmark") if importlib.util.find_spec(name) is None]
    if lacking:
        note(
            f"the kernel benchmark is left out: {' and '.join(lacking)} is not installed; install it with: "
            'pip install "hetpref[kernels]"'
        )
        return True
    note(f"measuring the kernels ({suite.kernels} grid); --no-kernels leaves this out")
    command = [sys.executable, "-m", "benchmarks.kernels", "--grid", suite.kernels, "--out", str(folder)]
    # Its table is not the run's: the leaderboard shows what was measured.
    done = subprocess.run(command + (["--fresh"] if fresh else []), stdout=subprocess.DEVNULL)
    if done.returncode:
        note("the kernel benchmark failed; what it said is above, and the run's own results are whole")
    return not done.returncode
