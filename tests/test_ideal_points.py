"""PAL-A and PAL-B: they conform, count as published, keep their identities and find planted ideal points."""

import numpy as np
import pytest
import torch

from datasets_registry.errors import RequestError
from datasets_registry.records import Comparisons, Items
from methods.bradley_terry import sigmoid
from methods.catalog.pal_a import PalA
from methods.catalog.pal_b import PalB
from methods.conformance import BUDGET, check, small_stage
from methods.interface import Budget, Histories, World, stack
from methods.neural.ideal_points import projector

SMALL = {"width": 8, "steps": 30, "every": 10}
BOTH = pytest.mark.parametrize("kind", [PalA, PalB])


@pytest.fixture(scope="module")
def stage():
    return small_stage(PalA.spec)


def fitted(kind, stage, **config):
    method = kind(**{**SMALL, **config})
    method.fit(stage.train, stage.val, stage.world, BUDGET)
    return method


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("name", ["pal-a", "pal-b"])
def test_conformance(name):
    assert [r for r in check(name, **SMALL) if r.status == "failed"] == []


def test_parameters_are_as_many_as_published():
    assert sum(p.numel() for p in projector(512, 512, 512).parameters()) == 787_968
    for kind, shared in ((PalA, 787_968 + 2 * 512), (PalB, 3 * 787_968 + 1)):
        net = kind().network(512, 10)
        assert sum(p.numel() for name, p in net.named_parameters() if name != "own") == shared
        assert net.get_parameter("own").shape == (10, 2)


@BOTH
def test_a_person_is_k_numbers_and_the_network_is_counted_without_them(stage, kind):
    method = fitted(kind, stage, prototypes=3)
    states = method.adapt(stage.people.tolist(), Histories.group(stage.histories, stage.people), BUDGET)
    assert {s.n_parameters for s in states} == {3}
    d, w = 6, SMALL["width"]
    expected = {
        PalA: 3 * d + 2 * d * w + w * w + 2 * w + d,
        PalB: 4 * (d * w + 2 * w * w + 3 * w) + 1,
    }
    assert method.n_trained == expected[kind]


@BOTH
def test_seen_people_are_looked_up_and_a_new_person_who_said_nothing_is_their_mean(stage, kind):
    method = fitted(kind, stage, prototypes=3)
    own = method.seen_logits(method.ready()).detach().numpy()
    assert np.ptp(softmax(own), axis=0).max() > 0.01
    nothing = Histories.group(Comparisons.empty(), stage.people)
    w = stack(method.adapt(stage.people.tolist(), nothing, BUDGET), "w")
    np.testing.assert_array_equal(w[:12], own)
    np.testing.assert_allclose(softmax(w[12:]), np.tile(softmax(own).mean(0), (4, 1)), rtol=1e-5)


@BOTH
def test_a_new_persons_mixture_is_the_best_for_what_they_said(stage, kind):
    method = fitted(kind, stage, new_steps=400)
    support = stage.histories.take(stage.histories.user == 12)
    rows = method.rows(support.for_users(np.zeros(len(support))))
    net = method.ready()
    first, second = (method.of_item(net, x).detach() for x in (rows.first, rows.second))

    def loss(w):
        """Two prototypes: only w_1 - w_2 counts."""
        person = method.of_person(net, torch.tensor([[float(w), 0.0]]))[rows.person]
        return float(method._loss(person, first, second, rows).mean())

    (w,) = stack(method.adapt([12], [support], BUDGET), "w")
    with torch.no_grad():
        best = min(loss(x) for x in np.linspace(-8, 8, 161))
        assert loss(w[0] - w[1]) < best + 2e-3 < loss(0.0)


def rotation(d):
    return torch.from_numpy(np.linalg.qr(np.random.default_rng(1).normal(size=(d, d)))[0]).float()


def test_rotating_the_space_of_ideal_points_changes_no_reward_of_pal_a(stage):
    method = fitted(PalA, stage, prototypes=3)
    net, q = method.ready(), rotation(6)
    x, logits = method.inputs(np.arange(40)), torch.randn(40, 3, generator=torch.Generator().manual_seed(0))

    def rewards(inputs):
        with torch.no_grad():
            return method.reward(net, method.of_person(net, logits), inputs).numpy()

    before = rewards(x)
    first, last = net.get_submodule("mlp.0"), net.get_submodule("mlp.4")
    with torch.no_grad():
        net.get_parameter("prototypes").copy_(net.get_parameter("prototypes") @ q.T)
        assert np.abs(rewards(x @ q.T) - before).max() > 0.01
        # the residual path carries the rotation of the features on, mlp2 takes it off and puts it on again
        first.weight.copy_(first.weight @ q.T)
        last.weight.copy_(q @ last.weight)
        last.bias.copy_(q @ last.bias)
    np.testing.assert_allclose(rewards(x @ q.T), before, atol=1e-5)


def test_rotating_the_space_of_ideal_answers_changes_no_reward_of_pal_b(stage):
    method = fitted(PalB, stage, prototypes=3)
    net, q = method.ready(), rotation(8)
    x, logits = method.inputs(np.arange(40)), torch.randn(40, 3, generator=torch.Generator().manual_seed(0))

    def rewards():
        with torch.no_grad():
            return method.reward(net, method.of_person(net, logits), x).numpy()

    def turned(projector):
        with torch.no_grad():
            projector[4].weight.copy_(q @ projector[4].weight)
            projector[4].bias.copy_(q @ projector[4].bias)

    before = rewards()
    turned(net.get_submodule("f"))
    assert np.abs(rewards() - before).max() > 0.1
    for each in net.get_submodule("g").children():
        turned(each)
    np.testing.assert_allclose(rewards(), before, atol=1e-4)


