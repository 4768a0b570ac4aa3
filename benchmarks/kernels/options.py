"""The pytest plugin of the benchmark (`-p benchmarks.kernels.options`): which cells, how long, measured with what."""

from __future__ import annotations

import platform
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from benchmarks.code_digest import files_sha256
from benchmarks.meters import environment, source
from datasets_registry.errors import printable
from methods.lowrank import available_backends

_HERE = Path(__file__).resolve().parent
_KERNELS = _HERE.parent.parent / "methods" / "lowrank"
# What shows the results, or chooses cells, moves none of them.
_NOT_MEASURING = {"__main__.py", "report.py", "throughput.py", "tune.py"}


@cache
def code_sha256() -> str:
    """Return the digest of what the numbers depend on: the kernels, compiled or not, and the benchmark."""
    files = [p for p in _HERE.glob("*.py") if p.name not in _NOT_MEASURING]
    files += [p for p in _KERNELS.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    return files_sha256((p.name, p) for p in sorted(files))


@cache
def packages() -> dict[str, str]:
    """Return the versions that the numbers depend on."""
    told = dict(environment("cpu", threads=1).packages)
    with suppress(PackageNotFoundError):
        told["peft"] = version("peft")
    return told


@cache
def cpu_model() -> str:
    """Return the processor's name as the system tells it, at most 80 characters; "cpu" where it tells none."""
    told = ""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        told = next((line.partition(":")[2] for line in lines if line.startswith("model name")), "")
    return one_line(told) or one_line(platform.processor()) or "cpu"


def one_line(text: str) -> str:
    """Return text as a name that may be stored and shown: no control characters, at most 80 characters."""
    return " ".join(printable(" ".join(text.split())).split())[:80].strip()


@cache
def measured_with() -> dict[str, Any]:
    """Return what numbers must have in common to stand in one file: the code, what it ran with, and the machine.

    What was measured on uncommitted changes is measured again once they are committed.
    """
    return {
        "code_sha256": code_sha256(),
        "dirty": source().dirty,
        "python": platform.python_version(),
        "packages": packages(),
        "cpu": cpu_model(),
        "backends": sorted(name for name, told in available_backends().items() if told == "ok"),
    }


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the benchmark."""
    group = parser.getgroup("kernels")
    group.addoption("--kernel-cells", metavar="FILE", help="Names of cells, one a line; without it the quick grid.")
    group.addoption("--kernel-limits", default="quick", choices=("quick", "full"), help="How long to measure.")
    group.addoption("--kernel-roofline", metavar="FILE", help="The roofline of this run; made by who comes first.")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark by which `-m quick` chooses the quick cells of a longer list."""
    config.addinivalue_line("markers", "quick: a cell of the quick grid")


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Leave out the machine's name in the network, and say what was measured, with what, and how."""
    del config, benchmarks
    output_json["machine_info"].pop("node", None)
    output_json |= {"clock": "process_time", "interleaved": True, "measured_with": measured_with()}
