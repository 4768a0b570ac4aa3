"""The regime known-prompts, and measurements that a method is unable to make: planned, recorded, verified and told."""

import hashlib
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cell_process import answer
from benchmarks.cells import MethodEntry, Task, plan_cells
from benchmarks.payloads import build_payload
from benchmarks.runner import prepare
from benchmarks.suites import DatasetPlan, MethodPlan, Suite
from datasets_registry import load
from datasets_registry.errors import RequestError, UnableError
from datasets_registry.splits import REGIMES, SUPPORT, TRAIN, mean_units, split
from leaderboard.board import build_board
from leaderboard.compare import compare
from leaderboard.labels import Labels
from leaderboard.markdown import markdown, text
from leaderboard.plots import figures
from leaderboard.readme import readme_block
from leaderboard.records import record_key
from leaderboard.rows import Leaderboard
from leaderboard.store import read_record
from leaderboard.submission import bundle
from leaderboard.verify import verify
from methods.registry import find

PLUGINS = Path(__file__).parent / "plugins"
PLANTED = "planted@1+d=6+rank=2+units=30+users=40"
SUITE = f"""
title = "New people on known prompts"
seeds = 1
time_limit_s = 60
memory_limit_mb = 2048
user_shuffle = false
regimes = ["known-prompts", "seen", "unseen"]
methods = ["pooled-bt", "per-user-bt", "by-neighbours", "unfit"]

[[datasets]]
name = "{PLANTED}"
encoder = "tabular@1"
n_train = ["all"]
n_support = [0, 2, 4]
"""


class Silent:
    def note(self, text):
        pass


@pytest.fixture(scope="module")
def data():
    return load(PLANTED)


@pytest.fixture(scope="module")
def unable():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PLUGINS))
        yield importlib.import_module("unable_methods")


def units_of(data, rows, who):
    said = data.comparisons
    return set(said.unit[rows[said.user[rows] == who]].tolist())


@pytest.mark.parametrize("name", [PLANTED, "electricity@1"])
def test_support_is_of_unseen_people_on_training_prompts_and_nested(name):
    data = load(name)
    s = split(data)
    cluster, had = data.unit_cluster[data.comparisons.unit], None
    for n in (0, 1, 2, 4, "all"):
        rows = s.support(n, "known-prompts")
        assert (np.diff(rows) > 0).all()
        assert set(data.comparisons.user[rows]) <= set(s.unseen.tolist())
        assert (s.cluster_part[cluster[rows]] == TRAIN).all()
        for who in s.unseen if n != "all" else ():
            have = len(units_of(data, s.support("all", "known-prompts"), who))
            assert len(units_of(data, rows, who)) == min(n, have)
        assert had is None or had <= set(rows.tolist())
        had = set(rows.tolist())
    assert set(data.comparisons.user[rows]) == set(s.unseen.tolist())
    assert not set(cluster[rows]) & set(cluster[s.query("unseen")])


def test_the_queries_are_those_of_unseen_people(data):
    s = split(data)
    assert s.query("known-prompts").tolist() == s.query("unseen", 3).tolist()
    assert s.support(2).tolist() == s.support(2, "unseen").tolist()


def test_the_permutation_is_one_of_its_own(data):
    s = split(data)
    rows = s.support(4, "known-prompts")
    assert (s.row_rank[rows] >= 4).any()
    assert split(data, draw=1).support(4, "known-prompts").tolist() != rows.tolist()


