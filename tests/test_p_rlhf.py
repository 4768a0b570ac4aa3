"""P-RLHF: soft prompts are what a plain forward pass makes of them, and who has which."""

import copy

import numpy as np
import pytest
import torch
from backbone_fixtures import BUDGET, NEW, PEOPLE, accuracy, fitted, said, states_of, world

from datasets_registry.errors import RequestError
from datasets_registry.records import Items
from datasets_registry.text_models import TextModel, load_text_model
from methods.backbone.layout import HEAD
from methods.backbone.peft_files import write_adapter
from methods.backbone.reward_model import RewardModel, Shape
from methods.backbone.soft_prompt import GENERIC, OWN, PROMPT, TOKENS
from methods.catalog.lora_global import LoraGlobal
from methods.catalog.p_rlhf import PRlhf
from methods.catalog.pooled_bt import PooledBT
from methods.conformance import check
from methods.interface import UserState

SEEN, UNSEEN = range(PEOPLE), range(PEOPLE, PEOPLE + NEW)
TINY = ["tiny-bert@1", "tiny-llama@1"]
CLUSTER = {"user_model": "cluster", "clusters": 10}
WIDTH = 32


def learned(encoder="tiny-bert@1", **config):
    own = {"lr_own": 0.3, "adapt_lr": 0.3} if "user_model" in config else {}
    return fitted(PRlhf, encoder, **{"tokens": 4, **own, **config})


@pytest.fixture(scope="module", params=[{}, CLUSTER], ids=["individual", "cluster"])
def tuned(request):
    return learned(adaptation="tune", **request.param)


@pytest.mark.parametrize("options", [{}, {"adaptation": "tune"}, {**CLUSTER, "adaptation": "tune"}], ids=str)
def test_it_conforms_where_it_really_learns(options):
    config = {"tokens": 2, "rank": 2, "lr": 0.003, "epochs": 1, "adapt_steps": 3, "max_tokens": 48}
    results = check("p-rlhf", **config, **options)
    assert not [(r.name, r.why) for r in results if r.status == "failed"]


def plain_reward(trunk, ids, prompt, lead, pooling, head):
    """Return the reward of one text as transformers gives it: no padding, no mask, no other person."""
    words = trunk.get_input_embeddings()(torch.tensor([ids]))
    read = torch.cat([words[:, :lead], prompt[None], words[:, lead:]], 1)
    hidden = trunk(inputs_embeds=read).last_hidden_state[0]
    if pooling == "last":
        return hidden[-1] @ head
    text = torch.cat([hidden[:lead], hidden[lead + len(prompt) :]])
    return torch.nn.functional.normalize(text.mean(0), dim=0) @ head


@pytest.mark.parametrize("encoder", TINY)
@pytest.mark.parametrize("options", [{}, CLUSTER], ids=["individual", "cluster"])
def test_rewards_and_gradients_are_those_of_a_plain_forward_pass_per_person(encoder, options):
    method = learned(encoder, epochs=2, select="last", **options)
    model, factors = method.ready()
    shared = {n: v.clone().requires_grad_() for n, v in factors.shared.items()}
    own = torch.from_numpy(method.table_[:3] + 0.1).requires_grad_()
    item, row = np.array([0, 5, 10, 23, 5, 16]), np.array([0, 1, 2, 0, 2, 1])
    lead = 1  # <s>
    shapes = factors.layout.own[OWN]
    bound = factors.layout.soft.bound({**shared, OWN: own.reshape(3, *shapes)})
    got = model.rewards(item, row, bound, people=None, scale=factors.scale)

    text = load_text_model(encoder)
    trunk = text.trunk
    for layer in model.layers:
        a, b = factors.shared[f"{layer.name}/a"], factors.shared[f"{layer.name}/b"]
        trunk.get_submodule(layer.name).weight.data += factors.scale * b.T @ a
    plain = {n: v.detach().clone().requires_grad_() for n, v in factors.shared.items()}
    rows = own.detach().clone().requires_grad_()
    expected = []
    for place, person in zip(item, row, strict=True):
        if options:
            prompt = torch.einsum("c,ctd->td", rows[person].softmax(0), plain[TOKENS])
        else:
            prompt = plain[TOKENS] + rows[person].reshape(shapes)
        ids = text.tokenizer(world().items.text(int(place)))["input_ids"]
        expected.append(plain_reward(trunk, ids, prompt, lead, text.pooling, plain[HEAD]))
    expected = torch.stack(expected)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)

    weight = torch.linspace(-1, 1, len(item))
    mine = torch.autograd.grad((weight * got).sum(), [own, shared[TOKENS], shared[HEAD]])
    theirs = torch.autograd.grad((weight * expected).sum(), [rows, plain[TOKENS], plain[HEAD]])
    for ours, right in zip(mine, theirs, strict=True):
        assert float(right.abs().max()) > 1e-4
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-5 * float(right.abs().max()) + 1e-7)


