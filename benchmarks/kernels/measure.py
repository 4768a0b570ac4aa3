"""Measures all contenders of one cell: each is checked first, then they take turns, so that noise falls on all alike.

One CPU thread, and by default the processor time of the process, which a busy neighbour does not move. What every call
allocates is part of its time, as it is in training; what it leaves behind is freed outside.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from benchmarks.kernels.anchors import ANCHORS
from benchmarks.kernels.as_written import AS_WRITTEN
from benchmarks.kernels.contenders import Contender, Ready
from benchmarks.kernels.operands import TOLERANCE, Mode, Operands, Outcome, errors, operands, truth
from benchmarks.kernels.ours import OURS
from benchmarks.kernels.peak_memory import peak_memory
from benchmarks.kernels.rivals import RIVALS
from benchmarks.kernels.shapes import Cell, seeded
from methods.lowrank import release_memory
from methods.lowrank.memory import empty
from methods.lowrank.work import Clock

CONTENDERS = (*OURS, *RIVALS, *AS_WRITTEN, *ANCHORS)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long to measure: up to `rounds` samples of each, or `seconds` once there are `least`.

    Anchors, and rivals that take more than twice the time of the fastest, have no say in what is best: they have a
    third of the seconds, such rivals at least `least_behind` samples and anchors one. A rival that is estimated to take
    more than `longest_s` seconds a call is left out.
    """

    rounds: int
    least: int
    least_behind: int
    seconds: float
    longest_s: float


LIMITS = {
    "quick": Limits(rounds=25, least=5, least_behind=1, seconds=0.04, longest_s=0.12),
    "full": Limits(rounds=60, least=12, least_behind=3, seconds=0.5, longest_s=4.0),
}
# What the goals are set against is measured there, however slow it is.
GOALS_NEED = {
    "full-768x768-r8-u512-t4096-uniform-float32": ("peft", "plain loop"),
    "core-768x768-r8-u512-t4096-uniform-float32": ("plain loop",),
}


# A rival is held to what shows that it computes the same, whatever the order in which it adds.
_LENIENT = 10


@dataclass(slots=True)
class Measured:
    """What was measured of one contender: seconds of every sample, the errors, memory, and whether its bits repeat.

    `fault` says why it is wrong; then it has no samples.
    """

    contender: Contender
    ready: Ready
    errors: dict[str, float] = field(default_factory=dict[str, float])
    extra_peak_bytes: int | None = None
    repeatable: bool | None = None
    fault: str | None = None
    samples: list[float] = field(default_factory=list[float])

    @property
    def median(self) -> float:
        """Return the median of the samples in seconds."""
        return statistics.median(self.samples)

    def wants_more(self, limits: Limits, best: float) -> bool:
        """Return whether another sample is to be taken; `best` is the least sample of any rival, in seconds."""
        n = len(self.samples)
        behind = self.contender.role == "rival" and n > 0 and min(self.samples) > 2 * best
        if self.contender.role == "anchor":
            return n < 1 or (n < limits.rounds and sum(self.samples) < limits.seconds / 3)
        if behind:
            return n < limits.least_behind or (n < limits.rounds and sum(self.samples) < limits.seconds / 3)
        return n < limits.least or (n < limits.rounds and sum(self.samples) < limits.seconds)


@dataclass(slots=True)
class CellResult:
    """All that was measured of one cell and mode, by the contender's name, and why others were left out."""

    given: Operands
    mode: Mode
    measured: dict[str, Measured] = field(default_factory=dict[str, Measured])
    left_out: dict[str, str] = field(default_factory=dict[str, str])

    def line(self) -> str:
        """Return the result in a line: ours, and the best rival."""
        of = {
            role: {n: m.median for n, m in self.measured.items() if m.samples and m.contender.role == role}
            for role in ("ours", "rival")
        }
        told = [f"{name} {1e3 * seconds:.3g} ms" for name, seconds in of["ours"].items()]
        if rivals := of["rival"]:
            best = min(rivals, key=lambda name: rivals[name])
            told.append(f"best rival {best} {1e3 * rivals[best]:.3g} ms")
        told += [f"{name} is WRONG" for name, m in self.measured.items() if m.fault]
        return ", ".join(told)


