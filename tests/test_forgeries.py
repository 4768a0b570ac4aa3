"""Forged records, two of one cell, and what cannot be compared: each is said, once."""

import json
import shutil

import pytest
from board_fixtures import Bench, made, oracle, pooled, shrunk

from datasets_registry.errors import DataError, RequestError
from datasets_registry.splits import split
from leaderboard.board import build_board
from leaderboard.compare import compare
from leaderboard.labels import Labels, Query
from leaderboard.records import canonical_sha256, printable, record_key
from leaderboard.scoring import gather
from leaderboard.submission import bundle
from leaderboard.verify import verify

SHA = "method.config_sha256"


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("forged"), n_train=(2, "all"), n_support=(4,))
    bench.run({"pooled-bt": pooled, "shrunk": shrunk})
    for path in bench.root.glob("records/*/*/*.json"):
        told = json.loads(path.read_text())
        data = bench.data["made@1"]
        query = Query.of(data, split(data, fold=told["split"]["fold"]).query(told["split"]["regime"]))
        counts = {"users": len(set(query.user.tolist())), "units": len(query.starts), "comparisons": len(query)}
        path.write_text(json.dumps(told | {"counts": counts | {"truncated": 0}}))
    return bench


@pytest.fixture
def bench(made_once, tmp_path):
    shutil.copytree(made_once.root, tmp_path / "r")
    return Bench(tmp_path / "r", data=made_once.data)


def records_of(bench, method="shrunk", **where):
    out = []
    for path in sorted(bench.root.glob(f"records/*/{method}/*.json")):
        at = json.loads(path.read_text())
        if all((at["split"] | {"seed": at["seed"]})[k] == v for k, v in where.items()):
            out.append(path)
    return out


def forged(path, **fields):
    """Change fields of a record and give it the key that belongs to them; returns its path."""
    told = json.loads(path.read_text())
    for name, value in fields.items():
        part, _, last = name.rpartition("__")
        (told[part] if part else told)[last] = value
    told["key"] = record_key(told["fit_key"], told["split"]["regime"], told["split"]["n_support"])
    other = path.with_name(told["key"] + ".json")
    path.unlink()
    other.write_text(json.dumps(told))
    return other


def fields(refusals):
    return {r.field for r in refusals}


def test_what_is_not_forged_is_accepted(bench):
    assert verify(bench.root, bench.labels) == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"split__n_train": 999}, "split.n_train"),
        ({"split__n_train": 0}, "split.n_train"),
        ({"split__n_users": 10**9}, "split.n_users"),
        ({"split__n_users": 0}, "split.n_users"),
        ({"dataset__encoder": "magic@7"}, "dataset.encoder"),
        ({"method__role": "control"}, "method.role"),
        ({"status": "skipped", "margins": None, "reason": None}, "reason"),
        ({"status": "skipped", "margins": None, "reason": " "}, "reason"),
        # The luckiest of many draws, and an axis on which less data would seem to do.
        ({"split__draw": 7}, "split.draw"),
        ({"split__n_train_mean": 1.0}, "split.n_train_mean"),
        ({"split__n_support_mean": 1.0}, "split.n_support_mean"),
        ({"method__dist": "Hetpref"}, "method.dist"),
        ({"method__dist": "hetpref\u200b"}, "method.dist"),
        ({"method__config": {"rank": 1}, "method__config_sha256": canonical_sha256({"rank": 1.0})}, SHA),
        ({"method__config": {"rank": 1}, "method__config_sha256": canonical_sha256({"rank": True})}, SHA),
        ({"schema_version": True}, "schema_version"),
        ({"schema_version": 1.0}, "schema_version"),
        ({"counts": {"users": 1, "units": 1, "comparisons": 1}}, "counts.truncated"),
    ],
)
def test_forged_fields_are_refused_by_name(bench, change, field):
    path = forged(records_of(bench, regime="seen", n_train="all")[0], **change)
    assert field in fields(verify(path, bench.labels))


def test_support_that_nobody_has_is_refused_and_a_budget_that_half_have_is_not(bench):
    path = forged(records_of(bench, regime="unseen")[0], split__n_support=999)
    assert "split.n_support" in fields(verify(path, bench.labels))
    for n in (3, 5):
        path = forged(path, split__n_support=n)
        assert "split.n_support" not in fields(verify(path, bench.labels))
    have = bench.labels.units("made@1", 0, 0, "seen")
    assert sorted(set(have.tolist()))[0] > 0
    path = forged(records_of(bench, regime="seen", n_train="all", seed=0)[0], split__n_train=int(have.min()))
    assert "split.n_train" not in fields(verify(path, bench.labels))


def test_a_key_is_that_of_the_fit_and_the_question(bench):
    path = records_of(bench, regime="unseen")[0]
    told = json.loads(path.read_text())
    told["fit_key"] = "0" * 64
    path.write_text(json.dumps(told))
    assert "key" in fields(verify(path, bench.labels))
    told["fit_key"], told["split"]["n_support"] = json.loads(records_of(bench)[0].read_text())["fit_key"], 2
    path.write_text(json.dumps(told))
    assert "key" in fields(verify(path, bench.labels))


@pytest.mark.parametrize("column", ["margin", "row", "other"])
def test_a_control_is_measured_in_a_column_of_its_own(bench, column):
    path = records_of(bench)[0]
    told = json.loads(path.read_text())
    told["margins"]["control"] = {"wrong_user": column}
    path.write_text(json.dumps(told))
    assert "margins.control" in fields(verify(path, bench.labels))


