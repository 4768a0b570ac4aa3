"""Cost of fitting p-share-lora-linear against the number of users: seconds and peak memory, one thread.

Goal: 10^5 users x 16 comparisons x 64 features at rank 8 in under 60 s and under 2 GiB, linear in users.
"""

import numpy as np
import pytest

from benchmarks.cell_process import Payload, Question
from benchmarks.executor import Limits, LocalExecutor
from datasets_registry import load
from datasets_registry.features import features_path
from methods.interface import Budget
from methods.registry import find


def payload(users):
    data = load(f"planted@1+d=64+rank=8+units=16+users={users}")
    last = data.comparisons.order == data.comparisons.order.max()
    train, val = data.comparisons.take(~last), data.comparisons.take(last)
    few = np.arange(min(users, 1000), dtype=np.int32)
    asked = val.take(np.isin(val.user, few))
    return Payload(
        method=find("p-share-lora-linear"),
        config={"rank": 8},
        budget=Budget(seed=1),
        dataset=data.id,
        items=data.items,
        n_users=users,
        encoder="tabular@1",
        features=features_path(data, "tabular@1"),
        user_metadata=None,
        truth=None,
        train=train,
        val=val,
        questions=(Question("seen", few, train.take(np.isin(train.user, few)), asked.hidden(), None),),
    )


@pytest.mark.parametrize("users", [1_000, 10_000, 100_000])
def test_fit_against_users(benchmark, users):
    prepared = payload(users)
    with LocalExecutor(jobs=1, limits=Limits(600, 8 << 30)) as executor:
        outcome = benchmark.pedantic(
            lambda: next(outcome for _, outcome in executor.run([(0, lambda: prepared)])), rounds=1, iterations=1
        )
    assert outcome.status == "ok", outcome.reason
    cost = outcome.answer.cost
    benchmark.extra_info |= {
        "users": users,
        "comparisons": len(prepared.train),
        "fit_s": cost["fit_s"],
        "fit_us_per_user": 1e6 * cost["fit_s"] / users,
        "peak_rss_delta_mb": cost["peak_rss_delta_bytes"] / 2**20,
        "threads": 1,
    }
