"""The parts of backbone training that need no transformer: row-wise AdamW, distinct sequences, buckets and batches."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datasets_registry.records import Comparisons
from methods.backbone.layout import LayerShape, Layout, sizes, unpacked
from methods.backbone.row_adamw import RowAdamW
from methods.backbone.sequences import Sequences, buckets
from methods.batches import Batches
from methods.bradley_terry import person_keys
from methods.interface import Histories


def table(n=60, people=7, units=5, items=20, seed=0):
    draw = np.random.default_rng(seed)
    first = draw.integers(0, items, n)
    return Comparisons.of(
        user=draw.integers(0, people, n),
        unit=draw.integers(0, units, n),
        first=first,
        second=(first + draw.integers(1, items, n)) % items,
        label=draw.integers(0, 2, n),
    )


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_every_row_takes_the_path_of_torchs_adamw_on_the_steps_it_is_in(weight_decay):
    draw = torch.Generator().manual_seed(1)
    rows = torch.randn(5, 8, generator=draw)
    table = rows.clone()
    alone = [torch.nn.Parameter(row.clone()) for row in rows]
    theirs = [torch.optim.AdamW([p], lr=1.0, weight_decay=weight_decay) for p in alone]
    ours = RowAdamW(table, weight_decay=weight_decay)
    for step in range(12):
        present = torch.nonzero(torch.rand(5, generator=draw) < 0.5).flatten()
        gradient = torch.randn(len(present), 8, generator=draw)
        lr = 0.1 / (1 + step)
        ours.step(present, gradient, lr)
        for row, own in zip(present.tolist(), gradient, strict=True):
            alone[row].grad = own
            theirs[row].param_groups[0]["lr"] = lr
            theirs[row].step()
    torch.testing.assert_close(table, torch.stack([p.detach() for p in alone]), rtol=1e-5, atol=1e-6)


def test_absent_rows_keep_their_bits():
    table = torch.randn(4, 3)
    before = table.clone()
    RowAdamW(table).step(torch.tensor([1, 3]), torch.ones(2, 3), 0.1)
    assert torch.equal(table[[0, 2]], before[[0, 2]])
    assert not torch.equal(table[[1, 3]], before[[1, 3]])


def test_sequences_are_distinct_and_lead_back_to_every_comparison():
    said = table()
    found = Sequences.of(said, personal=True)
    assert len(set(zip(found.user.tolist(), found.item.tolist(), strict=True))) == len(found)
    for column, at in (("first", found.first), ("second", found.second)):
        assert (found.item[at] == getattr(said, column)).all()
        assert (found.user[at] == said.user).all()


def test_texts_are_run_once_for_everybody_where_nobody_has_a_part():
    said = table()
    found = Sequences.of(said, personal=False)
    assert found.item.tolist() == sorted({*said.first.tolist(), *said.second.tolist()})
    assert not found.user.any()


@given(st.lists(st.integers(1, 300), max_size=40), st.integers(1, 2000))
def test_buckets_hold_everything_once_and_pad_little(lengths, most):
    lengths = np.array(lengths, np.int64)
    found = list(buckets(lengths, most))
    assert sorted(np.concatenate(found).tolist() if found else []) == list(range(len(lengths)))
    for part in found:
        longest, shortest = lengths[part].max(), lengths[part].min()
        assert len(part) == 1 or (len(part) * longest <= most and longest <= 2 * shortest)


def test_buckets_that_hold_enough_are_of_nearly_one_length():
    lengths = np.random.default_rng(0).integers(32, 65, 256)
    found = list(buckets(lengths, 2048))
    assert sum(len(part) * lengths[part].max() for part in found) < 1.05 * lengths.sum()
    assert len(found) < 12


def batches(said, **options):
    people = np.unique(said.user)
    histories = Histories.group(said, people)
    return Batches(histories.table, person_keys(histories), options.pop("size", 10), 3, **options)


def content(given, rows):
    """Return a batch by what it compares, whatever the rows and people are called."""
    said = given.table.take(rows)
    keys = given.keys[said.user].tolist()
    return sorted(zip(keys, said.unit.tolist(), said.first.tolist(), said.second.tolist(), strict=True))


def test_an_epoch_asks_everything_once_and_keeps_groups_whole():
    given = batches(table())
    order = given.epoch(0)
    assert sorted(np.concatenate(order).tolist()) == list(range(60))
    where = {row: n for n, rows in enumerate(order) for row in rows.tolist()}
    groups = {}
    for row in range(60):
        key = (int(given.table.user[row]), int(given.table.unit[row]))
        groups.setdefault(key, set()).add(where[row])
    assert all(len(found) == 1 for found in groups.values())
    assert len(order) > 3


def test_epochs_differ_and_repeat():
    given = batches(table())
    assert [r.tolist() for r in given.epoch(0)] != [r.tolist() for r in given.epoch(1)]
    assert [r.tolist() for r in given.epoch(1)] == [r.tolist() for r in batches(table()).epoch(1)]


def test_neither_names_nor_the_order_of_rows_change_the_batches():
    said = table()
    renamed = said.for_users((said.user * 5 + 3) % 7).take(np.random.default_rng(2).permutation(60))
    first, second = batches(said), batches(renamed)
    for number in range(2):
        got = [content(first, rows) for rows in first.epoch(number)]
        assert got == [content(second, rows) for rows in second.epoch(number)]


def test_balanced_batches_give_everybody_the_same_share():
    said = Comparisons.of(
        user=[0] * 12 + [1] * 3 + [2] * 3,
        unit=[*range(12), *range(3), *range(3)],
        first=np.arange(18),
        second=np.arange(18) + 1,
        label=np.ones(18),
    )
    given = batches(said, size=3, balanced=True)
    asked = np.concatenate(given.epoch(0))
    assert np.bincount(given.table.user[asked]).tolist() == [6, 6, 6]
    assert all(len(set(given.table.user[rows].tolist())) == 3 for rows in given.epoch(0))


def test_a_layout_cuts_rows_into_named_factors():
    layers = (LayerShape("q", 6, 4), LayerShape("v", 6, 2))
    layout = Layout(layers, width=5, rank=2, a="user", core="diagonal", head="user")
    assert dict(layout.own) == {"q/a": (2, 6), "q/core": (2,), "v/a": (2, 6), "v/core": (2,), "head": (5,)}
    assert dict(layout.shared) == {"q/b": (2, 4), "v/b": (2, 2)}
    flat = torch.arange(3.0 * sum(sizes(layout.own))).reshape(3, -1).requires_grad_()
    parts = unpacked(flat, layout.own)
    assert torch.equal(torch.cat([p.flatten(1) for p in parts.values()], 1), flat)
    parts["v/a"].sum().backward()
    assert flat.grad is not None
    assert flat.grad.sum() == 3 * 12
