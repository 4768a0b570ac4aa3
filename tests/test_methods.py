"""Every method conforms; the linear ones obey their identities, closed forms and the ordering on planted data."""

from itertools import pairwise

import numpy as np
import pytest
from small_configs import SMALL
from stage_fixtures import fitted

from datasets_registry.errors import MethodError
from datasets_registry.records import Comparisons, Items
from methods.bradley_terry import Logistic, Pairs, calibrated_nll, held_out, person_draws, pooled, sigmoid
from methods.conformance import BUDGET, check, small_stage
from methods.interface import Budget, Histories, World, stack
from methods.linear_factors import Factors, Shrinkage, train_factors
from methods.registry import built_in, create
from methods.subspace import principal_angles


def simulated(n_users, each, *, d=16, rank=2, n_val=3, n_query=60, seed=0):
    """Planted rank-`rank` people: a world, train, val and query tables, and the planted basis [d, rank]."""
    draw = np.random.default_rng(seed)
    basis = np.linalg.qr(draw.normal(size=(d, rank)))[0]
    theta = draw.normal(size=d) / np.sqrt(d) + 2 * draw.normal(size=(n_users, rank)) @ basis.T
    features = draw.standard_normal((2000, d), np.float32)

    def said(m):
        user = np.repeat(np.arange(n_users), m)
        first, second = draw.integers(0, 2000, (2, len(user)))
        margin = np.einsum("nd,nd->n", features[first] - features[second], theta[user])
        label = draw.random(len(user)) < sigmoid(margin)
        return Comparisons.of(user=user, unit=first, first=first, second=second, label=label)

    world = World("simulated", Items(("",) * 2000, ("x",) * 2000), n_users, features)
    return world, said(each), said(n_val), said(n_query), basis


def accuracy(method, world, train, val, query):
    method.fit(train, val, world, Budget())
    people = np.unique(query.user)
    states = method.adapt(people.tolist(), Histories.group(train, people), Budget())
    right = (method.margins(states, query.hidden()) > 0) == (query.label > 0.5)
    return float(right.mean())


def weights(method, stage):
    histories = Histories.group(stage.histories, stage.people)
    return method.weights(method.adapt(stage.people.tolist(), histories, BUDGET))


@pytest.fixture
def stage():
    return small_stage(create("pooled-bt").spec)


# Methods with a network of their own are checked, small, in the test file of their family.
@pytest.mark.parametrize("name", [name for name in built_in() if name not in {"p-rlhf", *SMALL}])
def test_conformance(name):
    assert [r for r in check(name) if r.status == "failed"] == []


def test_pooled_is_scikit_learns_logistic_regression(stage):
    from sklearn.linear_model import LogisticRegression

    pairs, _ = Pairs.of_seen(stage.world, stage.train)
    x, y = pairs.design(), pairs.label
    reference = LogisticRegression(C=1 / 3.0, fit_intercept=False, tol=1e-8, max_iter=1000)
    reference.fit(np.vstack([x, x]), np.repeat([1, 0], len(y)), np.concatenate([y, 1 - y]))
    np.testing.assert_allclose(pooled(pairs, 3.0), reference.coef_[0], atol=1e-3)


def test_a_row_of_weight_two_is_a_row_said_twice(stage):
    scale = np.ones(6, np.float32)
    rows = np.arange(20)
    twice = stage.train.take(np.repeat(rows, 1 + rows % 2)).for_users(np.zeros(30))
    once = stage.train.take(rows)
    once = Comparisons.of(**{**once.columns(), "user": np.zeros(20), "weight": 1 + rows % 2})
    solved = [
        Logistic.of(p, p.design(), np.zeros(len(p))).modes()
        for p in (Pairs.of(stage.world, Histories.group(t, [0]), scale) for t in (once, twice))
    ]
    np.testing.assert_allclose(*solved, atol=1e-4)


