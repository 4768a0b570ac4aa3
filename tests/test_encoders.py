"""Encoders and the features cache: closed forms, one reading per distinct text, damaged files made anew."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from datasets_registry import encoders
from datasets_registry import features as cache
from datasets_registry.encoders import ENCODERS, Encoded, Encoder, distinct_first, find_encoder, standardised
from datasets_registry.errors import DataError, RequestError
from datasets_registry.features import features, features_facts, features_key, features_path
from datasets_registry.model_files import MINILM, model_folder
from datasets_registry.records import Card, Comparisons, Items, PreferenceData, Users
from datasets_registry.text_models import TEXT_MODELS, load_text_model

CARD = Card("made@1", "made", "nobody", "CC0", "none needed", "simulated", "1", "", "none", simulated=True)


def made(attributes=None, texts=("a", "b", "c", "d")) -> PreferenceData:
    table = np.array([[1, 5, 2], [2, 5, 8], [3, 5, 5], [6, 5, 1]], np.float32) if attributes is None else attributes
    return PreferenceData(
        id="made@1",
        card=CARD,
        users=Users(("one",)),
        items=Items(("p",) * len(texts), tuple(texts), table, ("x", "constant", "z")),
        comparisons=Comparisons.of(user=[0], unit=[0], first=[0], second=[1], label=[1]),
        unit_cluster=np.zeros(1, np.int32),
        clusters=("only",),
    )


@pytest.fixture
def counting(monkeypatch):
    """An encoder of text that tells how often it was asked: its features are lengths of `items.text`."""
    asked: list[list[str]] = []

    def texts(given):
        asked.append(list(given))
        return Encoded(np.array([[len(t), 1.0] for t in given], np.float32))

    encoder = replace(ENCODERS["minilm-l6@1"], id="count@1", revision="1", width=2, encode=distinct_first(texts))
    monkeypatch.setitem(ENCODERS, encoder.id, encoder)
    return asked


def test_attributes_are_standardised_and_constant_columns_stay_as_zeros():
    got = standardised(made().items).features
    assert got.dtype == np.float32
    assert got.shape == (4, 3)
    np.testing.assert_allclose(got.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(got.std(axis=0), [1, 0, 1], atol=1e-6)


def test_standardising_undoes_scale_and_shift():
    table = made().items.attributes
    moved = made(attributes=(table * [2, 1, 1000] + [7, 3, -5]).astype(np.float32))
    np.testing.assert_allclose(standardised(moved.items).features, standardised(made().items).features, atol=1e-4)


def test_rounding_noise_in_a_constant_column_is_not_blown_up():
    table = np.full((4, 3), np.float32(0.1) * 3e4)
    table[:, 1] = np.nextafter(table[:, 1], np.float32(np.inf))
    assert not standardised(made(attributes=table.astype(np.float32)).items).features.any()


def test_text_without_attributes_names_the_encoder_to_use():
    with pytest.raises(RequestError, match=r"tabular@1 needs items with attributes.*minilm-l6@1"):
        standardised(Items(("",), ("text",)))


def test_attributes_that_are_not_finite_are_named():
    table = made().items.attributes.copy()
    table[2, 0] = np.nan
    with pytest.raises(DataError, match="attribute 'x' of item 2 is nan"):
        standardised(made(attributes=table).items)


def test_an_unknown_encoder_is_told_the_nearest():
    with pytest.raises(RequestError, match=r"Did you mean 'minilm-l6@1'\?"):
        find_encoder("minilm-l6")


def test_every_encoder_is_registered_under_its_id_and_pinned():
    for name, encoder in ENCODERS.items():
        assert name == encoder.id
        assert len(encoder.revision) == 64
        assert encoder.reads in ("text", "attributes")


def test_distinct_texts_are_encoded_once(counting, empty_home):
    data = made(texts=("a", "bb", "a", "bb"))
    got = features(data, "count@1")
    assert counting == [["p\na", "p\nbb"]]
    assert got[:, 0].tolist() == [3, 4, 3, 4]


def test_features_are_a_read_only_map_of_a_cached_file(counting, empty_home):
    got = features(made(), "count@1")
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    assert isinstance(got, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        got[0, 0] = 1
    features(made(), "count@1")
    assert len(counting) == 1
    assert features_path(made(), "count@1").parent == empty_home / "features"


@pytest.mark.parametrize("damage", ["truncated", "bit", "empty", "no facts", "broken facts"])
def test_a_damaged_file_is_made_anew(damage, counting, empty_home):
    path = features_path(made(), "count@1")
    raw = path.read_bytes()
    facts = path.with_suffix(".json")
    if damage == "truncated":
        path.write_bytes(raw[:-4])
    elif damage == "bit":
        path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "no facts":
        facts.unlink()
    else:
        facts.write_text("[", encoding="utf-8")
    assert features(made(), "count@1")[:, 0].tolist() == [3, 3, 3, 3]
    assert len(counting) == 2
    assert path.read_bytes() == raw
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".json", ".npy"]


def test_the_key_depends_on_everything_that_moves_a_feature(counting):
    encoder = ENCODERS["count@1"]
    changed = [replace(encoder, **{k: "other"}) for k in ("id", "revision", "template", "pooling")]
    keys = {features_key("digest", e) for e in (encoder, *changed)} | {features_key("other digest", encoder)}
    assert len(keys) == 6
    assert features_key("digest", replace(encoder, title="other", licence="other")) in keys


def test_the_keys_of_features_that_people_have_cached_stay():
    assert features_key("digest", ENCODERS["minilm-l6@1"]) == (
        "659f5addb79865b9c86a24a50dd4334130be8b734e47006f5eb2d2a3c88fdec2"
    )


def test_a_hub_model_of_other_content_has_other_features(empty_home, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    folder = tmp_path / "mirror" / "owner" / "tiny" / "main"
    tiny = load_text_model("tiny-bert@1")
    tiny.trunk.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    monkeypatch.setenv("HETPREF_MIRROR", str(tmp_path / "mirror"))
    first = features_path(made(), "hub:owner/tiny")
    np.testing.assert_allclose(np.load(first), features(made(), "tiny-bert@1"), atol=1e-5)
    assert features_path(made(), "hub:owner/tiny") == first
    next(tiny.trunk.parameters()).add_(1)
    tiny.trunk.save_pretrained(folder)
    assert features_path(made(), "hub:owner/tiny") != first


def test_long_texts_go_in_smaller_batches_and_keep_their_place(monkeypatch):
    pytest.importorskip("transformers")
    texts = ["short", "a" * 200, "medium " * 5, "b" * 90]
    whole = encoders.encode_texts(TEXT_MODELS["tiny-llama@1"], texts)
    assert whole.truncated == 1
    monkeypatch.setattr(encoders, "BATCH_TOKENS", 1)
    alone = encoders.encode_texts(TEXT_MODELS["tiny-llama@1"], texts)
    np.testing.assert_allclose(whole.features, alone.features, atol=1e-4)


def test_other_content_has_other_features(counting, empty_home):
    assert features_path(made(), "count@1") != features_path(made(texts=("a", "b", "c", "e")), "count@1")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.full((4, 2), np.nan), "not finite for 4 items of made@1, first item 0"),
        (np.ones((3, 2)), r"gave shape \(3, 2\) for 4 items"),
        (np.ones(4), r"gave shape \(4,\)"),
    ],
)
def test_a_broken_encoder_leaves_no_file(given, message, monkeypatch, empty_home):
    encoder = Encoder("broken@1", "", "text", "1", "", "", 2, "", lambda items: Encoded(given))
    monkeypatch.setitem(ENCODERS, "broken@1", encoder)
    with pytest.raises(DataError, match=message):
        features(made(), "broken@1")
    assert not list(empty_home.rglob("*.npy"))


def test_a_killed_write_leaves_no_half_file(counting, empty_home, monkeypatch):
    def killed(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache.np, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        features(made(), "count@1")
    assert not [p for p in empty_home.rglob("*") if p.is_file()]


def test_a_full_disk_is_told_and_leaves_no_half_file(empty_home):
    pytest.importorskip("resource")
    code = (
        "import resource\n"
        "from datasets_registry import load\n"
        "from datasets_registry.errors import DataError\n"
        "from datasets_registry.features import features\n"
        "data = load('planted@1+d=6+rank=2+units=30+users=40')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
        "try:\n"
        "    features(data)\n"
        "except DataError as why:\n"
        "    print(why)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"cannot write \S+\.npy \(.+\); set HETPREF_HOME to .*, with space\n", done.stdout)
    assert not [p for p in empty_home.rglob("*") if p.is_file()]


def test_facts_tell_what_was_encoded(empty_home):
    facts = features_facts(made())
    assert facts["dataset"] == "made@1"
    assert facts["dataset_digest"] == made().digest
    assert facts["shape"] == [4, 3]
    assert facts["truncated"] == 0
    json.dumps(facts)


def test_tabular_features_of_a_built_in_dataset(electricity):
    got = features(electricity)
    assert got.shape == electricity.items.attributes.shape
    assert np.isfinite(got).all()


def test_missing_transformers_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(RequestError, match=r"pip install 'hetpref\[encoders\]'"):
        encoders.minilm_texts(["text"])


def test_importing_encoders_does_not_import_torch_or_transformers():
    code = "import sys, datasets_registry.features as f; print({'torch', 'transformers', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.slow
def test_minilm_reads_meaning_in_any_batch(capsys):
    pytest.importorskip("transformers")
    texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "The stock market fell today.", "word " * 600]
    got = encoders.minilm_texts(texts)
    assert got.features.shape == (4, ENCODERS["minilm-l6@1"].width)
    assert got.truncated == 1
    assert "1 of 4 texts are longer than 256 tokens" in capsys.readouterr().err
    np.testing.assert_allclose(np.linalg.norm(got.features, axis=1), 1, atol=1e-5)
    near, far = got.features[0] @ got.features[1], got.features[0] @ got.features[2]
    assert near > far + 0.3
    alone = np.concatenate([encoders.minilm_texts([t]).features for t in texts])
    np.testing.assert_allclose(alone, got.features, atol=2e-5)
    assert (encoders.minilm_texts(texts).features == got.features).all()
    assert {p.name for p in model_folder(MINILM).iterdir()} == set(MINILM.files)
