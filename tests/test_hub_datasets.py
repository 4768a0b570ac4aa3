"""The hub's datasets on made tables in their exact schemas: what is taken, which traps are removed, what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hub_dataset_fixtures import (
    MAKERS,
    Made,
    Row,
    arena_made,
    community_made,
    helpsteer_made,
    prism_made,
    prism_personalized_made,
    prism_rows,
    prism_with_lists,
    rank,
    ultrafeedback_made,
    write_mirror,
)

from datasets_registry import find_dataset, load, registry
from datasets_registry.catalog import _personalllm, _ultrafeedback, community_alignment, helpsteer2_attributes
from datasets_registry.errors import DataError, RequestError
from datasets_registry.probes import probe
from datasets_registry.records import PreferenceData
from datasets_registry.splits import split
from datasets_registry.text_pairs import Texts

# Of fold 0: a loader that changes what it takes, or in what order, changes its number, and needs a new version.
SPLITS = {
    "tldr-workers@1": "032b3754d46c5331",
    "tldr-length-synthetic@1+people=30+units=20": "71dae21b08ad83d3",
    "prism@1": "538eee08f4641799",
    "prism-personalized@1": "e2b522c14e063998",
    "arena-personalized@1": "8d6e22c7e0a914ab",
    "personalllm-z10-a0.01-rand2@1+people=30+units=30": "8c9e169e3ca3d058",
    "personalllm-raw-a0.1-bestworst@1+people=30+units=30": "21517695e7e250b6",
    "community-alignment@1": "6f054dd3078a622b",
    "ultrafeedback-p2@1": "a3b75dd8663229e1",
    "ultrafeedback-p4@1": "a262845e99a15767",
    "helpsteer2-attributes@1": "72eddce41138b15e",
}
Load = Callable[[str, Made], PreferenceData]


@pytest.fixture
def load_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return a loader of a spec from a mirror that holds a made dataset."""

    def loaded(spec: str, made: Made) -> PreferenceData:
        write_mirror(tmp_path, made)
        monkeypatch.setenv("HETPREF_MIRROR", str(tmp_path))
        registry._loaded.cache_clear()
        return load(spec)

    return loaded


def said(data: PreferenceData) -> list[tuple[str, str, str, str]]:
    """Return (person, prompt, preferred, other) of every comparison that is no tie."""
    c, items = data.comparisons, data.items
    won, lost = np.where(c.label > 0.5, c.first, c.second), np.where(c.label > 0.5, c.second, c.first)
    rows = np.flatnonzero(c.label != 0.5)
    return [
        (data.users.ids[c.user[k]], items.prompt[won[k]], items.response[won[k]], items.response[lost[k]]) for k in rows
    ]


def plain(text: str) -> str:
    return " ".join(text.casefold().split())


@pytest.mark.parametrize("spec", MAKERS)
def test_a_made_table_loads_splits_as_ever_and_passes_the_probes(spec: str, load_made: Load):
    data = load_made(spec, MAKERS[spec]())
    assert split(data).digest[:16] == SPLITS[spec]
    assert probe(data).refusals == ()
    for text in (*data.items.prompt, *data.items.response):
        assert type(text) is str
        assert text.strip()
    assert data.card.revision == MAKERS[spec]().source.revision
    assert data.card.sha256


@pytest.mark.parametrize("spec", MAKERS)
def test_no_prompt_is_in_two_clusters_whatever_its_case_and_blanks(spec: str, load_made: Load):
    data = load_made(spec, MAKERS[spec]())
    cluster: dict[str, set[int]] = {}
    for unit, item in zip(data.comparisons.unit.tolist(), data.comparisons.first.tolist(), strict=True):
        opening = plain(data.items.prompt[item].partition("\n\nAssistant: ")[0].partition("POST: ")[2] or "")
        opening = opening or plain(data.items.prompt[item].partition("\n\nAssistant: ")[0])
        cluster.setdefault(opening, set()).add(int(data.unit_cluster[unit]))
    assert {len(found) for found in cluster.values()} == {1}
    assert len(cluster) == len(data.clusters)


@pytest.mark.parametrize("spec", MAKERS)
def test_other_columns_are_told_with_those_expected(spec: str, load_made: Load, tmp_path: Path):
    made = MAKERS[spec]()
    gone = made.source.columns[-1].partition(".")[0]
    first = next(iter(made.rows))
    write_mirror(tmp_path, made)
    path = tmp_path / made.source.repository / made.source.revision / made.source.config / f"{first}.parquet"
    broken = Made(made.source, {first: made.rows[first][:1]}, pa.schema([f for f in made.schema if f.name != gone]))
    with pytest.raises(DataError, match=rf"{gone}\S* missing\. Found: .*Expected: {made.source.columns[0]}"):
        load_made(spec, broken)
    assert path.is_file()