def test_a_dataset_has_one_name(bench):
    path = records_of(bench)[0]
    told = json.loads(path.read_text())
    told["dataset"]["name"] = "made@1+seed=0"
    path.write_text(json.dumps(told))
    labels = Labels(load=lambda name: bench.data["made@1"], split=split)
    assert "dataset.name" in fields(verify(path, labels))


def test_seeds_of_other_people_are_not_counted_together(bench, tmp_path):
    for seed, n in ((1, 8), (2, 9)):
        for path in records_of(bench, seed=seed):
            forged(path, split__n_users=n)
    assert "seeds" in fields(verify(bundle("shrunk", bench.root, tmp_path / "out"), bench.labels))


def test_no_more_datasets_are_made_than_a_submission_may_have(bench, monkeypatch):
    monkeypatch.setattr("leaderboard.verify.MAX_DATASETS", 0)
    assert [r.field for r in verify(bench.root, bench.labels)] == ["dataset.name"]


def test_a_method_is_in_one_role_and_level(bench):
    forged(records_of(bench)[0], method__dist="mine")
    forged(records_of(bench)[1], method__dist="mine", method__role="control", method__level="prompt")
    (said,) = [r for r in verify(bench.root, bench.labels) if r.field == "method.role"]
    assert "control, prompt" in said.found
    assert "method, feature" in said.found


def test_two_records_of_one_cell_are_said(bench):
    path = records_of(bench)[0]
    told = json.loads(path.read_text())
    told["fit_key"] = "0" * 64
    told["key"] = record_key("0" * 64, told["split"]["regime"], told["split"]["n_support"])
    path.with_name(told["key"] + ".json").write_text(json.dumps(told))
    # Nor may it show the margins of the other as its own.
    assert [r.field for r in verify(bench.root, bench.labels)] == ["margins.path", "cell"]


def test_a_skipped_cell_counts_as_a_failed_one(bench):
    for path in records_of(bench, regime="seen", n_train="all"):
        forged(path, status="skipped", margins=None, reason="it would look bad")
    board = build_board([bench.root], (), bench.labels).leaderboard
    (row,) = [r for r in board.rows if (r.label, r.regime, r.n_train) == ("shrunk", "seen", "all")]
    assert (row.imputed, row.failed, row.skipped, row.rank) == (1, 0, 3, None)
    assert {f.status for f in board.failures} == {"skipped"}


def test_a_dataset_that_cannot_be_had_is_said_once_with_the_number_of_records(bench, capsys):
    asked = []

    def load(spec):
        asked.append(spec)
        raise DataError("offline: connect and try again")

    n = len(list(bench.root.glob("records/*/*/*.json")))
    (refusal,) = verify(bench.root, Labels(load=load))
    assert refusal.field == "dataset"
    assert f"{n} records" in refusal.file
    gathered = gather([bench.root], Labels(load=load))
    assert gathered.skipped == [(f"{n} records of made@1", "offline: connect and try again")]
    assert capsys.readouterr().err.count("offline") == 1
    assert asked == ["made@1"] * 2


def test_missing_seeds_are_said_once_and_in_order(bench, tmp_path):
    for path in records_of(bench, seed=2):
        path.unlink()
    refusals = verify(bundle("shrunk", bench.root, tmp_path / "out"), bench.labels)
    (said,) = [r for r in refusals if r.field == "seeds"]
    assert said.found.startswith("0, 1 of shrunk in 4 settings")


def test_what_is_said_of_a_hostile_record_has_no_control_characters(bench, capsys):
    path = records_of(bench)[0]
    told = json.loads(path.read_text())
    told["\x1b[31mevil"] = "\x1b[2J"
    path.with_name("\x1b[31m.json").write_text(json.dumps(told))
    said = [part for r in verify(bench.root, bench.labels) for part in (r.file, r.field, r.found, r.required)]
    assert any("evil" in part for part in said)
    gather([bench.root], bench.labels)
    for text in (*said, capsys.readouterr().err):
        assert printable(text) == text


def test_a_method_is_not_compared_with_itself(bench):
    with pytest.raises(RequestError, match="compared with itself"):
        compare("shrunk", "shrunk", bench.root, bench.labels)


def test_settings_that_are_left_out_of_a_comparison_are_said(bench, capsys):
    Bench(bench.root, data=bench.data, n_train=(2, "all"), n_support=(4,)).run({"other": oracle})
    whole = compare("shrunk", "other", bench.root, bench.labels)
    assert "left out" not in capsys.readouterr().err
    for path in records_of(bench, regime="unseen", n_train=2):
        path.unlink()
    told = json.loads(records_of(bench, regime="seen", n_train="all", seed=0)[0].read_text())
    (bench.root / told["margins"]["path"]).write_bytes(b"PAR1")
    records_of(bench, regime="seen", n_train=2, seed=1)[0].write_text("{")
    fewer = compare("shrunk", "other", bench.root, bench.labels)
    said = capsys.readouterr().err
    assert len(fewer) < len(whole)
    assert "left out made@1, unseen, n_train 2, n_support 4: shrunk has no margins, other has seeds [0, 1, 2]" in said
    assert "made@1, seen, n_train all: 1 cells failed, were skipped or are damaged and count as pooled" in said


def test_the_worst_tenth_of_few_people_is_not_told(bench, tmp_path):
    few = build_board([bench.root], (), bench.labels).leaderboard
    assert {r.worst10.value for r in few.rows} == {None}
    data = {"made@1": made(n_users=300, n_units=20)}
    many = Bench(tmp_path / "many", data=data, n_train=("all",), n_support=(), seeds=1)
    many.run({"pooled-bt": pooled})
    rows = build_board([many.root], (), many.labels).leaderboard.rows
    assert all(r.worst10.value is not None for r in rows if r.regime == "seen")
