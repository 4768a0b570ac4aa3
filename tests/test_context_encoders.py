"""VPL, SPL and GPO: sizes, what a context may and may not move, identities of swaps, and planted types."""

import numpy as np
import pytest
import torch

from benchmarks.suites import load_suite
from datasets_registry.errors import RequestError
from datasets_registry.records import Comparisons, Items
from methods.bradley_terry import sigmoid
from methods.conformance import BUDGET, check, small_stage
from methods.interface import Budget, Histories, World
from methods.neural.context import Contexts
from methods.neural.swap_guided import Read, SwapFlow, SwapGuided, guidance
from methods.neural.training import Rows
from methods.registry import create, find

SMALL = {
    "vpl": {"width": 16, "latent": 4, "steps": 30},
    "spl": {"width": 16, "latent": 4, "steps": 20},
    "gpo": {"width": 16, "layers": 2, "heads": 2, "steps": 20},
}


def size(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", list(SMALL))
def test_conformance(name):
    assert [r for r in check(name, **SMALL[name]) if r.status == "failed"] == []


def test_networks_have_the_published_sizes():
    assert size(create("vpl").network(768, 1)) == 3_544_577
    assert size(create("gpo").network(4096, 1)) == 1_188_354


@pytest.mark.parametrize(("d", "w", "n"), [(5, 7, 3), (20, 16, 8)])
def test_the_formulas_of_the_specs_count_the_parameters(d, w, n):
    vpl = size(create("vpl", width=w, latent=n).network(d, 1))
    assert vpl == 3 * d * w + 2 * w**2 + 2 * w * n + 5 * n**2 + 5 * w + 6 * n + 1


@pytest.mark.parametrize(("d", "w", "n", "flows"), [(5, 7, 4, 2), (20, 16, 8, 0)])
def test_the_formula_of_spl_counts_its_parameters(d, w, n, flows):
    h = w // 2
    encoder = d * w + w**2 + w * n // 2 + 2 * w + 5 * n**2 + 11 * n // 2
    decoder = h * (d + n + w + 1) + 2 * w * n + 4 * w**2 + 6 * w + 1
    spl = size(create("spl", width=w, latent=n, flows=flows).network(d, 1))
    assert spl == encoder + flows * (3 * n**2 + 2 * n) + decoder


def test_a_latent_of_two_unequal_halves_is_refused():
    with pytest.raises(RequestError, match="spl: latent=3; allowed: even numbers from 2"):
        create("spl", latent=3).check()


def test_gaussian_and_flow_of_an_empty_context_are_the_prior():
    stage = small_stage(find("vpl").spec)
    for name in ("vpl", "spl"):
        method = create(name, **SMALL[name])
        method.fit(stage.train, stage.val, stage.world, BUDGET)
        (state,) = method.adapt([0], [stage.train.take([])], BUDGET)
        assert not state.arrays["code"].any()
        (other,) = method.adapt([0], [stage.train.take(stage.train.user == 0)], BUDGET)
        assert other.arrays["code"].any()


def test_a_flow_is_autoregressive_and_its_log_determinant_that_of_the_jacobian():
    torch.manual_seed(0)
    flow, d, s = SwapFlow(6), torch.randn(1, 3), torch.randn(1, 3)
    z = torch.randn(1, 6)
    jacobian = torch.autograd.functional.jacobian(lambda at: flow(at, d, s)[0][0], z)[:, 0]
    assert torch.equal(jacobian.triu(1), torch.zeros(6, 6))
    assert jacobian.tril(-1).any()
    torch.testing.assert_close(flow(z, d, s)[1][0], torch.linalg.slogdet(jacobian)[1])


def context_rows(label, seed=1):
    """Six comparisons of two people as tensors, and their contexts."""
    draw = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, 6, 3, generator=draw)
    person = torch.tensor([0, 0, 0, 1, 1, 1])
    return Rows(first, second, label, torch.ones(6), person, person), Contexts.of(person, 2, 8)


