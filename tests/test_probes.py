"""Probes: leaks that public pipelines had are caught, clean data pass."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.pitfalls.list_formatting import leaked
from datasets_registry import load
from datasets_registry.duplicates import Overlap, nearest_jaccard, overlap, signatures
from datasets_registry.errors import DataError
from datasets_registry.format_features import FORMAT_NAMES, format_features, skeleton
from datasets_registry.orientation import oriented
from datasets_registry.probes import MARGIN, ProbeReport, checked_probe, probe
from datasets_registry.records import Card, Comparisons, Items, PreferenceData, Users
from datasets_registry.splits import split

CARD = Card("made@1", "made", "nobody", "CC0", "none needed", "simulated", "1", "", "none", simulated=True)
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "lorem", "ipsum", "dolor", "sit", "amet", "sed"]


def sentences(n, rng):
    return [" ".join(rng.choice(WORDS, rng.integers(5, 15))) for _ in range(n)]


def made(chosen=lambda t: t, rejected=lambda t: t, seed=0, n_users=30, per_user=20, n_prompts=40):
    """Every comparison has two responses of its own, rendered by whether they were chosen; orientation is seeded."""
    rng = np.random.default_rng(seed)
    n = n_users * per_user
    texts = [chosen(t) for t in sentences(n, rng)] + [rejected(t) for t in sentences(n, rng)]
    place = rng.permutation(2 * n)  # so that the row of an item tells nothing
    prompts = sentences(n_prompts, rng)
    unit = rng.integers(0, n_prompts, n)
    response, prompt = [""] * (2 * n), [""] * (2 * n)
    for k in range(2 * n):
        response[place[k]], prompt[place[k]] = texts[k], f"{prompts[unit[k % n]]} {unit[k % n]}?"
    data = PreferenceData(
        id=CARD.name,
        card=CARD,
        users=Users(tuple(map(str, range(n_users)))),
        items=Items(tuple(prompt), tuple(response)),
        comparisons=Comparisons.of(
            user=np.repeat(np.arange(n_users), per_user),
            unit=unit,
            first=place[:n],
            second=place[n:],
            label=np.ones(n),
        ),
        unit_cluster=np.arange(n_prompts, dtype=np.int32),
        clusters=tuple(map(str, range(n_prompts))),
    )
    return oriented(data)


def test_clean_data_pass():
    report = probe(made())
    assert report.refusals == ()
    assert not report.format.refuse
    assert abs(report.length.longer - 0.5) < 0.1
    assert report.length.longer + report.length.shorter == 1
    assert report.overlap.exact == 0


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        (lambda t: t, lambda t: f"['{t}']"),
        (lambda t: t, lambda t: f"{t} "),
        (lambda t: f"{t}.", lambda t: t),
        (lambda t: f"- {t}", lambda t: f"* {t}"),
        (lambda t: t.replace(" ", "\n", 1), lambda t: t),
        (lambda t: f'"{t}"', lambda t: f"'{t}'x"),
        (lambda t: f"{t}, {t}", lambda t: f"{t}; {t}"),
    ],
    ids=["list", "blank at the end", "full stop", "bullet", "line break", "quotes", "separator"],
)
def test_a_format_that_separates_the_classes_is_refused(chosen, rejected):
    report = probe(made(chosen, rejected))
    assert report.format.accuracy > 0.99
    assert report.format.refuse
    assert any("format" in why and "Render chosen and rejected" in why for why in report.refusals)


def test_a_weak_leak_is_refused_and_noise_is_not():
    rng = np.random.default_rng(0)

    def half(text):
        return f"[{text}]" if rng.random() < 0.5 else text

    assert probe(made(rejected=half)).format.refuse
    assert not probe(made(half, half)).format.refuse


def test_length_alone_is_reported_and_not_refused():
    report = probe(made(rejected=lambda t: t[: len(t) // 3].strip()))
    assert report.length.longer > 0.95
    assert report.format.length > 0.95
    assert report.refusals == ()


def test_chosen_always_first_is_refused():
    data = made()
    c = data.comparisons
    turn = c.label < 0.5
    first = np.where(turn, c.second, c.first)
    second = np.where(turn, c.first, c.second)
    leak = replace(data, comparisons=replace(c, first=first, second=second, label=np.ones(len(c), np.float32)))
    report = probe(leak)
    assert report.orientation.first == 1
    assert report.orientation.refuse
    assert any("`first` is preferred in 100.0%" in why for why in report.refusals)
    assert not probe(data).orientation.refuse


def test_a_choice_that_can_be_read_off_the_item_row_is_refused():
    data = made()
    n = len(data.items) // 2
    c = Comparisons.of(
        user=data.comparisons.user,
        unit=data.comparisons.unit,
        first=np.arange(n),
        second=np.arange(n, 2 * n),
        label=np.ones(n),
    )
    report = probe(oriented(replace(data, comparisons=c)))
    assert report.orientation.lower_row == 1
    assert not any("`first`" in why for why in report.refusals)
    assert any("lower row" in why for why in report.refusals)


def test_form_that_follows_from_the_attributes_is_content():
    data = made(lambda t: f"By car: {t}", lambda t: f"By train, {t}")
    by_car = np.array([[r.startswith("By car")] for r in data.items.response], np.float32)
    with_attributes = replace(data, items=replace(data.items, attributes=by_car, attribute_names=("car",)))
    assert probe(data).format.refuse
    report = probe(with_attributes)
    assert report.format.accuracy > 0.99
    assert report.format.known > 0.99
    assert report.refusals == ()


def test_a_leak_beside_attributes_is_refused_though_their_length_gives_it_away_too():
    """A length follows from a text's attributes, so what it has beyond them is form: "['...']" is four longer."""
    data = leaked(load("electricity@1"))
    report = probe(data)
    assert report.format.accuracy > 0.9
    assert report.format.known < 0.8
    assert report.format.refuse


