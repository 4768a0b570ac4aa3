"""PEFT both ways: what is written scores the same there, and what is read starts the same here."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from peft_fixtures import OLD_NAME, PEOPLE, TEXTS, TINY, fitted, loaded, peft_scores, scores, state_of  # noqa: E402

from datasets_registry.errors import MethodError, RequestError  # noqa: E402
from datasets_registry.text_models import load_text_model  # noqa: E402
from methods.backbone.peft_files import CONFIG, HEAD_FILE, WEIGHTS, write_adapter  # noqa: E402
from methods.interface import UserState  # noqa: E402
from methods.registry import create  # noqa: E402

pytestmark = pytest.mark.filterwarnings(OLD_NAME)

LAYOUTS = {
    "share B": ("p-share-lora", {}),
    "share A": ("p-share-lora", {"share": "A", "init": "copied"}),
    "kernel": ("p-share-lora", {"core": "kernel"}),
    "diagonal": ("p-share-lora", {"core": "diagonal"}),
    "local, own head": ("lora-local", {}),
    "global": ("lora-global", {}),
    "global, then local A": ("lora-global+local-a", {}),
    "the last layer": ("p-share-lora", {"adapt_layers": 1}),
    "other targets": ("p-share-lora", {"adapt_layers": 1, "max_tokens": 20}),
}


@pytest.mark.parametrize("encoder", TINY)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_written_adapter_scores_the_same_in_peft(encoder, layout, tmp_path):
    name, config = LAYOUTS[layout]
    if layout == "other targets":  # "dense" is also in the pooler, which is not adapted, and in every layer
        config = {**config, "targets": ["dense"] if encoder == "tiny-bert@1" else ["o_proj", "down_proj"]}
    method = fitted(name, encoder, **config)
    for person in (1, PEOPLE):  # somebody seen, and somebody new
        state = state_of(method, person)
        write_adapter(method, state, tmp_path, user="somebody")
        model, tokenizer, head = loaded(encoder, tmp_path)
        tokenizer.model_max_length = config.get("max_tokens", 128)
        with torch.no_grad():
            got = peft_scores(model, tokenizer, head, TEXTS).numpy()
            alone = torch.cat([peft_scores(model, tokenizer, head, [t]) for t in TEXTS]).numpy()
        expected = scores(method, state)
        if state.arrays:  # what is the person's own counts
            nobody = UserState({k: np.zeros_like(v) for k, v in state.arrays.items()})
            assert np.abs(expected - scores(method, nobody)).max() > 1e-3
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(alone, expected, rtol=1e-5, atol=1e-5)
        adapted = {n for n, m in model.named_modules() if hasattr(m, "lora_A")}
        assert len(adapted) == len(method.ready()[0].layers)
    written = json.loads((tmp_path / CONFIG).read_text())
    assert written["base_model_name_or_path"] == encoder
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors", ".md"}


def run_readme(folder, beside=None):
    """Run the README's block of Python in its folder, as a person does, and return its `rewards`."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    names, here = {}, Path.cwd()
    try:
        os.chdir(folder)
        exec(compile(code, "README.md", "exec"), names)
    finally:
        os.chdir(here)
    return names["rewards"]


@pytest.mark.parametrize("encoder", TINY)
def test_the_lines_of_the_readme_score_texts(encoder, tmp_path, capsys):
    method = fitted("p-share-lora", encoder)
    state = state_of(method)
    write_adapter(method, state, tmp_path, user="a `b`\nc\x1b[31m ```")
    rewards = run_readme(tmp_path)
    assert "tensor([" in capsys.readouterr().out
    np.testing.assert_allclose(rewards(TEXTS).numpy(), scores(method, state), rtol=1e-5, atol=1e-5)
    assert "the adapter of `a 'b' c[31m '''`\n" in (tmp_path / "README.md").read_text()


