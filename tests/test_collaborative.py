"""CoPL: the graph of who chose what, the experts, and how new people are served."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from collaborative_fixtures import accuracy, interval, oracle, said, served, table_of
from planted_people import world_of
from scipy.special import log_expit, softmax
from stage_fixtures import fitted

from datasets_registry.errors import RequestError, UnableError
from datasets_registry.records import Comparisons
from methods.conformance import BUDGET, check, small_stage
from methods.interface import Budget, Histories, stack
from methods.neural.experts import ExpertLinear, ExpertReward, Mixture
from methods.neural.signed_graph import Edges, GraphTraining, SignedGCN, SignedGraph, _product, embedded
from methods.registry import create, find

SMALL = {"embedding": 8, "layers": 2, "width": 12, "experts": 3, "rank": 2, "graph_steps": 15, "steps": 20}


@pytest.fixture(scope="module")
def stage():
    return small_stage(create("copl").spec)


@pytest.fixture(scope="module")
def copl(stage):
    return fitted("copl", stage, **SMALL)


def test_conformance():
    assert [r for r in check("copl", **SMALL) if r.status == "failed"] == []
    assert find("copl").spec.transductive


# the graph


def test_edges_say_who_chose_what_how_often_and_a_tie_says_nothing():
    table = table_of([0, 0, 0, 1, 1], [3, 3, 3, 5, 3], [5, 5, 5, 7, 7], [1, 0.8, 0.5, 0, 0.1], [1, 2, 9, 1, 1])
    graph = SignedGraph.of(Histories.group(table, [0, 1]), np.array([3, 5, 7]))
    counts = {"chosen": np.array([[2.2, 0, 0], [0, 0, 1.8]]), "rejected": np.array([[0, 2.2, 0], [0.8, 1, 0]])}
    for sign, expected in counts.items():
        degree = np.outer(expected.sum(1), expected.sum(0))
        adjacency = getattr(graph, sign).adjacency("cpu")
        found = adjacency.to_people(torch.eye(3)).numpy()
        np.testing.assert_allclose(found, expected / np.sqrt(np.maximum(degree, 1e-12)), rtol=1e-5)
        np.testing.assert_allclose(adjacency.to_items(torch.eye(2)).numpy(), found.T)


def random_edges(draw, n_people=30, n_items=20, n=200):
    keys = draw.integers(0, 2**63, n_people).astype(np.uint64)
    return Edges.of(draw.integers(0, n_people, n), draw.integers(0, n_items, n), draw.random(n), keys, n_items), keys


def test_a_product_has_the_gradient_of_its_transpose_and_both_devices_paths_agree():
    edges, _ = random_edges(np.random.default_rng(0))
    adjacency = edges.adjacency("cpu", 0.3, salt=1)
    items = torch.randn(20, 4, requires_grad=True)
    people = torch.randn(30, 4)
    (slope,) = torch.autograd.grad((adjacency.to_people(items) * people).sum(), [items])
    torch.testing.assert_close(slope, adjacency.to_items(people))
    elsewhere = _product(edges.matrices(edges.value)[0], "cpu:0")  # the path of other devices
    torch.testing.assert_close(elsewhere(items), edges.adjacency("cpu").to_people(items))


def test_dropout_of_edges_belongs_to_what_people_compared():
    draw = np.random.default_rng(1)
    edges, _ = random_edges(draw, n=3000)
    whole = edges.adjacency("cpu").to_people(torch.eye(20)).numpy()
    dropped = edges.adjacency("cpu", 0.25, salt=5).to_people(torch.eye(20)).numpy()
    kept = dropped[whole > 0] > 0
    assert 0.65 < kept.mean() < 0.85
    np.testing.assert_allclose(dropped[dropped > 0], whole[dropped > 0] / 0.75, rtol=1e-5)
    order = draw.permutation(30)
    rows = np.lexsort((edges.item, order[edges.person]))
    columns = [c[rows] for c in (order[edges.person], edges.item, edges.value, edges.key)]
    other = Edges(*columns, np.argsort(columns[1], kind="stable"), edges.shape)
    np.testing.assert_array_equal(other.adjacency("cpu", 0.25, salt=5).to_people(torch.eye(20)).numpy()[order], dropped)
    assert (edges.adjacency("cpu", 0.25, salt=6).to_people(torch.eye(20)).numpy() != dropped).any()


def test_a_layer_is_the_message_of_the_paper():
    draw = np.random.default_rng(2)
    matrices = [edges.adjacency("cpu") for edges in (random_edges(draw)[0], random_edges(draw)[0])]
    chosen, rejected = (m.to_people(torch.eye(20)) for m in matrices)
    people, items = torch.randn(30, 5), torch.randn(20, 5)
    net = SignedGCN(people, items, 1)
    w = dict(net.layers[0].items())

    def told(side, own, plus, minus):
        pulled = plus + w[f"{side}_chosen"](plus * own)
        pushed = minus + w[f"{side}_rejected"](minus * own)
        z = pulled - pushed + w[f"{side}_self"](own)
        return torch.where(z > 0, z, 0.2 * z)

    found = net(*matrices)
    expected = told("people", people, chosen @ items, rejected @ items)
    torch.testing.assert_close(found[0], expected / expected.norm(dim=1, keepdim=True))
    torch.testing.assert_close(found[1], told("items", items, chosen.T @ people, rejected.T @ people))


def kinds_of_people(n_people, n_items, *, kinds=2, seed=0, sharp=3.0):
    """Return utilities [n_people, n_items] of people of a few kinds; the two of `kinds` = 2 want the opposite."""
    tastes = sharp * np.random.default_rng(seed).normal(size=(kinds, n_items))
    if kinds == 2:
        tastes[1] = -tastes[0]
    return tastes[np.arange(n_people) % kinds]


TRAINING = GraphTraining(width=16, layers=2, steps=60, lr=2e-2)


def test_flipping_every_label_flips_what_people_prefer():
    utility = kinds_of_people(40, 30)
    draw, items = np.random.default_rng(3), np.arange(30)
    train, query = said(utility, 15, draw), said(utility, 40, draw)
    for table, right in ((train, True), (replace(train, label=1 - train.label), False)):
        found = embedded(Histories.group(table, np.arange(40)), items, table.take([]), TRAINING, 0, "cpu")
        agreed = accuracy(found.scores(query, items), query).mean()
        assert agreed > 0.8 if right else agreed < 0.2


def test_permuting_people_permutes_their_embeddings():
    utility = kinds_of_people(20, 15, seed=4)
    train = said(utility, 10, np.random.default_rng(4))
    order = np.random.default_rng(5).permutation(20)
    first, second = (
        embedded(Histories.group(table, np.arange(20)), np.arange(15), table.take([]), TRAINING, 0, "cpu")
        for table in (train, train.for_users(order[train.user]))
    )
    np.testing.assert_allclose(second.people[order], first.people, atol=2e-2)
    np.testing.assert_allclose(np.linalg.norm(first.people, axis=1), 1.0, rtol=1e-5)


# the reward model


def test_a_layer_adds_the_shared_adapter_and_one_expert_by_its_gate():
    torch.manual_seed(0)
    mixture = Mixture(experts=4, rank=3, alpha=6.0, embedding=5, hidden=7)
    layer = ExpertLinear(6, 2, mixture).eval()
    x, codes = torch.randn(9, 6), 3 * torch.randn(9, 5)
    torch.testing.assert_close(layer(x, layer.shares(codes)), layer.base(x))  # B begins at 0
    torch.nn.init.normal_(layer.B)
    p = layer.gate(codes).softmax(1)
    assert len(p.argmax(1).unique()) > 1
    for n in range(9):
        k = int(p[n].argmax())
        adapted = layer.B[0] @ layer.A[0] @ x[n] + p[n, k] * layer.B[1 + k] @ layer.A[1 + k] @ x[n]
        expected = layer.base(x[n]) + 6.0 / 3 * adapted
        torch.testing.assert_close(layer(x, layer.shares(codes))[n], expected, rtol=1e-4, atol=1e-5)


def test_noise_is_for_training_alone():
    layer = ExpertLinear(3, 2, Mixture(experts=4, rank=1, embedding=5, hidden=7))
    codes = torch.randn(6, 5)
    assert not torch.equal(layer.train().shares(codes), layer.shares(codes))
    assert torch.equal(layer.eval().shares(codes), layer.shares(codes))


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_counts_of_the_published_widths():
    net = SignedGCN(torch.zeros(3, 512), torch.zeros(7, 512), 4)
    assert count(net.layers) == 6 * 4 * (512**2 + 512) == 6_303_744
    assert net.items.numel() == 7 * 512
    # gemma-2b: 18 layers, query 2048 -> 2048 and value 2048 -> 256
    with torch.device("meta"):
        query, value = (ExpertLinear(2048, out, Mixture()) for out in (2048, 256))
    assert 18 * sum(each.A.numel() + each.B.numel() for each in (query, value)) == 8_294_400
    assert 18 * (count(query.gate) + count(value.gate)) == 4_801_824


def test_counts_of_a_fitted_method(copl, stage):
    d, n_items = stage.world.features.shape[1], len(copl.items_)
    graph = 6 * 2 * (8**2 + 8) + n_items * 8
    model = (d + 12) * 12 + 3 * 12 + 1 + 4 * 2 * (d + 3 * 12) + 2 * (8 * 4 + 4 + 4 * 3 + 3)
    assert copl.n_trained == graph + model
    assert count(ExpertReward(d, 12, Mixture(3, 2, 16.0, 8, 4))) == model
    states = copl.adapt(stage.people.tolist(), Histories.group(stage.histories, stage.people), BUDGET)
    assert {s.n_parameters for s in states} == {8}


# new people


def test_seen_people_are_looked_up(copl, stage):
    seen = np.unique(stage.train.user)
    states = copl.adapt(seen[::-1].tolist(), Histories.group(Comparisons.empty(), seen[::-1]), BUDGET)
    np.testing.assert_array_equal(stack(states, "code"), copl.people_[::-1])


def test_a_new_persons_embedding_is_the_closed_form(copl, stage):
    chosen = [set() for _ in copl.people_]
    for user, first, second, label in zip(
        *(stage.train.columns()[k] for k in ("user", "first", "second", "label")), strict=True
    ):
        if label != 0.5:
            chosen[user].add(first if label > 0.5 else second)
    new = stage.people[12:]
    states = copl.adapt(new.tolist(), Histories.group(stage.histories, new), BUDGET)
    placed = dict(zip(copl.items_.tolist(), copl.placed_, strict=True))
    for person, state in zip(new, states, strict=True):
        mine = stage.histories.take(stage.histories.user == person)
        liked = {f if y > 0.5 else s for f, s, y in zip(mine.first, mine.second, mine.label, strict=True) if y != 0.5}
        near = [v for v, theirs in enumerate(chosen) if liked & theirs]
        known = [n for n in range(len(mine)) if mine.first[n] in placed and mine.second[n] in placed]
        apart = np.array([placed[mine.first[n]] - placed[mine.second[n]] for n in known])
        score = []
        for v in near:
            s, y = apart @ copl.people_[v], mine.label[known]
            score.append((y * log_expit(s) + (1 - y) * log_expit(-s)).mean())
        expected = softmax(np.array(score) / 0.07) @ copl.people_[near]
        assert near
        np.testing.assert_allclose(state.arrays["code"], expected, atol=1e-4)


def test_whoever_shares_no_choice_or_said_nothing_has_no_embedding(copl, stage):
    first, second = copl.items_[:2]
    for label in (0.5, 1.0):
        said_once = table_of([90, 91], [first, 500], [second, 501], [label, 1.0])
        states = copl.adapt([90, 91, 92], Histories.group(said_once, [90, 91, 92]), BUDGET)
        codes = stack(states, "code")
        assert not codes[1:].any()
        assert codes[0].any() == (label == 1.0)


def test_whoever_has_no_embedding_is_served_with_the_mean_of_seen_peoples_experts(copl, stage):
    method = fitted("copl", stage, **{**SMALL, "graph_steps": 60})
    net, items = method.ready(), np.arange(48)
    with torch.no_grad():
        torch.manual_seed(0)
        for number in net.parameters():
            torch.nn.init.normal_(number, std=2.0)  # so that people choose different experts, which differ
        people = torch.from_numpy(method.people_)
        assert any(len(own[:, 1:].argmax(1).unique()) > 1 for own in net.shares(people))
        method.everybody_ = method._shares_of_everybody()
        mean = [own.mean(0).expand(48, -1) for own in net.shares(people)]
        expected = net(method.inputs(items), mean).numpy()
        apart = net(method.inputs(items), net.shares(people.mean(0).expand(48, -1))).numpy()
    state = method.adapt([92], [Comparisons.empty()], BUDGET)
    np.testing.assert_allclose(method.rewards(state, np.zeros(48, int), items), expected, rtol=1e-4)
    assert np.abs(expected - apart).max() > 0.1 * np.abs(expected).max()


def test_where_nobodys_items_are_known_it_refuses_and_says_why(copl):
    support = table_of([90, 90, 91], [500, 502, 504], [501, 503, 505], [1, 0, 1])
    with pytest.raises(UnableError, match=r"none of the 2 who said something .* transductive .* known-prompts"):
        copl.adapt([0, 90, 91, 92], Histories.group(support, [0, 90, 91, 92]), BUDGET)
    assert len(copl.adapt([90, 91], Histories.group(Comparisons.empty(), [90, 91]), BUDGET)) == 2


def test_copl_reaches_the_oracle_where_there_are_few_kinds_of_people_and_serves_new_ones():
    draw = np.random.default_rng(6)
    features = draw.normal(size=(60, 6))
    kinds = 1.3 * draw.normal(size=(3, 6))
    utility = (kinds @ features.T)[np.arange(90) % 3]
    seen = np.arange(60)
    train, val, query = said(utility, 60, draw, seen), said(utility, 6, draw, seen), said(utility, 60, draw)
    support = said(utility, 10, draw, np.arange(60, 90))
    world = world_of(features, 90)
    config = {"embedding": 16, "layers": 2, "width": 32, "graph_steps": 80}
    own, common = create("copl", **config), create("pooled-bt")
    for method in (own, common):
        method.fit(train, val, world, Budget())
    best = oracle(utility, query)
    found, pooled = (served(method, support, query) for method in (own, common))
    for people in (slice(0, 60), slice(60, 90)):
        assert found[people].mean() > best[people].mean() - interval(found[people])
        assert found[people].mean() > pooled[people].mean() + 0.05


@pytest.mark.parametrize(
    ("option", "value"),
    [("embedding", 0), ("layers", 0), ("experts", 0), ("graph_steps", -1), ("dropout", 1.0), ("temperature", 0.0)],
)
def test_bad_options_of_copl_are_refused(stage, option, value):
    with pytest.raises(RequestError, match="allowed"):
        fitted("copl", stage, **{option: value})