def measure_cell(
    cell: Cell,
    mode: Mode,
    limits: Limits,
    contenders: Iterable[Contender] = CONTENDERS,
    clock: Clock = time.process_time,
) -> CellResult:
    """Check and measure every contender of a cell that can compute it."""
    _settle()
    given, right = _given(cell)
    result = CellResult(given, mode)
    if mode == "forward":
        right = Outcome(right.y)
    for contender in contenders:
        if reason := contender.refuses(given, mode):
            result.left_out[contender.name] = reason
        elif (seconds := contender.estimate_s(given, mode)) > limits.longest_s and not _needed(contender, cell):
            result.left_out[contender.name] = f"a call is estimated to take {seconds:.1f} s"
        else:
            result.measured[contender.name] = _checked(contender, given, mode, right)
    turns = [m for m in result.measured.values() if m.fault is None]
    take_turns(turns, limits, random.Random(seeded("kernel turns", cell.name, mode)), clock)
    gc.unfreeze()
    return result


@lru_cache(maxsize=1)
def _given(cell: Cell) -> tuple[Operands, Outcome]:
    """Return a cell's operands and what is right, which both of its modes share."""
    given = operands(cell)
    return given, truth(given, "both")


def tolerance_of(contender: Contender, cell: Cell) -> float:
    """Return the relative error that a contender may have."""
    return TOLERANCE[cell.dtype] * (1 if contender.role == "ours" else _LENIENT)


def _needed(contender: Contender, cell: Cell) -> bool:
    return contender.name in GOALS_NEED.get(cell.name, ())


def _checked(contender: Contender, given: Operands, mode: Mode, right: Outcome) -> Measured:
    """Return a contender with what is known before it is timed; it is warm then."""
    ready = contender.make(given, mode)
    measured = Measured(contender, ready)
    if ready.outcome is None:
        return measured
    if contender.role != "ours":
        result, measured.extra_peak_bytes = _call(ready)
        _judge(measured, ready.outcome(result), right, given.cell)
        return measured
    _poison_kept_memory(given, mode)
    ready.reset()
    outcome = ready.outcome(ready.run())
    _judge(measured, outcome, right, given.cell)
    first = _bits(outcome)
    del outcome
    # The first call also took what a library sets up once.
    again, measured.extra_peak_bytes = _call(ready)
    measured.repeatable = first == _bits(ready.outcome(again))
    return measured


def _judge(measured: Measured, found: Outcome, right: Outcome, cell: Cell) -> None:
    """Note a contender's errors, and as its fault what is above its tolerance."""
    try:
        measured.errors = errors(found, right)
    except ValueError as why:
        measured.fault = str(why)
        return
    tolerance = tolerance_of(measured.contender, cell)
    # Not "greater than": NaN must be found, too.
    wrong = [f"{name} {error:.1e}" for name, error in measured.errors.items() if not error <= tolerance]
    if wrong:
        measured.fault = f"the relative error is above {tolerance:.0e}: {', '.join(wrong)}"


def _call(ready: Ready) -> tuple[Any, int | None]:
    """Return a call's result and the memory that it took, for which none may lie ready from before."""
    ready.reset()
    release_memory()
    return peak_memory(ready.run)


def _poison_kept_memory(given: Operands, mode: Mode) -> None:
    """Leave NaN where results will lie, so that a row that is never written does not show the last contender's."""
    release_memory()
    shapes = [given.dy.shape]
    if mode == "both":
        rows = [(given.active, *each.shape[1:]) for each in (given.a, given.b) if each.dim() == 3]
        shapes = [*shapes, given.x.shape, *rows]
    held = [empty(tuple(shape), given.x).fill_(torch.nan) for shape in shapes]
    del held


def _bits(outcome: Outcome) -> list[int]:
    """Return a digest of the bits of everything that was computed."""
    tensors = (outcome.y, outcome.dx, outcome.da, outcome.db, outcome.dcore)
    return [hash(t.detach().contiguous().numpy().tobytes()) for t in tensors if t is not None]


def take_turns(turns: list[Measured], limits: Limits, rng: random.Random, clock: Clock = time.process_time) -> None:
    """Take one sample of each in every round, in an order that changes."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        while waiting := [m for m in turns if m.wants_more(limits, _best(turns))]:
            rng.shuffle(waiting)
            for each in waiting:
                each.ready.reset()
                start = clock()
                result = each.ready.run()
                each.samples.append(clock() - start)
                del result
            gc.collect(0)
    finally:
        if collecting:
            gc.enable()


def _best(turns: list[Measured]) -> float:
    """Return the least sample of any rival, in seconds."""
    return min((min(m.samples) for m in turns if m.samples and m.contender.role == "rival"), default=float("inf"))


def _settle() -> None:
    """Leave the garbage collector nothing to look through again, and the machine one thread."""
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
