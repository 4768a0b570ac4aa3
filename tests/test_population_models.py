"""DPL and MaxMin: distributions that know of disagreement, and the reward of the worst-off group."""

import math

import numpy as np
import pytest
import torch

from datasets_registry.errors import RequestError
from datasets_registry.records import Comparisons, Items
from methods.bradley_terry import sigmoid
from methods.catalog.maxmin_em import Choices
from methods.conformance import BUDGET, check, small_stage
from methods.interface import Budget, Histories, World
from methods.registry import create, find

SMALL = {
    "dpl-mean-variance": {"width": 8, "steps": 40},
    "dpl-categorical": {"width": 8, "steps": 40},
    "maxmin-em": {"clusters": 2},
}
DPL = ("dpl-mean-variance", "dpl-categorical")


def people(theta, each, *, units=300, d=4, seed=0):
    """Return a world and what people with weights [n, d] say about units of two items."""
    draw = np.random.default_rng(seed)
    features = draw.standard_normal((2 * units, d), np.float32)
    world = World("people", Items(("",) * 2 * units, ("x",) * 2 * units), len(theta), features)
    user = np.repeat(np.arange(len(theta)), each)
    unit = draw.integers(0, units, len(user))
    margin = np.einsum("nd,nd->n", features[2 * unit] - features[2 * unit + 1], theta[user])
    label = draw.random(len(user)) < sigmoid(margin)
    table = Comparisons.of(user=user, unit=unit, first=2 * unit, second=2 * unit + 1, label=label)
    return world, table


def fitted(name, world, train, **config):
    method = create(name, **config)
    method.fit(train, train.take([]), world, Budget())
    return method


@pytest.mark.parametrize("name", list(SMALL))
def test_conformance(name):
    assert [r for r in check(name, **SMALL[name]) if r.status == "failed"] == []


@pytest.mark.parametrize("name", DPL)
def test_explained_variance_is_higher_where_people_agree(name):
    draw = np.random.default_rng(1)
    alike = np.tile(2 * draw.standard_normal(4), (60, 1))
    apart = alike * np.where(np.arange(60) % 2, 1, -1)[:, None]
    found = []
    for theta in (alike, apart):
        world, train = people(theta, 30)
        found.append(fitted(name, world, train, width=16, steps=200).explained_variance(np.arange(600)))
    assert found[0] > found[1] + 0.2


@pytest.mark.parametrize("name", DPL)
def test_log_odds_are_antisymmetric_and_zero_between_equals(name):
    method = create(name)
    torch.manual_seed(0)
    a, b = torch.randn(2, 50, method.numbers()).unbind(0)
    torch.testing.assert_close(method.log_odds(a, b), -method.log_odds(b, a))
    assert not method.log_odds(a, a).any()


def test_the_logit_grows_with_the_means_and_falls_with_the_spread():
    method = create("dpl-mean-variance")
    spread = math.log(math.expm1(0.6)), math.log(math.expm1(0.8))  # softplus^-1; .6^2 + .8^2 = 1
    told = method.log_odds(torch.tensor([[0.5, spread[0]]]), torch.tensor([[0.2, spread[1]]]))
    assert told.item() == pytest.approx(0.3 * math.sqrt(2 * math.pi))


def test_the_categorical_win_is_that_of_two_independent_draws():
    method = create("dpl-categorical", atoms=4)
    p, q = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.4, 0.1, 0.4, 0.1])
    wins = sum(p[a] * q[b] * (1.0 if a > b else 0.5 if a == b else 0.0) for a in range(4) for b in range(4))
    told = method.log_odds(torch.tensor(np.log(p))[None], torch.tensor(np.log(q))[None])
    assert torch.sigmoid(told).item() == pytest.approx(wins)


def test_quantiles_are_those_of_the_distribution():
    normal = create("dpl-mean-variance")
    numbers = torch.tensor([[0.3, math.log(math.expm1(2.0))]], dtype=torch.float64)
    assert normal.quantiles(numbers, 0.5).item() == pytest.approx(0.3)
    assert normal.quantiles(numbers, 0.975).item() == pytest.approx(0.3 + 2 * 1.959964, rel=1e-5)
    atoms = create("dpl-categorical", atoms=2)
    even = torch.zeros(1, 2, dtype=torch.float64)  # half on [0, .5], half on [.5, 1]: uniform
    for q in (0.01, 0.3, 0.5, 0.9):
        assert atoms.quantiles(even, q).item() == pytest.approx(q)
    world, train = people(np.ones((6, 4)), 5)
    with pytest.raises(RequestError, match=r"q=1\.0"):
        fitted("dpl-categorical", world, train, steps=1).quantile(np.arange(3), 1.0)