def hub_trunks():
    small = {"vocab_size": 300, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    wide = {**small, "num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    return {
        "llama": transformers.LlamaModel(transformers.LlamaConfig(**wide)),
        "bert": transformers.BertModel(transformers.BertConfig(**wide), add_pooling_layer=False),
        "gpt2": transformers.GPT2Model(transformers.GPT2Config(n_layer=3, n_head=2, n_embd=32, **small)),
        "cohere": transformers.CohereModel(transformers.CohereConfig(**wide)),  # a family without a classifier
    }


@pytest.mark.parametrize("family", ["llama", "bert", "gpt2", "cohere"])
def test_adapters_of_hub_models_need_nothing_of_ours(family, tmp_path, monkeypatch):
    monkeypatch.setenv("HETPREF_MIRROR", str(tmp_path / "mirror"))
    source = tmp_path / "mirror" / "owner" / "tiny" / "main"
    torch.manual_seed(5)
    hub_trunks()[family].save_pretrained(source)
    load_text_model("tiny-llama@1").tokenizer.save_pretrained(source)
    targets = ["q_proj", "v_proj"] if family == "cohere" else None
    method = fitted("p-share-lora", "hub:owner/tiny", adapt_layers=2, targets=targets)
    state, folder = state_of(method), tmp_path / "adapter"
    write_adapter(method, state, folder, user="7")
    # the README reads owner/tiny of the hub; transformers takes a folder of that name first
    shutil.copytree(source, folder / "owner" / "tiny")
    rewards = run_readme(folder)
    assert "hetpref" not in re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[0]
    np.testing.assert_allclose(rewards(TEXTS).numpy(), scores(method, state), rtol=1e-5, atol=1e-5)
    written = json.loads((folder / CONFIG).read_text())
    assert (written["base_model_name_or_path"], written["revision"]) == ("owner/tiny", "main")
    assert written["task_type"] == ("SEQ_CLS" if family in ("llama", "gpt2") else "FEATURE_EXTRACTION")


def test_a_model_in_bfloat16_is_written_in_float32(tmp_path):
    method = fitted("p-share-lora", "tiny-llama@1", dtype="bfloat16")
    state = state_of(method)
    write_adapter(method, state, tmp_path, user="1")
    assert {v.dtype for v in load_file(tmp_path / WEIGHTS).values()} == {torch.float32}
    expected = scores(method, state)
    got = run_readme(tmp_path)(TEXTS).numpy()
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("encoder", TINY)
@pytest.mark.parametrize("adapt_layers", [None, 1])
def test_what_was_written_is_a_start_with_equal_rewards(encoder, adapt_layers, tmp_path):
    method = fitted("lora-global", encoder, adapt_layers=adapt_layers)
    write_adapter(method, UserState(), tmp_path, user="everybody")
    again = fitted("lora-global", encoder, adapt_layers=adapt_layers, start=str(tmp_path), epochs=0)
    np.testing.assert_array_equal(again.shared_, method.shared_)
    np.testing.assert_array_equal(scores(again, UserState()), scores(method, UserState()))


@pytest.mark.parametrize("encoder", TINY)
def test_one_persons_adapter_is_a_start_for_everybody(encoder, tmp_path):
    method = fitted("p-share-lora", encoder, core="kernel")
    state = state_of(method)
    write_adapter(method, state, tmp_path, user="1")
    for name, config in (
        ("lora-global", {}),
        ("lora-global+local-a", {}),
        ("lora-local", {}),
        ("p-share-lora", {"init": "copied"}),
        ("p-share-lora", {"init": "copied", "share": "A"}),
        ("p-share-lora", {"init": "copied", "core": "kernel"}),
    ):
        again = fitted(name, encoder, start=str(tmp_path), epochs=0, **config)
        np.testing.assert_allclose(scores(again, state_of(again)), scores(method, state), rtol=1e-5, atol=1e-6)


def test_a_start_is_not_drawn_over(tmp_path):
    with pytest.raises(RequestError, match="give init='copied' or init='warmup'"):
        fitted("p-share-lora", "tiny-bert@1", start=str(tmp_path))


def test_without_a_head_in_the_folder_ours_is_kept(tmp_path):
    method = fitted("lora-global", "tiny-bert@1")
    write_adapter(method, UserState(), tmp_path, user="everybody")
    (tmp_path / HEAD_FILE).unlink()
    again = fitted("lora-global", "tiny-bert@1", start=str(tmp_path), epochs=0)
    fresh = fitted("lora-global", "tiny-bert@1", epochs=0)
    width = again.ready()[0].width
    np.testing.assert_array_equal(again.shared_[:-width], method.shared_[:-width])
    np.testing.assert_array_equal(again.shared_[-width:], fresh.shared_[-width:])


def test_a_classifier_of_peft_is_left_out_and_said_so(tmp_path, capsys):
    config = transformers.BertConfig(**load_text_model("tiny-bert@1").trunk.config.to_diff_dict(), num_labels=2)
    base = transformers.BertForSequenceClassification(config)
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=3, lora_alpha=5, target_modules=["query", "value"])
    peft.get_peft_model(base, lora).save_pretrained(tmp_path, save_embedding_layers=False)
    fitted("lora-global", "tiny-bert@1", start=str(tmp_path), epochs=0)
    assert "classifier.bias, classifier.weight is no head" in capsys.readouterr().err


