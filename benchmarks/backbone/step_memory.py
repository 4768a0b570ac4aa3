"""The peak memory of one training step, measured in this process alone; `measure.measure_memory` starts it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import torch

from benchmarks.backbone.costs import Peak
from benchmarks.backbone.measure import Entry
from benchmarks.backbone.trainers import TRAINERS
from benchmarks.backbone.workloads import Workload
from benchmarks.kernels.peak_memory import peak_memory
from methods.lowrank import release_memory


def peak_of(entry: Entry) -> Peak:
    """Return the peak of the second step: the first made the optimiser's state, which stays."""
    torch.set_num_threads(1)
    step = TRAINERS[entry.trainer].make(entry.work, None)
    step.run()
    release_memory()
    _, found = peak_memory(step.run)
    work = entry.work
    return Peak(entry.trainer, work.people, work.present, found, 2 * 4 * work.present * step.own_values)


def main() -> None:
    """Print the peak of the entry that the first argument is, as JSON."""
    given = json.loads(sys.argv[1])
    print(json.dumps(asdict(peak_of(Entry(given["trainer"], Workload(**given["work"]))))))


if __name__ == "__main__":
    main()