# Protocol 2026.1, fold 0, draw 0. A change here is a change of who says what: a new protocol id.
GOLDEN = {
    "electricity@1": "36d75c5b5196021731c9c0fda13afd4d224bf2a6247ba74273e326868712ee0b",
    "planted@1": "c86f4f25b8708adfe763827b7092b62f70010abf1f4b451521ee36a1c077cb14",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_digest_of_who_says_what(name):
    s = split(load(name))
    told = b"".join(s.support(n, "known-prompts").astype("<i8").tobytes() for n in (1, 2, 4))
    assert hashlib.sha256(told).hexdigest() == GOLDEN[name]


def test_a_person_renamed_or_a_unit_moved_changes_nobody_elses_support(data):
    s = split(data)
    keys = s.user_keys.copy()
    who = s.unseen[0]
    keys[who] += np.uint64(1)
    other = replace(s, user_keys=keys).support(2, "known-prompts")
    for each in s.unseen[1:]:
        assert units_of(data, other, each) == units_of(data, s.support(2, "known-prompts"), each)


def test_budgets_are_those_that_half_of_the_people_have(data):
    s = split(data)
    assert set(s.support_budgets()) < set(s.support_budgets("known-prompts"))
    n = s.support_budgets("known-prompts")[-1]
    people = [len(units_of(data, s.support(n, "known-prompts"), who)) for who in s.unseen]
    assert 2 * sum(k == n for k in people) >= len(people)


def test_a_tuning_split_supports_on_training_prompts_in_either_regime(data):
    t = split(data).tuning()
    assert t.support(2, "known-prompts").tolist() == t.support(2).tolist()
    assert (t.row_part[t.support(2)] == SUPPORT).all()


@pytest.mark.parametrize("regime", ["seen", "known", None])
def test_a_regime_without_support_is_said(data, regime):
    for ask in (lambda s: s.support(1, regime), lambda s: s.support_budgets(regime)):
        with pytest.raises(RequestError, match=r"has no support; allowed: 'unseen', 'known-prompts'"):
            ask(split(data))


def cells_of(*regimes, method="per-user-bt", n_support=(0, 2), shuffle=True):
    plan = DatasetPlan(PLANTED, "tabular@1", n_train=("all",), n_support=n_support)
    suite = Suite("known", "", (plan,), (MethodPlan("any", {}),), 1, 60, 512, user_shuffle=shuffle, regimes=regimes)
    cls = find(method) if isinstance(method, str) else method
    return list(plan_cells(suite, prepare(plan, Silent()), [MethodEntry(cls, {}, "hetpref", "0", "")]))


def test_another_regime_adds_measurements_and_changes_no_key():
    two, three = cells_of("seen", "unseen"), cells_of(*reversed(REGIMES))
    assert [c.fit_key for c in two] == [c.fit_key for c in three]
    assert three[0].fit.tasks[:3] == two[0].fit.tasks
    assert three[0].fit.tasks[3:] == (Task("known-prompts", 0), Task("known-prompts", 2))
    keys = {record_key("f", task.regime, task.n_support) for task in three[0].fit.tasks}
    assert len(keys) == 5
    grid = cells_of("known-prompts", n_support=())[0]
    assert grid.fit.tasks[-1].n_support == grid.split.support_budgets("known-prompts")[-1]


def test_the_user_shuffle_control_is_of_seen_people_or_not_at_all():
    assert [c.fit.control for c in cells_of("unseen", "known-prompts")] == [None]
    assert [c.fit.tasks for c in cells_of(*REGIMES) if c.fit.control] == [(Task("seen", None),)]


def test_what_new_people_said_is_handed_over_and_no_label_of_a_query(data):
    cell = cells_of(*REGIMES)[0]
    questions = {q.title: q for q in build_payload(cell, 60).questions}
    unseen, known = questions["unseen+2"], questions["known-prompts+2"]
    support = data.comparisons.take(cell.split.support(2, "known-prompts"))
    assert sorted(known.history.unit.tolist()) == sorted(support.unit.tolist())
    assert not np.isnan(known.history.label).any()
    assert np.isnan(known.queries.label).all()
    assert known.queries.unit.tolist() == unseen.queries.unit.tolist()
    assert known.users.tolist() == unseen.users.tolist()
    assert not len(questions["known-prompts+0"].history)


def answered(method, *regimes):
    return answer(build_payload(cells_of(*(regimes or REGIMES), method=method)[0], 60))


def test_a_question_that_a_method_is_unable_to_answer_is_left_out_with_the_reason(unable):
    told = answered(unable.ByNeighbours)
    assert told.skipped == {"unseen+2": unable.WHY}
    columns = {name for name in told.arrays if name.endswith("margin")}
    assert columns == {f"{q}/margin" for q in ("validation", "seen", "unseen+0", "known-prompts+0", "known-prompts+2")}
    assert type(told).unpack(*told.pack()).skipped == told.skipped


def test_it_may_be_the_margins_that_it_is_unable_to_give(unable):
    told = answered(unable.NoMargins)
    assert set(told.skipped) == {"unseen+0", "unseen+2", "known-prompts+0"}
    assert told.skipped["known-prompts+0"] == "no-margins needs a history"
    assert not [name for name in told.arrays if name.startswith("unseen")]


def test_half_an_answer_is_none_and_silence_is_a_reason(unable):
    told = answered(unable.WrongUserOnly, "seen")
    assert set(told.arrays) == {"validation/margin"}
    assert told.skipped == {"seen": "the method raised UnableError and did not say why"}
    assert told.cost["comparisons_per_s"] > 0


def test_a_method_that_can_answer_nothing_is_unable_as_a_whole(unable):
    with pytest.raises(UnableError, match=r"mute.* serves nobody"):
        answered(unable.Mute)
    with pytest.raises(UnableError, match="needs ratings"):
        answered(unable.Unfit)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    target = tmp_path_factory.mktemp("unable")
    shutil.copy(PLUGINS / "unable_methods.py", target)
    info = target / "unable_methods-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: unable-methods\nVersion: 1\n")
    points = "by-neighbours = unable_methods:ByNeighbours\nunfit = unable_methods:Unfit\n"
    (info / "entry_points.txt").write_text(f"[hetpref.methods]\n{points}")
    return target