def test_without_a_special_first_token_the_prompt_stands_first():
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(3)
    sizes = {"vocab_size": 300, "n_layer": 2, "n_head": 2, "n_embd": WIDTH, "n_positions": 64}
    trunk = GPT2Model(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, use_cache=False)).eval().requires_grad_(False)
    tokenizer = load_text_model("tiny-llama@1").tokenizer
    tokenizer.backend_tokenizer.post_processor = None
    items = Items(("",) * 3, ("a", "three words here", "two words"))
    text = TextModel("other", "1", tokenizer, copy.deepcopy(trunk), "last", 64, ("c_attn",))
    model = RewardModel(text, items, Shape(soft_tokens=2), adapters=True, cache=None)
    prompts, head = torch.randn(2, 2, WIDTH), torch.randn(WIDTH)
    row = np.array([0, 1, 1])
    with torch.no_grad():
        got = model.rewards(np.arange(3), row, {HEAD: head, PROMPT: prompts}, people=None, scale=1.0)
        for place in range(3):
            ids = tokenizer(items.text(place))["input_ids"]
            expected = plain_reward(trunk, ids, prompts[row[place]], 0, "last", head)
            torch.testing.assert_close(got[place], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, CLUSTER], ids=["individual", "cluster"])
def test_it_learns_what_each_person_likes_and_the_wrong_state_does_not_help(options):
    """Everybody wants one of two words, so the truth answers every query right."""
    method = learned(**options)
    states = states_of(method, SEEN, 8)
    assert accuracy(method, states, SEEN) > 0.95
    assert accuracy(method, states, SEEN, wrong=True) < 0.05


