"""Tuning gives every method the same trials on validation alone, keeps all of them, and never asks a query."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.suites import DatasetPlan, MethodPlan, Suite, load_suite
from benchmarks.tuning import Extent, configurations, tune
from datasets_registry.errors import DataError, RequestError
from methods.registry import built_in, create, find

PLANTED = "planted@1+d=6+rank=2+units=30+users=60"
EXTENT = Extent(trials=4, n_train=2, people=32)


class Kept:
    """Keeps what is said to a person, and which cells were run."""

    def __init__(self):
        self.said, self.cells, self.found = [], [], None

    def note(self, text):
        self.said.append(text)

    def planned(self, total, finished):
        self.found = (total, finished)

    def ended(self, cell, outcome):
        self.cells.append((cell, outcome.status))


def suite(*methods):
    plans = (DatasetPlan(PLANTED, "tabular@1"), DatasetPlan("electricity@1", "tabular@1"))
    return Suite("tuned", "", plans, tuple(MethodPlan(n, c) for n, c in methods), 1, 60, 1024)


def test_the_suites_own_configuration_is_tried_first_and_never_more_than_the_trials():
    search = {"a": (1, 2, 3), "b": ("x", "y")}
    every = configurations("any", search, {"a": 2, "b": "y", "c": 0}, 20)
    assert every[0] == {"a": 2, "b": "y", "c": 0}
    assert len({json.dumps(c, sort_keys=True) for c in every}) == len(every) == 6
    few = configurations("any", search, {"a": 2, "b": "y", "c": 0}, 3)
    assert few == configurations("any", search, {"a": 2, "b": "y", "c": 0}, 3)
    assert few[0] == every[0]
    assert len(few) == 3
    assert configurations("any", search, {"a": 7, "b": "x"}, 20)[0] == {"a": 7, "b": "x"}


def test_the_choice_has_the_least_mean_excess_and_nothing_is_tried_twice(tmp_path):
    first, again = Kept(), Kept()
    wanted = suite(("pooled-bt", {}), ("maxmin-em", {"restarts": 1}))
    told = tune(wanted, None, EXTENT, 2, tmp_path / "trials.json", first)
    assert set(told["methods"]) == {"maxmin-em"}  # pooled-bt has no search space
    trials = told["methods"]["maxmin-em"]["trials"]
    assert len(trials) == EXTENT.trials
    assert len(first.cells) == 2 * EXTENT.trials
    nll = np.array([[t["nll"][PLANTED], t["nll"]["electricity@1"]] for t in trials])
    excess = (nll - nll.min(0)).mean(1)
    np.testing.assert_allclose([t["excess"] for t in trials], excess, atol=2e-6)
    assert told["methods"]["maxmin-em"]["chosen"] == trials[int(excess.argmin())]["config"]
    assert all(c.fit.tasks == () and len(c.split.seen) >= 32 and c.fit.n_train == 2 for c, _ in first.cells)
    assert tune(wanted, None, EXTENT, 2, tmp_path / "trials.json", again)["methods"] == told["methods"]
    assert again.cells == []
    assert again.found == (2 * EXTENT.trials, 2 * EXTENT.trials)


def test_a_trial_that_fails_is_kept_and_not_chosen(tmp_path):
    progress = Kept()
    told = tune(suite(("maxmin-em", {"beta": -1.0})), None, EXTENT, 2, tmp_path / "trials.json", progress)
    failed = told["methods"]["maxmin-em"]["trials"][0]
    assert failed["config"]["beta"] == -1.0
    assert set(failed["nll"].values()) == {None}
    assert told["methods"]["maxmin-em"]["chosen"]["beta"] > 0
    kept = json.loads((tmp_path / "trials.json").read_text())["known"].values()
    assert any("beta" in each.get("failed", "") for each in kept)


def test_a_failure_is_no_better_than_what_was_measured_and_is_tried_again(tmp_path):
    """Where every configuration does worse than not knowing, one that crashes must not be the best."""
    wanted, file = suite(("maxmin-em", {"restarts": 1})), tmp_path / "trials.json"
    told = tune(wanted, None, EXTENT, 2, file, Kept())
    kept = json.loads(file.read_text())
    crashed = told["methods"]["maxmin-em"]["chosen"]
    for trial in kept["known"].values():
        trial["nll"] += 1.0
        if trial["config"] == crashed and trial["dataset"] == PLANTED:
            trial |= {"nll": None, "failed": "skipped: it is unable"}
    file.write_text(json.dumps(kept))
    again = Kept()
    told = tune(wanted, None, EXTENT, 2, file, again)["methods"]["maxmin-em"]
    assert again.cells == []
    assert told["chosen"] != crashed
    row = next(t for t in told["trials"] if t["config"] == crashed)
    assert row["failed"] == {PLANTED: "skipped: it is unable"}
    others = [t["nll"][PLANTED] for t in told["trials"] if t["config"] != crashed]
    assert row["excess"] == pytest.approx((max(others) - min(others) + _apart(told, crashed)) / 2, abs=2e-6)
    for trial in kept["known"].values():
        if "failed" in trial:
            trial["failed"] = "timeout: over the limit of 1 s"
    file.write_text(json.dumps(kept))
    once_more = Kept()
    tune(wanted, None, EXTENT, 2, file, once_more)
    assert len(once_more.cells) == 1


def _apart(told, config):
    """Return how far a configuration is above the best one on electricity."""
    nll = {json.dumps(t["config"]): t["nll"]["electricity@1"] for t in told["trials"]}
    return nll[json.dumps(config)] - min(nll.values())


def test_configurations_that_all_end_alike_are_said(tmp_path):
    wanted, file = suite(("maxmin-em", {"restarts": 1})), tmp_path / "trials.json"
    tune(wanted, None, EXTENT, 2, file, quiet := Kept())
    assert not any("learned nothing" in line for line in quiet.said)
    kept = json.loads(file.read_text())
    for trial in kept["known"].values():
        trial["nll"] = 0.5
    file.write_text(json.dumps(kept))
    tune(wanted, None, EXTENT, 2, file, progress := Kept())
    assert any(f"4 configurations of maxmin-em have one NLL on {PLANTED}" in line for line in progress.said)


def test_a_method_of_which_every_trial_failed_has_no_choice(tmp_path):
    wanted = replace(suite(("maxmin-em", {"ridge": -1.0})), datasets=(DatasetPlan(PLANTED, "tabular@1"),))
    file = tmp_path / "trials.json"
    tune(wanted, None, EXTENT, 2, file, Kept())
    kept = json.loads(file.read_text())
    for trial in kept["known"].values():
        trial |= {"nll": None, "failed": "skipped: unable"}
    file.write_text(json.dumps(kept))
    told = tune(wanted, ["maxmin-em", "pooled-bt"], EXTENT, 2, file, progress := Kept())
    assert told["methods"]["maxmin-em"]["chosen"] is None
    assert any("nothing to choose for pooled-bt" in line for line in progress.said)


@pytest.mark.parametrize("search", [{"ridg": (1, 2)}, {"ridge": 3.0}, ["ridge"], {"ridge": ()}])
def test_a_search_space_that_is_none_is_said_and_stops_no_other(tmp_path, monkeypatch, search):
    monkeypatch.setattr(find("rfm"), "search", search)
    wanted = replace(suite(("rfm", {}), ("maxmin-em", {"restarts": 1})), datasets=(DatasetPlan(PLANTED, "tabular@1"),))
    told = tune(wanted, None, Extent(1, 2, 32), 1, tmp_path / "trials.json", progress := Kept())
    assert set(told["methods"]) == {"maxmin-em"}
    assert any(line.startswith("rfm is left out: its `search` must give values") for line in progress.said)


class Stopping(Kept):
    """Is stopped by the person after two trials."""

    def ended(self, cell, outcome):
        super().ended(cell, outcome)
        if len(self.cells) == 2:
            raise KeyboardInterrupt


def test_a_stopped_tuning_keeps_every_trial_that_ended(tmp_path):
    wanted, again = suite(("maxmin-em", {"restarts": 1})), Kept()
    with pytest.raises(KeyboardInterrupt):
        tune(wanted, None, EXTENT, 1, tmp_path / "trials.json", Stopping())
    tune(wanted, None, EXTENT, 1, tmp_path / "trials.json", again)
    assert again.found == (2 * EXTENT.trials, 2)


def test_wrong_requests_are_told(tmp_path):
    with pytest.raises(RequestError, match="has a search space"):
        tune(suite(("pooled-bt", {})), None, EXTENT, 1, tmp_path / "none.json", Kept())
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(DataError, match="no tuning file"):
        tune(suite(("maxmin-em", {})), None, EXTENT, 1, tmp_path / "other.json", Kept())
    told = {"schema_version": 1, "protocol": "0", "suite": "x", "trials": 1, "n_train": 1, "people": 1, "known": {}}
    (tmp_path / "third.json").write_text(json.dumps(told))
    with pytest.raises(RequestError, match="give another path"):
        tune(suite(("maxmin-em", {})), None, EXTENT, 1, tmp_path / "third.json", Kept())


@pytest.mark.parametrize("name", [n for n, cls in built_in().items() if cls.search])
def test_what_may_be_tried_is_taken_by_the_method(name):
    search = find(name).search
    assert set(search) <= set(find(name).hyperparameters())
    for key, values in search.items():
        assert len(set(map(repr, values))) == len(values) > 1
        for value in values:
            assert create(name, **{key: value}).config[key] == value


def test_the_standard_suite_runs_what_was_chosen():
    recorded = Path(__file__).parents[1] / "docs" / "board" / "tuning.json"
    if not recorded.exists():
        pytest.skip("nothing was tuned yet")
    chosen = json.loads(recorded.read_text(encoding="utf-8"))["methods"]
    for plan in load_suite("standard").methods:
        cls = find(plan.name)
        if not cls.search:
            continue
        config = {**cls.hyperparameters(), **plan.config}
        assert {key: config[key] for key in cls.search} == {
            key: {**cls.hyperparameters(), **chosen[plan.name]["chosen"]}[key] for key in cls.search
        }