def edited(folder, **changes):
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def with_tensors(folder, change):
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors), folder / WEIGHTS, metadata={"format": "pt"})


def pickled(folder):
    (folder / WEIGHTS).unlink()
    torch.save({}, folder / "adapter_model.bin")


FIRST = "base_model.model.model.layers.0.self_attn.q_proj"
BROKEN = {
    "no folder": (shutil.rmtree, "holds no adapter_config.json"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "holds no adapter_model.safetensors; give a whole"),
    "a pickle": (pickled, "is a pickle, which is never opened"),
    "broken config": (lambda f: (f / CONFIG).write_text("{"), "is not JSON"),
    "no object": (lambda f: (f / CONFIG).write_text("[]"), "peft_type None; allowed: 'LORA'"),
    "another kind": (lambda f: edited(f, peft_type="IA3"), "peft_type 'IA3'; allowed: 'LORA'"),
    "cut short": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:50]), "not a whole safetensors"),
    "rank": (lambda f: edited(f, r=4), "has r=4, this method rank=3; give rank=4 and alpha=5"),
    "scale": (lambda f: edited(f, lora_alpha=8), "lora_alpha / r = 2.66667, this method by alpha / rank = 1.66667"),
    "no rank": (lambda f: edited(f, r=None), "has r=None"),
    "rslora": (lambda f: edited(f, use_rslora=True), "has use_rslora, that is, its scale is lora_alpha / sqrt"),
    "dora": (lambda f: edited(f, use_dora=True), "has use_dora, that is, it also learns magnitudes"),
    "rank pattern": (lambda f: edited(f, rank_pattern={"q_proj": 2}), "has rank_pattern, that is, its layers differ"),
    "bias": (lambda f: edited(f, bias="all"), "bias='all'; allowed: 'none'"),
    "pissa": (lambda f: edited(f, init_lora_weights="pissa"), "may change the weights of the trunk"),
    "lacking": (
        lambda f: with_tensors(f, lambda t: {k: v for k, v in t.items() if k != f"{FIRST}.lora_B.weight"}),
        r"lacks 1 of 8 factors .* lora_B of 'layers.0.self_attn.q_proj'; give targets and adapt_layers",
    ),
    "another layer": (
        lambda f: with_tensors(f, lambda t: {**t, f"{FIRST[:-6]}k_proj.lora_A.weight": torch.ones(3, 32)}),
        r"1 tensors belong to no layer that this method adapts \(q_proj, v_proj of 4 layers\).*k_proj",
    ),
    "magnitudes": (
        lambda f: with_tensors(f, lambda t: {**t, f"{FIRST}.lora_magnitude_vector": torch.ones(32)}),
        "belong to no layer.*lora_magnitude_vector",
    ),
    "embeddings": (
        lambda f: with_tensors(f, lambda t: {**t, "base_model.model.model.embed_tokens.weight": torch.ones(9, 32)}),
        "belong to no layer.*embed_tokens",
    ),
    "shape": (
        lambda f: with_tensors(f, lambda t: {**t, f"{FIRST}.lora_A.weight": torch.ones(3, 31)}),
        r"lora_A of layers.0.self_attn.q_proj has shape \[3, 31\], tiny-llama@1 needs \[3, 32\]",
    ),
    "head": (
        lambda f: with_tensors(f, lambda t: {**t, "base_model.model.score.weight": torch.ones(2, 32)}),
        r"score.weight has shape \[2, 32\]; a reward is one number",
    ),
    "head file": (
        lambda f: save_file({"head": torch.ones(31)}, f / HEAD_FILE),
        r"holds a head of shape \[31\]; tiny-llama@1 needs \[32\]",
    ),
    "not finite": (
        lambda f: with_tensors(f, lambda t: {**t, f"{FIRST}.lora_A.weight": torch.full((3, 32), torch.nan)}),
        "layers.0.self_attn.q_proj/a is not finite",
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    write_adapter(fitted("lora-global", "tiny-llama@1"), UserState(), folder, user="everybody")
    return folder


@pytest.mark.parametrize("what", BROKEN)
def test_a_folder_that_does_not_fit_says_what_to_change(whole, what, tmp_path):
    breaks, told = BROKEN[what]
    folder = tmp_path / "adapter"
    shutil.copytree(whole, folder)
    breaks(folder)
    with pytest.raises(RequestError, match=told):
        fitted("lora-global", "tiny-llama@1", start=str(folder), epochs=0)


def test_a_start_for_a_method_or_depth_that_differs_is_refused(whole):
    with pytest.raises(RequestError, match="this method has none; leave start out"):
        fitted("full-finetune", "tiny-llama@1", start=str(whole), epochs=0)
    with pytest.raises(RequestError, match=r"4 tensors belong to no layer.*layers\.0\.self_attn"):
        fitted("lora-global", "tiny-llama@1", adapt_layers=1, start=str(whole), epochs=0)
    with pytest.raises(RequestError, match=r"lacks 4 of 8 factors|belong to no layer"):
        fitted("lora-global", "tiny-llama@1", targets=["q_proj", "o_proj"], start=str(whole), epochs=0)


def test_what_cannot_be_written_is_refused(tmp_path):
    for method in (create("full-finetune"), create("pooled-bt")):
        with pytest.raises(RequestError, match=r"methods with adapters: lora-global, lora-global\+local-a"):
            write_adapter(method, UserState(), tmp_path / "new", user="1")
    method = fitted("p-share-lora", "tiny-bert@1", epochs=0)
    with pytest.raises(RequestError, match="nothing under 'factors'"):
        write_adapter(method, UserState(), tmp_path / "new", user="1")
    row = state_of(method).arrays["factors"]
    with pytest.raises(RequestError, match=r"shape \(3,\) under 'factors'; it must be \["):
        write_adapter(method, UserState({"factors": row[:3]}), tmp_path / "new", user="1")
    with pytest.raises(MethodError, match="is not finite; train with a lower lr"):
        write_adapter(method, UserState({"factors": row * np.nan}), tmp_path / "new", user="1")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RequestError, match="holds files that hetpref did not export"):
        write_adapter(method, UserState({"factors": row}), tmp_path, user="1")
    with pytest.raises(RequestError, match="is a file"):
        write_adapter(method, UserState({"factors": row}), tmp_path / "mine.txt", user="1")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_export_writes_over_its_own_and_over_no_adapter_of_others(tmp_path):
    method = fitted("p-share-lora", "tiny-bert@1", epochs=0)
    for user in ("1", "2"):
        write_adapter(method, state_of(method), tmp_path / "ours", user=user)
    theirs = tmp_path / "theirs"
    shutil.copytree(tmp_path / "ours", theirs)
    (theirs / "README.md").write_text("weeks of training")
    before = {p.name: p.read_bytes() for p in theirs.iterdir()}
    with pytest.raises(RequestError, match="did not export"):
        write_adapter(method, state_of(method), theirs, user="1")
    assert {p.name: p.read_bytes() for p in theirs.iterdir()} == before