@pytest.mark.parametrize("d", [3, 40])
def test_modes_are_stationary_and_covariances_inverse_hessians_with_more_or_fewer_rows_than_unknowns(d):
    draw = np.random.default_rng(1)
    lengths = np.array([0, 1, 3, 9, 2])
    offsets = np.concatenate([[0], lengths.cumsum()])
    x = draw.normal(size=(offsets[-1], d)).astype(np.float32)
    base, y, w = draw.normal(size=len(x)), draw.random(len(x)), draw.random(len(x)) + 0.5
    modes, spread = Logistic(x, base, y, w, offsets).posteriors(0.7)
    for u, (lo, hi) in enumerate(pairwise(offsets)):
        p = sigmoid(base[lo:hi] + x[lo:hi] @ modes[u])
        np.testing.assert_allclose(x[lo:hi].T @ (w[lo:hi] * (p - y[lo:hi])) + 0.7 * modes[u], 0, atol=1e-4)
        hessian = (x[lo:hi].T * (w[lo:hi] * p * (1 - p))) @ x[lo:hi] + 0.7 * np.eye(d)
        np.testing.assert_allclose(spread[u] @ hessian, np.eye(d), atol=1e-3)


def test_blocks_gathered_anew_give_what_a_held_design_gives(stage):
    pairs, _ = Pairs.of_seen(stage.world, stage.train)
    lazy = Pairs(pairs.world, pairs.histories, pairs.scale, None)
    columns = np.eye(6)[:, :2]
    np.testing.assert_array_equal(lazy.design(), pairs.design())
    np.testing.assert_array_equal(lazy.project(columns), pairs.project(columns))


def test_training_of_factors_reaches_a_stationary_point(stage):
    pairs, users = Pairs.of_seen(stage.world, stage.train)
    codes = person_draws(pairs.histories, 2, 0)
    start = Factors(np.zeros(6), 0.5 * np.random.default_rng(0).normal(size=(6, 2)), codes)
    found = train_factors(pairs, start, Shrinkage(0.3, 1.0), iterations=300)
    theta = found.base + found.codes @ found.basis.T
    residual = sigmoid(np.einsum("nd,nd->n", pairs.design(), theta[pairs.user])) - pairs.label
    slope = np.stack([pairs.design()[pairs.user == u].T @ residual[pairs.user == u] for u in range(len(users))])
    np.testing.assert_allclose(slope.sum(0) + found.base, 0, atol=0.05)
    np.testing.assert_allclose(slope.T @ found.codes + 0.3 * len(users) * found.basis, 0, atol=0.05)
    np.testing.assert_allclose(slope @ found.basis + 0.3 * found.codes, 0, atol=0.01)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("per-user-bt", {"shrinkage": 1e7}),
        ("p-share-lora-linear", {"shrinkage": 1e3}),
        ("clustered-bt", {"clusters": 1, "ridge": 1.0}),
        ("hierarchical-bt", {"prior": 1e7}),
    ],
)
def test_without_room_for_people_it_is_the_pooled_model(stage, name, config):
    config = dict(config)
    tuned = name != "clustered-bt"
    reference = fitted("pooled-bt", stage) if tuned else fitted("pooled-bt", stage, ridge=1.0)
    got = weights(fitted(name, stage, **config), stage)
    # hierarchical-bt does not penalise mu, pooled-bt does
    close = 2e-2 if name == "hierarchical-bt" else 5e-3
    np.testing.assert_allclose(got, np.tile(reference.theta_, (len(got), 1)), atol=close)


def test_lore_of_rank_one_is_the_macro_weighted_pooled_direction(stage):
    said = np.bincount(stage.train.user)
    uneven = stage.train.take(stage.train.order < 4 + stage.train.user % 6)
    no_val = stage.val.take([])
    method = create("lore", rank=1)
    method.fit(uneven, no_val, stage.world, BUDGET)
    pairs, _ = Pairs.of_seen(stage.world, uneven)
    macro = 1 / np.bincount(uneven.user)[uneven.user[np.argsort(uneven.user, kind="stable")]]
    expected = pooled(pairs, 1e-6, weight=macro) * pairs.scale
    got = weights(method, stage)[0]
    assert said.min() == 10
    assert got @ expected / np.linalg.norm(got) / np.linalg.norm(expected) > 0.999


