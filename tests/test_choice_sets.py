"""A query table must not tell which item of a choice set was chosen."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.choice_sets import completed
from datasets_registry import load
from datasets_registry.records import Comparisons


def pairs_of(table):
    low, high = np.minimum(table.first, table.second), np.maximum(table.first, table.second)
    return set(zip(table.user.tolist(), table.unit.tolist(), low.tolist(), high.tolist(), strict=True))


def test_who_was_chosen_does_not_change_what_a_method_sees():
    def seen(chosen):
        others = [i for i in range(4) if i != chosen]
        ones = Comparisons.of(
            user=[0] * 3, unit=[5] * 3, first=[chosen] * 3, second=others, label=[1] * 3, order=[2] * 3
        )
        return pairs_of(completed(ones)[0])

    assert seen(0) == seen(1) == seen(2) == seen(3) == {(0, 5, a, b) for a in range(4) for b in range(a + 1, 4)}


def test_every_item_of_a_real_choice_set_is_in_as_many_queries_as_the_others():
    data = load("electricity@1")
    table, _ = completed(data.comparisons)
    ends = np.concatenate([table.first, table.second])
    owner = np.tile(np.stack([table.user, table.unit], 1), (2, 1))
    keys, counts = np.unique(np.column_stack([owner, ends]), axis=0, return_counts=True)
    _, start, groups = np.unique(keys[:, :2], axis=0, return_index=True, return_counts=True)
    assert (groups == 4).all()
    assert all(len(set(counts[s : s + 4].tolist())) == 1 or counts[s : s + 4].min() >= 3 for s in start)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 9), st.integers(0, 9)), max_size=40))
def test_the_given_queries_stand_where_it_says(rows):
    rows = [r for r in rows if r[2] != r[3]]
    user, unit, first, second = np.array(rows, int).reshape(-1, 4).T
    queries = Comparisons.of(user=user, unit=unit, first=first, second=second, label=np.ones(len(rows)))
    table, stands = completed(queries)
    back = table.take(stands)
    for column in ("user", "unit", "first", "second"):
        assert getattr(back, column).tolist() == getattr(queries, column).tolist()
    assert len(set(stands.tolist())) == len(queries)
    assert np.isnan(table.label).all()
    assert pairs_of(queries) <= pairs_of(table)