@pytest.fixture(scope="module")
def ran(plugin, tmp_path_factory):
    """Run the suite by the command line; returns its folder, and a function that runs it again."""
    out = tmp_path_factory.mktemp("known")
    (out / "known.toml").write_text(SUITE)
    command = [sys.executable, "-m", "benchmarks.cli", "run", out / "known.toml", "--out", out / "out", "--no-pages"]
    env = {**os.environ, "PYTHONPATH": str(plugin)}

    def run(*more):
        done = subprocess.run([*command, *more], env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    return out / "out", run(), run


@pytest.fixture(scope="module")
def results(ran):
    return ran[0]


@pytest.fixture(scope="module")
def labels():
    return Labels()


@pytest.fixture(scope="module")
def board(results, labels):
    return build_board([results], (), labels, rank_dirty=True).leaderboard


def records_of(results, method, **where):
    found = [read_record(p) for p in sorted(results.glob(f"records/*/{method}/*.json"))]
    return [r for r in found if all(getattr(r.split, k) == v for k, v in where.items())]


def row_of(board, label, regime, n_support):
    (row,) = [r for r in board.rows if (r.label, r.regime, r.n_support) == (label, regime, n_support)]
    return row


def test_a_run_records_what_was_skipped_and_why(results, unable):
    told = {(r.split.regime, r.split.n_support): r for r in records_of(results, "by-neighbours")}
    skipped = {at for at, r in told.items() if r.status == "skipped"}
    assert skipped == {("unseen", 2), ("unseen", 4)}
    for at in skipped:
        assert told[at].reason == unable.WHY
        assert told[at].margins is None
        assert told[at].cost.fit_s is None
    assert all(r.method.transductive for r in told.values())
    assert {r.status for at, r in told.items() if at not in skipped} == {"ok"}
    unfit = records_of(results, "unfit")
    assert len(unfit) == 7
    assert {(r.status, r.reason.partition("\n")[0]) for r in unfit} == {
        ("skipped", "unfit needs ratings, and these are comparisons")
    }
    assert not records_of(results, "pooled-bt", regime="known-prompts")[0].method.transductive


def test_support_in_the_records_is_the_splits(results, data):
    for record in records_of(results, "pooled-bt", regime="known-prompts"):
        s = split(data)
        rows = s.support(record.split.n_support, "known-prompts")
        assert record.split.n_support_mean == round(mean_units(data, rows, s.unseen), 6)
        assert record.split.sha256 == s.digest


def test_the_run_says_how_many_were_skipped_once_per_reason_and_does_not_fail(ran, unable):
    _, first, run = ran
    assert f"2 measurements of by-neighbours skipped: {unable.WHY}" in first.stderr
    assert "7 measurements of unfit skipped: unfit needs ratings, and these are comparisons\n" in first.stderr
    assert first.stderr.count("skipped: unfit: unfit needs ratings") == 1
    assert "9 measurements skipped" in first.stderr
    assert ", 0 failed" in first.stderr
    again = run("--retry-failed")
    assert " 0 run" in again.stderr
    assert "7 measurements of unfit skipped" in again.stderr


def test_the_records_are_verified_and_so_is_a_submission_of_them(results, labels, tmp_path):
    assert verify(results, labels) == []
    told = {r.field for r in verify(bundle("by-neighbours", results, tmp_path / "bundle"), labels)}
    assert told == {"seeds"}  # one seed is too few, and nothing else is wrong


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"n_support_mean": 1.5}, "split.n_support_mean"),
        ({"n_support_mean": None}, "split.n_support_mean"),
        ({"n_support": 999}, "split.n_support"),
        ({"n_support": None, "n_support_mean": None}, "split.n_support"),
        ({"regime": "known"}, "split.regime"),
    ],
    ids=str,
)
def test_forged_support_is_refused(results, labels, tmp_path, change, field):
    shutil.copytree(results, tmp_path / "r")
    (record,) = records_of(tmp_path / "r", "pooled-bt", regime="known-prompts", n_support=2)
    path = next((tmp_path / "r").glob(f"records/*/pooled-bt/{record.key}.json"))
    told = json.loads(path.read_text())
    told["split"] |= change
    path.write_text(json.dumps(told))
    assert field in {r.field for r in verify(path, labels)}