@pytest.mark.parametrize("name", [n for n, c in built_in().items() if c.spec.adaptation != "none" and n != "oracle"])
def test_a_seen_person_and_a_new_one_who_said_the_same_have_the_same_state(stage, name):
    if name == "nearest-user":
        pytest.skip("a seen person is no neighbour of himself")
    if built_in()[name].spec.level != "feature":
        pytest.skip("held by the method's own tests")
    if name in ("pal-a", "pal-b", "copl"):
        pytest.skip("a seen person is looked up")
    method = create(name, **SMALL.get(name, {}))
    own = small_stage(method.spec)
    method.fit(own.train, own.val, own.world, BUDGET)
    history = own.histories.take(own.histories.user == 0)
    seen, new = method.adapt([0, 15], [history, history], BUDGET)
    for part, array in seen.arrays.items():
        np.testing.assert_allclose(array, new.arrays[part], atol=1e-6)


def test_empty_histories_give_the_population(stage):
    nobody = Histories.group(Comparisons.empty(), [0])
    for name, expected in (
        ("per-user-bt", lambda m: m.theta_ * m.scale_),
        ("hierarchical-bt", lambda m: m.mu_ * m.scale_),
        ("p-share-lora-linear", lambda m: m.base_ * m.scale_),
        ("nearest-user", lambda m: m.pooled_),
        ("clustered-bt", lambda m: m.shares_ @ m.theta_ * m.scale_),
    ):
        method = fitted(name, stage)
        np.testing.assert_allclose(method.weights(method.adapt([0], nobody, BUDGET))[0], expected(method), rtol=1e-5)


def test_one_neighbour_is_the_likeliest_other_person(stage):
    method = fitted("nearest-user", stage, k=1)
    history = stage.histories.take(stage.histories.user == 0)
    own, copied = (stack(method.adapt([user], [history], BUDGET), "theta")[0] for user in (0, 15))
    x = stage.world.differences(history)
    loss = (np.logaddexp(0, x @ method.table_.T) - history.label[:, None] * (x @ method.table_.T)).sum(0)
    np.testing.assert_allclose(copied, method.table_[loss.argmin()], rtol=1e-6)
    others = np.where(method.neighbours_ == 0, np.inf, loss)
    np.testing.assert_allclose(own, method.table_[others.argmin()], rtol=1e-6)


def two_sides():
    """40 people with 30 comparisons each, 15 of whom want the opposite of the others: world, train, side [40]."""
    world, train, _, _, _ = simulated(40, 30, rank=1)
    draw = np.random.default_rng(4)
    theta = 2 * draw.normal(size=16)
    side = np.where(np.arange(40) < 15, 1.0, -1.0)
    margin = world.differences(train) @ theta * side[train.user]
    return world, Comparisons.of(**{**train.columns(), "label": margin > 0}), side


def test_clusters_are_found():
    world, train, side = two_sides()
    method = create("clustered-bt", clusters=2)
    method.fit(train, train.take([]), world, BUDGET)
    member = stack(method.adapt(range(40), Histories.group(train, range(40)), BUDGET), "member").argmax(1)
    assert abs(np.corrcoef(member, side)[0, 1]) > 0.99
    np.testing.assert_allclose(np.sort(method.shares_), [15 / 40, 25 / 40], rtol=1e-6)


def test_the_number_of_clusters_is_chosen_on_validation_and_is_one_without():
    world, table, _ = two_sides()
    train, val = table.take(table.order % 30 < 20), table.take(table.order % 30 >= 20)
    found, nothing, reference = create("clustered-bt"), create("clustered-bt"), create("pooled-bt")
    found.fit(train, val, world, Budget())
    assert found.theta_.shape == (2, 16)
    nothing.fit(train, val.take([]), world, Budget())
    reference.fit(train, val.take([]), world, Budget())
    assert nothing.theta_.shape == (1, 16)
    np.testing.assert_allclose(nothing.theta_[0] * nothing.scale_, reference.theta_, rtol=1e-5)