def test_the_probe_refuses_prism_with_rejected_answers_as_lists(load_made: Load):
    data = load_made("prism@1", prism_with_lists())
    report = probe(data)
    assert report.format.refuse
    assert "the format of a response predicts the label" in report.refusals[0]


def test_an_answer_that_is_a_list_on_the_hub_is_refused_and_not_rendered(load_made: Load):
    made = prism_made()
    schema = made.schema.set(
        made.schema.get_field_index("model_response"), pa.field("model_response", pa.list_(pa.string()))
    )
    rows = [row | {"model_response": [row["model_response"]]} for row in made.rows["train"]]
    with pytest.raises(DataError, match=r"model_response is list<.*only text is allowed here"):
        load_made("prism@1", Made(made.source, {"train": rows}, schema))


def prism_expected(delta: int) -> set[tuple[str, str, str, str]]:
    """Return what people said by PRISM's rows, the plain way."""
    rows = prism_rows()
    turns: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        turns.setdefault((row["conversation_id"], row["turn"]), []).append(row)
    found: set[tuple[str, str, str, str]] = set()
    for (conversation, turn), answers in turns.items():
        before = [turns[conversation, k] for k in range(turn)]
        taken = [next(row for row in each if row["if_chosen"]) for each in before]
        told = [f"User: {row['user_prompt']}\n\nAssistant: {row['model_response']}\n\n" for row in taken]
        prompt = "".join(told) + f"User: {answers[0]['user_prompt']}"
        for a in answers:
            for b in answers:
                texts = a["model_response"], b["model_response"]
                words = [text.strip() for text in texts]
                if a["score"] - b["score"] >= delta and all(words) and words[0] != words[1]:
                    found.add((a["user_id"], prompt, *texts))
    return found


@pytest.mark.parametrize("delta", [1, 5, 40])
def test_prism_pairs_differ_by_delta_and_a_prompt_is_what_was_said_before(delta: int, load_made: Load):
    data = load_made(f"prism@1+delta={delta}", prism_made())
    told = said(data)
    assert set(told) == prism_expected(delta)
    assert len(told) == len(data.comparisons)
    with pytest.raises(RequestError, match="delta=0 of prism@1; allowed: 1 to 99"):
        load("prism@1+delta=0")


def test_everybody_who_says_hello_is_in_one_cluster(load_made: Load):
    data = load_made("prism@1", prism_made())
    hello = {
        int(data.unit_cluster[unit])
        for unit, item in zip(data.comparisons.unit, data.comparisons.first, strict=True)
        if plain(data.items.prompt[item]).startswith("user: hello there")
    }
    assert len(hello) == 1


@pytest.mark.parametrize(
    ("spec", "maker"), [("prism-personalized@1", prism_personalized_made), ("arena-personalized@1", arena_made)]
)
def test_what_stands_in_two_splits_is_one_cluster_and_counted_once(
    spec: str, maker: Callable[[], Made], load_made: Load
):
    made = maker()
    data = load_made(spec, made)
    told = said(data)
    assert len(set(told)) == len(told) == len(data.comparisons)
    assert not [text for text in data.items.response if "[" in text or "{" in text]
    rows = [row for part in made.rows.values() for row in part]
    contexts: dict[str, set[str]] = {}
    for row in rows:
        if row["context"]:
            contexts.setdefault(row["context"][0]["content"], set()).add(row["split"])
    assert max(map(len, contexts.values())) > 1
    assert len(data.users) == 15
    # An answer that was rated lower than the other one is dropped where there are scores to tell.
    assert ("Never kitten." in data.items.response) == spec.startswith("arena")
    prompts = [prompt for prompt in data.items.prompt if "Assistant: " in prompt]
    assert prompts
    assert all(prompt.startswith("User: ") and prompt.endswith("User: And then?") for prompt in prompts)


@pytest.mark.parametrize("spec", [spec for spec in MAKERS if spec.startswith("personalllm")])
def test_people_are_mixtures_and_their_utilities_are_known(spec: str, load_made: Load):
    data = load_made(spec, MAKERS[spec]())
    assert data.truth is not None
    assert data.items.attributes is not None
    theta, attributes, c = data.truth.theta, data.items.attributes.astype(np.float64), data.comparisons
    assert theta.shape == (len(data.users), 10)
    assert np.allclose(theta.sum(axis=1), 1, atol=1e-5)
    margin = np.einsum("nk,nk->n", theta[c.user], attributes[c.first] - attributes[c.second])
    clear = np.abs(margin) > 1e-4
    assert clear.mean() > 0.95
    assert ((margin > 0) == (c.label > 0.5))[clear].all()
    assert np.array_equal(load(spec).truth.theta, theta)
    assert np.bincount(c.user).max() <= 30
    with pytest.raises(DataError, match=r"units=500 of personalllm-\S+, and there are 12\d prompts at hand"):
        load(spec.replace("units=30", "units=500"))
    with pytest.raises(RequestError, match="people=1, units=30 of personalllm"):
        load(spec.replace("people=30", "people=1"))


