"""Hub ids: from a mirror folder, offline, and from a loopback hub; families, targets and damaged folders."""

import functools
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from datasets_registry import tiny_models
from datasets_registry.encoders import encode_texts, find_encoder
from datasets_registry.errors import DataError, RequestError
from datasets_registry.hub_models import hub_model
from datasets_registry.sources import UnreachableError
from datasets_registry.text_models import TEXT_MODELS, find_text_model, has_text_model, load_text_model, tokenise

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXTS = ["", "a", "Which plan?\nThe cheap one.", "naïve 😀 \t\n", "z" * 128, "long " * 60]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_model(folder: Path, trunk, tokenizer=None) -> Path:
    folder.mkdir(parents=True)
    trunk.save_pretrained(folder)
    (tokenizer or tiny_models.tiny_tokenizer("llama")).save_pretrained(folder)
    return folder


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A mirror folder that holds the tiny Llama as owner/tiny at main."""
    monkeypatch.setenv("HETPREF_MIRROR", str(tmp_path / "mirror"))
    tiny = load_text_model("tiny-llama@1")
    write_model(tmp_path / "mirror" / "owner" / "tiny" / "main", tiny.trunk, tiny.tokenizer)
    return tmp_path / "mirror"


@pytest.mark.parametrize(
    "name",
    ["hub:gpt2", "hub:a/b/c", "hub:../b", "hub:a/..", "hub:a/b@", "hub:a/b@../c", "hub:a/b@c/../../d", "hub:a/b\n"],
)
def test_a_hub_id_of_another_form_is_refused(name):
    assert not has_text_model(name)
    with pytest.raises(RequestError, match="the form is hub:OWNER/NAME"):
        find_encoder(name)


def test_a_mirrored_model_is_read_as_what_it_is(mirror):
    got, tiny = load_text_model("hub:owner/tiny"), load_text_model("tiny-llama@1")
    assert (got.pooling, got.targets, got.max_tokens) == (tiny.pooling, tiny.targets, tiny.max_tokens)
    assert all(torch.equal(a, b) for a, b in zip(got.trunk.parameters(), tiny.trunk.parameters(), strict=True))
    np.testing.assert_array_equal(tokenise(got, TEXTS).ids, tokenise(tiny, TEXTS).ids)
    encoder = find_encoder("hub:owner/tiny@main")
    assert encoder.width == tiny_models.WIDTH
    assert encoder.pooling == find_encoder("tiny-llama@1").pooling
    features = encode_texts(find_text_model("hub:owner/tiny"), TEXTS).features
    np.testing.assert_allclose(features, encode_texts(TEXT_MODELS["tiny-llama@1"], TEXTS).features, atol=1e-4)


def test_the_revision_of_a_mirrored_model_is_its_commit_or_its_content(mirror):
    folder = mirror / "owner" / "tiny"
    first = find_encoder("hub:owner/tiny").revision
    assert first == find_encoder("hub:owner/tiny@main").revision
    (folder / "main" / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    assert find_encoder("hub:owner/tiny").revision != first
    (folder / "main").rename(folder / COMMIT)
    assert find_encoder(f"hub:owner/tiny@{COMMIT}").revision == COMMIT


def test_the_first_mirror_that_holds_a_model_is_read(mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("HETPREF_MIRROR", os.pathsep.join([str(tmp_path / "none"), str(mirror)]))
    assert hub_model("hub:owner/tiny").where == mirror / "owner" / "tiny" / "main"


def test_a_model_with_a_missing_weight_is_refused(mirror):
    from safetensors.torch import load_file, save_file

    path = mirror / "owner" / "tiny" / "main" / "model.safetensors"
    weights = load_file(path)
    del weights["layers.1.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"lack 1 weights of the model, first 'layers.1.mlp.up_proj.weight'"):
        load_text_model("hub:owner/tiny")
    path.unlink()
    with pytest.raises(UnreachableError, match=r"cannot get hub:owner/tiny \(.*<folder>/owner/tiny/main"):
        load_text_model("hub:owner/tiny")


def test_a_family_whose_layers_are_not_known_asks_for_them(mirror):
    config = transformers.DistilBertConfig(
        vocab_size=tiny_models.VOCABULARY, dim=32, hidden_dim=64, n_layers=1, n_heads=2, max_position_embeddings=60
    )
    write_model(mirror / "owner" / "distil" / "main", transformers.AutoModel.from_config(config))
    with pytest.raises(RequestError, match=r"distilbert.*targets=\(.*k_lin, lin1, lin2, out_lin, q_lin, v_lin"):
        load_text_model("hub:owner/distil")
    with pytest.raises(RequestError, match=r"unknown target layer 'q_line'\. Did you mean 'q_lin'\?"):
        load_text_model("hub:owner/distil", targets=["q_line"])
    model = load_text_model("hub:owner/distil", targets=["q_lin", "v_lin"])
    assert (model.targets, model.pooling, model.max_tokens) == (("q_lin", "v_lin"), "mean", 60)
    found = encode_texts(find_text_model("hub:owner/distil"), TEXTS)
    np.testing.assert_allclose(np.linalg.norm(found.features, axis=1), 1, atol=1e-5)


def test_a_model_without_a_padding_token_is_padded_all_the_same(mirror):
    config = transformers.GPT2Config(vocab_size=tiny_models.VOCABULARY, n_embd=32, n_layer=1, n_head=2, n_positions=50)
    tokenizer = tiny_models.tiny_tokenizer("llama")
    tokenizer.pad_token = None
    write_model(mirror / "owner" / "gpt" / "main", transformers.AutoModel.from_config(config), tokenizer)
    model = load_text_model("hub:owner/gpt")
    assert (model.targets, model.pooling, model.max_tokens) == (("c_attn",), "last", 50)
    assert model.tokenizer.pad_token_id == model.tokenizer.eos_token_id
    together = encode_texts(find_text_model("hub:owner/gpt"), TEXTS).features
    alone = [encode_texts(find_text_model("hub:owner/gpt"), [text]).features[0] for text in TEXTS]
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_an_encoder_decoder_is_refused(mirror):
    (mirror / "owner" / "t5" / "main").mkdir(parents=True)
    transformers.T5Config().save_pretrained(mirror / "owner" / "t5" / "main")
    with pytest.raises(RequestError, match=r"hub:owner/t5 is an encoder-decoder"):
        load_text_model("hub:owner/t5")


def test_a_model_of_an_unknown_kind_is_refused(mirror):
    folder = mirror / "owner" / "odd" / "main"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "never-heard-of"}), encoding="utf-8")
    with pytest.raises(RequestError, match="transformers cannot open hub:owner/odd"):
        find_encoder("hub:owner/odd")


def run(code: str, home: Path, **environment: str) -> str:
    """Run code in a fresh interpreter: the hub's client reads its environment when it is imported."""
    told = {k: v for k, v in os.environ.items() if k != "HETPREF_MIRROR" and not k.startswith("HF_")}
    told |= {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    done = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_hub_model_offline_says_what_to_do(tmp_path):
    code = (
        "from datasets_registry.errors import DataError\n"
        "from datasets_registry.text_models import load_text_model\n"
        "for name in ('hub:owner/name', 'hub:owner/name@" + COMMIT + "'):\n"
        "    try:\n"
        "        load_text_model(name)\n"
        "    except DataError as why:\n"
        "        print(why)\n"
    )
    lines = run(code, tmp_path, HF_HUB_OFFLINE="1").splitlines()
    assert lines[0].startswith("cannot get hub:owner/name (")
    assert lines[0].endswith("in <folder>/owner/name/main")
    assert lines[1].endswith(f"in <folder>/owner/name/{COMMIT}")


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download needs: one model, every revision of which is one commit."""

    def __init__(self, folder, *arguments):
        self.folder = folder
        super().__init__(*arguments)

    def do_GET(self):
        parts = self.path.partition("?")[0].split("/")
        file = self.folder / parts[-1]
        if parts[1:4] == ["owner", "tiny", "resolve"] and file.is_file():
            raw, code = file.read_bytes(), 200
        else:
            raw, code = b'{"error": "Entry not found"}', 404
        self.send_response(code)
        if code == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{parts[-1]}-{len(raw)}"')
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(raw)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_a_hub_model_is_downloaded_pinned_and_read_again_offline(tmp_path):
    tiny = load_text_model("tiny-llama@1")
    folder = write_model(tmp_path / "served", tiny.trunk, tiny.tokenizer)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub, folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (
        "from datasets_registry.text_models import load_text_model\n"
        "model = load_text_model('hub:owner/tiny')\n"
        "print(model.revision, sum(p.double().sum().item() for p in model.trunk.parameters()))\n"
    )
    try:
        online = run(code, tmp_path / "hf", HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
    revision, total = online.split()
    assert revision == COMMIT
    assert float(total) == sum(p.double().sum().item() for p in tiny.trunk.parameters())
    assert run(code, tmp_path / "hf", HF_HUB_OFFLINE="1") == online