def test_what_a_swap_turns_and_what_it_leaves_are_parted_in_the_reading():
    torch.manual_seed(1)
    net, label = SwapGuided(3, 8, 4, 2), torch.tensor([1.0, 0.0, 0.7, 0.5, 0.0, 1.0])
    read, swapped = net.posterior(*context_rows(label))
    other, back = net.posterior(*context_rows(1 - label))
    torch.testing.assert_close(other.d, -read.d)
    torch.testing.assert_close(other.s, read.s)
    for name in ("mu", "logvar", "d", "s"):
        torch.testing.assert_close(getattr(swapped, name), getattr(other, name))
        torch.testing.assert_close(getattr(back, name), getattr(read, name))
    assert not swapped.mu.requires_grad
    assert (read.d.abs().sum(1) > 0).all()


def test_a_mirrored_latent_of_a_swapped_context_stays_mirrored_through_the_whole_flow():
    torch.manual_seed(1)
    net, label, z = SwapGuided(3, 8, 4, 3), torch.tensor([1.0, 0.0, 0.7, 0.5, 0.0, 1.0]), torch.randn(2, 4)
    (read, _), (swapped, _) = (net.posterior(*context_rows(y)) for y in (label, 1 - label))
    (one, det), (other, other_det) = net.transformed(z, read), net.transformed(-z, swapped)
    torch.testing.assert_close(other, -one)
    torch.testing.assert_close(other_det, det)
    kept, _ = net.transformed(-z, read)  # the context counts: mirroring the draw alone mirrors nothing
    assert (kept + one).abs().max() > 0.01


