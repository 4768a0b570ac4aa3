"""Measures training steps: who is compared takes turns in one process, on one thread; memory in processes of its own.

The clock is the processor time of the process, which a busy neighbour does not move. A first step of each is not
timed: it makes the optimiser's state and finds its memory.
"""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.backbone.costs import (
    ALL,
    BY_PERSON,
    GATHERED,
    GLOBAL,
    LAST,
    LOCAL,
    MEMORY,
    ONE,
    P_SHARE,
    TABLE,
    Peak,
    Timed,
)
from benchmarks.backbone.trainers import TRAINERS, Step
from benchmarks.backbone.workloads import Workload, smaller
from benchmarks.kernels.contenders import Contender, Ready
from benchmarks.kernels.measure import Limits, Measured, take_turns
from benchmarks.kernels.shapes import seeded
from datasets_registry.errors import HetprefError
from methods.lowrank import release_memory
from methods.lowrank.work import measure_peaks

MANY = 2048
# What the loss of two that compute the same may differ by, as a share of how far it moved.
_TOLERANCE = 0.02
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# Has glibc give what is freed back to the system, from 1 MiB on: else how it puts tensors into what it keeps moves the
# peak by some percent from process to process.
_FREED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Entry:
    """One who takes part in a comparison: the trainer's name and its work."""

    trainer: str
    work: Workload


def entries(group: str, trunk: str | None, quick: bool) -> list[Entry]:
    """Return who is compared in a group."""
    work = Workload(trunk=trunk)
    last = replace(work, adapt_layers=2)
    few = replace(last, people=8, present=8)
    found = {
        ALL: [Entry(name, work) for name in (P_SHARE, LOCAL, GLOBAL, GATHERED, BY_PERSON, ONE)],
        LAST: [Entry(name, last) for name in (P_SHARE, LOCAL, GLOBAL, GATHERED, BY_PERSON, ONE)],
        TABLE: [
            Entry(name, each)
            for name in (P_SHARE, GATHERED)
            for each in (few, replace(last, people=MANY, present=last.comparisons))
        ],
        MEMORY: [Entry(LOCAL, replace(work, people=n, present=n)) for n in (8, 64)],
    }[group]
    return [Entry(each.trainer, smaller(each.work)) for each in found] if quick else found


def measure_group(group: str, chosen: Sequence[Entry], rounds: int, note: Note) -> list[Timed]:
    """Time `rounds` steps of every entry, in turns; raises HetprefError where two that compute the same do not."""
    torch.set_num_threads(1)
    steps: list[Step] = []
    losses: list[list[float]] = [[] for _ in chosen]
    with tempfile.TemporaryDirectory() as cache:
        for entry, told in zip(chosen, losses, strict=True):
            note(f"{group}: {entry.trainer}, {entry.work.people} people in the table")
            steps.append(TRAINERS[entry.trainer].make(entry.work, Path(cache)))
            told.append(steps[-1].run())
        turns = [_turn(entry, step, told) for entry, step, told in zip(chosen, steps, losses, strict=True)]
        note(f"{group}: {rounds} rounds of {len(turns)} steps")
        limits = Limits(rounds=rounds, least=rounds, least_behind=rounds, seconds=0.0, longest_s=float("inf"))
        take_turns(turns, limits, random.Random(seeded("backbone turns", group)))
        flops = [_flops(s) if e.trainer == GLOBAL else None for e, s in zip(chosen, steps, strict=True)]
    _check_losses(chosen, losses)
    found: list[Timed] = []
    for entry, turn, told, count in zip(chosen, turns, losses, flops, strict=True):
        w = entry.work
        seconds = tuple(turn.samples)
        found.append(Timed(group, entry.trainer, w.people, w.present, w.sequences, count, seconds, tuple(told[1:])))
    del steps, turns
    gc.collect()
    release_memory()
    return found


def _flops(step: Step) -> int:
    """Return the floating-point operations of a step's matrix products."""
    with FlopCounterMode(display=False) as counter:
        step.run()
    return counter.get_total_flops()


def gemm_rate() -> float:
    """Return this machine's matrix products in FLOP/s, on one thread."""
    torch.set_num_threads(1)
    return measure_peaks(clock=time.process_time).gemm_flops_per_s


def _turn(entry: Entry, step: Step, losses: list[float]) -> Measured:
    def run() -> None:
        losses.append(step.run())

    ready = Ready(run, None)
    return Measured(Contender(entry.trainer, TRAINERS[entry.trainer].role, lambda given, mode: ready), ready)


def _check_losses(chosen: Sequence[Entry], losses: Sequence[Sequence[float]]) -> None:
    """Raise unless those that compute the same on the same work had the same losses at every step."""
    first: dict[tuple[str, Workload], int] = {}
    for i, entry in enumerate(chosen):
        j = first.setdefault((TRAINERS[entry.trainer].computes, entry.work), i)
        moved = max(losses[j]) - min(losses[j])
        apart = max(abs(a - b) for a, b in zip(losses[i], losses[j], strict=True))
        if not apart <= _TOLERANCE * moved + 1e-6:
            raise HetprefError(
                f"{entry.trainer} does not train what {chosen[j].trainer} trains: their losses are up to {apart:.1e} "
                f"apart while the loss moved by {moved:.1e}; nothing was written"
            )


def measure_memory(chosen: Sequence[Entry], note: Note) -> list[Peak]:
    """Measure by how much a step raises memory, each entry in a process of its own."""
    found: list[Peak] = []
    for entry in chosen:
        note(f"{MEMORY}: {entry.trainer}, {entry.work.present} people present")
        command = [sys.executable, "-m", "benchmarks.backbone.step_memory", json.dumps(asdict(entry))]
        env = os.environ | _ONE_THREAD | _FREED_AT_ONCE
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=env)
        if done.returncode:
            raise HetprefError(f"measuring the memory of {entry.trainer} failed; what it said is above")
        found.append(Peak(**json.loads(done.stdout.splitlines()[-1])))
    return found