def test_the_reward_of_pal_b_is_a_scaled_cosine(stage):
    method = fitted(PalB, stage, prototypes=3)
    net, items = method.ready(), np.arange(40)
    w = torch.tensor([0.5, -1.0, 0.2])
    with torch.no_grad():
        prompt, h = method.prompts()
        y = net.get_submodule("f")(method.inputs(items)[:, :-1])
        ideal = sum(
            m * g(h[prompt[items]]) for m, g in zip(w.softmax(0), net.get_submodule("g").children(), strict=True)
        )
        expected = net.get_parameter("s").exp() * torch.nn.functional.cosine_similarity(y, ideal)
        got = method.reward(net, w.softmax(0).expand(40, 3), method.inputs(items))
        np.testing.assert_allclose(got, expected, atol=1e-4)
        net.get_parameter("s").fill_(9.0)
        capped = method.reward(net, w.softmax(0).expand(40, 3), method.inputs(items))
        np.testing.assert_allclose(capped, 100 * torch.nn.functional.cosine_similarity(y, ideal), atol=1e-3)


def test_a_prompt_is_embedded_as_the_mean_of_its_items(stage):
    method = fitted(PalB, stage)
    prompt, h = method.prompts()
    texts, x = np.array(stage.world.items.prompt), method.inputs(np.arange(len(stage.world.items)))[:, :-1].numpy()
    for row in (0, 7, 46):
        np.testing.assert_allclose(h[prompt[row]], x[texts == texts[row]].mean(0), atol=1e-6)
    items = Items(("",) * 48, stage.world.items.response)
    method.fit(stage.train, stage.val, World("no prompts", items, 16, stage.world.features), BUDGET)
    np.testing.assert_allclose(method.prompts()[1], x.mean(0)[None], atol=1e-6)


def test_with_one_prototype_nobody_differs(stage):
    method = fitted(PalA, stage, prototypes=1)
    states = method.adapt(stage.people.tolist(), Histories.group(stage.histories, stage.people), BUDGET)
    queries = stage.queries
    margins = method.margins(states, queries)
    np.testing.assert_array_equal(method.margins(states[::-1], queries), margins)


def test_an_option_out_of_range_is_refused_with_what_is_allowed(stage):
    with pytest.raises(RequestError, match="pal-a: prototypes=0; allowed: whole numbers from 1"):
        fitted(PalA, stage, prototypes=0)
    with pytest.raises(RequestError, match="pal-b: new_lr=0; allowed: numbers above 0"):
        fitted(PalB, stage, new_lr=0)


def planted(kind, *, d=4, people=60, new=20, each=200, items=800, seed=0):
    """People by the method's own model: a world, train, val, support and query tables, and `margins(table)`, the truth.

    A prompt has eight items. The last `new` people are not in train; everybody is a mixture of two prototypes.
    """
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((items, d), np.float32)
    prompt = np.arange(items) // 8
    share = draw.beta(0.4, 0.4, people + new)
    mixture = np.column_stack([share, 1 - share])
    if kind is PalA:
        ideal = mixture @ (2.0 * draw.standard_normal((2, d)))

        def reward(user, item):
            return -2.0 * np.linalg.norm(x[item] - ideal[user], axis=1)
    else:
        h = np.stack([x[prompt == k].mean(0) for k in range(items // 8)])
        g = (h @ draw.standard_normal((d, 2 * d)) + draw.standard_normal(2 * d)).reshape(-1, 2, d)

        def reward(user, item):
            answer = np.einsum("nk,nkd->nd", mixture[user], g[prompt[item]])
            return 5.0 * (x[item] * answer).sum(1) / np.linalg.norm(x[item], axis=1) / np.linalg.norm(answer, axis=1)

    def margins(table):
        return reward(table.user, table.first) - reward(table.user, table.second)

    def said(who, m):
        user = np.repeat(who, m)
        unit, first = draw.integers(0, items // 8, len(user)), draw.integers(0, 8, len(user))
        second = (first + draw.integers(1, 8, len(user))) % 8
        table = Comparisons.of(user=user, unit=unit, first=8 * unit + first, second=8 * unit + second, label=0 * user)
        label = draw.random(len(user)) < sigmoid(margins(table))
        return Comparisons.of(**{**table.columns(), "label": label})

    texts = tuple(f"question {k}" for k in prompt)
    everybody = np.arange(people + new)
    seen, unseen = everybody[:people], everybody[people:]
    tables = said(seen, each), said(seen, 8), said(unseen, 30), said(everybody, 60)
    return World("planted", Items(texts, texts), people + new, x), *tables, margins


@BOTH
def test_planted_ideal_points_are_found(kind):
    world, train, val, support, queries, truth = planted(kind)
    method = kind(width=64)
    method.fit(train, val, world, Budget())
    people = np.arange(80)

    def right(margins):
        return np.bincount(queries.user, (margins > 0) == (queries.label > 0.5)) / 60

    def accuracy(told):
        states = method.adapt(people.tolist(), Histories.group(told, people), Budget())
        return right(method.margins(states, queries.hidden()))

    oracle, found = right(truth(queries)), accuracy(Comparisons.concatenate([train, support]))
    seen = people < 60
    assert found[seen].mean() + 2 * found[seen].std() / np.sqrt(60) > oracle[seen].mean()
    gained = (found - accuracy(train))[~seen]
    assert gained.mean() > 2 * gained.std() / np.sqrt(20)
