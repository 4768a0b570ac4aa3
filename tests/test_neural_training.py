"""How the neural methods are trained: when validation is asked, when training ends, and what nothing teaches."""

from itertools import islice

import numpy as np
import pytest
import torch
from small_configs import SMALL

from datasets_registry.errors import RequestError
from datasets_registry.records import Comparisons, Items
from methods.batches import Batches
from methods.conformance import BUDGET, small_stage
from methods.interface import Budget, Histories, World
from methods.neural.training import Schedule, train_network
from methods.registry import create, find

TAUGHT = ("vpl", "spl", "gpo", "copl", "dpl-mean-variance", "dpl-categorical")


def schedule(steps=200, patience=0.25):
    return Schedule(lr=0.1, weight_decay=0.0, steps=steps, every=20, patience=patience)


def asked(steps, patience, scores):
    """Train a number on nothing, scoring what is told, the last again and again; return at which steps it was asked."""
    net = torch.nn.Linear(1, 1)
    table = Comparisons.of(user=[0], unit=[0], first=[0], second=[1], label=[1])
    taken, at = [], []

    def loss(rows):
        taken.append(1)
        return net(torch.ones(1, 1))[0]

    def score():
        at.append(len(taken))
        return scores[min(len(at), len(scores)) - 1]

    train_network(
        net, loss, Batches(table, np.zeros(1, np.uint64), 1, 0), schedule(steps, patience), title="", score=score
    )
    return at


def test_validation_is_asked_more_often_at_first():
    found = asked(60, 1.0, [0.0])
    assert found[:4] == [0, 1, 2, 3]
    assert found[-3:] == [20, 40, 60]


@pytest.mark.parametrize(("patience", "last"), [(0.25, 60), (0.5, 100), (1.0, 200), (3.0, 200)])  # asked at 60, not 50
def test_patience_is_a_share_of_the_steps_and_a_whole_one_never_ends_training(patience, last):
    assert asked(200, patience, [1.0])[-1] == last


def test_patience_begins_anew_with_every_better_step():
    better = [1.0] * 10 + [0.5]  # asked at 0, seven early steps, 20 and 40, and it is better at 60
    assert asked(200, 0.5, better)[-1] == 160


@pytest.mark.parametrize("name", ["vpl", "spl", "gpo"])
def test_a_plateau_ends_no_context_encoders_training(name):
    method = create(name)
    assert not schedule(1200, method.patience).ends(1199, 0)


def test_patience_beyond_its_limit_is_refused():
    with pytest.raises(RequestError, match="gpo: patience=0; allowed: numbers above 0"):
        create("gpo", patience=0).check()


def test_an_empty_table_has_no_batches():
    batches = Batches(Comparisons.empty(), np.zeros(0, np.uint64), 16, 0)
    assert list(islice(batches.steps(3), 1)) == []


@pytest.mark.parametrize("name", [name for name in SMALL if find(name).spec.level == "feature"])
def test_who_learns_from_nothing_ends_and_answers_in_numbers(name):
    stage = small_stage(find(name).spec)
    method = create(name, **SMALL[name])
    method.fit(stage.train.take([]), stage.val.take([]), stage.world, BUDGET)
    assert method.comparisons_trained == 0
    for history in (Comparisons.empty(), stage.histories):
        if find(name).spec.transductive and len(history):
            continue  # nobody's items are known
        states = method.adapt(stage.people.tolist(), Histories.group(history, stage.people), BUDGET)
        assert np.isfinite(method.margins(states, stage.queries)).all()


@pytest.mark.parametrize("name", TAUGHT)
def test_an_untrained_network_holds_no_opinion(name):
    stage = small_stage(find(name).spec)
    method = create(name, **{**SMALL[name], "steps": 0})
    method.fit(stage.train, stage.val, stage.world, BUDGET)
    states = method.adapt(stage.people.tolist(), Histories.group(stage.histories, stage.people), BUDGET)
    assert not method.margins(states, stage.queries).any()


def few_pairs_of_many_features(seed=0, d=384, people=40):
    """A world that is overfitted within a few steps: as many features as a sentence encoder gives, 600 pairs."""
    draw = np.random.default_rng(seed)
    features, theta = draw.standard_normal((300, d), np.float32), draw.normal(size=d) / np.sqrt(d / 8)

    def said(each):
        user = np.repeat(np.arange(people), each)
        first, second = draw.integers(0, 300, (2, len(user)))
        chance = 1 / (1 + np.exp(-(features[first] - features[second]) @ theta))
        label = draw.random(len(user)) < chance
        return Comparisons.of(user=user, unit=np.arange(len(user)), first=first, second=second, label=label)

    world = World("wide", Items(("",) * 300, ("x",) * 300), people, features)
    return world, said(15), said(8), said(20)


@pytest.mark.parametrize("name", ["vpl", "spl", "gpo", "dpl-mean-variance"])
def test_where_a_few_steps_overfit_what_is_kept_was_trained_and_helps(name):
    world, train, val, query = few_pairs_of_many_features()
    wide = {"width": 64, "lr": 3e-3, "steps": 40, "batch": 4096}
    method = create(name, **wide, **{"vpl": {"latent": 16}, "spl": {"latent": 16}, "gpo": {"layers": 1}}.get(name, {}))
    method.fit(train, val, world, Budget())
    people = np.arange(40)
    margins = method.margins(method.adapt(people.tolist(), Histories.group(train, people), Budget()), query.hidden())
    assert ((margins > 0) == (query.label > 0.5)).mean() > 0.6
