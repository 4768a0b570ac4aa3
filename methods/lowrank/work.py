"""What a call has to do: floating-point operations, bytes that must move, and the least time these take here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from methods.lowrank.backends import backend_for
from methods.lowrank.checks import problem_of
from methods.lowrank.plan import Plan
from methods.lowrank.problem import Problem

_GEMM_SIZES = (512, 1024, 2048)
_STREAM_MIB = (4, 16, 64, 256)
_LEAST_RUNS, _LEAST_SECONDS = 3, 0.04

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Work:
    """Floating-point operations and compulsory bytes of a call."""

    flops: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Peaks:
    """What a machine reached: GEMM in FLOP/s, and streams in bytes/s by how many bytes they went over.

    A stream over what a shared cache holds is faster than one over memory, so a call is held to a stream over as many
    bytes as it moves; the smallest is beyond the caches of a core.
    """

    gemm_flops_per_s: float
    streams: Mapping[int, float]

    def bandwidth(self, moved: int) -> float:
        """Return the bytes/s of a stream over `moved` bytes, between measured sizes by the logarithm of the size.

        >>> round(Peaks(1e9, {100: 8.0, 10_000: 2.0}).bandwidth(1000), 6)
        5.0
        """
        sizes = sorted(self.streams)
        return float(np.interp(math.log(max(moved, 1)), np.log(sizes), [self.streams[size] for size in sizes]))

    def floor_s(self, work: Work) -> float:
        """Return the seconds below which the work cannot be done: the larger of arithmetic and traffic.

        >>> Peaks(1e9, {1: 1e9}).floor_s(Work(flops=2_000_000_000, bytes=10))
        2.0
        """
        return max(work.flops / self.gemm_flops_per_s, work.bytes / self.bandwidth(work.bytes))


def work_of(problem: Problem, *, backward: bool = False) -> Work:
    """Return the work of a forward call, or with `backward` of forward and backward together.

    FLOPs: per token with an adapter 2 r (d_in + d_out), and 2 r^2 or r for a core; with backward three times that.
    Compulsory bytes, forward: x is read for the tokens with an adapter and y written for all, and A, B and the core are
    read for the users present. The backward pass is a call of its own, with the rest of a model between the two: it
    reads dy, and once more x, A, B and the core, and writes dx and the gradients of the users present (row gradients).
    The base, the plan and the hidden values, r wide, are left out.
    """
    plan, rank, core = problem.plan, problem.rank, problem.core
    tokens = plan.tokens - plan.n_base
    per_user = 0 if core is None else core[:1].numel()
    flops = 2 * tokens * rank * (problem.d_in + problem.d_out)
    flops += tokens * per_user * (2 if core is not None and core.dim() == 3 else 1)
    rows_a, rows_b = (1 if shared else plan.n_active for shared in (problem.shared_a, problem.shared_b))
    factors = rank * (rows_a * problem.d_in + rows_b * problem.d_out) + plan.n_active * per_user
    moved = tokens * problem.d_in + plan.tokens * problem.d_out + factors
    if backward:
        flops *= 3
        moved += tokens * (problem.d_in + problem.d_out) + plan.tokens * problem.d_in + 2 * factors
    return Work(flops, moved * problem.x.element_size())


def measure_peaks(device: str = "cpu", dtype: torch.dtype = torch.float32, clock: Clock = time.perf_counter) -> Peaks:
    """Measure the peaks with the threads torch has now; each is the best of several sizes or patterns, and of repeats.

    Bandwidth counts what a program asks for: a copy reads and writes each byte once. Takes about three seconds.
    """
    gemm = 0.0
    for size in _GEMM_SIZES:
        left, right, into = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(3))
        gemm = max(gemm, 2 * size**3 / _least(lambda i=left, j=right, k=into: torch.mm(i, j, out=k), device, clock))
    streams = {mib << 20: _stream(mib << 20, device, clock) for mib in _STREAM_MIB}
    return Peaks(gemm, streams)


def _stream(size: int, device: str, clock: Clock) -> float:
    """Return the best bytes/s of reading one array, of reading two, of writing, and of copying, over `size` bytes."""
    whole, one, two = (torch.ones(size // 4 // parts, device=device) for parts in (1, 2, 2))
    patterns = (lambda: whole.sum(), lambda: torch.dot(one, two), lambda: whole.fill_(1.0), lambda: two.copy_(one))
    return max(size / _least(call, device, clock) for call in patterns)


def _least(call: Callable[[], Any], device: str, clock: Clock) -> float:
    """Return the least time of a call, over several after a first one that warms up."""
    call()
    least, spent, runs = float("inf"), 0.0, 0
    while runs < _LEAST_RUNS or spent < _LEAST_SECONDS:
        _wait(device)
        start = clock()
        call()
        _wait(device)
        taken = clock() - start
        least, spent, runs = min(least, taken), spent + taken, runs + 1
    return least


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


@cache
def _peaks(device: str, dtype: torch.dtype, threads: int) -> Peaks:
    """Return the peaks, measured once per process, device, type and number of threads."""
    del threads
    return measure_peaks(device, dtype)


def explain(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    plan: Plan,
    *,
    core: Tensor | None = None,
    backend: str = "auto",
    backward: bool = False,
) -> dict[str, Any]:
    """Return which backend and variant a call would take, its work, and the floor of its time on this machine.

    Keys: "backend", "variant", "bytes" and "flops" as `work_of` counts them, and "floor_s", for which the machine's
    peaks are measured on first use (about three seconds).

    >>> from methods.lowrank import plan_batch
    >>> plan = plan_batch(torch.tensor([0, 1, 1]), n_users=2)
    >>> told = explain(torch.ones(3, 4), torch.ones(2, 1, 4), torch.ones(2, 1, 4), plan, backend="reference")
    >>> told["backend"], told["variant"], told["flops"], told["bytes"]
    ('reference', 'full', 48, 160)
    """
    problem = problem_of(x, a, b, plan, 1.0, core)
    mode = "backward" if backward else "forward"
    name, able = backend_for(backend, problem, mode)
    told = getattr(able, "variant_of", None)
    variant = problem.kind if told is None else f"{problem.kind}, {told(problem, mode)}"
    work = work_of(problem, backward=backward)
    floor = _peaks(str(x.device), x.dtype, torch.get_num_threads()).floor_s(work)
    return {"backend": name, "variant": variant, "bytes": work.bytes, "flops": work.flops, "floor_s": floor}