def test_guidance_is_zero_for_a_mirrored_mean_and_an_equal_variance_alone():
    mu, logvar, real = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([True, True, True, False])

    def paid(one, other):
        blank = torch.zeros(4, 1)
        return guidance(*(Read(m, v, blank, blank, real) for m, v in (one, other)))

    torch.testing.assert_close(paid((mu, logvar), (-mu, logvar)), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(paid((mu, logvar), (mu, logvar)), real.float())
    torch.testing.assert_close(paid((mu / 100, logvar), (mu / 100, logvar)), real.float())  # however small
    torch.testing.assert_close(paid((mu, logvar), (-mu, -logvar)), 0.1 * real.float(), atol=1e-6, rtol=0)
    mine, target = mu.clone().requires_grad_(), mu.clone().requires_grad_()
    paid((mine, logvar), (target + 1, logvar)).sum().backward()
    assert target.grad is None or not target.grad.any()
    assert mine.grad.any()


def test_the_decoder_of_spl_is_scaled_and_moved_by_the_latent():
    torch.manual_seed(3)
    decoder = SwapGuided(3, 8, 4, 0).decoder
    torch.nn.init.normal_(decoder.out.weight)
    x, z = torch.randn(5, 3), torch.randn(5, 4)
    raw = decoder.film(z)
    hidden = decoder.layers(torch.cat([x, z], 1))
    moved = (1 + 0.5 * raw[:, :8].tanh()) * hidden + 0.5 * raw[:, 8:].tanh()
    expected = torch.where(moved > 0, moved, 0.2 * moved) @ decoder.out.weight[0]
    torch.testing.assert_close(decoder(x, z), expected)


@pytest.mark.parametrize("name", list(SMALL))
def test_contexts_that_were_never_trained_are_not_read(name):
    stage = small_stage(find(name).spec)
    _, once = np.unique(stage.train.user, return_index=True)
    queries, margins = stage.queries, {}
    for told, rows in (("one", once), ("all", np.arange(len(stage.train)))):
        method = create(name, **SMALL[name])
        method.fit(stage.train.take(rows), stage.val, stage.world, BUDGET)
        nothing = Histories.group(Comparisons.empty(), stage.people)
        for said, history in (("nothing", nothing), ("much", Histories.group(stage.histories, stage.people))):
            states = method.adapt(stage.people.tolist(), history, BUDGET)
            margins[told, said] = method.margins(states, queries)
    np.testing.assert_array_equal(margins["one", "much"], margins["one", "nothing"])
    assert np.abs(margins["all", "much"] - margins["all", "nothing"]).max() > 0


@pytest.mark.parametrize("name", list(SMALL))
def test_the_order_of_a_context_and_other_targets_move_nothing(name):
    stage = small_stage(find(name).spec)
    method = create(name, **SMALL[name], context=64)  # everything is read, so that an order chooses nothing
    method.fit(stage.train, stage.val, stage.world, BUDGET)
    said = stage.train.take(stage.train.user == 3)
    turned = said.take(np.arange(len(said))[::-1])
    turned = Comparisons.of(**{**turned.columns(), "order": np.arange(len(said))})
    queries = stage.queries.take(stage.queries.user == 0)
    one, other = (method.margins(method.adapt([3], [h], BUDGET), queries) for h in (said, turned))
    np.testing.assert_allclose(one, other, atol=1e-5)
    alone = [method.margins(method.adapt([3], [said], BUDGET), queries.take([i]))[0] for i in range(len(queries))]
    np.testing.assert_allclose(one, alone, atol=1e-5)


def test_only_the_newest_comparisons_of_a_long_history_are_read():
    stage = small_stage(find("gpo").spec)
    method = create("gpo", **SMALL["gpo"], context=4)
    method.fit(stage.train, stage.val, stage.world, BUDGET)
    (state,) = method.adapt([0], [stage.train.take(stage.train.user == 0)], BUDGET)
    mine = stage.train.take(stage.train.user == 0)
    np.testing.assert_array_equal(state.arrays["first"], mine.first[np.argsort(mine.order)][-4:])


def test_no_target_is_in_its_own_context(monkeypatch):
    stage = small_stage(find("vpl").spec)
    method = create("vpl", **SMALL["vpl"])
    asked_of = []

    def answered(net, rows, contexts, asked):
        asked_of.append((rows, contexts, asked))
        return rows.first.sum(1) * 0 + sum(p.sum() for p in net.parameters()) * 0

    monkeypatch.setattr(method, "answered", answered)
    method.fit(stage.train, stage.val.take([]), stage.world, BUDGET)
    sizes = set()
    for rows, contexts, asked in asked_of:
        for i in range(len(rows)):
            inside = contexts.row[asked[i]][contexts.real[asked[i]]]
            assert (rows.person[inside] == rows.person[i]).all()
            assert not (rows.unit[inside] == rows.unit[i]).any()
            sizes.add(len(inside))
    assert {0, 1} <= sizes
    assert max(sizes) >= 8


def test_contexts_are_gathered_in_order_and_cut_at_the_newest():
    found = Contexts.of(torch.tensor([1, 0, 1, 1, 3]), 4, 2)
    assert [found.row[k][found.real[k]].tolist() for k in range(4)] == [[1], [2, 3], [], [4]]
    assert Contexts.of(torch.zeros(0, dtype=torch.long), 3, 2).real.tolist() == [[False]] * 3


def test_blocks_hold_every_row_once_and_one_context_each():
    context = torch.tensor([2, 0, 2, 2, 0, 2, 2])
    blocks, whose = Contexts.blocks(context, 4, 2)
    assert whose.tolist() == [0, 2, 2, 2]
    assert [blocks.row[k][blocks.real[k]].tolist() for k in range(4)] == [[1, 4], [0, 2], [3, 5], [6]]
    nothing, of_nobody = Contexts.blocks(torch.zeros(0, dtype=torch.long), 3, 2)
    assert (len(nothing.row), len(of_nobody)) == (0, 0)


def test_both_moments_of_a_posterior_are_clamped():
    torch.manual_seed(2)
    net = create("vpl", width=8, latent=2).network(3, 1)
    x, label = 1e4 * torch.randn(6, 3), torch.ones(6)
    zero = torch.zeros(6, dtype=torch.long)
    mu, logvar = net.posterior(Rows(x, -x, label, label, zero, zero), Contexts.of(zero, 1, 8))
    assert float(mu.detach().abs().max()) == 1
    assert float(logvar.detach().abs().max()) == 1


def test_a_label_and_its_opposite_are_one_reading_with_the_items_exchanged():
    torch.manual_seed(1)
    net = create("vpl", width=8, latent=2).network(3, 1)
    first, second = torch.randn(6, 3), torch.randn(6, 3)
    label, weight = torch.rand(6), torch.ones(6)
    person = torch.tensor([0, 0, 0, 1, 1, 1])
    contexts = Contexts.of(person, 2, 8)
    one = net.posterior(Rows(first, second, label, weight, person, person), contexts)
    other = net.posterior(Rows(second, first, 1 - label, weight, person, person), contexts)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b)


