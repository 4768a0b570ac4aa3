"""Matrix factorisation: what is learned from who chose the same items."""

from dataclasses import replace

import numpy as np
import pytest
from collaborative_fixtures import interval, oracle, said, served, table_of
from planted_people import world_of
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from stage_fixtures import fitted

from datasets_registry.errors import RequestError, UnableError
from datasets_registry.records import Comparisons
from methods.conformance import BUDGET, check, small_stage
from methods.interface import Budget, Histories, stack
from methods.registry import create, find


@pytest.fixture(scope="module")
def stage():
    return small_stage(find("matrix-factorisation").spec)


@pytest.mark.parametrize("rank", [0, 2])
def test_conformance(rank):
    assert [r for r in check("matrix-factorisation", rank=rank) if r.status == "failed"] == []
    assert find("matrix-factorisation").spec.transductive


def test_rank_0_is_item_bradley_terry(stage):
    hard = stage.train.take((stage.train.label == 0) | (stage.train.label == 1))
    method = create("matrix-factorisation", rank=0, item_penalty=0.5, iterations=1000)
    method.fit(hard, stage.val, stage.world, BUDGET)
    one_hot = np.zeros((len(hard), 48))
    one_hot[np.arange(len(hard)), hard.first] += 1
    one_hot[np.arange(len(hard)), hard.second] -= 1
    reference = LogisticRegression(C=2.0, fit_intercept=False, tol=1e-8, max_iter=1000).fit(one_hot, hard.label > 0.5)
    np.testing.assert_allclose(method.bias_, reference.coef_[0][method.items_], atol=1e-3)
    assert method.n_trained == len(method.items_)


def test_the_fit_ends_where_the_objective_is_flat_and_people_are_modes(stage):
    method = fitted("matrix-factorisation", stage, rank=3, penalty=0.5, item_penalty=0.3, iterations=3000)
    users = np.unique(stage.train.user)
    states = method.adapt(users.tolist(), Histories.group(stage.train, users), BUDGET)
    p = stack(states, "p").astype(np.float64)
    table = stage.train
    at = [np.searchsorted(method.items_, column) for column in (table.first, table.second)]
    q, b = method.factors_.astype(np.float64), method.bias_.astype(np.float64)
    turned = q[at[0]] - q[at[1]]
    residual = expit(b[at[0]] - b[at[1]] + np.einsum("nk,nk->n", turned, p[table.user])) - table.label
    for u in range(len(users)):
        mine = table.user == u
        np.testing.assert_allclose(residual[mine] @ turned[mine] + 0.5 * p[u], 0, atol=1e-3)
    slope = np.zeros_like(q)
    np.add.at(slope, at[0], residual[:, None] * p[table.user])
    np.add.at(slope, at[1], -residual[:, None] * p[table.user])
    np.testing.assert_allclose(slope + 0.5 * len(users) / len(q) * q, 0, atol=0.02)
    np.testing.assert_allclose((p**2).sum(1).mean(), (q**2).sum(1).mean(), rtol=0.05)  # neither side is larger


def test_items_that_nobody_compared_are_worth_the_mean(stage):
    method = fitted("matrix-factorisation", stage, rank=2, penalty=1.0)
    state = method.adapt([0], [stage.histories.take(stage.histories.user == 0)], BUDGET)
    np.testing.assert_allclose(method.bias_.mean(), 0, atol=1e-6)
    unknown = table_of([0, 0], [900, 900], [901, int(method.items_[0])], [1, 1])
    rewards = method.rewards(state, np.zeros(1, int), method.items_[:1])
    np.testing.assert_allclose(method.margins(state, unknown), [0.0, -rewards[0]])


def test_queries_about_none_but_unknown_items_are_refused_with_their_number(stage):
    method = fitted("matrix-factorisation", stage, rank=2, penalty=1.0)
    state = method.adapt([0], [Comparisons.empty()], BUDGET)
    unknown = table_of([0] * 20, np.arange(900, 920), np.arange(920, 940), [1] * 20)
    with pytest.raises(UnableError, match=r"none of the 40 items asked about \(queries: 20\) .* recur"):
        method.margins(state, unknown)
    with pytest.raises(UnableError, match=r"none of the 2 items asked about \(queries: 1\)"):
        method.margins(state, unknown.take([5]))
    assert method.margins(state, unknown.take([])).shape == method.margins([], unknown.take([])).shape == (0,)
    one = replace(unknown, first=np.where(np.arange(20) == 3, method.items_[0], unknown.first).astype(np.int32))
    assert not method.margins(state, one)[np.arange(20) != 3].any()


def low_rank(n_people, n_items, rank=2, seed=0):
    draw = np.random.default_rng(seed)
    return draw.normal(size=n_items) + 1.5 * draw.normal(size=(n_people, rank)) @ draw.normal(size=(rank, n_items))


def test_matrix_factorisation_reaches_the_oracle_where_items_recur():
    utility = low_rank(100, 40)
    draw = np.random.default_rng(8)
    seen = np.arange(80)
    train, val, query = said(utility, 100, draw, seen), said(utility, 8, draw, seen), said(utility, 60, draw)
    support = said(utility, 100, draw, np.arange(80, 100))
    world = replace(world_of(np.zeros((40, 1)), 100), features=None)
    best = oracle(utility, query)
    found = {}
    for rank in (0, 2):
        method = create("matrix-factorisation", rank=rank)
        method.fit(train, val, world, Budget())
        found[rank] = served(method, Comparisons.concatenate([train, support]), query)
    for people in (seen, np.arange(80, 100)):
        assert found[2][people].mean() > best[people].mean() - interval(found[2][people])
        assert found[2][people].mean() > found[0][people].mean() + 0.1


@pytest.mark.parametrize(("option", "value"), [("rank", -1), ("rank", 1.5), ("penalty", 0.0), ("item_penalty", -1.0)])
def test_bad_options_of_matrix_factorisation_are_refused(stage, option, value):
    with pytest.raises(RequestError, match="allowed: "):
        fitted("matrix-factorisation", stage, **{option: value})
