"""Methods that cheat: whoever looks for labels finds none, who reaches for them fails, and the others are measured.

What raises, hangs, hoards, or answers with nonsense is in tests/test_executor.py and tests/test_run.py; a constant and
an always-first scorer in tests/test_gates.py; forged fields of records in tests/test_verify.py and
tests/test_forgeries.py; replayed margins in tests/test_ledger.py, margins from elsewhere in tests/test_rerun.py.
"""

import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.cli import main
from benchmarks.tripwire import ForbiddenError, Models, Tripwire
from datasets_registry import load
from datasets_registry.sources import home
from datasets_registry.splits import split
from leaderboard.board import build_board
from leaderboard.store import ResultsFolder, read_record
from methods.registry import find

PLUGINS = Path(__file__).parent / "plugins"
MODULES = ("cheating_methods", "cheating_at_import")
DATASET = "planted@1+users=60"
SUITE = f"""
title = "Cheats"
seeds = 1
time_limit_s = 120
memory_limit_mb = 2048
user_shuffle = false
methods = ["pooled-bt", "per-user-bt", {{methods}}]

[[datasets]]
name = "{DATASET}"
encoder = "tabular@1"
n_train = [4]
n_support = [2]
"""
HUNTERS = ("hunts-in-world", "hunts-in-stack", "hunts-in-memory")
SAY_NOTHING = (
    *HUNTERS,
    "hunts-in-child",
    "says-nothing",
    "works",
    "by-order",
    "forks",
    "forks-and-goes-on",
    "detaches",
)
CATALOGUE = "of the catalogue of datasets"
REACH = {
    "hunts-in-files": "os.scandir of HETPREF_HOME/wheels",
    "hunts-in-mirror": "os.listdir of HETPREF_MIRROR",
    "hunts-by-link": "os.symlink of HETPREF_HOME/wheels",
    "hunts-in-hub-cache": "open of the hub's cache of the dataset owner/name",
    "hunts-in-registry": CATALOGUE,
    "hunts-at-import": CATALOGUE,
    "hunts-and-declines": CATALOGUE,
    "hunts-in-results": "os.scandir of the results folder",
    "hunts-in-runner": "which is another process's",
    "calls-home": "socket.getaddrinfo of 127.0.0.1",
    "writes-outside": "open of the results folder/records/mine.json",
}


@pytest.fixture(scope="module")
def cheats():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PLUGINS))
        found = [importlib.import_module(name) for name in MODULES]
        yield {**found[0].METHODS, "hunts-at-import": found[1].AtImport}


