"""Verification lists every reason; submissions are hostile input."""

import json
import shutil

import numpy as np
import pytest
from board_fixtures import Bench, made, pooled, shrunk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets_registry.errors import DataError, RequestError
from datasets_registry.splits import split
from leaderboard.labels import Query
from leaderboard.records import canonical_sha256
from leaderboard.store import ResultsFolder, read_record
from leaderboard.submission import bundle, submit
from leaderboard.verify import verify


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("verify"), n_train=("all",), n_support=(4,))
    bench.run({"pooled-bt": pooled, "shrunk": shrunk})
    for path in bench.root.glob("records/*/*/*.json"):
        told = json.loads(path.read_text())
        at = told["split"]
        data = bench.data[told["dataset"]["name"]]
        query = Query.of(data, split(data, fold=at["fold"]).query(at["regime"]))
        told["counts"] = {"users": len(set(query.user.tolist())), "units": len(query.starts), "comparisons": len(query)}
        path.write_text(json.dumps(told | {"counts": {**told["counts"], "truncated": 0}}))
    return bench


@pytest.fixture
def bench(made_once, tmp_path):
    shutil.copytree(made_once.root, tmp_path / "r")
    return Bench(tmp_path / "r", data=made_once.data)


def a_record(bench):
    return sorted(bench.root.glob("records/*/shrunk/*.json"))[0]


def changed(path, **fields):
    told = json.loads(path.read_text())
    for name, value in fields.items():
        at, *rest = name.split("__")
        target = told
        while rest:
            target, at, *rest = target[at], *rest
        target[at] = value
    path.write_text(json.dumps(told))


def fields(refusals):
    return {r.field for r in refusals}


def test_what_a_run_writes_is_accepted(bench):
    assert verify(bench.root, bench.labels) == []
    assert verify(a_record(bench), bench.labels) == []


def test_every_reason_is_listed_at_once(bench):
    path = a_record(bench)
    changed(
        path,
        method__config={"rank": 8},
        split__sha256="0" * 64,
        dataset__sha256="1" * 64,
        seed=3,
        counts__users=1,
        margins__control={},
        margins__sha256="2" * 64,
        protocol="1999.1",
    )
    found = fields(verify(path, bench.labels))
    wanted = {"method.config_sha256", "split.sha256", "dataset.sha256", "seed", "counts", "margins.control"}
    assert wanted | {"margins.sha256", "protocol"} <= found


def test_every_fault_of_form_is_listed_at_once(bench):
    path = a_record(bench)
    changed(
        path, schema_version=9, method__name="<script>", score=1.0, status="brilliant", margins__path="../../etc/passwd"
    )
    found = fields(verify(path, bench.labels))
    assert {"schema_version", "method.name", "score", "status", "margins.path"} <= found


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda t: {**t, "margin": np.where(t["row"] == t["row"][0], np.inf, t["margin"])}, "margins.margin"),
        (lambda t: {**t, "wrong_user": np.full_like(t["margin"], np.nan)}, "margins.wrong_user"),
        (lambda t: {**t, "row": np.full_like(t["row"], t["row"][0])}, "margins.rows"),
        (lambda t: {k: v[1:] for k, v in t.items()}, "margins.rows"),
        (lambda t: {k: v for k, v in t.items() if k != "wrong_user"}, "margins.columns"),
        (lambda t: {**t, "margin": t["margin"].astype(str)}, "margins.columns"),
    ],
)
def test_wrong_margins(bench, change, field):
    path = a_record(bench)
    record, folder = read_record(path), ResultsFolder(bench.root)
    ref = folder.write_margins(record.margins.path, change(folder.read_margins(record.margins)))
    changed(path, margins__sha256=ref.sha256)
    assert field in fields(verify(path, bench.labels))


@pytest.mark.parametrize("name", ["random", "length", "pooled-bt", "oracle"])
def test_a_foreign_method_may_not_bear_the_name_of_a_control(bench, name):
    path = a_record(bench)
    changed(path, method__name=name, method__dist="somebody-else")
    assert "method.dist" in fields(verify(path, bench.labels))
    changed(path, method__dist="hetpref")
    assert "method.dist" not in fields(verify(path, bench.labels))
    changed(path, method__name="anything", method__dist="somebody-else")
    assert "method.dist" not in fields(verify(path, bench.labels))


def test_validation_margins_are_of_as_many_units_as_training_had(tmp_path):
    bench = Bench(tmp_path, n_train=(1,), n_support=(), seeds=1)
    bench.run({"pooled-bt": pooled})
    (path,) = bench.root.glob("records/*/*/*.json")
    record, folder = read_record(path), ResultsFolder(bench.root)
    rows = bench.labels.split("made@1", 0, 0).validation("all", 1)
    assert folder.read_margins(record.margins.validation)["row"].tolist() == rows.tolist()
    assert not {"margins.validation.rows"} & fields(verify(path, bench.labels))
    whole = bench.labels.split("made@1", 0, 0).validation()
    assert len(whole) > len(rows)
    ref = folder.write_margins(
        record.margins.validation.path, {"row": whole.astype(np.int32), "margin": np.ones(len(whole), np.float32)}
    )
    changed(path, margins__validation__sha256=ref.sha256)
    assert "margins.validation.rows" in fields(verify(path, bench.labels))
    with pytest.raises(DataError, match="foreign"):
        bench.labels.validation("made@1", 0, 0, "all", 1).align(whole, np.ones(len(whole)))