def test_mixtures_of_the_papers_people_are_those_of_its_code(load_made: Load):
    spec = next(spec for spec in MAKERS if spec.startswith("personalllm-z10"))
    theta = load_made(spec, MAKERS[spec]()).truth.theta
    drawn = np.random.RandomState(100).dirichlet([0.01] * 10, 30).astype(np.float32)
    assert np.array_equal(theta, drawn)
    assert (theta.max(axis=1) > 0.9).mean() > 0.8


def test_eight_responses_are_a_whole_tournament_as_best_of_eight_needs(load_made: Load):
    spec = "personalllm-z10-a0.01-rand2@1+people=12+units=20+responses=8"
    data = load_made(spec, MAKERS["personalllm-z10-a0.01-rand2@1+people=30+units=30"]())
    c = data.comparisons
    members: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for user, unit, a, b in zip(c.user.tolist(), c.unit.tolist(), c.first.tolist(), c.second.tolist(), strict=True):
        members.setdefault((user, unit), []).append((a, b))
    sizes = Counter(len({item for pair in pairs for item in pair}) for pairs in members.values())
    assert sizes.most_common(1)[0][0] == 8
    for pairs in members.values():
        k = len({item for pair in pairs for item in pair})
        assert len({tuple(sorted(pair)) for pair in pairs}) == k * (k - 1) // 2
    with pytest.raises(RequestError, match="responses=9 of personalllm"):
        load(spec.replace("responses=8", "responses=9"))


def test_the_best_of_eight_is_compared_with_the_worst(load_made: Load):
    spec = next(spec for spec in MAKERS if spec.startswith("personalllm-raw"))
    made = MAKERS[spec]()
    data = load_made(spec, made)
    by_prompt = {f"{row['prompt']}": row for part in made.rows.values() for row in part}
    for who, prompt, won, lost in said(data)[:200]:
        theta = data.truth.theta[data.users.ids.index(who)].astype(np.float64)
        row = by_prompt[prompt]
        score = [
            sum(t * row[f"response_{n}_{model}"] for t, model in zip(theta, _personalllm.MODELS, strict=True))
            for n in range(1, 9)
        ]
        texts = [row[f"response_{n}"] for n in range(1, 9)]
        # Equal answers are one item, which has the scores of the first.
        mine = {text: score[texts.index(text)] for text in texts}
        assert mine[won] == pytest.approx(max(mine.values()), abs=1e-3)
        assert mine[lost] == pytest.approx(min(mine.values()), abs=1e-3)


def test_community_alignment_ends_at_a_gap_and_takes_the_best_against_the_others(load_made: Load):
    made = community_made()
    data = load_made("community-alignment@1", made)
    told = said(data)
    assert "EMPTY STRING" not in data.items.response
    expected: set[tuple[str, str, str, str]] = set()
    for row in made.rows["train"]:
        before = ""
        for turn in community_alignment.TURNS:
            prompt, choice = row[f"{turn}_turn_prompt"], row[f"{turn}_turn_preferred_response"]
            if prompt is None or choice is None:
                break
            texts = {letter: row[f"{turn}_turn_response_{letter}"] for letter in "abcd"}
            best = texts[choice[-1]]
            asked = f"{before}User: {prompt}"
            for text in texts.values():
                if text not in ("EMPTY STRING", best):
                    expected.add((row["annotator_id"], asked, best, text))
            before = f"{asked}\n\nAssistant: {best}\n\n"
    assert set(told) == expected
    assert len(data.clusters) == 30
    person = {f"a{n}": n for n in range(24)}
    assert all(rank(person[who], won) >= rank(person[who], lost) for who, _, won, lost in told)


def test_community_alignment_can_be_one_language_and_refuses_unknown_choices(load_made: Load):
    made = community_made()
    whole = len(load_made("community-alignment@1", made).comparisons)
    parts = [len(load(f"community-alignment@1+language={name}").comparisons) for name in ("en", "fr")]
    assert sum(parts) == whole
    with pytest.raises(RequestError, match="language=de of community-alignment@1; allowed: all, en, fr"):
        load("community-alignment@1+language=de")
    made.rows["train"][5]["second_turn_preferred_response"] = "response_e"
    with pytest.raises(DataError, match="second_turn_preferred_response holds 'response_e'; expected are response_a"):
        load_made("community-alignment@1", made)