def types(n_users, each, *, d=6, seed=0):
    """People of three types, drawn at random: a world, training, validation and query tables, the queries' truth."""
    draw = np.random.default_rng(seed)
    theta = 3 * np.linalg.qr(draw.normal(size=(d, 3)))[0].T[draw.integers(0, 3, n_users)]
    features = draw.standard_normal((400, d), np.float32)

    def said(m):
        user = np.repeat(np.arange(n_users), m)
        first, second = draw.integers(0, 400, (2, len(user)))
        margin = np.einsum("nd,nd->n", features[first] - features[second], theta[user])
        label = draw.random(len(user)) < sigmoid(margin)
        return Comparisons.of(user=user, unit=np.arange(len(user)), first=first, second=second, label=label), margin

    world = World("types", Items(("",) * 400, ("x",) * 400), n_users, features)
    return world, said(each)[0], said(4)[0], said(20)


def right_per_person(margin, query):
    return np.bincount(query.user, (margin > 0) == (query.label > 0.5)) / np.bincount(query.user)


LONG = {"batch": 4096, "context": 40}
WIDE = {"width": 64, "latent": 16, "lr": 5e-3, "steps": 250, "weight_decay": 0.1}


@pytest.mark.parametrize(
    ("name", "config", "each", "allowed"),
    [
        ("vpl", WIDE, 40, 0.0),
        pytest.param("spl", {**WIDE, "lr": 1e-2, "weight_decay": 0.0}, 40, 0.0, marks=pytest.mark.slow),
        # it is not told which two points are a comparison, and learns slowly to relate them
        pytest.param(
            "gpo",
            {"width": 16, "layers": 1, "lr": 1e-2, "steps": 400, "context": 16},
            16,
            0.15,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_people_of_a_few_types_are_told_apart(name, config, each, allowed):
    world, train, val, (query, truth) = types(150, each)
    everybody, histories = list(range(150)), Histories.group(train, np.arange(150))
    method, pooled = create(name, **{**LONG, **config}), create("pooled-bt")
    for one in (method, pooled):
        one.fit(train, val, world, Budget())
    states = method.adapt(everybody, histories, Budget())
    mine = right_per_person(method.margins(states, query.hidden()), query)
    wrong = right_per_person(method.margins(states[1:] + states[:1], query.hidden()), query)
    none = pooled.adapt(everybody, histories, Budget())
    gain = mine - right_per_person(pooled.margins(none, query.hidden()), query)
    short = right_per_person(truth, query) - mine
    assert gain.mean() > 3 * gain.std() / np.sqrt(150)
    assert (mine - wrong).mean() > 0.1
    assert short.mean() < allowed + 2 * short.std() / np.sqrt(150)


@pytest.mark.parametrize(
    "name", ["vpl", pytest.param("spl", marks=pytest.mark.slow), pytest.param("gpo", marks=pytest.mark.slow)]
)
def test_the_configuration_of_the_standard_suite_reads_its_context(name):
    (config,) = (each.config for each in load_suite("standard").methods if each.name == name)
    world, train, val, (query, _) = types(150, 40)
    method = create(name, **config)
    method.fit(train, val, world, Budget())
    states = method.adapt(list(range(150)), Histories.group(train, np.arange(150)), Budget())
    mine = right_per_person(method.margins(states, query.hidden()), query)
    wrong = right_per_person(method.margins(states[1:] + states[:1], query.hidden()), query)
    assert (mine - wrong).mean() > 0.05
