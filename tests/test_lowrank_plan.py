"""The plan of a batch: every token once, users ascending, each user's tokens in the order of the batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowrank_fixtures import routed

from methods.lowrank import plan_batch
from methods.lowrank.plan import plan_on_device

ROUTINGS = ["mixed", "uniform", "one-user", "sorted", "zipf", "lopsided", "half", "none"]


def check(plan, ids, users):
    """Hold a plan to numpy's stable sort."""
    told = np.asarray(ids).reshape(-1)
    present, counts = np.unique(told[told >= 0], return_counts=True)
    base = int((told < 0).sum())
    assert plan.tokens == len(told)
    assert plan.n_users == users
    assert plan.n_active == len(present)
    assert plan.n_base == base
    assert plan.users.tolist() == present.tolist()
    assert plan.offsets.tolist() == plan.bounds == np.cumsum([base, *counts]).tolist()
    assert plan.order.tolist() == np.argsort(told, kind="stable").tolist()
    assert plan.inverse[plan.order].tolist() == list(range(len(told)))
    assert {each.dtype for each in (plan.order, plan.users, plan.offsets, plan.inverse)} == {torch.int64}
    assert plan.ids.tolist() == told.tolist()
    if plan.in_order:
        assert plan.order.tolist() == list(range(len(told)))


@pytest.mark.parametrize("make", [plan_batch, plan_on_device])
@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize(("tokens", "users"), [(0, 5), (1, 1), (1, 300), (77, 1), (77, 9), (300, 40_000), (6, 0)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_every_token_has_its_place(make, routing, tokens, users, dtype):
    ids = routed(routing, tokens, users, torch.Generator().manual_seed(3)).to(dtype)
    check(make(ids, users), ids, users)


@given(st.lists(st.integers(-1, 6), max_size=40), st.integers(7, 9))
@settings(deadline=None, derandomize=True, database=None)
def test_both_ways_to_plan_agree(ids, users):
    told = torch.tensor(ids, dtype=torch.int64)
    exact, padded = plan_batch(told, users), plan_on_device(told, users)
    check(exact, told, users)
    check(padded, told, users)
    bound, present = min(len(ids), users), exact.n_active
    assert len(padded.padded_users) == bound
    assert padded.padded_offsets[present:].tolist() == [len(ids)] * (bound + 1 - present)


@pytest.mark.parametrize("shape", [(), (12,), (3, 4), (2, 3, 2), (0, 4)])
def test_ids_of_any_shape_are_their_tokens(shape):
    ids = torch.arange(12)[: int(np.prod(shape))].reshape(shape) % 5 - 1
    check(plan_batch(ids, 5), ids, 5)
    check(plan_batch(ids.mT if len(shape) > 1 else ids, 5), ids.mT if len(shape) > 1 else ids, 5)


def test_sorted_ids_are_left_where_they_are():
    assert plan_batch(torch.tensor([-1, 0, 0, 2]), 3).in_order
    assert not plan_batch(torch.tensor([0, -1]), 3).in_order
    assert plan_batch(torch.zeros(0, dtype=torch.int64), 3).in_order


def test_a_plan_is_for_one_device_and_says_what_it_is_for():
    plan = plan_batch(torch.tensor([0, 1]), 2, device="cpu")
    assert plan.device == torch.device("cpu")
    assert repr(plan) == "Plan(tokens=2, n_users=2, device='cpu')"


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("make", [plan_batch, plan_on_device])
def test_ids_that_change_later_do_not_change_the_plan(make, dtype):
    ids = torch.tensor([2, 0, 1], dtype=dtype)
    plan = make(ids, 3)
    ids.zero_()
    assert plan.ids.tolist() == [2, 0, 1]
    assert plan.order.tolist() == [1, 2, 0]
    assert plan.users.tolist() == [0, 1, 2]


def test_on_the_host_ids_are_always_checked():
    with pytest.raises(IndexError, match="user id 3000000 at position 1"):
        plan_batch(torch.tensor([0, 3_000_000]), 2, check=False)


def test_the_number_of_users_may_be_any_integer():
    assert plan_batch(torch.tensor([0, 4]), np.int64(5)).n_users == 5
    with pytest.raises(ValueError, match=r"n_users is 2\.5"):
        plan_batch(torch.tensor([0, 1]), 2.5)
