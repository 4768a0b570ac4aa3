"""What the isolation of a cell costs: a method that does nothing, in a process of its own, end to end."""

import numpy as np

from benchmarks.cell_process import Payload, Question
from benchmarks.executor import Limits, LocalExecutor
from datasets_registry.records import Comparisons, Items
from methods.interface import Budget
from methods.registry import find


def test_empty_cells(benchmark):
    said = Comparisons.of(user=[0, 1], unit=[0, 0], first=[0, 1], second=[1, 0], label=[1, 0])
    users = np.array([0, 1], np.int32)
    empty = Payload(
        method=find("random"),
        config={},
        budget=Budget(),
        dataset="made@1",
        items=Items(("", ""), ("a", "b")),
        n_users=2,
        encoder="tabular@1",
        features=None,
        user_metadata=None,
        truth=None,
        train=said,
        val=said,
        questions=(Question("seen", users, said, said.hidden(), None),),
    )
    cells = 20
    with LocalExecutor(jobs=1, limits=Limits(60, 1 << 30)) as executor:
        list(executor.run([(0, lambda: empty)]))
        benchmark.pedantic(lambda: list(executor.run((i, lambda: empty) for i in range(cells))), rounds=5)
    benchmark.extra_info["ms_per_cell"] = 1e3 * benchmark.stats.stats.median / cells
