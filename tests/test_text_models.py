"""Text models: tokens as the tokenizer's own call gives them, fresh trunks, sizes that count."""

import json
import subprocess
import sys

import numpy as np
import pytest

from datasets_registry import tiny_models
from datasets_registry.encoders import encode_texts
from datasets_registry.errors import RequestError
from datasets_registry.model_files import MANIFEST, SMOLLM2, model_folder
from datasets_registry.text_models import (
    TEXT_MODELS,
    Tokenised,
    architecture,
    load_text_model,
    pooled,
    tokenise,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TINY = ("tiny-llama@1", "tiny-bert@1")
TEXTS = ["", "a", "Which plan?\nThe cheap one.", "naïve 😀 \t\n", "x" * 126, "y" * 127, "z" * 128, "long " * 60]


def pairs(tokens: Tokenised) -> list[list[int]]:
    return [tokens.ids[a:b].tolist() for a, b in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)]


@pytest.mark.parametrize("name", TINY)
def test_tokens_are_those_of_the_tokenizers_own_call(name):
    model = load_text_model(name)
    got = tokenise(model, TEXTS)
    own = model.tokenizer(TEXTS, truncation=True, max_length=model.max_tokens)["input_ids"]
    assert pairs(got) == own
    assert got.ids.dtype == np.int32
    assert got.offsets.dtype == np.int64
    uncut = model.tokenizer(TEXTS, verbose=False)["input_ids"]
    assert got.truncated == sum(len(ids) > model.max_tokens for ids in uncut) == 2 + (name == "tiny-bert@1")
    assert len(got) == len(TEXTS)
    assert len(tokenise(model, [])) == 0


def test_a_causal_model_loses_the_start_of_a_text_and_an_encoder_its_end():
    text = "start" + "." * 300 + "end"
    cut = {name: pairs(tokenise(load_text_model(name), [text]))[0] for name in TINY}
    decode = tiny_models.tiny_tokenizer("llama").decode
    assert decode(cut["tiny-llama@1"]).startswith("<s>..")
    assert decode(cut["tiny-llama@1"]).endswith("..end")
    assert decode(cut["tiny-bert@1"]).startswith("<s>start..")
    assert decode(cut["tiny-bert@1"]).endswith("..</s>")


def test_a_text_without_tokens_is_one_end_token():
    from tokenizers import processors

    model = load_text_model("tiny-llama@1")
    model.tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    assert model.tokenizer([""])["input_ids"] == [[]]
    assert pairs(tokenise(model, ["", "a"])) == [[model.tokenizer.eos_token_id], model.tokenizer("a")["input_ids"]]


def test_padding_is_the_tokenizers_own():
    model = load_text_model("tiny-bert@1")
    rows = [3, 1, 0, 1]
    own = model.tokenizer([TEXTS[r] for r in rows], padding=True, return_tensors="np")
    ids, mask = tokenise(model, TEXTS).padded(rows, model.tokenizer.pad_token_id)
    np.testing.assert_array_equal(ids, own["input_ids"])
    np.testing.assert_array_equal(mask, own["attention_mask"])


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_pooling_reads_a_texts_own_tokens_only(pooling):
    hidden = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    lengths = [5, 1, 3]
    mask = torch.tensor([[int(t < n) for t in range(5)] for n in lengths])
    hidden[mask == 0] = 1e6
    got = pooled(hidden, mask, pooling)
    own = [h[:n].mean(0) if pooling == "mean" else h[n - 1] for h, n in zip(hidden, lengths, strict=True)]
    torch.testing.assert_close(got, torch.stack(own))