def test_a_prior_keeps_the_covariance_finite_where_answers_are_separable():
    world, train, _ = two_sides()
    sizes = []
    for iterations in (300, 1000):
        method = create("hierarchical-bt", prior=0.1, iterations=iterations)
        method.fit(train, train.take([]), world, Budget())
        sizes.append(float((method.root_**2).sum()))
    assert np.isfinite(sizes).all()
    assert sizes[0] == pytest.approx(sizes[1])


@pytest.mark.parametrize("prior", [0.03, 0.3])
def test_em_ends_where_the_covariance_is_its_own_update(stage, prior):
    from methods.catalog.hierarchical_bt import FLOOR, TOLERANCE

    method = fitted("hierarchical-bt", stage, prior=prior, iterations=1000)
    pairs, _ = Pairs.of_seen(stage.world, stage.train)
    base = pairs.project(method.mu_[:, None])[:, 0]
    z, spread = Logistic.of(pairs, pairs.project(method.root_), base).posteriors()
    away = (z - z.mean(0)) @ method.root_.T
    second = away.T @ away / len(z) + method.root_ @ spread.mean(0) @ method.root_.T
    sigma = method.root_ @ method.root_.T
    expected = (second + prior * FLOOR * np.eye(6)) / (1 + prior)
    assert np.linalg.norm(expected - sigma) < 2 * TOLERANCE * np.linalg.norm(sigma)


def test_people_who_do_not_differ_get_no_covariance():
    world, train, val, _, _ = simulated(200, 12)
    draw = np.random.default_rng(3)
    train, val = (t.for_users(draw.permutation(t.user)) for t in (train, val))
    method, reference = create("hierarchical-bt"), create("pooled-bt")
    for each in (method, reference):
        each.fit(train, val, world, Budget())
    assert method.prior_ >= 0.1
    states = method.adapt(range(200), Histories.group(train, range(200)), Budget())
    theta, common = method.weights(states), reference.theta_
    assert np.linalg.norm(theta - common, axis=1).mean() < 0.2 * np.linalg.norm(common)


def test_lore_is_chosen_by_the_score_that_adaptation_gets(stage):
    method = fitted("lore", stage)
    people = np.unique(stage.train.user)
    states = method.adapt(people.tolist(), Histories.group(stage.train, people), BUDGET)
    val = held_out(stage.val, people)
    score = calibrated_nll(method.margins(states, val.hidden()), val)
    assert score == pytest.approx(method.validation_nll_, rel=1e-4)


def test_lore_does_not_lose_to_pooled_where_there_is_little_data():
    world, train, val, query, _ = simulated(200, 2, n_val=2)
    personal, common = (accuracy(create(name), world, train, val, query) for name in ("lore", "pooled-bt"))
    assert personal > common - 0.02


TUNED = ("pooled-bt", "per-user-bt", "p-share-lora-linear", "clustered-bt", "hierarchical-bt", "lore")


@pytest.mark.parametrize("name", TUNED)
@pytest.mark.parametrize("rows", ["none", "one", "one each", "of a stranger"])
def test_small_validation_sets_are_enough(stage, name, rows):
    val = {
        "none": stage.val.take([]),
        "one": stage.val.take([1]),
        "one each": stage.val.take(np.flatnonzero(stage.val.order == stage.val.order.min())),
        "of a stranger": stage.val.take([0, 1]).for_users(np.array([13, 13])),
    }[rows]
    method = create(name)
    method.fit(stage.train.take(np.flatnonzero(stage.train.order == 0)), val, stage.world, BUDGET)
    assert np.isfinite(weights(method, stage)).all()


