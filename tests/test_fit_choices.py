"""What `fit` decides by itself: where it starts, whom it tunes on, what validation chooses and when there is none."""

from dataclasses import replace

import numpy as np
import pytest
from planted_people import low_rank, planted, served
from stage_fixtures import fitted

import methods.catalog.gp_preference as gp
import methods.joint_factors as joint
import methods.linear_factors as factors
from methods.adam import Adam
from methods.bradley_terry import Pairs, held_out, pooled_chosen, some_people
from methods.catalog.maxmin_em import Choices
from methods.catalog.p_share_lora_linear import INITS
from methods.clusters import HardEM, log_likelihood
from methods.conformance import BUDGET, small_stage
from methods.interface import Budget, Histories
from methods.registry import create

FEW = {
    "gp-preference": {"people": 10, "landmarks": 8},
    "hierarchical-bt": {"people": 10},
    "nearest-user": {"people": 10},
    "p-share-lora-linear": {"rank": 2},
    "pref": {"rank": 2},
    "rfm": {"rank": 2},
}


@pytest.fixture
def stage():
    return small_stage(create("pooled-bt").spec)


def test_who_is_drawn_hangs_on_what_they_compared_and_on_the_seed():
    _, train, _, _ = planted(low_rank(30)[0], 10)
    renamed = train.for_users(np.random.default_rng(1).permutation(30)[train.user])
    of_person = np.unique(train.user, return_index=True)[1]
    keys = {int(renamed.user[row]): int(train.user[row]) for row in of_person}
    drawn = some_people(Histories.group(train, range(30)), 10, "a", 0)
    after = some_people(Histories.group(renamed, range(30)), 10, "a", 0)
    assert drawn.tolist() == sorted(keys[each] for each in after.tolist())
    assert len(set(drawn.tolist())) == 10
    assert drawn.tolist() != some_people(Histories.group(train, range(30)), 10, "a", 1).tolist()
    assert some_people(Histories.group(train, range(30)), 30, "a", 0).tolist() == list(range(30))


@pytest.mark.parametrize("name", FEW)
def test_renaming_people_changes_nothing_where_only_some_are_learned_from(name, monkeypatch):
    monkeypatch.setattr(factors, "_TUNING_USERS", 10)
    monkeypatch.setattr(joint, "_TUNING_PEOPLE", 10)
    monkeypatch.setattr(gp, "_TUNING_PEOPLE", 10)
    world, train, val, query = planted(low_rank(30)[0], 20)
    name_of = np.random.default_rng(1).permutation(30)
    found = []
    for names in (np.arange(30), name_of):
        method = create(name, **FEW[name])
        told, asked = (table.for_users(names[table.user]) for table in (train, query))
        method.fit(told, val.for_users(names[val.user]), world, Budget())
        states = method.adapt(range(30), Histories.group(told, range(30)), Budget())
        found.append(method.margins(states, asked.hidden()))
    np.testing.assert_allclose(found[1], found[0], atol=2e-3 * np.abs(found[0]).max())


def test_the_anchor_of_p_share_lora_linear_is_chosen_as_the_pooled_ridge_is(stage):
    pairs, users = Pairs.of_seen(stage.world, stage.train)
    theta, ridge = pooled_chosen(pairs, held_out(stage.val, users))
    given = fitted("p-share-lora-linear", stage, base_ridge=ridge, shrinkage=0.5)
    chosen = fitted("p-share-lora-linear", stage, shrinkage=0.5)
    np.testing.assert_allclose(chosen.base_, given.base_, atol=2e-3)
    method = create("p-share-lora-linear", shrinkage=1e4)
    method.fit(stage.train, stage.val, stage.world, BUDGET)
    np.testing.assert_allclose(method.base_, theta, atol=5e-3)


def test_a_strong_anchor_holds_in_refinement_too(stage):
    pairs, _ = Pairs.of_seen(stage.world, stage.train)
    draw = np.random.default_rng(0)
    point = factors.Factors(np.zeros(6), 0.5 * draw.normal(size=(6, 2)), draw.normal(size=(pairs.n_users, 2)))
    sizes = [np.linalg.norm(factors.Training(1.0, 2, 40, ridge).refined(pairs, point).base) for ridge in (1.0, 1e4)]
    assert sizes[1] < 0.05 < sizes[0]