@pytest.mark.parametrize("people", [2, 4])
def test_ultrafeedback_has_strict_disagreements_and_no_coin(people: int, load_made: Load):
    made = ultrafeedback_made()
    data = load_made(f"ultrafeedback-p{people}@1", made)
    aspects = _ultrafeedback.ASPECTS[:people]
    expected: set[tuple[str, str, str, str]] = set()
    for row in made.rows["train"]:
        answers = row["completions"]
        for n, a in enumerate(answers):
            for b in answers[:n]:
                rates = [[each["annotations"][aspect]["Rating"] for each in (a, b)] for aspect in aspects]
                sign = [0 if "N/A" in pair else (pair[0] > pair[1]) - (pair[0] < pair[1]) for pair in rates]
                if not {1, -1} <= set(sign) or not (a["response"] and b["response"]):
                    continue
                for aspect, ahead in zip(aspects, sign, strict=True):
                    if ahead and a["response"] != b["response"]:
                        pair = (a["response"], b["response"])[::ahead]
                        expected.add((aspect, row["instruction"], *pair))
    told = said(data)
    assert set(told) == expected
    assert set(data.users.ids) == set(aspects)
    assert (data.comparisons.label != 0.5).all()


def test_helpsteer_takes_no_ties_and_joins_its_splits(load_made: Load):
    made = helpsteer_made()
    data = load_made("helpsteer2-attributes@1", made)
    rows = [row for part in made.rows.values() for row in part]
    expected = {
        (name, a["prompt"], a["response"], b["response"])
        for one, other in zip(rows[::2], rows[1::2], strict=True)
        for a, b in ((one, other), (other, one))
        for name in helpsteer2_attributes.PEOPLE
        if a[name] > b[name] and a["response"] != b["response"]
    }
    assert set(said(data)) == expected
    assert set(data.users.ids) == set(helpsteer2_attributes.PEOPLE)


def test_all_workers_of_the_training_split_are_taken_with_what_they_said_elsewhere(load_made: Load):
    made = MAKERS["tldr-workers@1"]()
    stranger = made.rows["validation"][0] | {"worker": "only-here"}
    stranger["info"] = stranger["info"] | {"post": "A post."}
    data = load_made(
        "tldr-workers@1",
        Made(made.source, made.rows | {"validation": [*made.rows["validation"], stranger]}, made.schema),
    )
    on_posts = {row["worker"] for row in made.rows["train"] if row["info"]["post"]}
    assert set(data.users.ids) == {f"worker-{name}" for name in on_posts}
    posts = {row["info"]["post"] for part in made.rows.values() for row in part if row["info"]["post"]}
    assert {prompt.partition("POST: ")[2] for prompt in data.items.prompt} <= posts


def test_simulated_tastes_in_length_are_what_length_says(load_made: Load):
    spec = "tldr-length-synthetic@1+people=30+units=20"
    data = load_made(spec, MAKERS[spec]())
    short = {name for name, theta in zip(data.users.ids, data.truth.theta[:, 0], strict=True) if theta < 0}
    assert len(short) == 9
    for who, _, won, lost in said(data):
        assert (len(won) < len(lost)) == (who in short)
    assert np.array_equal(data.items.attributes[:, 0], [len(text) for text in data.items.response])
    assert (np.bincount(data.comparisons.user) == 20).all()
    assert load(f"{spec}+short=0").truth.theta.min() == 1
    assert load(f"{spec}+seed=1").digest != data.digest
    for wrong in ("people=1", "units=0", "short=1.5"):
        with pytest.raises(RequestError, match=wrong):
            load(f"tldr-length-synthetic@1+{wrong}")


def test_cards_say_what_a_user_must_know():
    for spec in MAKERS:
        card = find_dataset(spec).card
        assert card.licence
        assert card.source.startswith("huggingface.co/datasets/")
        assert len(card.notes) > 200


def test_texts_name_what_is_not_text():
    with pytest.raises(DataError, match=r"answer is list<\S+ string>; only text is allowed here"):
        Texts.of(pa.array([["a"]]), "answer")
    with pytest.raises(DataError, match="answer is int64"):
        Texts.of(pa.array([1]), "answer")
    missing = Texts.of(pa.nulls(2), "answer")
    assert missing.codes.tolist() == [-1, -1]
    joined = Texts.concatenate([Texts.of(pa.array(["a", None]), "x"), Texts.of(pa.chunked_array([["b"], ["a"]]), "y")])
    assert joined.arrow().to_pylist() == ["a", None, "b", "a"]
