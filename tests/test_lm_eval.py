"""The bridge to lm-eval: exported tasks are run by lm-eval itself, and its numbers are the leaderboard's."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.export import app as export_app
from benchmarks.lm_eval_bridge import tasks
from benchmarks.lm_eval_bridge.export import Exported, export_tasks, must_be_ours, task_name
from benchmarks.lm_eval_bridge.reward_lm import Adapted, Rewards, adapted
from benchmarks.runner import Options, planned_cells, run_suite
from benchmarks.suites import DatasetPlan, MethodPlan, Suite
from datasets_registry.errors import DataError, RequestError
from datasets_registry.splits import split
from leaderboard.labels import Labels
from leaderboard.metrics import METRICS
from leaderboard.scoring import gather, panels
from methods.prompt.rendering import HistoryBudget

LM_EVAL = importlib.util.find_spec("lm_eval") is not None
needs_lm_eval = pytest.mark.skipif(not LM_EVAL, reason="lm-eval is not installed: tox run -e lm-eval")
TASK = "hetpref_electricity_unseen"
PLAN = DatasetPlan("electricity@1", "tabular@1", n_train=(4,), n_support=(1,), regimes=("unseen",))
TOLERANCE = 1e-12


class Silent:
    def note(self, text):
        pass

    def planned(self, total, finished):
        pass

    def ended(self, cell, outcome):
        pass


def suite(*methods):
    plans = tuple(m if isinstance(m, MethodPlan) else MethodPlan(m, {}) for m in methods)
    return Suite("parity", "parity", (PLAN,), plans, 1, 300, 8192, user_shuffle=False)


def our_scores(wanted, folder):
    """Return acc_macro and worst10 by method, as the leaderboard computes them."""
    summary = run_suite(wanted, folder, Options(), Silent())
    assert not summary.failed
    labels = Labels()
    (panel,) = panels(gather([folder], labels), labels)
    values = {name: METRICS[name](panel).value for name in ("acc_macro", "worst10")}
    return {c.entrant.method: {n: float(v[k]) for n, v in values.items()} for k, c in enumerate(panel.columns)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm-eval") / "tasks"
    settings = Exported(n_support=1, history_tokens=4096, response_tokens=512)
    export_tasks(["electricity"], folder, settings)
    return folder


@pytest.fixture(scope="module")
def documents(electricity):
    cut = split(electricity)
    return tasks.rows(electricity, cut, "unseen", "all", 1, HistoryBudget())


def evaluated(lm, folder, name=TASK):
    """Return what lm-eval says of a model on an exported task."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=lm, tasks=[name], task_manager=manager, bootstrap_iters=0, log_samples=False, cache_requests=False
    )
    return {key.partition(",")[0]: value for key, value in found["results"][name].items()}


def test_an_export_says_what_it_is(exported):
    names = sorted(path.name for path in exported.iterdir())
    assert names == [
        "README.md",
        "hetpref.yaml",
        "hetpref_electricity.yaml",
        "hetpref_electricity_seen.yaml",
        "hetpref_electricity_unseen.yaml",
    ]
    text = (exported / f"{TASK}.yaml").read_text()
    for line in ("output_type: multiple_choice", "  version: 1", '  protocol: "2026.1"', "  n_support: 1"):
        assert line in text.splitlines()
    page = (exported / "README.md").read_text()
    assert "--tasks hetpref_electricity_unseen" in page
    assert max(map(len, page.splitlines())) <= 160
    assert not any("kWh" in path.read_text() for path in exported.iterdir())  # no data is exported


def test_names_of_tasks():
    assert task_name("tldr-top5@1", "seen") == "hetpref_tldr_top5_seen"
    assert task_name("llmfao@2", "unseen") == "hetpref_llmfao_v2_unseen"


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RequestError, match=r"thesis\.tex"):
        must_be_ours(tmp_path)
    with pytest.raises(RequestError, match="is a file"):
        must_be_ours(tmp_path / "thesis.tex")