@pytest.mark.parametrize("name", DPL)
def test_one_population_is_learned_up_to_the_oracle(name):
    theta = np.tile(2 * np.random.default_rng(3).standard_normal(4), (40, 1))
    world, train = people(theta, 60)
    _, query = people(theta, 40, seed=0)
    method = fitted(name, world, train, width=32, steps=300)
    states = method.adapt(list(range(40)), Histories.group(train, np.arange(40)), Budget())
    margin = method.margins(states, query.hidden())
    truth = np.einsum("nd,nd->n", world.differences(query), theta[query.user])
    right = (query.label > 0.5)[:, None] == np.stack([margin, truth], 1)[:, :].__gt__(0)
    each = np.stack([np.bincount(query.user, right[:, k]) / 40 for k in range(2)], 1)
    short = each[:, 1] - each[:, 0]
    assert short.mean() < 2 * short.std() / np.sqrt(40) + 0.005


def test_one_group_is_the_pooled_model():
    stage = small_stage(find("maxmin-em").spec)
    one, pooled = create("maxmin-em", clusters=1, ridge=3.0), create("pooled-bt", ridge=3.0)
    for each in (one, pooled):
        each.fit(stage.train, stage.val, stage.world, BUDGET)
    states = one.adapt(stage.people.tolist(), Histories.group(stage.histories, stage.people), BUDGET)
    reference = pooled.margins(pooled.adapt(stage.people.tolist(), [], BUDGET) or states, stage.queries)
    np.testing.assert_allclose(one.margins(states, stage.queries), reference, atol=1e-4)


@pytest.fixture(scope="module")
def opposed():
    """Nine in ten like what one in ten dislikes, but for a feature that both like."""
    theta = np.tile([2.0, 1.0, 0.0, 0.0], (100, 1))
    theta[:10, 0] *= -1
    world, train = people(theta, 30)
    return world, train, theta, fitted("maxmin-em", world, train, clusters=2, restarts=4)


def test_the_minority_counts_for_more_than_its_share(opposed):
    _, _, _, method = opposed
    small = int(method.shares_.argmin())
    assert method.shares_[small] == pytest.approx(0.1, abs=0.03)
    assert method.mixture_[small] > 2 * method.shares_[small]


def test_the_mixture_is_where_karush_kuhn_and_tucker_put_it(opposed):
    _, _, _, method = opposed
    used = method.mixture_ > 1e-4
    assert method.gains_[used] == pytest.approx(method.gains_[used].mean(), abs=1e-3)
    assert (method.gains_ >= method.gains_[used].mean() - 1e-3).all()
    assert method.mixture_.sum() == pytest.approx(1)


def test_the_worst_group_gets_more_than_under_the_pooled_reward(opposed):
    world, train, _, method = opposed
    choices = Choices.of(train, world, method.theta_.astype(np.float64))
    choices = Choices(choices.rewards / method.size_, choices.offsets)
    fair, _ = choices.gibbs(choices.rewards @ method.mixture_.astype(np.float64), method.beta)
    pooled = create("pooled-bt")
    pooled.fit(train, train.take([]), world, Budget())
    reward = Choices.of(train, world, np.asarray(pooled.theta_, np.float64)[None])
    common, _ = reward.gibbs(reward.rewards[:, 0] / reward.size()[0], method.beta)
    worst = [choices.over_units(policy[:, None] * choices.rewards).min() for policy in (fair, common)]
    assert worst[0] > worst[1]


def test_the_slope_of_the_dual_is_its_derivative():
    draw = np.random.default_rng(0)
    choices = Choices(draw.normal(size=(12, 3)), np.array([0, 3, 5, 9, 12]))
    mixture = np.array([0.2, 0.5, 0.3])
    slope = choices.dual(mixture, 0.7)[1]
    step = 1e-6 * np.eye(3)
    numeric = [(choices.dual(mixture + h, 0.7)[0] - choices.dual(mixture - h, 0.7)[0]) / 2e-6 for h in step]
    np.testing.assert_allclose(slope, numeric, atol=1e-7)


@pytest.mark.parametrize(("option", "told"), [({"beta": 0.0}, "beta=0.0"), ({"clusters": 0}, "clusters=0")])
def test_wrong_options_say_what_is_allowed(option, told):
    stage = small_stage(find("maxmin-em").spec)
    with pytest.raises(RequestError, match=told):
        create("maxmin-em", **option).fit(stage.train, stage.val, stage.world, BUDGET)
