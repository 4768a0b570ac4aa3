"""A query table must not tell which item of a choice set was chosen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.choice_sets import completed
from datasets_registry import load
from datasets_registry.records import Comparisons


def columns(table):
    return {k: v.tolist() for k, v in table.columns().items() if k != "label"}


@pytest.mark.parametrize("size", [3, 4, 9, 20])
def test_who_was_chosen_changes_nothing_of_what_a_method_sees(size):
    def seen(chosen):
        others = [i for i in range(size) if i != chosen]
        swap = np.arange(size - 1) % 2 == chosen % 2
        queries = Comparisons.of(
            user=[3] * (size - 1),
            unit=[5] * (size - 1),
            first=np.where(swap, chosen, others),
            second=np.where(swap, others, chosen),
            label=swap,
            order=7 + np.arange(size - 1),
        )
        return columns(completed(queries)[0])

    assert len(seen(0)["first"]) == size * (size - 1) // 2
    assert all(seen(chosen) == seen(0) for chosen in range(size))


@pytest.mark.parametrize("name", ["electricity@1", "swissmetro@1", "planted@1+choices=4+users=50"])
def test_another_choice_of_everybody_gives_the_same_table(name):
    data = load(name)
    c = data.comparisons
    rng = np.random.default_rng(1)
    # everybody chooses anew: per unit another item takes the place of the one that was in every pair
    pairs = np.stack([c.user, c.unit], axis=1)
    _, group = np.unique(pairs, axis=0, return_inverse=True)
    group = group.reshape(-1)
    ends = np.unique(np.concatenate([np.stack([group, c.first], 1), np.stack([group, c.second], 1)]), axis=0)
    size = np.bincount(ends[:, 0])
    start = np.cumsum(size) - size
    chosen = ends[start + (rng.random(len(size)) * size).astype(int), 1]
    other = ends[:, 1] != chosen[ends[:, 0]]
    owner, item = ends[other, 0], ends[other, 1]
    row = np.zeros(len(size), int)
    row[group] = np.arange(len(group))
    orders = np.full(len(size), 1 << 30)
    np.minimum.at(orders, group, c.order)
    anew = Comparisons.of(
        user=c.user[row[owner]],
        unit=c.unit[row[owner]],
        first=chosen[owner],
        second=item,
        label=np.ones(len(owner)),
        order=orders[owner],
    )
    assert columns(completed(anew)[0]) == columns(completed(c)[0])


def test_what_can_be_read_off_the_table_is_not_who_was_chosen():
    data = load("electricity@1")
    queries = data.comparisons
    table, stands, sign = completed(queries)
    # a method that knows how everything is hashed, and has neither features nor labels: does position tell?
    right = np.where(sign > 0, queries.label, 1 - queries.label)
    n = len(right)
    assert abs(right.mean() - 0.5) < 4 * 0.5 / np.sqrt(n)
    times = np.zeros((len(data.users), len(data.unit_cluster), len(data.items)), np.int8)
    np.add.at(times, (table.user, table.unit, table.first), 1)
    np.add.at(times, (table.user, table.unit, table.second), 1)
    assert (times[queries.user, queries.unit, queries.first] == times[queries.user, queries.unit, queries.second]).all()
    assert len(set(stands.tolist())) <= n


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 9), st.integers(0, 9)), max_size=40))
def test_the_given_queries_stand_where_it_says(rows):
    rows = [r for r in rows if r[2] != r[3]]
    user, unit, first, second = np.array(rows, int).reshape(-1, 4).T
    queries = Comparisons.of(user=user, unit=unit, first=first, second=second, label=np.ones(len(rows)))
    table, stands, sign = completed(queries)
    back = table.take(stands)
    for column in ("user", "unit"):
        assert getattr(back, column).tolist() == getattr(queries, column).tolist()
    assert np.where(sign > 0, back.first, back.second).tolist() == queries.first.tolist()
    assert np.where(sign > 0, back.second, back.first).tolist() == queries.second.tolist()
    assert np.isnan(table.label).all()
    low, high = np.minimum(table.first, table.second), np.maximum(table.first, table.second)
    assert len({*zip(table.user, table.unit, low, high, strict=True)}) == len(table)