def test_the_command_exports(tmp_path):
    from typer.testing import CliRunner

    asked = ["lm-eval", "--datasets", "electricity", "--out", str(tmp_path / "t"), "--n-support", "1"]
    done = CliRunner().invoke(export_app, asked)
    assert done.exit_code == 0, done.output
    assert f"--tasks {TASK}" in done.output
    assert (tmp_path / "t" / f"{TASK}.yaml").is_file()


def test_a_document_tells_what_the_person_said_and_not_the_answer(electricity, documents):
    cut = split(electricity)
    assert [doc["row"] for doc in documents] == cut.query("unseen").tolist()
    doc = documents[0]
    told = tasks.text(doc)
    assert told.startswith("One person compared answers.\n\nQuestion: ")
    assert told.endswith("They preferred:")
    assert tasks.choices(doc) == [electricity.items.response[doc[k]] for k in ("first_item", "second_item")]
    assert tasks.target(doc) == (0 if electricity.comparisons.label[doc["row"]] > 0.5 else 1)
    labels = {tasks.target(doc) for doc in documents}
    assert labels == {0, 1}  # the preferred one is not always the first


def test_ties_are_half_and_units_and_people_weigh_the_same(documents):
    doc = documents[0] | {"label": 1.0}
    for answers, expected in (([(-1, False), (-2, False)], 1.0), ([(-2, False), (-1, False)], 0.0)):
        assert tasks.macro([tasks.results(doc, answers)["acc_macro"], (9, 9, 1.0, False)]) == expected / 2
    tie = tasks.results(doc, [(-1.5, False), (-1.5, False)])["acc_macro"]
    assert tasks.macro([tie, (9, 9, -1.0, False)]) == 0.75
    scored = [(0, 0, 1.0, True), (0, 0, -1.0, True), (0, 1, 1.0, True), (1, 0, -1.0, False)]
    assert tasks.macro(scored) == (0.75 + 1) / 2


def test_who_always_prefers_the_first_gets_a_half(documents):
    scored = [tasks.results(doc, [(0, False), (-1, False)])["acc_macro"] for doc in documents]
    assert tasks.macro(scored) == 0.5
    assert tasks.worst_tenth(scored) == pytest.approx(0.5, abs=TOLERANCE)


def test_the_worst_tenth_needs_two_units():
    assert np.isnan(tasks.worst_tenth([(0, 0, 1.0, True), (1, 0, -1.0, True)]))


def test_another_protocol_or_dataset_is_refused(electricity):
    told = {"dataset": "electricity@1", "regime": "unseen", "seed": 0, "n_train": "all", "n_support": 1}
    told |= {"history_tokens": 9, "response_tokens": 9, "dataset_sha256": electricity.digest, "split_sha256": "0" * 64}
    with pytest.raises(DataError, match="the split of electricity@1"):
        tasks.documents(**told, protocol="2026.1")
    with pytest.raises(DataError, match="protocol 1999"):
        tasks.documents(**told, protocol="1999")


@pytest.fixture(scope="module")
def cells():
    wanted = suite("random", "pooled-bt", "per-user-bt", "hierarchical-bt", "p-share-lora-linear")
    return wanted, planned_cells(wanted, Options(), Silent())


class Request:
    def __init__(self, doc, idx):
        self.doc, self.idx = doc, idx


def as_lm_eval_asks(fitted, documents):
    """Return the aggregated scores of a fitted method over documents, without lm-eval."""
    requests = [Request(doc, idx) for doc in documents for idx in (0, 1)]
    answers = Rewards(fitted).loglikelihood(requests)
    found = [tasks.results(doc, answers[2 * k : 2 * k + 2]) for k, doc in enumerate(documents)]
    return {
        "acc_macro": tasks.macro([each["acc_macro"] for each in found]),
        "worst10": tasks.worst_tenth([each["worst10"] for each in found]),
    }