def test_pooled_is_the_same_after_any_support_and_is_the_reference(board):
    for n in (0, 2, 4):
        known, unseen = row_of(board, "pooled-bt", "known-prompts", n), row_of(board, "pooled-bt", "unseen", n)
        assert known.acc_macro.value == unseen.acc_macro.value
        assert known.gain.value == 0
    mine, pooled = (row_of(board, label, "known-prompts", 4) for label in ("per-user-bt", "pooled-bt"))
    assert mine.gain.value == pytest.approx(mine.acc_macro.value - pooled.acc_macro.value, abs=2e-6)
    assert mine.rank is not None
    none = (row_of(board, "per-user-bt", regime, 0) for regime in ("unseen", "known-prompts"))
    assert len({row.acc_macro.value for row in none}) == 1


def test_what_was_skipped_is_imputed_and_has_no_rank(board, unable):
    lost = row_of(board, "by-neighbours", "unseen", 4)
    assert (lost.imputed, lost.skipped, lost.failed, lost.rank, lost.transductive) == (1, 1, 0, None, True)
    there = row_of(board, "by-neighbours", "known-prompts", 4)
    assert (there.imputed, there.skipped, there.transductive) == (0, 0, True)
    assert there.rank is not None
    assert {(f.label, f.status) for f in board.failures} == {("by-neighbours", "skipped"), ("unfit", "skipped")}
    assert unable.WHY in {f.reason for f in board.failures}


def test_curves_are_over_the_support(board):
    (curve,) = [c for c in board.curves if (c.label, c.regime) == ("by-neighbours", "known-prompts")]
    assert (curve.axis, curve.n_train, [p.n for p in curve.points]) == ("n_support", "all", [0, 2, 4])
    assert row_of(board, "by-neighbours", "known-prompts", 4).aulc.value is not None
    (lost,) = [c for c in board.curves if (c.label, c.regime) == ("by-neighbours", "unseen")]
    assert [p.n for p in lost.points] == [0]  # and none of pooled Bradley-Terry's
    titles = {name: spec["title"] for name, spec in figures(board).items() if name.startswith("curve")}
    assert f"{PLANTED}, new people, support on known prompts (tabular@1)" in titles.values()
    assert any(name.endswith("-known-prompts") for name in titles)


def test_the_page_has_a_section_of_its_own_flags_and_reasons(board, unable):
    page = markdown(board)
    heads = [line for line in page.splitlines() if line.startswith(f"## {PLANTED}")]
    titles = ("seen people", "unseen people", "new people, support on known prompts")
    assert heads == [f"## {PLANTED}, {title}" for title in titles]
    known = page.partition(heads[2])[2]
    line = next(line for line in known.splitlines() if " by-neighbours " in line)
    assert "| transductive" in line
    lost = next(line for line in page.partition(heads[1])[2].splitlines() if " by-neighbours " in line)
    assert "| transductive, " in lost
    assert "imputed 100%, skipped 1 |" in lost
    assert f"- by-neighbours on {PLANTED}, 2 cells (unseen): skipped: {unable.WHY}" in page
    assert f"- unfit on {PLANTED}, 7 cells: skipped: unfit needs ratings, and these are comparisons" in page
    assert "Failed cells" not in page
    assert "| known-prompts | by-neighbours (transductive) |" in page
    for word in ("`transductive`: the method serves", "`skipped`: the method is unable", "Support on known prompts:"):
        assert word in page
    assert "transductive" in text(board, 176)
    assert "**, new people".replace("**", PLANTED) in readme_block(board)


def test_a_board_without_any_of_it_is_read_as_before(board):
    others = [row for row in board.rows if row.regime != "known-prompts"]
    plain = [row.model_copy(update={"transductive": False, "skipped": 0}) for row in others]
    page = markdown(board.model_copy(update={"rows": plain, "failures": []}))
    assert "transductive" not in page
    assert "skipped" not in page
    told = json.loads(plain[0].model_dump_json())
    assert not {"transductive", "skipped"} & set(told)
    again = Leaderboard.model_validate_json(board.model_dump_json())
    assert again == board


@pytest.mark.skipif(importlib.util.find_spec("vl_convert") is None, reason="vl-convert is not installed")
def test_the_site_shows_the_flag_and_the_reasons(board, unable):
    from leaderboard.site import site

    page = site(board)
    assert "imputed 100%, skipped 1</td>" in page
    assert "<td>transductive" in page
    assert f"2 cells (unseen): skipped: {unable.WHY}" in page
    assert "Failed cells" not in page


def test_methods_are_compared_in_each_regime(results, labels):
    told = compare("by-neighbours", "per-user-bt", results, labels)
    overall = [(d.regime, d.n_support) for d in told if d.dataset == "overall"]
    assert [regime for regime, _ in overall] == list(REGIMES)
    assert {d.n_support for d in told if d.regime == "known-prompts" and d.dataset != "overall"} == {0, 2, 4}
