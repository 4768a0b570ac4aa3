"""Bundles: one record per cell, and no folder is replaced that is not the same method's bundle and nothing else."""

import json
import shutil

import pytest
from board_fixtures import Bench, pooled, shrunk

from datasets_registry.errors import RequestError
from leaderboard.scoring import gather
from leaderboard.store import read_record
from leaderboard.submission import Submission, bundle
from leaderboard.verify import Refusal


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("submission"), n_train=("all",), n_support=())
    bench.run({"pooled-bt": pooled, "shrunk": shrunk})
    return bench


@pytest.fixture
def bench(made_once, tmp_path):
    shutil.copytree(made_once.root, tmp_path / "r")
    return Bench(tmp_path / "r", data=made_once.data)


def again(path, key, **changes):
    """Write a second record of the same cell; returns its path."""
    told = json.loads(path.read_text()) | {"key": key} | changes
    other = path.with_name(f"{key}.json")
    other.write_text(json.dumps(told))
    return other


def test_of_several_records_of_one_cell_the_one_that_counts_is_bundled(bench, tmp_path):
    paths = sorted(bench.root.glob("records/*/shrunk/*.json"))
    clean, dirty = json.loads(paths[0].read_text())["source"], {"commit": None, "dirty": True}
    again(paths[0], "0" * 64, source=dirty)
    again(paths[1], "0" * 63 + "1", source=clean)
    again(paths[2], "0" * 63 + "2", status="failed", margins=None, reason="no")
    out = bundle("shrunk", bench.root, tmp_path / "out")
    bundled = [read_record(p) for p in sorted(out.glob("records/*/*/*.json"))]
    assert len({r.cell for r in bundled}) == len(bundled) == len(paths)
    board = gather([bench.root], bench.labels).records
    assert {r.key for r in bundled} == {r.key for r in board if r.method.name == "shrunk"}
    assert json.loads((out / "manifest.json").read_text())["records"] == len(paths)


def test_a_folder_with_somebody_elses_manifest_is_not_emptied(bench, tmp_path):
    mine = tmp_path / "extension"
    mine.mkdir()
    (mine / "thesis.tex").write_text("precious")
    for manifest in ('{"manifest_version": 3}', "[1]", "{", '{"schema_version": 1, "files": {}}'):
        (mine / "manifest.json").write_text(manifest)
        with pytest.raises(RequestError, match="not a submission"):
            bundle("shrunk", bench.root, mine)
        assert (mine / "thesis.tex").read_text() == "precious"


def test_a_submission_of_another_method_is_not_replaced(bench, tmp_path):
    bundle("pooled-bt", bench.root, tmp_path / "out")
    with pytest.raises(RequestError, match="another method, 'pooled-bt'"):
        bundle("shrunk", bench.root, tmp_path / "out")
    assert list((tmp_path / "out").glob("records/*/pooled-bt/*.json"))


def test_files_that_were_put_into_a_bundle_are_not_deleted(bench, tmp_path):
    out = bundle("shrunk", bench.root, tmp_path / "out")
    bundle("shrunk", bench.root, out)
    (out / "notes.txt").write_text("precious")
    with pytest.raises(RequestError, match=r"notes\.txt"):
        bundle("shrunk", bench.root, out)
    assert (out / "notes.txt").read_text() == "precious"


def test_the_results_are_not_their_own_bundle(bench, tmp_path):
    bundle("shrunk", bench.root, tmp_path / "out")
    for out in (bench.root, bench.root / "records" / "made@1", bench.root.parent):
        with pytest.raises(RequestError, match="another folder"):
            bundle("shrunk", bench.root, out)
    # A bundle is a results folder too, and bundling it into itself would read what is being replaced.
    with pytest.raises(RequestError, match="another folder"):
        bundle("shrunk", tmp_path / "out", tmp_path / "out")


def test_a_link_is_not_followed(bench, tmp_path):
    bundle("shrunk", bench.root, tmp_path / "out")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(RequestError, match="link"):
        bundle("shrunk", bench.root, tmp_path / "link")


def test_a_single_reason_is_one_reason(tmp_path):
    one = Refusal("a.json", "seed", "9", "less")
    assert "for 1 reason:" in Submission(tmp_path, [one], [], {}, tmp_path).text
    assert "for 2 reasons:" in Submission(tmp_path, [one, one], [], {}, tmp_path).text
