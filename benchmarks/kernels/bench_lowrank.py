"""Every contender of every cell as a pytest benchmark; run it by `python -m benchmarks.kernels`.

The contenders of a cell are measured together, taking turns; then each is reported as a benchmark of its own, whose
clock shows the samples that were measured.
"""

import json
import sys
import time
from dataclasses import asdict
from functools import cache, lru_cache
from pathlib import Path

import pytest
import torch

from benchmarks.kernels.measure import CONTENDERS, LIMITS, CellResult, Measured, measure_cell, tolerance_of
from benchmarks.kernels.options import cpu_model, packages
from benchmarks.kernels.shapes import MODES, full, quick
from benchmarks.meters import environment, source
from datasets_registry.atomic_write import write_atomically
from methods.lowrank import plan_batch
from methods.lowrank.checks import problem_of
from methods.lowrank.work import Peaks, measure_peaks, work_of

CELLS = {cell.name: cell for cell in full()}
QUICK = {cell.name for cell in quick()}


class ReplayedClock:
    """A clock that stands still but for the samples that it is told: pytest-benchmark then records exactly these."""

    __name__ = "process_time"

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


CLOCK = ReplayedClock()


@cache
def roofline(dtype, file=None) -> Peaks:
    """Return this run's roofline: the parts of a run are processes of their own, which share it in a file."""
    path = Path(file) if file else None
    known = json.loads(path.read_text()) if path and path.is_file() else {}
    if dtype not in known:
        torch.set_num_threads(1)
        peaks = measure_peaks(dtype=getattr(torch, dtype), clock=time.process_time)
        known[dtype] = {"gemm": peaks.gemm_flops_per_s, "streams": list(peaks.streams.items())}
        if path:
            write_atomically(path, json.dumps(known).encode())
    return Peaks(known[dtype]["gemm"], {size: rate for size, rate in known[dtype]["streams"]})


@lru_cache(maxsize=1)
def measured(name, mode, limits, file) -> CellResult:
    roofline(CELLS[name].dtype, file)
    result = measure_cell(CELLS[name], mode, LIMITS[limits])
    print(f"{name} {mode}: {result.line()}", file=sys.stderr, flush=True)
    return result


def pytest_generate_tests(metafunc):
    chosen = metafunc.config.getoption("--kernel-cells", None)
    names = Path(chosen).read_text().split() if chosen else [cell.name for cell in quick()]
    cases = [
        pytest.param(
            name,
            mode,
            contender.name,
            id=f"{name}-{mode}-{contender.name.replace(' ', '-')}",
            marks=[pytest.mark.quick] if name in QUICK else [],
        )
        for name in names
        for mode in MODES
        for contender in CONTENDERS
    ]
    metafunc.parametrize(("cell", "mode", "contender"), cases)


@pytest.mark.benchmark(timer=CLOCK)
def test_lowrank(cell, mode, contender, request):
    limits, file = (request.config.getoption(f"--kernel-{of}", None) for of in ("limits", "roofline"))
    result = measured(cell, mode, limits or "quick", file)
    if contender in result.left_out:
        pytest.skip(result.left_out[contender])
    found = result.measured[contender]
    # Before the fixture is there: a benchmark that fails after it would be saved all the same.
    assert found.fault is None, f"{contender} is wrong and is left out: {found.fault}"
    benchmark = request.getfixturevalue("benchmark")
    benchmark.group = f"{cell} {mode}"
    benchmark.extra_info.update(told(result, found, roofline(result.given.cell.dtype, file)))
    samples = iter(found.samples)
    benchmark.pedantic(lambda: CLOCK.advance(next(samples)), rounds=len(found.samples))


def told(result: CellResult, found: Measured, peaks: Peaks):
    given, cell = result.given, result.given.cell
    plan = plan_batch(torch.from_numpy(given.ids), cell.users)
    problem = problem_of(given.x, given.a, given.b, plan, 1.0, given.core)
    work = work_of(problem, backward=result.mode == "both")
    where = environment("cpu", threads=1)
    return {
        "kernel": "batched-lora",
        "backend": found.contender.name,
        "role": found.contender.role,
        "took": found.ready.backend,
        "cell": cell.name,
        "mode": result.mode,
        "grad": found.contender.grad if result.mode == "both" else None,
        **asdict(cell),
        "active": given.active,
        "longest": given.longest,
        "flops": work.flops,
        "bytes": work.bytes,
        "floor_s": peaks.floor_s(work),
        "gemm_flops_per_s": peaks.gemm_flops_per_s,
        "bandwidth_bytes_per_s": peaks.bandwidth(work.bytes),
        "error": max(found.errors.values(), default=None),
        "errors": found.errors,
        "tolerance": tolerance_of(found.contender, cell),
        "plan_s": found.ready.plan_s,
        "extra_peak_bytes": found.extra_peak_bytes,
        "repeatable": found.repeatable,
        "left_out": result.left_out,
        "device": cpu_model(),
        "device_class": where.device_class,
        "threads": where.threads,
        "environment": {"python": where.python, "packages": packages()},
        "source": source().model_dump(),
    }