def test_our_scorer_and_the_bridge_agree(cells, documents, exported, tmp_path):
    wanted, planned = cells
    ours = our_scores(wanted, tmp_path)
    for cell in planned:
        name = cell.method.cls.spec.name
        fitted = adapted(cell)
        theirs = as_lm_eval_asks(fitted, documents)
        assert theirs == pytest.approx(ours[name], abs=TOLERANCE), name
        if LM_EVAL:
            from benchmarks.lm_eval_bridge.reward_lm import reward_lm

            found = evaluated(reward_lm(fitted), exported)
            assert {k: found[k] for k in ours[name]} == pytest.approx(ours[name], abs=TOLERANCE), name
    assert len({scores["acc_macro"] for scores in ours.values()}) == len(ours)


def test_a_stranger_is_refused(cells, documents):
    fitted = adapted(next(c for c in cells[1] if c.method.cls.spec.name == "pooled-bt"))
    with pytest.raises(RequestError, match="no state of the person 'nobody'"):
        Rewards(fitted).loglikelihood([Request(documents[0] | {"user": "nobody"}, 0)])
    with pytest.raises(RequestError, match="no state"):
        Rewards(Adapted(fitted.method, {})).loglikelihood([Request({}, 0)])
    with pytest.raises(RequestError, match="no perplexity"):
        Rewards(fitted).loglikelihood_rolling([])
    with pytest.raises(RequestError, match="generates no text"):
        Rewards(fitted).generate_until([])


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Return a folder with a tiny causal model of random weights, which reads 4,096 tokens of a byte each."""
    from transformers import LlamaForCausalLM

    from datasets_registry.tiny_models import tiny_tokenizer, tiny_trunk

    folder = tmp_path_factory.mktemp("local") / "model"
    trunk = tiny_trunk("llama")
    trunk.config.tie_word_embeddings, trunk.config.max_position_embeddings = True, 4096
    model = LlamaForCausalLM(trunk.config)
    model.model = trunk
    model.tie_weights()
    tokenizer = tiny_tokenizer("llama")
    tokenizer.model_max_length = 4096
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@needs_lm_eval
@pytest.mark.slow
def test_lm_eval_itself_runs_an_export_and_equals_our_scorer(exported, local, tmp_path):
    """From another folder, in another process: nothing but the export and the installed packages."""
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={local}", "--tasks", TASK]
    command += ["--include_path", str(exported), "--output_path", str(tmp_path / "out")]
    command += ["--device", "cpu", "--batch_size", "32"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = Path(tmp_path / "out").rglob("results_*.json")
    theirs = json.loads(path.read_text())["results"][TASK]
    method = MethodPlan(
        "in-context", {"lm": f"hf:{local},batch_size=32", "history_tokens": 4096, "response_tokens": 512}
    )
    ours = our_scores(suite(method), tmp_path / "ours")["in-context"]
    assert {name: theirs[f"{name},none"] for name in ours} == pytest.approx(ours, abs=TOLERANCE)


@needs_lm_eval
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::Warning")  # lm-eval's own imports
def test_the_embedded_model_answers_as_lm_evals(local, documents):
    from datasets_registry.tiny_models import tiny_tokenizer
    from methods.prompt.language_models import Asked, open_language_model

    theirs = open_language_model(f"hf:{local},batch_size=4")
    asked = [
        Asked(tasks.text(doc), f" {answer}", doc["history"]) for doc in documents[:6] for answer in tasks.choices(doc)
    ]
    expected = theirs.loglikelihoods(asked)
    assert theirs.count("ab") == len(tiny_tokenizer("llama")("ab")["input_ids"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets_registry.tiny_models.POSITIONS", 4096)
        ours = open_language_model("tiny-llama@1").loglikelihoods(asked)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_without_lm_eval_the_error_says_what_to_install():
    from benchmarks.lm_eval_bridge.reward_lm import reward_lm
    from methods.prompt.language_models import open_language_model

    if LM_EVAL:
        with pytest.raises(RequestError, match=r"unknown backend of lm-eval 'hff'\. Did you mean 'hf'"):
            open_language_model("hff:model")
        return
    for opened in (lambda: open_language_model("hf:model"), lambda: reward_lm(Adapted(None, {}))):
        with pytest.raises(RequestError, match=r"pip install 'hetpref\[lm-eval\]'"):
            opened()