def test_people_with_equal_parts_have_equal_rewards_and_zeros_mean_the_generic_prompt():
    method = learned(epochs=4, select="last")
    items = np.arange(24)
    state, nobody = states_of(method, [0, PEOPLE], 8)
    twice = method.rewards([state, UserState(dict(state.arrays))], np.repeat([0, 1], 24), np.tile(items, 2))
    assert (twice[:24] == twice[24:]).all()
    generic = method.rewards([nobody], np.zeros(24, int), items)
    assert np.abs(twice[:24] - generic).max() > 1e-3
    model, factors = method.ready()
    bound = {n: v for n, v in factors.shared.items() if n != TOKENS}
    with torch.no_grad():
        e_0 = factors.shared[TOKENS][None]
        expected = model.rewards(items, np.zeros(24, int), {**bound, PROMPT: e_0}, people=None, scale=factors.scale)
    np.testing.assert_allclose(generic, expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("encoder", TINY)
def test_without_a_step_it_is_pooled_bradley_terry_on_the_frozen_model_after_the_generic_prompt(encoder):
    method = learned(encoder, epochs=0, head_init="probe")
    model, factors = method.ready()
    features = model.pooled_features(np.arange(24), factors.shared[TOKENS])
    assert np.abs(features - model.pooled_features(np.arange(24))).max() > 1e-2
    reference, queries = PooledBT(), said(SEEN, 5, 4).hidden()
    reference.fit(said(SEEN, 8, 1), said(SEEN, 2, 2), world(encoder, features), BUDGET)
    expected = reference.margins(states_of(reference, SEEN, 0), queries)
    got = method.margins(states_of(method, SEEN, 0), queries)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_one_cluster_is_the_same_for_everybody():
    method = learned(epochs=3, user_model="cluster", clusters=1)
    states = states_of(method, [0, 1], 8)
    at = np.tile(np.arange(24), 2)
    rewards = method.rewards(states, np.repeat([0, 1], 24), at)
    np.testing.assert_allclose(rewards[:24], rewards[24:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, CLUSTER], ids=["individual", "cluster"])
def test_without_own_loss_nobody_has_learned_parts(options):
    still, begun = learned(epochs=4, own_loss=0.0, select="last", **options), learned(epochs=0, **options)
    np.testing.assert_array_equal(still.table_, begun.table_)
    assert np.abs(begun.table_).max() == 0 if not options else np.abs(begun.table_).max() > 0.5
    assert (still.ready()[1].shared[TOKENS] != begun.ready()[1].shared[TOKENS]).any()


def test_without_generic_loss_generic_weights_stay_as_they_were():
    alone, both = (learned(epochs=2, own_loss=share, select="last", **CLUSTER) for share in (1.0, 0.5))
    assert not alone.new_.any()
    assert both.new_.any()
    np.testing.assert_array_equal(both.new_, both.ready()[1].shared[GENERIC].numpy())


def test_as_published_nobody_new_is_fitted():
    method = learned(epochs=2)
    for said_so_much in (0, 8):
        (state,) = states_of(method, [PEOPLE], said_so_much)
        assert not state.arrays["factors"].any()


def test_tuning_helps_on_what_was_said_and_moves_nothing_that_is_shared(tuned):
    before = {n: v.clone() for n, v in tuned.ready()[1].shared.items()}
    support = said(UNSEEN, 8, 3)
    start, fit = states_of(tuned, UNSEEN, 0), states_of(tuned, UNSEEN, 8)
    assert all((s.arrays["factors"] == tuned.new_).all() for s in start)
    place = support.for_users(support.user - PEOPLE)

    def nll(states):
        margin = tuned.margins(states, place.hidden())
        return np.mean(np.logaddexp(0, margin) - support.label * margin)

    assert nll(fit) < nll(start) - 0.1
    assert accuracy(tuned, fit, UNSEEN) > accuracy(tuned, start, UNSEEN) + 0.2
    assert all((before[n] == v).all() for n, v in tuned.ready()[1].shared.items())


@pytest.mark.parametrize("options", [{}, CLUSTER], ids=["individual", "cluster"])
def test_parameters_are_as_many_as_the_paper_counts(options):
    method = learned(epochs=0, **options)
    rank, layers, tokens, clusters = 4, 4, 4, 10  # query and value of two layers
    prompt = tokens * WIDTH
    own, shared = (clusters, clusters * prompt + clusters) if options else (prompt, prompt)
    assert method.table_.shape == (PEOPLE, own)
    assert all(s.n_parameters == own for s in states_of(method, [0, PEOPLE], 2))
    assert method.n_trained == layers * rank * 2 * WIDTH + WIDTH + shared
    told = method.memory_estimate("tiny-bert@1", PEOPLE)
    assert told is not None
    assert told["adapters"] == 4 * (method.n_trained + method.table_.size)


def test_micro_batches_and_checkpointing_take_the_same_steps():
    whole = learned(epochs=2, select="last")
    for other in ({"micro_batch": 7}, {"checkpointing": True}):
        np.testing.assert_allclose(learned(epochs=2, select="last", **other).table_, whole.table_, atol=2e-3)


def test_it_begins_from_a_trained_adapter(tmp_path):
    plain = fitted(LoraGlobal, epochs=1, select="last")
    write_adapter(plain, UserState(), tmp_path, user="everybody")
    begun = learned(epochs=0, start=str(tmp_path))
    for name, value in plain._factors.shared.items():
        torch.testing.assert_close(begun._factors.shared[name], value)


def test_it_is_not_written_as_an_adapter_that_would_lack_the_prompt(tmp_path):
    with pytest.raises(RequestError, match="p-rlhf puts a soft prompt before every text"):
        write_adapter(learned(epochs=0), UserState(), tmp_path, user="somebody")


def test_prompts_take_room_from_texts():
    method = learned(epochs=0, tokens=110)
    assert method.ready()[0].lengths.max() == 18
    assert method.truncated > 0
    assert learned(epochs=0, tokens=110, max_tokens=18).truncated == method.truncated


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"adapt_layers": 1}, "adapt_layers=1: allowed with a soft prompt is None alone"),
        ({"tokens": 110, "max_tokens": 19}, "to 18, the positions of tiny-bert@1 less 110 soft tokens"),
        ({"tokens": 128}, "allowed are 1 to 127 soft tokens"),
        ({"tokens": 0}, "tokens=0; allowed: whole numbers from 1"),
        ({"user_model": "clusters"}, "individual, cluster"),
        ({"user_model": "cluster", "clusters": 0}, "clusters=0"),
        ({"own_loss": 1.5}, "from 0 to 1"),
        ({"adaptation": "fit"}, "none, tune"),
    ],
    ids=str,
)
def test_wrong_options_say_what_is_allowed(options, told):
    method = PRlhf(**options)
    with pytest.raises(RequestError, match=told):
        method.fit(said(SEEN, 2, 1), said(SEEN, 1, 2), world(), BUDGET)
