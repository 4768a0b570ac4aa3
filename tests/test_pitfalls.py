"""The pitfalls: each defect inflates, its honest figure is honest, and the page shows what was recorded."""

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.pitfalls import best_of_test, init_scale, label_thresholds, list_formatting
from benchmarks.pitfalls.__main__ import main
from benchmarks.pitfalls.experiment import PAGE, RECORDED, Wanted, key_of, run
from benchmarks.pitfalls.figures import Figure, Kept, Measured, Report, Row, read_report, write_report
from benchmarks.pitfalls.fits import Asked, Handed, margins, world_of
from benchmarks.pitfalls.registry import PITFALLS, Pitfall
from benchmarks.pitfalls.report import END, NONE, START, block, renew
from benchmarks.pitfalls.scores import Scores, accuracies, queries
from datasets_registry import load
from datasets_registry.errors import DataError, RequestError
from datasets_registry.features import features
from datasets_registry.probes import probe
from datasets_registry.records import Items
from methods.backbone.lesson import layout_of
from methods.registry import create

ROOT = Path(__file__).parent.parent


def quiet(text):
    del text


# list-formatting


def test_in_the_leaked_copy_what_was_preferred_is_plain_and_the_rest_is_a_list(electricity):
    copy, c = list_formatting.leaked(electricity), electricity.comparisons
    texts = copy.items.response
    for row in range(0, len(c), 500):
        first, second = (copy.comparisons.first[row], copy.comparisons.second[row])
        chosen, rejected = (first, second) if c.label[row] > 0.5 else (second, first)
        assert texts[rejected] == str([electricity.items.response[rejected // 2]])
        assert texts[chosen] == electricity.items.response[chosen // 2]
        assert sorted((first // 2, second // 2)) == sorted((c.first[row], c.second[row]))
    np.testing.assert_array_equal(copy.comparisons.label, c.label)


def test_of_a_tie_both_are_plain(electricity):
    c = electricity.comparisons
    tied = replace(electricity, comparisons=replace(c, label=np.full(len(c), 0.5, np.float32)))
    copy = list_formatting.leaked(tied)
    assert not (copy.comparisons.first % 2).any()
    assert not (copy.comparisons.second % 2).any()


def test_a_list_that_is_no_text_is_refused_and_one_that_was_made_text_is_refused_by_the_probe(electricity):
    with pytest.raises(DataError, match="only str is allowed"):
        Items(("a prompt",), (["a response"],))
    texts = list_formatting.text_only(electricity)
    assert not probe(texts).refusals
    (why,) = probe(list_formatting.leaked(texts)).refusals
    assert why.startswith("the format of a response predicts the label with 1.000")


def test_the_probe_refuses_the_leaked_copy_of_real_votes(load_mirrored):
    data = load_mirrored("llmfao@1")
    assert not probe(data).refusals
    (why,) = probe(list_formatting.leaked(data)).refusals
    assert why.startswith("the format of a response predicts the label")


def test_without_any_dataset_there_is_no_figure(empty_home, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    told = []
    with pytest.raises(DataError, match=r"none of nothing@1 could be had"):
        list_formatting.measure(told.append, ("nothing@1",))
    assert "nothing@1 is left out" in told[0]


# best-of-test


def test_the_best_of_many_tests_is_inflated_and_the_validated_epoch_is_not():
    found = best_of_test.measure(quiet, best_of_test.Extent((0, 1), 1, 40, (20,)))
    assert len(found.rows) == 4
    for row in found.rows:
        assert row.difference.value > 0.02, row.what
    coin, coin_elsewhere = found.rows[2:]
    for row in (coin, coin_elsewhere):
        assert row.inflated.low > 0.5, row.what
        assert row.honest.low < 0.5 < row.honest.high, row.what


def test_validation_alone_chooses_the_honest_epoch(electricity):
    extent = best_of_test.Extent((0,), 1, 15, (20,))
    course = best_of_test.by_adam(electricity, 0, 20, 0, extent)
    assert course.margins.shape == (len(course.query), 15)
    turned = replace(course, query=replace(course.query, label=1 - course.query.label))
    assert turned.validated == course.validated == int(np.argmin(course.loss))
    seen, against = (accuracies(electricity, each.query, each.margins) for each in (course, turned))
    np.testing.assert_allclose(seen + against, 1)


def test_the_reward_of_the_last_epoch_is_near_the_pooled_fit(electricity):
    extent = best_of_test.Extent((0,), 1, 60, ("all",), "all")
    course = best_of_test.by_adam(electricity, 0, "all", 0, extent)
    world = world_of(electricity, "tabular@1", features(electricity))
    asked = Asked.of(electricity.comparisons.take(course.query.rows))
    (pooled,) = margins(Handed.of(electricity, 0, world), "pooled-bt", {"ridge": 1e-3}, [asked])
    assert np.corrcoef(pooled, course.margins[:, -10:].mean(axis=1))[0, 1] > 0.97


# label-thresholds


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_the_expectation_is_that_over_all_labels(n):
    margin = np.linspace(1, -1, n).astype(np.float32) ** 3
    right = []
    for labels in itertools.product((0, 1), repeat=n):
        label = np.array(labels, np.float32)
        moved = margin - label_thresholds.thresholds(margin, label, np.zeros(n, np.int32))
        right.append(((moved > 0) == (label > 0.5)).mean())
    assert np.mean(right) == pytest.approx(label_thresholds.expected(n), abs=1e-12)


def test_the_figures_of_the_catalogue_of_defects_are_those_of_the_formula():
    assert [round(label_thresholds.expected(n), 2) for n in (10, 20, 50)] == [0.71, 0.66, 0.6]
    assert label_thresholds.expected(5) == pytest.approx(0.775)
    assert label_thresholds.expected(400) == pytest.approx(0.5 + 1 / (np.pi * 200) ** 0.5, abs=0.002)


def test_a_threshold_is_the_best_cut_of_its_person_and_leaves_equal_margins_together():
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(30), 6)
    margin = rng.integers(-2, 3, len(user)).astype(np.float32)
    label = rng.choice([0.0, 0.5, 1.0], len(user)).astype(np.float32)
    cut = label_thresholds.thresholds(margin, label, user)
    for person in range(30):
        at = (user == person) & (label != 0.5)
        assert len(np.unique(cut[user == person])) == 1
        if not at.any():
            continue
        best = max((((margin[at] > t) == (label[at] > 0.5)).mean()) for t in np.arange(-3, 3) + 0.5)
        found = ((margin[at] - cut[at]) > 0) == (label[at] > 0.5)
        assert found.mean() == best
        assert (margin[at] != cut[at]).all()


def test_thresholds_on_test_labels_lift_a_coin_far_above_one_half():
    found = label_thresholds.measure(quiet, label_thresholds.Extent((0, 2), ("random", "pooled-bt")))
    coin, pooled = found.rows[-2:]
    assert coin.inflated.low > 0.65
    assert abs(coin.honest.value - 0.5) < 0.03
    assert pooled.difference.low > 0
    for row in found.rows[:-2]:
        assert (row.honest.value, row.honest.low) == (0.5, None)


def test_the_honest_figure_is_the_accuracy_of_the_board(electricity):
    world = world_of(electricity, "tabular@1", features(electricity))
    query = queries(electricity, 0)
    table = electricity.comparisons.take(query.rows)
    (margin,) = margins(Handed.of(electricity, 0, world), "pooled-bt", {}, [Asked.of(table)])
    scores = Scores(electricity, ["a", "b"], [(query, np.stack([margin, -margin], axis=1))])
    right = np.where(margin == 0, 0.5, (margin > 0) == (table.label > 0.5))
    people = []
    for person in np.unique(table.user):
        mine = table.user == person
        people.append(np.mean([right[mine & (table.unit == unit)].mean() for unit in np.unique(table.unit[mine])]))
    assert scores.figure({"a": 1}).value == pytest.approx(np.mean(people), abs=1e-6)
    assert scores.figure({"a": 1, "b": 1}) == Figure(1.0, 1.0, 1.0)
    both = scores.figure({"a": 1, "b": -1})
    assert both.low < both.value < both.high


def test_no_label_of_a_query_reaches_a_method(electricity):
    asked = Asked.of(electricity.comparisons.take(queries(electricity, 0).rows))
    assert np.isnan(asked.table.label).all()
    assert (np.bincount(asked.table.unit, minlength=1) % 6 == 0).all(), "every pair of a choice among four"


# init-scale


TINY = {**init_scale.TRAINING, "max_tokens": None, "rank": 4, "lr": 0.05, "head_init": "random"}


def test_the_released_bounds_are_64_fold_apart_and_equal_bounds_are_equal():
    chosen = init_scale.variants("p-share-lora", TINY)
    scale = {column: config["init_scale"] for column, (_, config) in chosen.items()}
    assert scale["copied, released"] / scale["independent, released"] == pytest.approx(0.177 / 0.0028)
    assert {scale[c] for c in ("copied", "independent", "baseline", "baseline, released")} == {1.0}
    for init in ("independent", "copied"):
        released, equal = (dict(chosen[c][1]) for c in (f"{init}, released", init))
        assert released.pop("init_scale") != equal.pop("init_scale")
        assert released == equal, "nothing else differs"


def first_factors(data, config):
    """Return what everybody's A is before training, the model's layout being of p-share-lora."""
    handed = Handed.of(data, 0, world_of(data, "tiny-bert@1"), n_train=1, n_users=6)
    method = create("p-share-lora", **{**config, "epochs": 0})
    from methods.interface import Budget

    method.fit(handed.train, handed.val, handed.world, Budget(seed=handed.seed))
    width = {shape[1] for shape in layout_of(method, method.ready()[0], a="user").own.values()}
    return method.table_ * width.pop() ** 0.5


def test_first_factors_lie_within_the_bounds_that_are_told(electricity):
    for column, (name, config) in init_scale.variants("p-share-lora", TINY).items():
        if name != "p-share-lora":
            continue
        table = first_factors(electricity, config)
        bound = config["init_scale"]
        assert 0.9 * bound < np.abs(table).max() <= bound * 1.0001, column
        assert (np.ptp(table, axis=0) == 0).all() == column.startswith("copied"), column


def test_the_bound_moves_what_a_few_steps_learn_and_nothing_that_is_solved(electricity):
    extent = init_scale.Extent("tiny-bert@1", (0,), 8, 2, TINY)
    solved = init_scale.scored(electricity, "p-share-lora-linear", extent, quiet).panel.blocks[0].margins
    np.testing.assert_allclose(solved, np.broadcast_to(solved[:, :1], solved.shape), rtol=1e-2, atol=1e-2)
    scores = init_scale.scored(electricity, "p-share-lora", extent, quiet)
    column, moved = scores.place, scores.panel.blocks[0].margins
    for init in ("independent", "copied"):
        apart = np.abs(moved[:, column[init]] - moved[:, column[f"{init}, released"]]).mean()
        assert apart > 0.03 * np.abs(moved[:, column[init]]).mean(), init
    np.testing.assert_array_equal(moved[:, column["baseline"]], moved[:, column["baseline, released"]])


# running, keeping, showing


def made(name="init-scale", value=0.1):
    row = Row("something", Figure(value, value - 0.1, value + 0.1), Figure(0.0), Figure(value), signed=True)
    return Kept(name, "k", 1.5, Measured((row,), ("a note.",), {"folds": [0, 1], "training": {"lr": 0.1}}))


TOLD = {
    "date": "2026-01-01",
    "protocol": "2026.1",
    "device_class": "cpu-any",
    "environment": {"python": "3", "packages": {"numpy": "2"}},
    "source": {"commit": "c" * 40, "dirty": False},
}


def test_a_file_holds_all_that_was_measured(tmp_path):
    report = Report(TOLD, (made(),))
    write_report(report, tmp_path / "a.json")
    assert read_report(tmp_path / "a.json") == replace(report, pitfalls=(made_as_json(made()),))
    for broken in ("", "[]", "{}", '{"pitfalls": [{}]}', '{"pitfalls": [{"schema_version": 0}]}'):
        (tmp_path / "broken.json").write_text(broken)
        with pytest.raises(DataError, match=r"broken\.json is no file of the pitfalls"):
            read_report(tmp_path / "broken.json")


def made_as_json(kept):
    return Kept.of(json.loads(json.dumps(kept.to_dict())))


def test_a_page_is_renewed_between_its_marks_alone(tmp_path):
    page, report = tmp_path / "page.md", Report(TOLD, (made(),))
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    renew(page, report)
    renew(page, report)
    assert page.read_text() == f"before\n{START}\n{block(report)}{END}\nafter\n"
    assert "| something | +0.100 [+0.000, +0.200] | +0.000 | +0.100 |" in page.read_text()
    page.write_text("no marks\n")
    with pytest.raises(RequestError, match="put them where the tables belong"):
        renew(page, report)


def test_the_documentation_tells_what_was_recorded():
    told = PAGE.read_text(encoding="utf-8").split(START + "\n")[1].split(END)[0]
    assert told == block(read_report(RECORDED) if RECORDED.exists() else None)
    assert (NONE in told) == (not RECORDED.exists())


@pytest.mark.skipif(not RECORDED.exists(), reason="nothing was recorded yet")
def test_what_is_recorded_is_whole_and_inflated():
    report = read_report(RECORDED)
    assert [kept.name for kept in report.pitfalls] == list(PITFALLS)
    assert sum(kept.seconds for kept in report.pitfalls) < 300
    for kept in report.pitfalls:
        for row in kept.measured.rows:
            assert row.difference.value == pytest.approx(row.inflated.value - row.honest.value, abs=2e-6)
            assert row.signed or row.difference.value > 0, row.what


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("pitfalls")
    command = [sys.executable, "-m", "benchmarks.pitfalls", "--quick", "--out", str(out)]
    return out, subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, check=True)


def test_the_command_measures_every_pitfall_and_writes_it(quick_run):
    out, done = quick_run
    report = read_report(out / "pitfalls.json")
    assert [kept.name for kept in report.pitfalls] == list(PITFALLS)
    assert report.told["environment"]["packages"]["numpy"]
    assert set(report.told["source"]) == {"commit", "dirty"}
    for pitfall in PITFALLS.values():
        assert pitfall.title in done.stdout
        assert f"{pitfall.name}: {pitfall.title}" in done.stderr
    assert "Warning" not in done.stderr
    assert (out / "pitfalls.md").read_text(encoding="utf-8") == block(report)


def test_the_leak_inflates_and_what_it_taught_is_the_bracket(quick_run):
    found = read_report(quick_run[0] / "pitfalls.json").pitfalls[0].measured
    fit, moved, form = found.rows
    assert fit.inflated.low > 0.95
    assert fit.difference.low > 0.1
    assert moved.honest.value < fit.honest.value - 0.05, "the leaked fit knows less of people than the honest one"
    assert form.inflated.value > 0.99
    assert form.honest.value < 0.7
    assert "refuses the leaked copy" in found.notes[0]
    assert "accepts the dataset" in found.notes[0]


def test_what_is_measured_is_found_and_what_is_damaged_is_measured_again(quick_run):
    out, _ = quick_run
    before = read_report(out / "pitfalls.json").pitfalls
    (out / "label-thresholds.json").write_text("{")
    told = []
    report, failed = run(out, Wanted(quick=True), told.append)
    assert not failed
    assert [t for t in told if t.endswith("found measured")] == [
        f"{name}: found measured" for name in PITFALLS if name != "label-thresholds"
    ]
    for old, new in zip(before, report.pitfalls, strict=True):
        assert (old.key, old.measured.rows) == (new.key, new.measured.rows), "and it is the same"


def test_the_key_tells_the_extent_and_every_pitfall_apart():
    keys = {key_of(pitfall, quick=quick) for pitfall in PITFALLS.values() for quick in (False, True)}
    assert len(keys) == 2 * len(PITFALLS)
    assert {pitfall.file.parent.name for pitfall in PITFALLS.values()} == {"pitfalls"}


def failing(note):
    del note
    raise DataError("the dataset is away")


def test_one_that_fails_is_told_and_the_others_are_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PITFALLS, "best-of-test", replace(PITFALLS["best-of-test"], quick=failing))
    words = ["--quick", "--only", "best-of-test,label-thresholds", "--out", str(tmp_path), "--json"]
    monkeypatch.setattr(sys, "argv", ["pitfalls", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert "best-of-test failed: the dataset is away" in printed.err
    assert [each["name"] for each in json.loads(printed.out)["pitfalls"]] == ["label-thresholds"]


def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch, capsys):
    def stopping(note):
        raise KeyboardInterrupt

    monkeypatch.setitem(PITFALLS, "init-scale", replace(PITFALLS["init-scale"], quick=stopping))
    words = ["--quick", "--only", "label-thresholds,init-scale", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["pitfalls", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert "the same command goes on" in capsys.readouterr().err
    told = []
    run(tmp_path, Wanted(["label-thresholds"], quick=True), told.append)
    assert told == ["label-thresholds: found measured"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--only", "init-scal"], "Did you mean 'init-scale'"),
        (["--record", "--quick"], "leave out --quick and --only"),
        (["--record", "--only", "init-scale"], "leave out --quick and --only"),
        (["--only", ","], "an empty list of names"),
    ],
)
def test_a_wrong_request_ends_with_one_line(words, told, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pitfalls", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_every_entry_is_named_as_it_is_registered():
    for name, pitfall in PITFALLS.items():
        assert isinstance(pitfall, Pitfall)
        assert pitfall.name == name
        assert pitfall.title
        for method in pitfall.methods:
            assert create(method)
    assert torch.get_num_threads() >= 1
    assert load("electricity@1").id == "electricity@1"
