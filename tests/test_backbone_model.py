"""The reward model: adapters in a transformer, frozen layers replayed, many people in one pass."""

import copy

import numpy as np
import pytest
import torch

from datasets_registry.errors import RequestError
from datasets_registry.records import Items
from datasets_registry.text_models import TextModel, load_text_model
from methods.backbone import reward_model
from methods.backbone.adapted_linear import Binding
from methods.backbone.frozen_layers import FrozenLayers, layer_list
from methods.backbone.last_token import LastOnly
from methods.backbone.layout import HEAD, Layout, sizes, unpacked
from methods.backbone.reward_model import RewardModel, Shape

ITEMS = Items(
    prompt=("which one",) * 8,
    response=tuple("word " * n + f"end {n}" for n in (0, 1, 2, 3, 5, 8, 13, 2)),
)
ALL = np.arange(len(ITEMS))
TINY = ["tiny-bert@1", "tiny-llama@1"]


def model(encoder, **shape):
    return RewardModel.load(encoder, ITEMS, Shape(**shape), cache=None)


def drawn(made, people, seed=0, **owners):
    """Return random factors of a layout: shared ones, and rows [people, P] of people's own."""
    layout = Layout(made.layers, made.width, 3, **owners)
    draw = torch.Generator().manual_seed(seed)
    shared = {n: 0.3 * torch.randn(s, generator=draw) for n, s in layout.shared.items()}
    own = 0.3 * torch.randn(people, sum(sizes(layout.own)), generator=draw)
    return layout, shared, own


def rewards(made, layout, shared, own, item=ALL, row=None):
    row = np.zeros(len(item), np.int64) if row is None else row
    people = len(own) if layout.personal else None
    return made.rewards(item, row, {**shared, **unpacked(own, layout.own)}, people=people, scale=0.7)


@pytest.mark.parametrize("encoder", TINY)
def test_without_b_an_adapted_model_is_the_frozen_one(encoder):
    made = model(encoder)
    layout, shared, own = drawn(made, 2, a="user")
    shared = {n: torch.zeros_like(v) if n.endswith("/b") else v for n, v in shared.items()}
    got = rewards(made, layout, shared, own, row=ALL % 2)
    expected = made.pooled_features(ALL) @ shared[HEAD].numpy()
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-6)


OWNERS = [
    {"a": "user"},
    {"b": "user"},
    {"a": "user", "b": "user", "head": "user"},
    {"core": "kernel"},
    {"core": "diagonal"},
]


@pytest.mark.parametrize("encoder", TINY)
@pytest.mark.parametrize("owners", OWNERS, ids=str)
def test_a_mixed_batch_gives_everybody_what_a_pass_alone_gives(encoder, owners):
    made = model(encoder)
    layout, shared, own = drawn(made, 3, **owners)
    row = np.array([0, 1, 2, 0, 2, 1, 1, 0])
    got = rewards(made, layout, shared, own, row=row)
    for person in range(3):
        at = np.flatnonzero(row == person)
        alone = rewards(made, layout, shared, own[person : person + 1], item=at)
        torch.testing.assert_close(got[at], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("encoder", TINY)
@pytest.mark.parametrize("owners", OWNERS, ids=str)
def test_adapters_are_what_they_are_merged_into_the_weights(encoder, owners):
    made, plain = model(encoder), model(encoder)
    layout, shared, own = drawn(made, 1, **owners)
    factors = {**shared, **{n: v[0] for n, v in unpacked(own, layout.own).items()}}
    got = rewards(made, layout, shared, own)
    modules = dict(plain.trunk.named_modules())
    for layer in made.layers:
        a, b = factors[f"{layer.name}/a"], factors[f"{layer.name}/b"]
        core = factors.get(f"{layer.name}/core")
        if core is not None:
            a = core @ a if core.dim() == 2 else core[:, None] * a
        with torch.no_grad():
            modules[layer.name].base.weight += 0.7 * b.T @ a
    expected = plain.pooled_features(ALL) @ factors[HEAD].numpy()
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("q_proj", "down_proj")])
def test_leaving_out_what_no_last_token_reads_changes_neither_rewards_nor_gradients(targets, monkeypatch):
    told = []
    for run in (reward_model.run_last_only, lambda trunk, binding: False):
        monkeypatch.setattr(reward_model, "run_last_only", run)
        made = model("tiny-llama@1", targets=targets)
        left_out = any(isinstance(m, LastOnly) for m in made.trunk.modules())
        layout, shared, own = drawn(made, 2, a="user")
        leaves = [t.requires_grad_() for t in (*shared.values(), own)]
        got = rewards(made, layout, shared, own, row=ALL % 2)
        told.append((left_out, got.detach(), torch.autograd.grad(got.pow(2).sum(), leaves)))
    (left_out, got, grads), (never, expected, wanted) = told
    # adapters in the part that is left out need every token's plan
    assert (left_out, never) == (targets[1] == "v_proj", False)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    for mine, right in zip(grads, wanted, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("encoder", TINY)
def test_replaying_cached_layers_changes_nothing(encoder, tmp_path):
    whole = model(encoder)
    for made in (
        model(encoder, adapt_layers=1),
        RewardModel.load(encoder, ITEMS, Shape(adapt_layers=1), cache=tmp_path),  # writes the file
        RewardModel.load(encoder, ITEMS, Shape(adapt_layers=1), cache=tmp_path),  # reads it
    ):
        layout, shared, own = drawn(made, 2, a="user")
        factors = {**shared, **unpacked(own, layout.own)}
        some = made.rewards(ALL, ALL % 2, factors, people=2, scale=0.7)
        # the whole model with the same factors in its last layer, and none below it
        names = {layer.name for layer in made.layers}
        below = {
            f"{layer.name}/{part}": torch.zeros(*lead, 3, width)
            for layer in whole.layers
            if layer.name not in names
            for part, width, lead in (("a", layer.d_in, (2,)), ("b", layer.d_out, ()))
        }
        full = whole.rewards(ALL, ALL % 2, {**below, **factors}, people=2, scale=0.7)
        torch.testing.assert_close(some, full, rtol=1e-4, atol=1e-5)
    assert len(list(tmp_path.glob("*.npy"))) == 1


def test_a_cached_file_that_is_cut_short_is_made_again(tmp_path):
    expected = RewardModel.load("tiny-bert@1", ITEMS, Shape(adapt_layers=1), cache=tmp_path).pooled_features(ALL)
    (path,) = tmp_path.glob("*.npy")
    path.write_bytes(path.read_bytes()[:200])
    again = RewardModel.load("tiny-bert@1", ITEMS, Shape(adapt_layers=1), cache=tmp_path)
    np.testing.assert_array_equal(again.pooled_features(ALL), expected)


def other_trunks():
    from transformers import GPT2Config, GPT2Model, GPTJConfig, GPTJModel, Qwen2Config, Qwen2Model

    small = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0}
    yield GPT2Model(GPT2Config(n_layer=3, n_head=2, n_embd=32, n_positions=64, **small)), ("c_attn",)
    yield GPTJModel(GPTJConfig(n_layer=3, n_head=2, n_embd=32, n_positions=64, rotary_dim=8, **small)), ("q_proj",)
    yield (
        Qwen2Model(
            Qwen2Config(
                num_hidden_layers=3,
                hidden_size=32,
                intermediate_size=48,
                num_attention_heads=2,
                num_key_value_heads=1,
                **small,
            )
        ),
        ("q_proj", "v_proj"),
    )


