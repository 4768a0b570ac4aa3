"""A record is run again: it agrees with itself, what was forged does not, and agreement grants the badge."""

import json
import shutil

import numpy as np
import pytest
from submission_fixtures import METHOD, changed, forge, records, run

from benchmarks.cli import main
from benchmarks.rerun import salted
from datasets_registry import load
from datasets_registry.splits import split
from leaderboard.acceptance import accept
from leaderboard.agreement import GainAgreement
from leaderboard.board import build_board
from leaderboard.ledger import read_ledger
from leaderboard.rows import Interval
from leaderboard.submission import bundle


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return run(tmp_path_factory.mktemp("rerun"))


@pytest.fixture
def results(measured, tmp_path):
    """Results in which the method was accepted as it was measured."""
    shutil.copytree(measured, tmp_path / "results")
    accept(bundle(METHOD, measured, tmp_path / "bundle"), tmp_path / "results")
    return tmp_path / "results"


def ran(capsys, *arguments):
    """Run the command; returns its exit code, what it told as JSON, and what it said."""
    with pytest.raises(SystemExit) as ended:
        main(["rerun", *map(str, arguments), "--json"])
    out, said = capsys.readouterr()
    return ended.value.code, json.loads(out) if out.strip().startswith("{") else None, said


def test_an_honest_record_agrees_and_is_granted_the_badge(results, capsys):
    path = next(p for p, r in records(results).items() if r.split.regime == "seen" and r.seed == 0)
    code, told, said = ran(capsys, path, "--salt", "nobody knew", "--grant", "a keeper")
    assert code == 0, said
    assert told["agrees"]
    assert told["same_code"]
    checks = {c["what"]: c for c in told["checks"]}
    assert checks["decisions turned"]["now"] == "0.00%"
    assert checks["accuracy"]["then"] == checks["accuracy"]["now"]
    assert checks["gain on a salted fold"]["agrees"]
    entry = read_ledger(results)[-1]
    assert (entry.event, entry.reviewer, entry.salt) == ("verified", "a keeper", "nobody knew")
    rows = build_board([results]).leaderboard.rows
    assert {r.badge for r in rows if r.method == METHOD} == {"verified"}
    assert {r.badge for r in rows if r.method != METHOD} == {"rescored"}
    # what was verified is what was submitted, and nothing else
    forge(results, path, lambda m: m + 1)
    again = build_board([results]).leaderboard.rows
    assert {r.badge for r in again if r.method == METHOD and r.regime == "seen"} == {"rescored"}


def test_margins_from_elsewhere_do_not_agree(results, capsys):
    data = load("planted@1+users=60")
    path, record = next((p, r) for p, r in records(results).items() if r.split.regime == "seen")
    at = split(data, fold=record.split.fold)
    asked = data.comparisons.take(at.query("seen"))
    known = data.items.attributes[asked.first] - data.items.attributes[asked.second]
    forge(results, path, lambda m: np.einsum("nd,nd->n", known, data.truth.theta[asked.user]))
    code, told, _ = ran(capsys, path)
    assert code == 1
    assert not told["agrees"]
    assert not any(c["agrees"] for c in told["checks"])


def test_nothing_is_granted_that_was_not_submitted(results, capsys):
    path = next(p for p, r in records(results).items() if r.split.regime == "seen")
    code, _, said = ran(capsys, path, "--grant", "a keeper")
    assert (code, "--grant needs --salt" in said) == (2, True)
    forge(results, path, lambda m: m + 1)
    code, _, said = ran(capsys, path, "--grant", "a keeper", "--salt", "x")
    assert (code, "not as it was submitted in line 1" in said) == (2, True)
    other = next(iter(records(results, "per-user-bt")))
    code, _, said = ran(capsys, other, "--grant", "a keeper", "--salt", "x")
    assert (code, "hetpref accept" in said) == (2, True)


def test_a_record_of_another_version_is_refused_by_name(results, capsys):
    path = next(iter(records(results)))
    changed(path, method={"version": "9.9"})
    code, _, said = ran(capsys, path)
    assert code == 2
    assert "hierarchical-bt 9.9 of 'hetpref'; installed here is" in said


def test_a_record_outside_of_results_is_refused(results, tmp_path, capsys):
    path = shutil.copyfile(next(iter(records(results))), tmp_path / "record.json")
    code, _, said = ran(capsys, path)
    assert (code, "in no results folder" in said) == (2, True)


def test_a_salt_deals_people_and_prompts_anew_and_changes_nothing_else():
    data = load("planted@1+users=60")
    one, other, same = salted(data, "a"), salted(data, "b"), salted(data, "a")
    assert one.digest == same.digest != other.digest
    assert one.comparisons is data.comparisons
    assert one.items is data.items
    unseen = [set(split(d).unseen.tolist()) for d in (data, one, other)]
    assert unseen[0] != unseen[1] != unseen[2]
    asked = [set(split(d).query("seen").tolist()) for d in (data, one, other)]
    assert asked[0] != asked[1] != asked[2]


def test_a_gain_agrees_unless_it_is_lower_than_chance_allows():
    submitted = Interval(value=0.10, low=0.06, high=0.14)
    for value, agrees in ((0.30, True), (0.05, True), (-0.10, False)):
        found = Interval(value=value, low=value - 0.04, high=value + 0.04)
        assert GainAgreement.of(submitted, found).agrees is agrees
    assert GainAgreement.of(submitted, Interval()) is None