@pytest.fixture(scope="module")
def ran(cheats, tmp_path_factory):
    """Run a suite with every cheat in it, as a distribution: the modules, and what an installer would write."""
    folder = tmp_path_factory.mktemp("cheats")
    assert {*SAY_NOTHING, *REACH, "by-people"} == set(cheats)
    info = folder / "plugin" / "cheating_methods-1.dist-info"
    info.mkdir(parents=True)
    for name in MODULES:
        shutil.copy(PLUGINS / f"{name}.py", folder / "plugin")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cheating-methods\nVersion: 1\n")
    points = "\n".join(f"{name} = {cls.__module__}:{cls.__name__}" for name, cls in cheats.items())
    (info / "entry_points.txt").write_text(f"[hetpref.methods]\n{points}\n")
    (folder / "cheats.toml").write_text(SUITE.replace("{methods}", ", ".join(f'"{name}"' for name in cheats)))
    (folder / "mirror").mkdir()
    (folder / "found").mkdir()
    env = {**os.environ, "PYTHONPATH": str(folder / "plugin"), "HETPREF_MIRROR": str(folder / "mirror")}
    env |= {"HETPREF_TEST_RESULTS": str(folder / "out"), "HETPREF_TEST_FOUND": str(folder / "found")}
    command = [sys.executable, "-m", "benchmarks.cli", "run", folder / "cheats.toml", "--out", folder / "out"]
    done = subprocess.run([*command, "--no-pages"], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    return folder


@pytest.fixture(scope="module")
def results(ran):
    return ran / "out"


def records(results, method):
    found = [read_record(p) for p in ResultsFolder(results).record_files() if p.parent.name == method]
    assert len(found) == 2
    return found


@pytest.mark.parametrize("method", SAY_NOTHING)
def test_who_looks_in_its_process_or_at_an_order_learns_nothing(results, method):
    for record in records(results, method):
        assert record.status == "ok", record.reason
        assert not ResultsFolder(results).read_margins(record.margins)["margin"].any()


@pytest.mark.parametrize("method", HUNTERS)
def test_what_hunters_found_is_what_they_were_handed_and_no_query_label(ran, method):
    data = load(DATASET)
    parts = split(data)
    found = {p.name: np.load(p) for p in (ran / "found").glob(f"{method}-*.npy")}
    if method != "hunts-in-world":  # which is handed to fit without labels
        training = np.sort(data.comparisons.label[parts.train(4)])
        assert any(np.array_equal(np.sort(each), training) for each in found.values()), "the hunter sees nothing at all"
    secrets = [data.comparisons.label, *(data.comparisons.label[parts.query(r)] for r in ("seen", "unseen"))]
    for name, each in found.items():
        for secret in secrets:
            assert secret.astype(np.float32).tobytes() not in each.astype(np.float32).tobytes(), name


@pytest.mark.parametrize("method", HUNTERS)
def test_hunters_would_find_labels_that_are_there(cheats, method, monkeypatch):
    monkeypatch.delenv("HETPREF_TEST_FOUND", raising=False)
    data = load(DATASET)
    asked = data.comparisons.take(split(data).query("seen"))
    cheat = cheats[method]()
    cheat.fit(None, None, {"answers": asked} if method == "hunts-in-world" else None, None)
    cheat.margins([], asked.hidden())
    assert any(np.array_equal(each, asked.label) for each in cheat.found)


@pytest.mark.parametrize("method", REACH)
def test_who_reaches_for_labels_fails_and_the_record_says_for_what(results, method):
    for record in records(results, method):
        assert (record.status, record.margins) == ("failed", None)
        told = record.reason.partition("\n")[0]
        assert told.startswith("the method reached for what no method may see: ")
        assert REACH[method] in told
        assert str(results.parent) not in told
        assert str(home()) not in told


def test_the_others_are_measured_and_ranked(results):
    rows = build_board([results], rank_dirty=True).leaderboard.rows
    for method in ("pooled-bt", "per-user-bt"):
        assert {r.status for r in records(results, method)} == {"ok"}
        assert all(row.rank for row in rows if row.method == method)
    for row in rows:
        if row.method in SAY_NOTHING:
            assert row.acc_macro.value == 0.5
        if row.method == "by-people":
            assert row.acc_macro.low <= 0.5 <= row.acc_macro.high
        if row.method in REACH:
            assert row.rank is None


def test_nothing_that_was_written_is_there_and_no_process_is_left(results):
    assert not (results / "records" / "mine.json").exists()
    for path in ResultsFolder(results).record_files():
        assert json.loads(path.read_text())["schema_version"] == 1
    told = [(p.info["environ"] or {}).get("HETPREF_TEST_RESULTS") for p in psutil.process_iter(["environ"])]
    assert str(results) not in told


def verified(results, capsys):
    """Run `hetpref verify`; returns its exit code, and the method and field of every refusal."""
    try:
        main(["verify", str(results), "--json"])
        code = 0
    except SystemExit as ended:
        code = ended.code
    (reasons,) = json.loads(capsys.readouterr().out).values()
    return code, {(each["file"].split("/")[2], each["field"]) for each in reasons}


def test_forged_results_are_refused_for_every_reason_at_once(results, tmp_path, capsys):
    assert verified(results, capsys) == (0, set())
    root = tmp_path / "forged"
    shutil.copytree(results, root)
    folder = ResultsFolder(root)
    written = {(r.method.name, r.split.regime): p for p in folder.record_files() for r in [read_record(p)]}

    def rewritten(method, regime, change):
        told = json.loads(written[method, regime].read_text())
        change(told)
        written[method, regime].write_text(json.dumps(told))

    # margins that are edited afterwards, and those of another question of its own
    edited = read_record(written["says-nothing", "seen"]).margins
    asked = load(DATASET).comparisons
    known = dict(folder.read_margins(edited))
    known["margin"] = (asked.label[known["row"]] - 0.5).astype(np.float32)
    folder.write_margins(edited.path, known)
    other = json.loads(written["by-order", "unseen"].read_text())["margins"]
    rewritten("by-order", "seen", lambda told: told.update(margins=other))
    # another method's, as its own
    theirs = json.loads(written["pooled-bt", "seen"].read_text())["margins"]
    rewritten("works", "seen", lambda told: told.update(margins=theirs))
    # the digest of another split, another's configuration, a failure that became a success
    digest = split(load(DATASET), fold=1).digest
    rewritten("by-people", "seen", lambda told: told["split"].update(sha256=digest))
    rewritten("forks", "seen", lambda told: told["method"].update(config={"rank": 8}))
    rewritten("calls-home", "seen", lambda told: told.update(status="ok", reason=None))
    # a file where no file of its own is
    rewritten("detaches", "unseen", lambda told: told["margins"].update(path="../../elsewhere.parquet"))
    assert verified(root, capsys) == (
        1,
        {
            ("says-nothing", "margins.sha256"),
            ("by-order", "margins.rows"),
            ("by-order", "margins.path"),
            ("works", "margins.path"),
            ("works", "margins.validation.path"),
            ("by-people", "split.sha256"),
            ("forks", "method.config_sha256"),
            ("calls-home", "margins"),
            ("detaches", "margins.path"),
        },
    )


@pytest.fixture
def wire(tmp_path, monkeypatch):
    """What judges the events of a cell, whose model is at the hub and mirrored where `model` is made."""
    monkeypatch.setenv("HETPREF_HOME", str(tmp_path / "mirror" / "home"))
    monkeypatch.setenv("HETPREF_MIRROR", str(tmp_path / "mirror"))

    def made(method="pooled-bt", encoder="tabular@1", **config):
        return Tripwire.around(Models.of(find(method), config, encoder), tmp_path / "out").hook()

    return made


def allowed(hook, event, *arguments):
    try:
        hook(event, arguments)
    except ForbiddenError:
        return False
    return True


def test_the_innermost_folder_counts_and_a_link_leads_nowhere(wire, tmp_path):
    hook = wire()
    (tmp_path / "out" / "records").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for path in ("mirror/owner/data.parquet", "mirror/home/wheels/a.whl", "out", "out/records/x.json", "link/records"):
        assert not allowed(hook, "open", str(tmp_path / path), "r", 0), path
        assert not allowed(hook, "os.scandir", os.fsencode(tmp_path / path)), path
    for path in ("mirror/home/features/a.npy", "mirror/home/activations/b", "outside", "mirrored", "own/file"):
        assert allowed(hook, "open", tmp_path / path, "r", 0), path
    assert allowed(hook, "open", 3, "r", 0)
    assert allowed(hook, "open", f"/proc/{os.getpid()}/mem", "r", 0)
    assert not allowed(hook, "open", f"/proc/self/../{os.getppid()}/mem", "r", 0)
    assert not allowed(hook, "os.rename", str(tmp_path / "own"), str(tmp_path / "out" / "mine"), -1, -1)


def test_a_model_of_the_hub_is_read_from_its_mirror_or_from_the_hub(wire, tmp_path):
    asks = ("socket.getaddrinfo", "example.org", 443, 0, 0, 0)
    encoder = "hub:owner/model@main"
    assert not allowed(wire("lora-global", "minilm-l6@1"), *asks)
    assert not allowed(wire("pooled-bt", encoder), *asks)
    assert allowed(wire("lora-global", encoder), *asks)
    model = tmp_path / "mirror" / "owner" / "model" / "main"
    model.mkdir(parents=True)
    hook = wire("lora-global", encoder)
    assert not allowed(hook, *asks)
    assert allowed(hook, "open", str(model / "config.json"), "r", 0)
    assert not allowed(hook, "open", str(model.parent.parent / "data" / "train.parquet"), "r", 0)


def test_a_language_model_is_reached_where_it_is():
    class Asks(find("pooled-bt")):
        spec = replace(find("pooled-bt").spec, level="prompt")
        lm = "smollm2-135m@1,dtype=bfloat16"

    assert Models.of(Asks, {}, "tabular@1") == Models(("smollm2-135m@1",))
    assert Models.of(Asks, {"lm": "hf:owner/name"}, "minilm-l6@1") == Models(remote=True)
    assert Models.of(find("pooled-bt"), {"lm": "hf:owner/name"}, "minilm-l6@1") == Models()


def test_local_sockets_and_connected_ones_are_no_network(wire):
    hook = wire()
    assert allowed(hook, "socket.connect", None, "/tmp/listener")
    assert allowed(hook, "socket.sendmsg", None, None)
    assert not allowed(hook, "socket.connect", None, ("127.0.0.1", 80))
    assert not allowed(hook, "socket.sendto", None, ("::1", 80, 0, 0))
    assert not allowed(hook, "socket.gethostbyname", "example.org")