@pytest.mark.parametrize("which", range(3), ids=["gpt2", "gptj", "qwen2"])
def test_any_list_of_layers_can_be_frozen_and_adapted(which):
    torch.manual_seed(3)
    trunk, targets = list(other_trunks())[which]
    tokenizer = load_text_model("tiny-llama@1").tokenizer
    trunk.config.use_cache = False
    trunk.eval().requires_grad_(False)

    def made(**shape):
        text = TextModel("other", "1", tokenizer, copy.deepcopy(trunk), "last", 64, targets)
        return RewardModel(text, ITEMS, Shape(**shape), adapters=True, cache=None)

    whole, last = made(), made(adapt_layers=1)
    assert len(whole.layers) == 3 * len(last.layers) > 0
    np.testing.assert_allclose(last.pooled_features(ALL), whole.pooled_features(ALL), rtol=1e-4, atol=1e-5)


def test_the_frozen_layers_of_a_trunk_are_given_back_for_a_new_capture():
    text = load_text_model("tiny-bert@1")
    frozen = FrozenLayers(text.trunk, 1)
    ids, mask = torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.long)
    before = frozen.capture(ids, mask)
    above = frozen.run_above(before, mask).last_hidden_state
    assert torch.equal(frozen.capture(ids, mask), before)
    torch.testing.assert_close(frozen.run_above(before, mask).last_hidden_state, above)
    assert len(layer_list(text.trunk)) == 2


def gradient(made, layout, shared, own, row):
    leaf = own.clone().requires_grad_()
    rewards(made, layout, shared, leaf, row=row).square().sum().backward()
    return leaf.grad


@pytest.mark.parametrize("encoder", TINY)
@pytest.mark.parametrize("adapt_layers", [None, 1])
def test_checkpointing_gives_the_same_gradient(encoder, adapt_layers):
    plain = model(encoder, adapt_layers=adapt_layers)
    saving = model(encoder, adapt_layers=adapt_layers, checkpointing=True)
    layout, shared, own = drawn(plain, 2, a="user")
    row = ALL % 2
    expected = gradient(plain, layout, shared, own, row)
    torch.testing.assert_close(gradient(saving, layout, shared, own, row), expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_near_float32():
    exact, half = model("tiny-llama@1"), model("tiny-llama@1", dtype="bfloat16")
    layout, shared, own = drawn(exact, 2, a="user")
    a, b = (rewards(made, layout, shared, own, row=ALL % 2) for made in (exact, half))
    assert b.dtype == torch.float32
    assert float((a - b).abs().max()) < 0.1 * float(a.abs().max())


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ({"targets": ("quary",)}, "query"),
        ({"adapt_layers": 3}, "1 to 2"),
        ({"adapt_layers": 0}, "1 to 2"),
        ({"dtype": "float8"}, "float32, bfloat16"),
        ({"max_tokens": 0}, "from 3"),
    ],
    ids=str,
)
def test_a_wrong_shape_says_what_is_allowed(shape, told):
    with pytest.raises(RequestError, match=told):
        model("tiny-bert@1", **shape)


def test_texts_are_cut_at_max_tokens():
    assert model("tiny-bert@1", max_tokens=6).lengths.max() == 6
    assert model("tiny-bert@1").lengths.max() > 6


class Two(torch.nn.Module):
    """A part that reads more than its input, or gives more than a tensor, as BLOOM's and mixtures of experts do."""

    def forward(self, x, residual=None):
        return 2 * x if residual is None else (2 * x + residual, "routing")


def test_a_part_that_reads_or_gives_more_is_run_whole():
    binding = Binding()
    binding.last = torch.tensor([1, 2])
    x = torch.randn(2, 3, 4)
    alone = LastOnly(Two(), binding)
    kept = alone(x)
    torch.testing.assert_close(kept[[0, 1], binding.last], 2 * x[[0, 1], binding.last])
    whole, told = alone(x, residual=x)
    torch.testing.assert_close(whole, 3 * x)
    assert told == "routing"