@pytest.mark.parametrize("name", TINY)
def test_features_are_what_the_model_gives_each_text_alone(name):
    model = load_text_model(name, attention="eager")
    got = encode_texts(TEXT_MODELS[name], TEXTS).features
    assert got.shape == (len(TEXTS), model.trunk.config.hidden_size)
    for text, feature in zip(TEXTS, got, strict=True):
        own = model.tokenizer(text, truncation=True, max_length=model.max_tokens, return_tensors="pt")
        hidden = model.trunk(input_ids=own["input_ids"]).last_hidden_state[0]
        expected = hidden[-1] if model.pooling == "last" else torch.nn.functional.normalize(hidden.mean(0), dim=0)
        np.testing.assert_allclose(feature, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("name", TINY)
def test_every_trunk_is_fresh_and_frozen(name):
    before = torch.random.get_rng_state()
    one, two = load_text_model(name), load_text_model(name)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not one.trunk.training
    assert not any(p.requires_grad for p in one.trunk.parameters())
    assert all(torch.equal(a, b) for a, b in zip(one.trunk.parameters(), two.trunk.parameters(), strict=True))
    with torch.no_grad():
        next(one.trunk.parameters()).add_(1)
    assert not torch.equal(next(one.trunk.parameters()), next(two.trunk.parameters()))
    last = {n.rpartition(".")[2] for n, m in one.trunk.named_modules() if isinstance(m, torch.nn.Linear)}
    assert set(one.targets) <= last


@pytest.mark.parametrize("name", TINY)
def test_the_fastest_attention_gives_what_the_plain_one_gives(name):
    fast, plain = load_text_model(name), load_text_model(name, attention="eager")
    assert fast.trunk.config._attn_implementation == "sdpa"
    ids, mask = (torch.from_numpy(a) for a in tokenise(fast, TEXTS).padded(range(len(TEXTS)), 0))
    a, b = (m.trunk(input_ids=ids, attention_mask=mask).last_hidden_state[mask == 1] for m in (fast, plain))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_dtype_is_as_asked():
    assert {p.dtype for p in load_text_model("tiny-llama@1", dtype="bfloat16").trunk.parameters()} == {torch.bfloat16}
    with pytest.raises(RequestError, match=r"unknown dtype 'bfloat'\. Did you mean 'bfloat16'"):
        load_text_model("tiny-llama@1", dtype="bfloat")


def sizes(trunk) -> tuple[int, int, int, int]:
    config = trunk.config
    return sum(p.numel() for p in trunk.parameters()), config.num_hidden_layers, config.hidden_size, config.vocab_size


@pytest.mark.parametrize("name", TINY)
def test_the_known_sizes_of_tiny_models_are_counted(name):
    known, trunk = architecture(name), load_text_model(name).trunk
    assert (known.parameters, known.layers, known.width, known.vocabulary) == sizes(trunk)
    widths = {n.rpartition(".")[2]: m.out_features for n, m in trunk.named_modules() if isinstance(m, torch.nn.Linear)}
    assert known.kv_width == widths["v_proj" if "llama" in name else "value"]
    assert (known.ffn, known.heads) == (trunk.config.intermediate_size, trunk.config.num_attention_heads)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("hub:EleutherAI/gpt-j-6b", transformers.GPTJConfig()),
        (
            "hub:meta-llama/Meta-Llama-3-8B@main",
            transformers.LlamaConfig(vocab_size=128256, intermediate_size=14336, num_key_value_heads=8),
        ),
    ],
    ids=["gpt-j", "llama-3"],
)
def test_the_known_sizes_of_hub_models_are_counted_without_weights(name, config):
    with torch.device("meta"):
        trunk = transformers.AutoModel.from_config(config)
    known = architecture(name)
    assert (known.parameters, known.layers, known.width, known.vocabulary) == sizes(trunk)
    assert known.heads == config.num_attention_heads


def test_sizes_of_unknown_models_are_not_guessed():
    assert architecture("hub:owner/name") is None
    assert architecture("tabular@1") is None
    assert all(architecture(name) for name in TEXT_MODELS)
    assert all(architecture(name).width == spec.width for name, spec in TEXT_MODELS.items())


def test_an_unknown_text_model_is_told_the_nearest():
    with pytest.raises(RequestError, match=r"Did you mean 'minilm-l6@1'\?.*hub:OWNER/NAME"):
        load_text_model("minilm")


def test_importing_text_models_imports_no_torch():
    code = (
        "import sys\n"
        "from datasets_registry.text_models import architecture, has_text_model\n"
        "architecture('minilm-l6@1'), has_text_model('hub:owner/name')\n"
        "print({'torch', 'transformers', 'tokenizers', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.slow
def test_minilm_has_the_known_sizes():
    known, trunk = architecture("minilm-l6@1"), load_text_model("minilm-l6@1").trunk
    assert (known.parameters, known.layers, known.width, known.vocabulary) == sizes(trunk)


@pytest.mark.slow
def test_smollm2_is_converted_once_and_speaks(empty_home, capsys):
    pytest.importorskip("gguf")
    folder = model_folder(SMOLLM2)
    assert "converted, once" in capsys.readouterr().err
    written = (folder / "model.safetensors").stat().st_mtime_ns
    speaker = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model = load_text_model("smollm2-135m@1")
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    prompt = model.tokenizer("The capital of France is", return_tensors="pt")
    said = speaker.generate(**prompt, max_new_tokens=4, do_sample=False)[0]
    assert "Paris" in model.tokenizer.decode(said)
    known = architecture("smollm2-135m@1")
    assert (known.parameters, known.layers, known.width, known.vocabulary) == sizes(model.trunk)
    texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "The stock market fell today.", "word " * 900]
    found = encode_texts(TEXT_MODELS["smollm2-135m@1"], texts)
    assert found.truncated == 1
    assert "cut at the start" in capsys.readouterr().err
    alone = [encode_texts(TEXT_MODELS["smollm2-135m@1"], [text]).features[0] for text in texts]
    np.testing.assert_allclose(found.features, alone, atol=2e-3)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    assert model_folder(SMOLLM2) == folder
    facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    assert (folder / "model.safetensors").stat().st_size == facts["model.safetensors"]["size"]
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
