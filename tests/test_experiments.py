"""`hetpref run` knows experiments besides suites: they are listed, run by name, and take no option of a suite."""

import json
import re
from dataclasses import replace

import pytest

from benchmarks.cli import main
from benchmarks.experiments import EXPERIMENTS
from benchmarks.pitfalls.registry import PITFALLS
from methods.registry import find


def ended_with(words):
    with pytest.raises(SystemExit) as ended:
        main(words)
    return ended.value.code


def test_experiments_are_listed_after_the_suites(capsys):
    assert ended_with(["suites", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows[-len(EXPERIMENTS) :]] == list(EXPERIMENTS)
    assert len({frozenset(row) for row in rows}) == 1, "in the form of suites"


def test_an_experiment_names_methods_that_are_there_and_all_that_it_fits():
    told = set(EXPERIMENTS["pitfalls"].methods)
    assert told == {name for pitfall in PITFALLS.values() for name in pitfall.methods}
    assert all(find(name) for name in told)


def test_an_experiment_is_run_by_its_name(tmp_path, monkeypatch, capsys):
    for name, pitfall in PITFALLS.items():
        monkeypatch.setitem(PITFALLS, name, replace(pitfall, measure=PITFALLS["label-thresholds"].quick))
    assert ended_with(["run", "pitfalls", "--out", str(tmp_path), "--json"]) == 0
    assert [each["name"] for each in json.loads(capsys.readouterr().out)["pitfalls"]] == list(PITFALLS)
    assert (tmp_path / "pitfalls.json").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "pitfalls", "--seeds", "2", "--dry-run"], r"leave out --seeds, --dry-run; allowed: --out"),
        (["run", "pitfal"], r"Did you mean 'pitfalls'"),
        (["run", "smoke", "--record"], r"--record is for experiments \(pitfalls\)"),
    ],
)
def test_a_wrong_request_ends_with_one_line(words, told, capsys):
    assert ended_with(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(told, line)