def test_the_norm_of_an_encoder_must_not_tell():
    data = made()
    c = data.comparisons
    preferred = np.where(c.label > 0.5, c.first, c.second)
    features = np.random.default_rng(0).normal(size=(len(data.items), 4))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    clean = probe(data, features.astype(np.float32))
    assert clean.norm is not None
    assert clean.refusals == ()
    features[preferred] *= 1.5
    report = probe(data, features.astype(np.float32))
    assert report.norm is not None
    assert report.norm.difference > MARGIN
    assert any("encoder norm" in why for why in report.refusals)


def test_query_prompts_that_stand_in_training_are_refused():
    data = made(n_prompts=10)
    # Every prompt with its responses twice, the second time as another unit of another cluster.
    n = len(data.unit_cluster)
    twice = Comparisons.concatenate([data.comparisons, replace(data.comparisons, unit=data.comparisons.unit + n)])
    leak = replace(
        data,
        comparisons=twice,
        unit_cluster=np.arange(2 * n, dtype=np.int32),
        clusters=tuple(map(str, range(2 * n))),
    )
    report = probe(leak)
    assert report.overlap.exact > 0.2
    assert any("verbatim" in why for why in report.refusals)
    assert overlap(data, split(data)).exact == 0


def test_near_duplicates_are_found_and_other_texts_are_not():
    text = "the quick brown fox jumps over the lazy dog and then it sleeps for a very long while in the warm sun"
    near, far = nearest_jaccard([f"{text}!", "completely different words are standing right here"], [text, "x", ""])
    assert near >= 0.9
    assert far < 0.2
    assert nearest_jaccard(["a"], []).tolist() == [0]
    assert (signatures(["A  b"]) == signatures(["a b"])).all()


def test_minhash_estimates_the_jaccard_similarity():
    rng = np.random.default_rng(0)
    letters = rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 3000)
    a, b = "".join(letters[:2000]), "".join(letters[1000:])
    grams = [{t[i : i + 5] for i in range(len(t) - 4)} for t in (a, b)]
    exact = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
    assert nearest_jaccard([a], [b])[0] == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 128))


def test_the_form_does_not_see_words_or_numbers():
    a, b = format_features(["Plan A costs 7 cents, for 12 years.", "Plan B takes 10,5 dimes, for 3 weeks."])
    assert np.abs(a - b).max() < 0.02  # the share of digits and capitals moves with the length of the words
    assert skeleton("one two 3") == "_"
    assert len(FORMAT_NAMES) == 12


def test_a_report_is_json_and_is_kept_by_content(empty_home):
    data = made()
    report = probe(data)
    told = json.loads(json.dumps(report.to_dict()))
    assert ProbeReport.of(told) == report
    assert checked_probe(data) == report
    (kept,) = empty_home.rglob("*.json")
    kept.write_text(json.dumps(told | {"refusals": ["from the cache"]}), encoding="utf-8")
    assert checked_probe(data).refusals == ("from the cache",)
    kept.write_text("{", encoding="utf-8")
    assert checked_probe(data) == report
    assert isinstance(report.overlap, Overlap)


def test_ties_alone_cannot_be_probed():
    data = made()
    ties = replace(data, comparisons=replace(data.comparisons, label=np.full(len(data.comparisons), 0.5, np.float32)))
    with pytest.raises(DataError, match="no ties"):
        probe(ties)


def test_data_that_break_the_probe_are_refused_by_name(empty_home):
    data = made()
    attributes = np.full((len(data.items), 1), np.nan)
    broken = replace(data, items=replace(data.items, attributes=attributes, attribute_names=("x",)))
    with pytest.raises(DataError, match=r"^made@1 cannot be probed for leaks \(ValueError: .*NaN.*loader gives$"):
        checked_probe(broken)
    assert not list(empty_home.rglob("*.json"))


@pytest.mark.parametrize("name", ["electricity@1", "train@1", "swissmetro@1", "movielens100k@1", "planted@1"])
def test_built_in_datasets_pass(name):
    assert checked_probe(load(name)).refusals == ()


@pytest.mark.parametrize("name", ["llmfao@1", "polis-bowling-green@1"])
def test_mirrored_datasets_pass(name, load_mirrored):
    assert checked_probe(load_mirrored(name)).refusals == ()