def test_the_three_ways_to_begin_begin_in_three_places(stage):
    pairs, users = Pairs.of_seen(stage.world, stage.train)
    theta, ridge = pooled_chosen(pairs, held_out(stage.val, users))
    begun = {}
    for init in INITS:
        method = create("p-share-lora-linear", init=init, rank=3)
        method.rank_ = 3
        begun[init] = method.started(pairs, theta, ridge, 0)
    spread = {init: np.ptp(point.codes, axis=0).max() / np.abs(point.codes).max() for init, point in begun.items()}
    assert spread["independent"] > 0.5
    assert max(spread["copied"], spread["warmup"]) < 0.1
    np.testing.assert_array_equal(begun["copied"].codes, begun["warmup"].codes)
    rewards = {init: point.base[:, None] + point.basis @ point.codes.T for init, point in begun.items()}
    for one, other in (("independent", "copied"), ("copied", "warmup"), ("independent", "warmup")):
        apart = np.linalg.norm(rewards[one] - rewards[other]) / np.linalg.norm(rewards[other])
        assert apart > 0.02, (one, other)


def test_a_warm_up_is_a_short_run_of_everybody_as_one_person(stage):
    pairs, _ = Pairs.of_seen(stage.world, stage.train)
    one = pairs.as_one()
    assert (one.n_users, len(one)) == (1, len(pairs))
    code = np.array([1.0, -2.0])
    found = factors.warmed_up(pairs, code, factors.Shrinkage(1e-3, 1e-3), 200)
    reference = create("pooled-bt", ridge=1e-3)
    reference.fit(stage.train, stage.val, stage.world, BUDGET)
    np.testing.assert_allclose((found.base + found.basis @ code) * pairs.scale, reference.theta_, atol=0.02)
    assert np.linalg.norm(found.basis @ code) > np.linalg.norm(found.base)  # B learns, and not theta_0 alone


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "name", ["pooled-bt", "per-user-bt", "lore", "mrm", "rfm", "hyre", "p-share-lora-linear", "hierarchical-bt",
             "clustered-bt", "gp-preference", "matrix-factorisation"]
)  # fmt: skip
def test_validation_that_weighs_nothing_is_no_validation(stage, name):
    unheard = replace(stage.val, weight=np.zeros(len(stage.val), np.float32))
    found = []
    for val in (unheard, stage.val.take([])):
        own = replace(stage, val=val)
        method = fitted(name, own)
        states = method.adapt(stage.people.tolist(), Histories.group(stage.histories, stage.people), BUDGET)
        found.append(method.margins(states, stage.queries))
    np.testing.assert_array_equal(*found)


def test_lore_makes_as_many_steps_as_it_is_told(stage, monkeypatch):
    made = []
    advance = Adam.advance
    monkeypatch.setattr(Adam, "advance", lambda *given: made.append(1) or advance(*given))
    for iterations in (0, 7, 90, 1700):
        made.clear()
        fitted("lore", replace(stage, val=stage.val.take([])), rank=2, iterations=iterations)
        assert len(made) == iterations


def test_the_likeliest_restart_is_kept(stage):
    pairs, _ = Pairs.of_seen(stage.world, stage.train)

    def likelihood(restarts, clusters=4):
        found = HardEM("clustered-bt", 0, restarts, 15, 1.0).fit(pairs, stage.val.take([]), clusters, 1)
        return log_likelihood(pairs, found.theta).max(1).sum()

    many = [likelihood(restarts) for restarts in (1, 2, 3, 4, 5, 6)]
    assert many == sorted(many)
    assert many[-1] > many[0]


def test_a_groups_size_does_not_change_its_say():
    theta = np.tile([2.0, 1.0, 0.0, 0.0], (40, 1))
    theta[:10, 0] *= -1
    data = planted(theta, 60)
    method = create("maxmin-em", clusters=2)
    served(method, *data)
    choices = Choices.of(data[1], data[0], method.theta_)
    np.testing.assert_allclose(choices.size(), method.size_, rtol=1e-4)
    unit = Choices(choices.rewards / method.size_, choices.offsets)
    np.testing.assert_allclose(unit.size(), 1.0)
    np.testing.assert_allclose(method.mixture_, unit.egalitarian(method.beta), atol=1e-3)
    np.testing.assert_allclose(method.gains_, unit.dual(method.mixture_, method.beta)[1], rtol=1e-3)
    assert np.abs(method.size_ - 1).max() > 0.2
