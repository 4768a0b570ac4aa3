"""What a call has to do: floating-point operations, bytes that must move, and the time below which no code gets here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from methods.lowrank.backends import backend_for
from methods.lowrank.checks import problem_of
from methods.lowrank.plan import Plan
from methods.lowrank.problem import Problem

_GEMM_SIZE = 1024
_STREAM_BYTES = 64 << 20  # beyond the second-level cache of any core
_REPEATS = 7


@dataclass(frozen=True, slots=True)
class Work:
    """Floating-point operations and compulsory bytes of a call."""

    flops: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Peaks:
    """What this machine reached, with the threads torch has now: GEMM in FLOP/s, streams in bytes/s."""

    gemm_flops_per_s: float
    bandwidth_bytes_per_s: float

    def floor_s(self, work: Work) -> float:
        """Return the seconds below which the work cannot be done: the larger of arithmetic and traffic.

        >>> Peaks(1e9, 1e9).floor_s(Work(flops=2_000_000_000, bytes=10))
        2.0
        """
        return max(work.flops / self.gemm_flops_per_s, work.bytes / self.bandwidth_bytes_per_s)


def work_of(problem: Problem, *, backward: bool = False) -> Work:
    """Return the work of a forward call, or with `backward` of forward and backward together.

    FLOPs: 2 n r (d_in + d_out) forward for the n tokens with an adapter, and twice that backward (the gradient of the
    tokens and of the factors). Compulsory bytes, each tensor moved once: forward x, y, and A and B of the users present;
    with backward also dy, dx, and dA and dB of the users present (row gradients). The base, the core and the hidden
    values, r wide, are left out.
    """
    plan = problem.plan
    tokens = plan.tokens - plan.n_base
    width = problem.d_in + problem.d_out
    rows_a = 1 if problem.shared_a else plan.n_active
    rows_b = 1 if problem.shared_b else plan.n_active
    factors = problem.rank * (rows_a * problem.d_in + rows_b * problem.d_out)
    moved = (plan.tokens * width + factors) * problem.x.element_size()
    flops = 2 * tokens * problem.rank * width
    return Work(3 * flops, 2 * moved) if backward else Work(flops, moved)


@cache
def peaks(device: str = "cpu", dtype: torch.dtype = torch.float32, threads: int = 1) -> Peaks:
    """Measure the GEMM peak and stream bandwidth of this machine, once per process: the best of several runs.

    `threads` is the number torch has now; it only tells measurements apart.
    """
    del threads
    size = _GEMM_SIZE
    left, right, into = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(3))
    gemm = 2 * size**3 / _least_seconds(lambda: torch.mm(left, right, out=into), device)
    numbers = _STREAM_BYTES // 4
    source, target = torch.ones(numbers, device=device), torch.ones(numbers, device=device)
    copied = 2 * _STREAM_BYTES / _least_seconds(lambda: target.copy_(source), device)
    read = _STREAM_BYTES / _least_seconds(lambda: source.sum(), device)
    return Peaks(gemm, max(copied, read))


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

    Keys: "backend", "variant", "bytes", "flops" as in `work_of`, and "floor_s", which measures the machine's peaks on
    first use (about a third of a second on a CPU).

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
    reached = peaks(str(x.device), x.dtype, torch.get_num_threads())
    return {
        "backend": name,
        "variant": variant,
        "bytes": work.bytes,
        "flops": work.flops,
        "floor_s": reached.floor_s(work),
    }


def _least_seconds(call: Callable[[], Any], device: str) -> float:
    """Return the least time of several calls after one that warms up."""
    call()
    least = float("inf")
    for _ in range(_REPEATS):
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        least = min(least, time.perf_counter() - start)
    return least