def test_a_link_out_of_the_folder_is_refused(bench, tmp_path):
    record = read_record(a_record(bench))
    (tmp_path / "outside.parquet").write_bytes((bench.root / record.margins.path).read_bytes())
    (bench.root / record.margins.path).unlink()
    (bench.root / record.margins.path).symlink_to(tmp_path / "outside.parquet")
    assert "margins.path" in fields(verify(a_record(bench), bench.labels))


def test_statuses(bench):
    path = a_record(bench)
    changed(path, status="failed")
    assert {"margins", "reason"} <= fields(verify(path, bench.labels))
    changed(path, status="ok", margins=None)
    assert "margins" in fields(verify(path, bench.labels))


def test_a_misplaced_record(bench):
    path = a_record(bench)
    path.rename(path.with_name("0" * 64 + ".json"))
    assert "path" in fields(verify(bench.root, bench.labels))


def test_files_that_are_no_records_are_refused(bench):
    (bench.root / "records" / "run.pkl").write_bytes(b"\x80\x04.")
    assert "file" in fields(verify(bench.root, bench.labels))
    with pytest.raises(RequestError, match="does not exist"):
        verify(bench.root / "nowhere")


def test_an_unknown_dataset_is_a_reason(bench):
    other = Bench(bench.root, data={"made@1": made(seed=2)})
    assert "dataset.sha256" in fields(verify(a_record(bench), other.labels))
    changed(a_record(bench), dataset__name="nobody@1")
    found = verify(a_record(bench))
    assert "dataset" in fields(found)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(raw=st.binary(max_size=200) | st.text(max_size=100).map(lambda t: json.dumps({"protocol": t}).encode()))
def test_any_bytes_are_refused_with_a_reason(tmp_path, raw):
    path = tmp_path / "any.json"
    path.write_bytes(raw)
    assert verify(path)


def test_deeply_nested_json_is_refused(tmp_path):
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    assert verify(path)


def test_a_submission_is_bundled_verified_and_placed(bench, tmp_path):
    report = submit("shrunk", bench.root, tmp_path / "out", bench.labels)
    assert report.refusals == []
    assert "tier 1" in report.text
    assert not list((tmp_path / "out").glob("records/*/pooled-bt"))
    # Bundling again replaces the bundle; another folder is never emptied.
    submit("shrunk", bench.root, tmp_path / "out", bench.labels)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(RequestError, match="not a submission"):
        bundle("shrunk", bench.root, tmp_path / "mine")
    with pytest.raises(RequestError, match="Did you mean 'shrunk'"):
        bundle("shrunkk", bench.root, tmp_path / "out")


def test_a_tampered_bundle_is_refused_for_each_change(bench, tmp_path):
    out = bundle("shrunk", bench.root, tmp_path / "out")
    (out / "run.py").write_text("print('no code is run')")
    (out / "link.json").symlink_to("/etc/passwd")
    margins = sorted(out.glob("margins/*/*/*.parquet"))
    margins[0].write_bytes(b"PAR1")
    records = sorted(out.glob("records/*/*/*.json"))
    records[-1].unlink()
    refusals = verify(out, bench.labels)
    told = {(r.file, r.field) for r in refusals}
    assert {("run.py", "file"), ("run.py", "manifest"), ("link.json", "file")} <= told
    assert (margins[0].relative_to(out).as_posix(), "sha256") in told
    assert (records[-1].relative_to(out).as_posix(), "manifest") in told
    assert "seeds" in fields(refusals)
    (out / "manifest.json").write_text("{")
    assert "file" in fields(verify(out, bench.labels))


def test_the_config_hash_is_that_of_the_parameters(bench):
    path = a_record(bench)
    changed(path, method__config={"rank": 8}, method__config_sha256=canonical_sha256({"rank": 8}))
    assert "method.config_sha256" not in fields(verify(path, bench.labels))


@pytest.mark.parametrize("encoder", ["minilm-l6@1", "tiny-bert@1", "hub:owner/name", "hub:owner/name@main"])
def test_an_encoder_is_one_that_is_known_or_of_the_hub(bench, encoder):
    path = a_record(bench)
    changed(path, dataset__encoder=encoder, dataset__encoder_revision="c" * 40)
    assert verify(path, bench.labels) == []


@pytest.mark.parametrize("encoder", ["minilm-l7@1", "hub:name", "hub:../name", "owner/name"])
def test_another_encoder_is_refused(bench, encoder):
    path = a_record(bench)
    changed(path, dataset__encoder=encoder)
    assert fields(verify(path, bench.labels)) == {"dataset.encoder"}
