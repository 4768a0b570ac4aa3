"""Seconds to score and bootstrap a thousand records of 300 people x 6 units: 24 methods, 14 budgets, 3 seeds.

Goal: under 10 s on two cores.
"""

import numpy as np
import pytest
from board_fixtures import Bench, made, scores

from leaderboard.board import build_board


def noisy(level):
    def scorer(data, rows, n):
        clean = scores(data, rows, data.truth.theta)
        return clean + level * np.random.default_rng(int(100 * level)).normal(size=len(rows))

    return scorer


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    data = {"made@1": made(n_users=375, n_units=30, per_unit=1)}
    bench = Bench(tmp_path_factory.mktemp("thousand"), data=data, n_train=tuple(range(1, 15)), n_support=())
    methods = {"pooled-bt": noisy(1.0)} | {f"m{i}": noisy(0.1 * i) for i in range(23)}
    bench.run(methods)
    return bench


def test_a_thousand_records(benchmark, bench):
    board = benchmark.pedantic(lambda: build_board([bench.root], (), bench.labels), rounds=3, warmup_rounds=0)
    assert board.leaderboard.records.count == 1008
    assert benchmark.stats.stats.median < 10
