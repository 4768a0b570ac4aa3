"""What a measurement costs and where it ran: clocks, memory, device class, source commit."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from datasets_registry.errors import RequestError
from leaderboard.records import Environment, Source

_PACKAGES = ("hetpref", "numpy", "scipy", "scikit-learn", "torch", "transformers")


@dataclass(slots=True)
class Clock:
    """Seconds by name: of the processor for work on a CPU, of the wall for work on a GPU, which is waited for.

    Processor seconds are of all threads of this process and of the children that it has waited for. What else runs on
    the machine leaves them as they are, nearly; waiting costs nothing in them, and is what time limits are for.
    """

    device: str = "cpu"
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time of the block to `name`."""
        start = self._now()
        try:
            yield
            _settle(self.device)
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start

    def _now(self) -> float:
        if self.device.startswith("cuda"):
            return time.perf_counter()
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime


class MemoryMeter:
    """Peak resident memory of this process above where it stood when the meter was made, in bytes."""

    def __init__(self) -> None:
        import psutil

        self.start = int(psutil.Process().memory_info().rss)

    def peak_delta(self) -> int:
        """Return the peak above the start; 0 when nothing was added."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        scale = 1 if sys.platform == "darwin" else 1024
        return max(0, peak * scale - self.start)


def _settle(device: str) -> None:
    """Wait until a GPU has done what it was given; nothing where no GPU is in use."""
    if not device.startswith("cuda"):
        return
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize(device)


def peak_device_bytes(device: str) -> int | None:
    """Return the most bytes that torch has held on a GPU at once; None on the CPU, and where the GPU was not used."""
    if not device.startswith("cuda"):
        return None
    import torch

    return (int(torch.cuda.max_memory_allocated(device)) or None) if torch.cuda.is_initialized() else None


def must_be_there(device: str) -> None:
    """Raise RequestError unless torch sees the device on this machine; imports torch only to look for a GPU."""
    if not device.startswith("cuda"):
        return
    import torch

    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(device.partition(":")[2] or 0) >= n:
        seen = "no GPU" if n == 0 else "only cuda:0" if n == 1 else f"only cuda:0 to cuda:{n - 1}"
        raise RequestError(
            f"device {device!r}: torch {torch.__version__} sees {seen} on this machine. Allowed here: cpu"
            f"{', cuda' if n else ''}. A GPU needs its driver, a torch that is built for CUDA, and to be among "
            "CUDA_VISIBLE_DEVICES where that is set"
        )


def device_class(device: str) -> str:
    """Return the class within which costs may be compared: `cpu-<machine>` or `cuda-sm<capability>`."""
    if not device.startswith("cuda"):
        return f"cpu-{platform.machine()}"
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return f"cuda-sm{major}{minor}"


def device_name(device: str) -> str:
    """Return the device as a person knows it."""
    if not device.startswith("cuda"):
        return "cpu"
    import torch

    return torch.cuda.get_device_name(device)


@cache
def environment(device: str = "cpu", threads: int = 1) -> Environment:
    """Return where a record was made."""
    packages: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return Environment(
        python=platform.python_version(),
        packages=packages,
        device=device_name(device),
        device_class=device_class(device),
        dtype="float32",
        threads=threads,
    )


@cache
def source() -> Source:
    """Return the commit of the code that runs, and whether the tree differs from it."""
    here = Path(__file__).resolve().parent.parent

    def git(*words: str) -> str | None:
        env = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=20, env=env, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # An installed copy may lie inside somebody else's repository: only a checkout of ours names a commit.
    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != here:
        return Source(commit=None, dirty=False)
    # A new, uncommitted method is code that the commit does not name, just as a changed one is.
    changed = git("status", "--porcelain", "--", "benchmarks", "methods", "datasets_registry", "leaderboard")
    return Source(commit=git("rev-parse", "HEAD"), dirty=bool(changed))
