"""RFM, PReF, MRM and HyRe: conformance, identities, closed forms, and people made as each method assumes."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from planted_people import interval, low_rank, oracles, per_person, planted, served, world_of
from stage_fixtures import fitted

from datasets_registry.errors import RequestError
from datasets_registry.records import Comparisons
from methods.adam import Adam
from methods.bradley_terry import Pairs, sigmoid
from methods.catalog.mrm import INNER, Tasks, _tasks, inner_step, meta_gradient
from methods.catalog.pref import _values, next_query
from methods.conformance import BUDGET, check, small_stage
from methods.interface import Budget, Histories, stack
from methods.joint_factors import Penalties, _leading, begun, random_start, svd_start, train_joint
from methods.registry import create, find
from methods.subspace import principal_angles

SMALL = {
    "rfm": {"rank": 2, "iterations": 15},
    "pref": {"rank": 2, "iterations": 15},
    "mrm": {"steps": 40},
    "hyre": {"heads": 12, "iterations": 15},
}


@pytest.fixture
def stage():
    return small_stage(create("rfm").spec)


def adapted(method, stage):
    return method.adapt(stage.people.tolist(), Histories.group(stage.histories, stage.people), BUDGET)


@pytest.mark.parametrize("name", SMALL)
def test_conformance(name):
    assert [r for r in check(name, **SMALL[name]) if r.status == "failed"] == []


def test_mrm_conforms_with_its_published_inner_step():
    assert [r for r in check("mrm", steps=40, inner="adam", inner_rate=0.5) if r.status == "failed"] == []


@pytest.mark.parametrize("name", ["rfm", "pref", "mrm", "hyre", "lore", "p-share-lora-linear"])
def test_what_tuning_may_try_can_be_fitted(stage, name):
    cls = find(name)
    assert 2 <= np.prod([len(values) for values in cls.search.values()]) <= 60
    for option, values in cls.search.items():
        for value in values:
            states = adapted(fitted(name, stage, **{**SMALL.get(name, {}), option: value}), stage)
            assert all(np.isfinite(a).all() for s in states for a in s.arrays.values())


@pytest.mark.parametrize("penalty", [0.0, 0.02])
def test_rfm_is_pref_from_the_same_start(stage, penalty):
    options = {"rank": 3, "norm_penalty": penalty}
    rfm, pref = fitted("rfm", stage, **options), fitted("pref", stage, start="random", **options)
    margins = [m.margins(adapted(m, stage), stage.queries) for m in (rfm, pref)]
    np.testing.assert_array_equal(*margins)
    assert fitted("pref", stage, **options).basis_.tobytes() != rfm.basis_.tobytes()


def test_joint_training_ends_where_the_objective_is_flat(stage):
    pairs, _ = Pairs.of_seen(stage.world, stage.train)
    penalties = Penalties(0.5, 0.05)
    found = train_joint(pairs, begun(pairs, random_start(pairs, 2, 0)), penalties, 500)
    v, a = found.basis, found.codes[pairs.user]
    projected = pairs.design() @ v
    residual = sigmoid(np.einsum("nk,nk->n", projected, a)) - pairs.label
    length = np.linalg.norm(projected, axis=1)
    towards = residual[:, None] * a + 0.05 * projected / length[:, None]
    np.testing.assert_allclose(pairs.design().T @ towards + 0.5 * pairs.n_users * v, 0, atol=0.05)
    np.testing.assert_allclose(residual @ projected + found.centre / pairs.n_users, 0, atol=0.05)
    mine = np.stack([(residual[:, None] * projected)[pairs.user == u].sum(0) for u in range(pairs.n_users)])
    np.testing.assert_allclose(mine + 0.5 * (found.codes - found.centre), 0, atol=1e-3)


def test_anybody_is_a_logistic_regression_on_the_frozen_rewards(stage):
    method = fitted("rfm", stage, rank=3)
    history = stage.histories.take(stage.histories.user == stage.people[-1])
    a = method.adapt([999], [history], BUDGET)[0].arrays["a"]
    rewards = (stage.world.differences(history) * method.scale_) @ method.basis_
    slope = rewards.T @ (sigmoid(rewards @ a) - history.label)
    np.testing.assert_allclose(slope + method.ridge_ * (a - method.empty_), 0, atol=1e-3)
    nobody = method.adapt([999], [Comparisons.empty()], BUDGET)[0].arrays["a"]
    np.testing.assert_array_equal(nobody, method.empty_)


def test_where_every_pair_has_its_own_feature_the_start_is_the_imputed_svd():
    n_pairs, n_users, rank = 12, 30, 3
    draw = np.random.default_rng(0)
    low = draw.normal(size=(n_pairs, rank)) @ draw.normal(size=(rank, n_users))
    answered = draw.random((n_pairs, n_users)) < 0.6
    answered[0] = answered[:, 0] = True
    matrix = 0.25 * np.tanh(low)
    features = np.zeros((2 * n_pairs, n_pairs))
    features[::2] = np.eye(n_pairs)
    pair, user = np.nonzero(answered)
    turned = draw.random(len(pair)) < 0.5
    label = np.where(turned, 0.5 - matrix[answered], 0.5 + matrix[answered])
    table = Comparisons.of(user=user, unit=pair, first=2 * pair + turned, second=2 * pair + ~turned, label=label)
    pairs, _ = Pairs.of_seen(world_of(features, n_users), table)

    filled = np.where(answered, matrix, 0.0)
    left = np.zeros((n_pairs, rank))
    for _ in range(10):  # as published
        u, size, vt = np.linalg.svd(filled, full_matrices=False)
        left = u[:, :rank]
        filled = np.where(answered, matrix, left * size[:rank] @ vt[:rank])
    rewards = pairs.scale[:, None] * svd_start(pairs, rank, 0)  # what each pair is given by V, (pairs, K)
    cosine = (rewards / np.linalg.norm(rewards, axis=0) * left).sum(0)
    np.testing.assert_allclose(np.abs(cosine), 1.0, atol=1e-3)


@pytest.mark.parametrize(("d", "n", "rank"), [(40, 7, 3), (7, 40, 3), (9, 9, 9), (12, 3, 5), (4, 0, 2)])
def test_the_leading_directions_are_those_of_the_singular_value_decomposition(d, n, rank):
    matrix = np.random.default_rng(0).normal(size=(d, n))
    found = _leading(matrix, rank)
    np.testing.assert_allclose(found.T @ found, np.eye(rank), atol=1e-9)
    expected = np.linalg.svd(matrix)[0][:, : min(rank, n)]
    np.testing.assert_allclose(np.abs((found[:, : min(rank, n)] * expected).sum(0)), 1.0, atol=1e-9)


def test_the_svd_finds_what_people_differ_in_where_no_pair_recurs():
    theta, basis = low_rank(150)
    world, train, _, _ = planted(theta, 20)
    pairs, _ = Pairs.of_seen(world, train)
    found, drawn = (start(pairs, 2, 0) * pairs.scale[:, None] for start in (svd_start, random_start))
    largest = [principal_angles(np.linalg.qr(v)[0], basis).max() for v in (found, drawn)]
    assert largest[0] < 20 < largest[1]
    np.testing.assert_allclose((pairs.project(svd_start(pairs, 2, 0)) ** 2).mean(0), 1.0, rtol=1e-4)


@pytest.mark.parametrize("name", ["rfm", "pref"])
def test_joint_factors_reach_the_oracle_where_rewards_are_of_low_rank(name):
    theta, _ = low_rank(60)
    data = planted(theta, 120)
    own, common = (served(create(each), *data)[0] for each in (name, "pooled-bt"))
    assert own.mean() > oracles(theta, *data).mean() - interval(own)
    assert own.mean() > common.mean() + 0.1


@pytest.mark.parametrize("seed", range(3))
def test_the_next_query_is_the_most_telling_one(seed):
    draw = np.random.default_rng(seed)
    candidates, asked, a = draw.normal(size=(30, 3)), draw.normal(size=(4, 3)), draw.normal(size=3)

    def slope(v):
        return sigmoid(v @ a) * (1 - sigmoid(v @ a))

    sigma = 1e-3 * np.eye(3) + sum(slope(v) * np.outer(v, v) for v in asked)
    value = [slope(v) ** 2 * v @ np.linalg.solve(sigma, v) for v in candidates]
    np.testing.assert_allclose(_values(candidates, asked[None], a[None])[0], value, rtol=1e-6)
    assert next_query(candidates, asked, a) == np.argmax(value)
    shortest = np.vstack([2 * np.eye(3)[:1], 0.5 * np.eye(3)])
    assert next_query(shortest, np.zeros((0, 3)), np.zeros(3)) == 0


def test_active_queries_learn_as_much_as_random_ones_from_as_many_answers():
    theta, _ = low_rank(200, rank=3)
    world, train, val, _ = planted(theta[:140], 40)
    method = create("pref", rank=3)
    method.fit(train, val, world, Budget())
    new = theta[140:]
    draw = np.random.default_rng(7)
    first, second = draw.integers(0, 2000, (2, 80))
    pool = Comparisons.of(user=0 * first, unit=first, first=first, second=second, label=np.full(80, np.nan))
    truth = world.differences(pool) @ new.T  # (pairs, people)
    answers = draw.random(truth.shape) < sigmoid(truth)  # the same answer to a pair, whoever asks
    everybody = np.arange(len(new))
    apart = {}
    for active in (True, False):
        told = method.interview(pool, len(new), lambda rows: answers[rows, everybody], 12, active=active)
        assert all(len(set(each)) == 12 for each in told.asked.tolist())
        found = (told.codes @ method.basis_.T) * method.scale_  # (rounds + 1, people, d)
        cosine = (found * new).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(new, axis=-1)
        apart[active] = 1 - cosine
        seven = pool.take(told.asked[:, :7].ravel())
        labels = answers[told.asked[:, :7], everybody[:, None]].ravel()
        seven = Comparisons.of(**{**seven.columns(), "user": np.repeat(everybody, 7), "label": labels})
        states = method.adapt(everybody.tolist(), Histories.group(seven, everybody), Budget())
        np.testing.assert_allclose(stack(states, "a"), told.codes[7], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(apart[True][0], apart[False][0])
    for answers_given in (4, 8, 12):
        gained = apart[False][answers_given] - apart[True][answers_given]
        assert gained.mean() > 0
    with pytest.raises(RequestError, match="allowed are 0 to 80"):
        method.interview(pool, 1, lambda rows: rows, 81)
    with pytest.raises(RequestError, match="allowed are 2 labels from 0 to 1"):
        method.interview(pool, 2, lambda rows: np.full(2, np.nan), 1)


def tasks_of(draw, people=5, n=60, d=4):
    return Tasks(
        people,
        draw.normal(size=(n, d)),
        draw.random(n),
        draw.random(n) + 0.5,
        np.sort(draw.integers(0, people, n)),
        draw.random(n) < 0.5,
    )


def test_the_meta_gradient_is_the_slope_of_the_query_loss_through_the_inner_step():
    draw = np.random.default_rng(0)
    tasks, basis, start = tasks_of(draw), draw.normal(size=(4, 3)), draw.normal(size=3)
    method = create("mrm", rank=3, inner_rate=2.0, tail=1e9)  # RPO's weights are constant
    _, (slope, slope_start) = meta_gradient(tasks, basis, start, method)

    def value(point):
        return meta_gradient(tasks, point[:-1], point[-1], method)[0]

    point = np.vstack([basis, start])
    expected = np.zeros_like(point)
    for at in product(range(5), range(3)):
        shift = np.zeros_like(point)
        shift[at] = 1e-3
        expected[at] = (value(point + shift) - value(point - shift)) / 2e-3
    np.testing.assert_allclose(np.vstack([slope, slope_start]), expected, atol=1e-4)


def test_rpo_weighs_people_by_how_badly_they_are_served():
    draw = np.random.default_rng(1)
    tasks, basis, start = tasks_of(draw), draw.normal(size=(4, 2)), np.zeros(2)
    method = create("mrm", inner_rate=0.0)
    margin = tasks.design @ basis @ np.array([0.5, 0.5])
    each = np.logaddexp(0, margin) - tasks.label * margin
    queries = [(tasks.user == u) & ~tasks.support for u in range(tasks.people)]
    loss = np.array([np.average(each[rows], weights=tasks.weight[rows]) for rows in queries])
    weight = sigmoid((loss - np.median(loss)) / 0.5)
    assert meta_gradient(tasks, basis, start, method)[0] == pytest.approx((weight * loss).mean(), rel=1e-5)


def test_the_adam_inner_step_is_adams_first_step():
    slope = np.array([0.3, -2.0, 0.0])
    adam = Adam([np.zeros(3)], 0.7)
    adam.advance([slope])
    np.testing.assert_allclose(adam.point[0], -0.7 * inner_step(slope, "adam")[0], rtol=1e-6)


def test_support_and_query_are_divided_anew_in_every_epoch_and_keep_units_whole(stage):
    train = replace(stage.train, unit=stage.train.unit // 4)
    pairs, users = Pairs.of_seen(stage.world, train)
    epochs = _tasks(pairs, create("mrm", tasks=len(users)), 0)
    one, two = next(epochs), next(epochs)
    assert 0 < (one.support != two.support).mean() < 1
    assert next(_tasks(pairs, create("mrm", tasks=len(users), query_share=0.0), 0)).support.all()
    alone = Pairs.of_seen(stage.world, replace(stage.train, unit=np.arange(len(stage.train), dtype=np.int32)))[0]
    most = next(_tasks(alone, create("mrm", tasks=len(users), query_share=0.8), 0))
    assert 0.7 < (~most.support).mean() < 0.9
    group = pairs.user * 1000 + pairs.histories.table.unit
    for tasks in (one, two):
        assert all(len(set(tasks.support[group == each])) == 1 for each in group)


@pytest.mark.parametrize("inner", INNER)
def test_mrm_without_an_inner_step_is_its_population_model(stage, inner):
    method = fitted("mrm", stage, inner=inner, inner_rate=0.0)
    nobody = method.adapt(stage.people.tolist(), Histories.group(Comparisons.empty(), stage.people), BUDGET)
    margins = [method.margins(states, stage.queries) for states in (adapted(method, stage), nobody)]
    np.testing.assert_array_equal(*margins)


def mixtures(n_users, d=12):
    """Return weights of people who mix two rewards, [n_users, d]: most of them want one of the two alone."""
    draw = np.random.default_rng(5)
    rewards = 2 * draw.normal(size=(2, d))
    share = sigmoid(20 * draw.normal(size=n_users))[:, None]
    return share * rewards[0] + (1 - share) * rewards[1]


def test_mrm_personalises_by_nothing_at_the_published_rate_and_by_much_at_its_own():
    theta = mixtures(60)
    data = planted(theta, 60)
    query = data[-1]
    other = query.for_users((query.user + 37) % 60)

    def specificity(method):
        own, states = served(method, *data)
        return own, (own - per_person(method.margins(states, other.hidden()), query)).mean()

    own, gained = specificity(create("mrm"))
    _, nothing = specificity(create("mrm", inner="adam", inner_rate=1e-3))
    assert own.mean() > oracles(theta, *data).mean() - interval(own)
    assert gained > 0.1
    assert abs(nothing) < 0.002


def test_hyres_weights_are_the_closed_form(stage):
    method = fitted("hyre", stage, heads=9)
    rewards = (stage.world.differences(stage.histories) * method.scale_) @ method.basis_  # (n, heads)
    loss = np.logaddexp(0, rewards) - stage.histories.label[:, None] * rewards
    for person, state in zip(stage.people, adapted(method, stage), strict=True):
        mine = (stage.histories.weight[:, None] * loss)[stage.histories.user == person].sum(0)
        expected = np.exp(-mine) / np.exp(-mine).sum()
        np.testing.assert_allclose(state.arrays["a"], expected, rtol=1e-3, atol=1e-6)
    nobody = method.adapt([0], [Comparisons.empty()], BUDGET)[0]
    np.testing.assert_allclose(nobody.arrays["a"], 1 / 9, rtol=1e-6)


def test_one_head_that_hears_everybody_is_pooled(stage):
    method = fitted("hyre", stage, heads=1, people=1000, prior_scale=0.0, ridge=1e-3, iterations=500)
    pooled = fitted("pooled-bt", stage, ridge=1e-3)
    np.testing.assert_allclose(method.basis_[:, 0] * method.scale_, pooled.theta_, atol=0.02)


def test_hyre_reaches_the_oracle_where_there_are_few_kinds_of_people():
    kinds = 1.4 * np.random.default_rng(3).normal(size=(3, 6))
    theta = kinds[np.arange(60) % 3]
    data = planted(theta, 100)
    own, common = (served(create(each), *data)[0] for each in ("hyre", "pooled-bt"))
    assert own.mean() > oracles(theta, *data).mean() - interval(own)
    assert own.mean() > common.mean() + 0.1
