"""What this machine can do, measured in the same run: GEMM peak, stream bandwidth, a cell's floor, memory taken."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels.operands import Mode, Operands

_GEMM_SIZES = (512, 1024, 2048)
_STREAM_BYTES = 256 << 20
_SECONDS = 0.15

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Roofline:
    """Peaks of one thread: GEMM in FLOP/s and streams in bytes/s, with the size and the pattern that reached them."""

    gemm_flops_per_s: float
    stream_bytes_per_s: float
    gemm_size: int
    stream_pattern: str

    def floor_s(self, flops: int, moved: int) -> float:
        """Return the seconds below which the work cannot be done: the larger of arithmetic and traffic.

        >>> Roofline(1e9, 1e9, 512, "copy").floor_s(flops=2_000_000_000, moved=10)
        2.0
        """
        return max(flops / self.gemm_flops_per_s, moved / self.stream_bytes_per_s)


def measure_roofline(dtype: torch.dtype = torch.float32, clock: Clock = time.process_time) -> Roofline:
    """Measure the peaks with the threads torch has now, each the best of several sizes or patterns and repeats.

    Bandwidth counts what a program asks for: a copy reads and writes each byte once. The arrays are of 256 MiB, beyond
    the caches of a core, and were written before.
    """
    gemm: dict[int, float] = {}
    for size in _GEMM_SIZES:
        left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        into = torch.empty_like(left)
        gemm[size] = 2 * size**3 / _least_seconds(lambda i=left, j=right, k=into: torch.mm(i, j, out=k), clock)
    numbers = _STREAM_BYTES // 4
    one, two, out = (torch.full((numbers,), float(i)) for i in range(3))
    copied = out.numpy()
    patterns: dict[str, tuple[int, Callable[[], Any]]] = {
        "read": (1, lambda: one.sum()),
        "write": (1, lambda: out.fill_(1.0)),
        "copy": (2, lambda: out.copy_(one)),
        "copy (memcpy)": (2, lambda: ctypes.memmove(copied.ctypes.data, one.data_ptr(), _STREAM_BYTES)),
        "in place": (2, lambda: out.mul_(1.0)),
        "add": (3, lambda: torch.add(one, two, out=out)),
    }
    stream = {name: times * _STREAM_BYTES / _least_seconds(call, clock) for name, (times, call) in patterns.items()}
    size, pattern = max(gemm, key=lambda s: gemm[s]), max(stream, key=lambda s: stream[s])
    return Roofline(gemm[size], stream[pattern], size, pattern)


def _least_seconds(call: Callable[[], Any], clock: Clock) -> float:
    """Return the least time of a call, over at least three after a first one that warms up."""
    call()
    least, spent, calls = float("inf"), 0.0, 0
    while spent < _SECONDS or calls < 3:
        start = clock()
        call()
        taken = clock() - start
        least, spent, calls = min(least, taken), spent + taken, calls + 1
    return least


def flops_of(given: Operands, mode: Mode) -> int:
    """Return the floating-point operations of a cell.

    Per token that has an adapter they are 2 r (d_in + d_out), and 2 r^2 or r for a core; with the gradients of the
    tokens and of the factors, three times that.
    """
    cell = given.cell
    per_token = 2 * cell.rank * (cell.d_in + cell.d_out)
    per_token += cell.rank * {"core": 2 * cell.rank, "vector": 1}.get(cell.variant, 0)
    return given.tokens * per_token * (3 if mode == "both" else 1)


def bytes_of(given: Operands, mode: Mode) -> int:
    """Return the bytes that must move between memory and the core.

    Forward: x is read for the tokens that have an adapter, y written for all tokens, and A, B and the core read for the
    users present. The backward pass is a call of its own, with the rest of the model between the two: it reads dy, and
    once more x, A, B and the core, and writes dx and the gradients of the users present. The hidden values, r wide, are
    left out, for they can be computed anew.
    """
    cell, size = given.cell, given.x.element_size()
    a = cell.rank * cell.d_in * (given.active if cell.per_user_a else 1)
    b = cell.rank * cell.d_out * (given.active if cell.per_user_b else 1)
    core = given.active * cell.rank * {"core": cell.rank, "vector": 1}.get(cell.variant, 0)
    factors = a + b + core
    forward = given.tokens * cell.d_in + cell.tokens * cell.d_out + factors
    if mode == "forward":
        return size * forward
    backward = given.tokens * (cell.d_out + cell.d_in) + cell.tokens * cell.d_in + 2 * factors
    return size * (forward + backward)


def peak_memory(call: Callable[[], Any]) -> tuple[Any, int | None]:
    """Return what a call returns, and by how many bytes the process' resident memory rose at most while it ran.

    What the call returns is in it, and so is whatever any library took, not only torch. None where the system does not
    tell: it is Linux that lets a process set its peak back.
    """
    if not sys.platform.startswith("linux"):
        return call(), None
    _return_free_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return call(), None
    before = _resident("VmRSS")
    result = call()
    return result, max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def _return_free_memory() -> None:
    """Give what was freed back to the system, so that taking it again shows; glibc alone has a call for it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
