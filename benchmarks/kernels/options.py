"""The pytest plugin of the benchmark (`-p benchmarks.kernels.options`): which cells, how long, which code it was."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

_HERE = Path(__file__).resolve().parent
_KERNELS = _HERE.parent.parent / "methods" / "lowrank"
# What shows the results, or chooses cells, moves none of them.
_NOT_MEASURING = {"__main__.py", "report.py", "throughput.py", "tune.py"}


@cache
def code_sha256() -> str:
    """Return the digest of what the numbers depend on: the kernels, compiled or not, and the benchmark."""
    files = [p for p in _HERE.glob("*.py") if p.name not in _NOT_MEASURING]
    files += [p for p in _KERNELS.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    h = hashlib.sha256()
    for path in sorted(files):
        h.update(f"\x1e{path.name}\x1f".encode() + path.read_bytes())
    return h.hexdigest()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the benchmark."""
    group = parser.getgroup("kernels")
    group.addoption("--kernel-cells", metavar="FILE", help="Names of cells, one a line; without it the quick grid.")
    group.addoption("--kernel-limits", default="quick", choices=("quick", "full"), help="How long to measure.")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark by which `-m quick` chooses the quick cells of a longer list."""
    config.addinivalue_line("markers", "quick: a cell of the quick grid")


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Leave out the machine's name in the network, and say which code was measured."""
    del config, benchmarks
    output_json["machine_info"].pop("node", None)
    output_json["code_sha256"] = code_sha256()