def test_sharing_a_factor_wins_with_little_data_and_loses_nothing_with_much():
    few, many = simulated(300, 8)[:4], simulated(60, 128)[:4]
    assert accuracy(create("p-share-lora-linear"), *few) > accuracy(create("per-user-bt"), *few) + 0.02
    assert accuracy(create("p-share-lora-linear"), *few) > accuracy(create("pooled-bt"), *few) + 0.05
    assert accuracy(create("p-share-lora-linear"), *many) > accuracy(create("per-user-bt"), *many) - 0.005


def test_more_people_say_more_about_the_shared_factor():
    angles = []
    for n_users in (100, 1000):
        world, train, val, _, basis = simulated(n_users, 8)
        method = create("p-share-lora-linear")
        method.fit(train, val, world, Budget())
        angles.append(principal_angles(method.subspace(), basis)[0])
    assert angles[1] < 0.6 * angles[0]


@pytest.mark.parametrize("init", ["independent", "copied", "warmup"])
def test_every_initialisation_learns_the_factor(init):
    world, train, val, query, basis = simulated(200, 20)
    method = create("p-share-lora-linear", init=init, rank=2)
    assert accuracy(method, world, train, val, query) > accuracy(create("pooled-bt"), world, train, val, query) + 0.05
    assert principal_angles(method.subspace(), basis)[0] < 30


def test_a_rank_above_the_features_is_cut(stage):
    assert fitted("p-share-lora-linear", stage, rank=50).basis_.shape == (6, 6)


def test_alpha_rescales_the_stored_factor_and_no_prediction(stage):
    small, large = (fitted("p-share-lora-linear", stage, alpha=alpha, shrinkage=0.3) for alpha in (4.0, 16.0))
    np.testing.assert_allclose(small.basis_, 4 * large.basis_, rtol=1e-4)
    np.testing.assert_allclose(weights(small, stage), weights(large, stage), rtol=1e-4, atol=1e-5)


def test_many_features_let_people_differ_along_principal_components():
    world, train, val, query, _ = simulated(60, 40, d=80)
    assert accuracy(create("hierarchical-bt", dimensions=20), world, train, val, query) > 0.5
    method = create("hierarchical-bt", dimensions=20)
    method.fit(train, val, world, Budget())
    assert method.root_.shape == (80, 20)


def test_controls_know_nothing(stage):
    coin = fitted("random", stage)
    table = stage.train
    states = coin.adapt(range(int(table.user.max()) + 1), [], BUDGET)
    margins = coin.margins(states, table)
    assert (margins != 0).all()
    np.testing.assert_array_equal(margins, -coin.margins(states, table.swapped()))
    length = fitted("length", stage)
    longer = np.array([len(stage.world.items.response[i]) for i in table.first])
    shorter = np.array([len(stage.world.items.response[i]) for i in table.second])
    np.testing.assert_array_equal(np.sign(length.margins([], table)), np.sign(longer - shorter))


def test_the_oracle_needs_the_truth_and_scores_by_it(stage):
    with pytest.raises(MethodError, match="known truth"):
        fitted("oracle", stage)
    granted = small_stage(create("oracle").spec)
    oracle = fitted("oracle", granted)
    states = oracle.adapt(granted.people.tolist(), Histories.group(granted.histories, granted.people), BUDGET)
    theta, q = granted.world.truth.theta, granted.queries
    x = granted.world.items.attributes
    expected = np.einsum("nk,nk->n", x[q.first] - x[q.second], theta[granted.people[q.user]])
    np.testing.assert_allclose(oracle.margins(states, q), expected, rtol=1e-3, atol=1e-5)


def test_the_newest_of_a_history_are_each_persons_last():
    stage = small_stage(create("pooled-bt").spec)
    histories = Histories.group(stage.histories, [*stage.people, 999])
    few = histories.newest(3)
    assert few.lengths.tolist() == np.minimum(histories.lengths, 3).tolist()
    for one, all_of_it in zip(few, histories, strict=True):
        for name, column in one.columns().items():
            np.testing.assert_array_equal(column, all_of_it.columns()[name][-3:])
