"""Reading results folders: what counts, what is skipped and said, what is imputed, what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from board_fixtures import METHODS, Bench, made, pooled, shrunk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets_registry.errors import DataError
from leaderboard.board import build_board
from leaderboard.entrant_labels import labeller
from leaderboard.records import RunRecord
from leaderboard.scoring import gather, panels
from leaderboard.store import ResultsFolder, read_record

TWO = {name: METHODS[name] for name in ("pooled-bt", "shrunk")}


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path / "results", n_train=("all",), n_support=(0,))


def columns_of(bench):
    gathered = gather([bench.root], bench.labels)
    return gathered, {(p.columns[0].setting.regime): p for p in panels(gathered, bench.labels)}


def test_the_order_of_folders_and_of_copies_does_not_matter(bench, tmp_path):
    bench.run(TWO)
    copy = tmp_path / "copy"
    shutil.copytree(bench.root, copy)
    one, both = gather([bench.root], bench.labels), gather([copy, bench.root], bench.labels)
    again = gather([bench.root, copy], bench.labels)
    assert one.sha256 == both.sha256 == again.sha256
    assert [e.record for e in both.located] == [e.record for e in again.located]
    assert both.skipped == []


def test_half_a_record_is_skipped_with_its_name_and_nothing_else_is_lost(bench, capsys):
    bench.run(TWO)
    whole = len(gather([bench.root], bench.labels).located)
    victim = sorted(bench.root.glob("records/*/shrunk/*.json"))[0]
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    gathered = gather([bench.root], bench.labels)
    assert len(gathered.located) == whole - 1
    assert [name for name, _ in gathered.skipped] == [f"records/made@1/shrunk/{victim.name}"]
    assert victim.name in capsys.readouterr().err


def test_another_protocol_is_refused_naming_both(bench):
    bench.run({"pooled-bt": pooled})
    bench.write("shrunk", shrunk, "made@1", 0, "all", "seen", None, protocol="2031.7")
    with pytest.raises(DataError, match=r"2031\.7.*2026\.1"):
        gather([bench.root], bench.labels)


def test_a_failed_cell_takes_pooled_margins_and_is_marked(bench):
    bench.run(TWO)
    bench.write("shrunk", shrunk, "made@1", 1, "all", "seen", None, status="timeout")
    _, found = columns_of(bench)
    panel = found["seen"]
    names = [c.entrant.method for c in panel.columns]
    p, s = names.index("pooled-bt"), names.index("shrunk")
    assert panel.imputed[:, s].tolist() == [False, True, False]
    np.testing.assert_array_equal(panel.blocks[1].margins[:, s], panel.blocks[1].margins[:, p])
    assert panel.given.all()


def weak(data, rows, n):
    """Worse than pooled: a part of what it knows, and noise that differs between query sets."""
    return pooled(data, rows, n) + 3 * np.random.default_rng(len(rows)).normal(size=len(rows))


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_who_is_below_pooled_does_not_gain_by_leaving_a_seed_out(bench, lost):
    bench.run({"pooled-bt": pooled, "weak": weak})
    whole = next(r for r in build_board([bench.root], (), bench.labels).leaderboard.rows if r.method == "weak")
    assert whole.gain.value < 0
    for status in ("failed", "skipped"):
        bench.write("weak", weak, "made@1", lost, "all", "seen", None, status=status)
        board = build_board([bench.root], (), bench.labels).leaderboard
        less = next(r for r in board.rows if (r.method, r.regime) == ("weak", "seen"))
        assert less.acc_macro.value < whole.acc_macro.value
        assert less.imputed == pytest.approx(1 / 3, abs=1e-6)


def test_without_pooled_a_failed_cell_stays_missing(bench):
    bench.run({"shrunk": shrunk})
    bench.write("shrunk", shrunk, "made@1", 1, "all", "seen", None, status="failed")
    _, found = columns_of(bench)
    assert found["seen"].given[:, 0].tolist() == [True, False, True]


@pytest.mark.parametrize("what", ["altered", "nan", "rows"])
def test_margins_that_are_not_what_the_record_says_do_not_count(bench, what):
    bench.run(TWO)
    path = sorted(bench.root.glob("records/*/shrunk/*.json"))[0]
    record = read_record(path)
    table = ResultsFolder(bench.root).read_margins(record.margins)
    if what == "altered":
        (bench.root / record.margins.path).write_bytes(b"PAR1")
    else:
        changed = {k: v.copy() for k, v in table.items()}
        if what == "nan":
            changed["margin"][0] = np.nan
        else:
            changed["row"][0] = changed["row"][1]
        ref = ResultsFolder(bench.root).write_margins(record.margins.path, changed)
        told = record.model_dump(mode="json")
        told["margins"]["sha256"] = ref.sha256
        path.write_text(json.dumps(told))
    gathered, found = columns_of(bench)
    panel = found[record.split.regime]
    assert panel.imputed.sum() == 1
    assert any(record.key[:16] in name for name, _ in gathered.skipped)


def test_a_record_of_other_content_does_not_count(bench):
    bench.run(TWO)
    bench.data = {"made@1": made(seed=1)}
    gathered = gather([bench.root], bench.labels)
    assert gathered.located == []
    assert all("other content" in reason for _, reason in gathered.skipped)


def test_of_two_records_of_one_cell_the_finished_one_counts(bench):
    bench.run(TWO)
    path = bench.write("shrunk", shrunk, "made@1", 0, "all", "seen", None)
    told = json.loads(path.read_text())
    told |= {"key": "f" * 64, "status": "failed", "margins": None, "reason": "no"}
    path.with_name("f" * 64 + ".json").write_text(json.dumps(told))
    gathered = gather([bench.root], bench.labels)
    assert {e.record.status for e in gathered.located} == {"ok"}
    assert [name for name, _ in gathered.skipped] == ["record " + "f" * 16]


def test_methods_of_one_name_from_two_distributions_are_two_entrants(bench):
    bench.run(TWO)
    before, panel_before = columns_of(bench)
    for path in list(bench.root.glob("records/*/pooled-bt/*.json")):
        told = json.loads(path.read_text())
        told["method"]["dist"] = "somebody-else"
        told["key"] = told["key"][::-1]
        path.with_name(told["key"] + ".json").write_text(json.dumps(told))
    gathered, found = columns_of(bench)
    assert gathered.skipped == []
    assert len(gathered.located) == len(before.located) + sum(e.entrant.method == "pooled-bt" for e in before.located)
    panel = found["seen"]
    assert len(panel.columns) == len(panel_before["seen"].columns) + 1
    assert {panel.columns[k].entrant.dist for k in panel.reference} == {"hetpref"}
    label = labeller((c.entrant, {}) for c in panel.columns)
    assert sorted(map(label, {c.entrant for c in panel.columns})) == [
        "pooled-bt [hetpref]",
        "pooled-bt [somebody-else]",
        "shrunk",
    ]


def test_a_foreign_method_of_the_name_is_no_reference_and_imputes_nothing(bench):
    bench.run(TWO)
    bench.write("shrunk", shrunk, "made@1", 1, "all", "seen", None, status="failed")
    for path in list(bench.root.glob("records/*/pooled-bt/*.json")):
        told = json.loads(path.read_text())
        told["method"]["dist"] = "somebody-else"
        path.write_text(json.dumps(told))
    _, found = columns_of(bench)
    panel = found["seen"]
    assert (panel.reference == -1).all()
    assert not panel.imputed.any()


def test_the_user_shuffle_control_is_its_own_column_and_never_imputed(bench):
    bench.run(TWO)
    bench.write("shrunk", pooled, "made@1", 0, "all", "seen", None, control="user_shuffle")
    _, found = columns_of(bench)
    panel = found["seen"]
    k = [c.entrant.control for c in panel.columns].index("user_shuffle")
    assert panel.given[:, k].tolist() == [True, False, False]
    assert panel.mismatched.tolist() == [k]


@pytest.fixture(scope="module")
def one_record(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("one"), n_train=("all",), n_support=(), seeds=1)
    bench.run({"pooled-bt": pooled})
    return next(iter(bench.root.glob("records/*/*/*.json")))


def test_a_record_survives_its_file(one_record):
    record = read_record(one_record)
    assert RunRecord.model_validate_json(record.to_json(), strict=True) == record


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cut=st.floats(0, 1), noise=st.binary(max_size=20))
def test_no_prefix_of_a_record_with_anything_after_it_is_taken_for_one(one_record, tmp_path, cut, noise):
    raw = one_record.read_bytes().rstrip()
    broken = raw[: int(cut * (len(raw) - 1))] + noise
    path = tmp_path / "broken.json"
    path.write_bytes(broken)
    if broken.rstrip() != raw:
        with pytest.raises(DataError, match=r"broken\.json"):
            read_record(path)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8)


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_change_of_a_field_is_a_record_or_a_message(one_record: Path, tmp_path: Path, data):
    told = json.loads(one_record.read_text())
    at = told
    while True:
        key = data.draw(st.sampled_from(sorted(at)))
        if not isinstance(at[key], dict) or not at[key] or data.draw(st.booleans()):
            break
        at = at[key]
    at[key] = data.draw(
        scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.text(max_size=3), scalars, max_size=2)
    )
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(told))
    try:
        record = read_record(path)
    except DataError as why:
        message = str(why)
    else:
        message = path.name
        assert RunRecord.model_validate_json(record.to_json(), strict=True) == record
    assert path.name in message
