"""Methods that cheat: whoever looks for labels finds none, who reaches for them fails, and the others are measured."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from datasets_registry import load
from datasets_registry.splits import split
from leaderboard.board import build_board
from leaderboard.store import ResultsFolder, read_record

PLUGIN = Path(__file__).parent / "plugins" / "cheating_methods.py"
DATASET = "planted@1+users=60"
SUITE = f"""
title = "Cheats"
seeds = 1
time_limit_s = 60
memory_limit_mb = 2048
user_shuffle = false
methods = ["pooled-bt", "per-user-bt", {{methods}}]

[[datasets]]
name = "{DATASET}"
encoder = "tabular@1"
n_train = [4]
n_support = [2]
"""
FIND_NOTHING = ("says-nothing", "hunts-in-world", "hunts-in-stack", "hunts-in-memory", "by-order", "forks")
REACH = {
    "hunts-in-files": "wheels",
    "hunts-in-mirror": "os.listdir ",
    "hunts-by-link": "os.symlink ",
    "hunts-in-registry": f"the dataset {DATASET} was loaded",
    "hunts-in-results": "os.",
    "hunts-and-declines": f"the dataset {DATASET} was loaded",
    "calls-home": "socket.",
    "writes-outside": "open ",
}


def plugin():
    found = importlib.util.spec_from_file_location("cheating_methods", PLUGIN)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cheats")
    module = plugin()
    assert {*FIND_NOTHING, *REACH} == set(module.METHODS)
    info = folder / "plugin" / "cheating_methods-1.dist-info"
    info.mkdir(parents=True)
    (folder / "plugin" / "cheating_methods.py").write_text(PLUGIN.read_text())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cheating-methods\nVersion: 1\n")
    points = "\n".join(f"{name} = cheating_methods:{cls.__name__}" for name, cls in module.METHODS.items())
    (info / "entry_points.txt").write_text(f"[hetpref.methods]\n{points}\n")
    (folder / "cheats.toml").write_text(SUITE.replace("{methods}", ", ".join(f'"{n}"' for n in module.METHODS)))
    (folder / "mirror").mkdir()
    env = {**os.environ, "PYTHONPATH": str(folder / "plugin"), "HETPREF_TEST_RESULTS": str(folder / "out")}
    env["HETPREF_MIRROR"] = str(folder / "mirror")
    command = [sys.executable, "-m", "benchmarks.cli", "run", folder / "cheats.toml", "--out", folder / "out"]
    done = subprocess.run([*command, "--no-pages"], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    return folder / "out"


def records(results, method):
    found = [read_record(p) for p in ResultsFolder(results).record_files() if p.parent.name == method]
    assert len(found) == 2
    return found


@pytest.mark.parametrize("method", FIND_NOTHING)
def test_who_looks_in_its_process_finds_no_label(results, method):
    for record in records(results, method):
        assert record.status == "ok", record.reason
        margins = ResultsFolder(results).read_margins(record.margins)
        assert not margins["margin"].any()


@pytest.mark.parametrize("method", REACH)
def test_who_reaches_for_labels_fails_and_the_record_says_for_what(results, method):
    for record in records(results, method):
        assert record.status == "failed"
        assert record.margins is None
        assert record.reason.startswith("the method reached for what no method may see: ")
        assert REACH[method] in record.reason


def test_the_others_are_measured_and_ranked(results):
    rows = build_board([results], rank_dirty=True).leaderboard.rows
    for method in ("pooled-bt", "per-user-bt"):
        assert {r.status for r in records(results, method)} == {"ok"}
        assert all(row.rank for row in rows if row.method == method)
    for row in rows:
        if row.method in FIND_NOTHING:
            assert row.acc_macro.value == 0.5
        if row.method in REACH:
            assert row.rank is None


def test_nothing_that_was_written_is_there_and_no_process_is_left(results):
    assert not (results / "records" / "mine.json").exists()
    for path in ResultsFolder(results).record_files():
        assert json.loads(path.read_text())["schema_version"] == 1
    left = [
        p
        for p in psutil.process_iter(["name", "environ"])
        if (p.info["environ"] or {}).get("HETPREF_TEST_RESULTS") == str(results)
    ]
    assert not left


@pytest.mark.parametrize("name", ["hunts-in-world", "hunts-in-stack", "hunts-in-memory"])
def test_the_hunters_would_find_labels_that_are_there(name):
    data = load(DATASET)
    asked = data.comparisons.take(split(data).query("seen"))
    cheat = plugin().METHODS[name]()
    if name == "hunts-in-world":
        cheat.fit(None, None, {"answers": asked}, None)
    else:
        cheat.fit(None, None, None, None)
    told = cheat.margins([], asked.hidden())
    np.testing.assert_array_equal(told > 0, asked.label > 0.5)
