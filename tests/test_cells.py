"""A cell's key holds everything of ours that can move a margin, and nothing else."""

import dataclasses
import importlib
import json
from pathlib import Path

import pytest

from benchmarks import code_digest
from benchmarks.cells import Grids, MethodEntry, Task, fits, method_entries, plan_cells
from benchmarks.code_digest import source_sha256
from benchmarks.payloads import build_payload
from benchmarks.runner import Options, Summary, planned_cells, prepare
from benchmarks.suites import DatasetPlan, MethodPlan, Suite
from datasets_registry.probes import probe
from leaderboard.records import record_key
from methods.registry import find


class Silent:
    def note(self, text):
        pass


@pytest.fixture(scope="module")
def cells():
    plan = DatasetPlan("planted@1+d=6+rank=2+units=30+users=40", "tabular@1", n_train=(2, "all"), n_support=(0, 2))
    suite = Suite("cells", "", (plan,), (MethodPlan("pooled-bt", {}), MethodPlan("oracle", {})), 2, 60, 512)
    entries = [MethodEntry(find(m.name), {}, "hetpref", "0", "") for m in suite.methods]
    return list(plan_cells(suite, prepare(plan, Silent()), entries))


def test_keys_are_distinct_and_repeatable(cells):
    keys = [record_key(c.fit_key, t.regime, t.n_support) for c in cells for t in c.fit.tasks]
    assert len(set(keys)) == len(keys) == 2 * 2 * 2 * 3
    assert [c.fit_key for c in cells] == [c.fit_key for c in cells]


@pytest.mark.parametrize(
    "change", [{"config": {"x": 1}}, {"dist": "other"}, {"version": "1"}, {"source_sha256": "a"}], ids=str
)
def test_another_method_is_another_key(cells, change):
    cell = cells[0]
    assert dataclasses.replace(cell, method=dataclasses.replace(cell.method, **change)).fit_key != cell.fit_key


def test_a_method_that_builds_on_another_depends_on_its_file():
    own = {p.name for p in code_digest._own_files(find("nearest-user").__module__)}
    assert {"nearest_user.py", "per_user_bt.py"} <= own
    assert "lore.py" not in own


def test_what_all_methods_share_is_in_the_digest(monkeypatch):
    before = source_sha256(find("pooled-bt"))
    monkeypatch.setattr(code_digest, "_shared", lambda: "another machinery")
    assert source_sha256(find("pooled-bt")) != before
    shared = {"bradley_terry.py", "linear_factors.py", "interface.py"}
    assert shared <= {p.name for p in Path(code_digest._ROOT, "methods").glob("*.py")}


def test_what_a_method_reads_is_in_the_digest(tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    plans = (MethodPlan("lora-global", {"start": str(adapter)}), MethodPlan("pooled-bt", {}))
    suite = Suite("reads", "", (), plans, 1, 60, 512)
    seen = []
    for content in (b"one", b"other", b"one"):
        (adapter / "adapter_model.safetensors").write_bytes(content)
        entries, failed = method_entries(suite, None)
        assert not failed
        seen.append([e.source_sha256 for e in entries])
    assert seen[0] == seen[2]
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] == seen[1][1]


def test_truth_is_for_simulated_data_only():
    plan = DatasetPlan("electricity@1", "tabular@1", n_train=("all",), n_support=(0,))
    suite = Suite("cells", "", (plan,), (MethodPlan("oracle", {}),), 1, 60, 512)
    assert not list(plan_cells(suite, prepare(plan, Silent()), [MethodEntry(find("oracle"), {}, "hetpref", "0", "")]))


def test_the_kernels_count_for_methods_that_use_them(tmp_path, monkeypatch):
    (tmp_path / "uses_kernels.py").write_text("from methods.lowrank import batched_lora\n")
    (tmp_path / "uses_none.py").write_text("import methods.interface\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("uses_kernels")
    importlib.import_module("uses_none")
    own = {p.name for p in code_digest._own_files("uses_kernels")}
    assert own >= {"uses_kernels.py", "operation.py", "kernels.cpp", "cpu.json"}
    assert {p.name for p in code_digest._own_files("uses_none")} == {"uses_none.py"}


def test_a_device_is_told_to_the_method_and_is_no_other_fit(cells):
    here, there = cells[0], dataclasses.replace(cells[0], device="cuda:1")
    assert here.fit_key == there.fit_key
    assert [build_payload(c, 60).budget.device for c in (here, there)] == ["cpu", "cuda:1"]


def test_another_revision_of_an_encoder_is_another_fit(cells):
    moved = dataclasses.replace(cells[0].prepared, encoder_revision="b" * 40)
    assert dataclasses.replace(cells[0], prepared=moved).fit_key != cells[0].fit_key


def test_titles_tell_cells_apart():
    name = "planted@1+d=6+rank=2+units=30+users=60"
    plan = DatasetPlan(name, "tabular@1", (2, 4), (0,), (32, "all"), ("none", "zipf"))
    config = find("p-share-lora-linear").hyperparameters()
    entries = [MethodEntry(find("p-share-lora-linear"), {**config, "rank": n}, "hetpref", "0", "") for n in (1, 2)]
    suite = Suite("cells", "", (plan,), (MethodPlan("pooled-bt", {}),), 2, 60, 512)
    titles = [c.title for c in plan_cells(suite, prepare(plan, Silent()), entries)]
    assert len(set(titles)) == len(titles)
    assert f"p-share-lora-linear (rank=1) on {plan.name}, n_train 4, n_users 32, zipf, seed 1" in titles


@pytest.mark.parametrize(
    ("people", "grid", "crowds", "shuffled"),
    [
        (48, (32,), [32], 32),
        (48, (32, "all"), [32, "all"], "all"),
        (48, ("all", 40, 32), [40, 32, "all"], "all"),
        (24, (32, 64), ["all"], "all"),
        (None, (32, 64), [32, 64], 64),
    ],
)
def test_the_user_shuffle_control_stands_where_the_headline_does(people, grid, crowds, shuffled):
    plan = DatasetPlan("any@1", "tabular@1", n_users=grid)
    entry = MethodEntry(find("per-user-bt"), {}, "hetpref", "0", "")
    *plain, control = fits(plan, Grids((1, 4), (Task("seen", None), Task("unseen", 0)), people), entry, shuffle=True)
    assert [(f.n_users, f.n_train) for f in plain] == [(n, k) for n in crowds for k in (1, 4)]
    assert (control.control, control.n_users, control.n_train) == ("user_shuffle", shuffled, 4)
    assert control.tasks == (Task("seen", None),)


class Kept(Silent):
    """Keeps what is said to a person."""

    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


@pytest.fixture
def inside(monkeypatch):
    """A method that trains inside a text model, known to the registry by a plug-in's metadata."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "plugins"))
    module = importlib.import_module("backbone_methods")
    return lambda cls, **config: MethodEntry(getattr(module, cls), config, "plug-in", "0", "")


def test_where_nobody_reads_features_no_encoder_is_run_and_the_texts_are_probed(inside, empty_home):
    plan = DatasetPlan("planted@1+d=6+rank=2+units=30+users=40", "minilm-l6@1", ("all",), (0,))
    suite = Suite("cells", "", (plan,), (MethodPlan("pooled-bt", {}),), 1, 60, 512)
    ready = prepare(plan, Silent(), [inside("Told"), MethodEntry(find("random"), {}, "hetpref", "0", "")])
    assert ready.features is None
    assert not (empty_home / "features").exists()
    (report,) = empty_home.glob("probes/*/*.json")
    assert json.loads(report.read_text()) == json.loads(json.dumps(probe(ready.data).to_dict()))
    (cell, *_) = plan_cells(suite, ready, [inside("Told")])
    payload = build_payload(cell, 60)
    assert (payload.encoder, payload.features) == ("minilm-l6@1", None)


def test_features_are_made_when_one_method_reads_them(inside):
    plan = DatasetPlan("planted@1+d=6+rank=2+units=30+users=40", "tabular@1", ("all",), (0,))
    entries = [inside("Told"), MethodEntry(find("pooled-bt"), {}, "hetpref", "0", "")]
    assert prepare(plan, Silent(), entries).features.is_file()
    assert prepare(plan, Silent()).features.is_file()


def test_a_model_of_the_hub_is_told_by_its_revision(inside, tmp_path, monkeypatch):
    from datasets_registry.tiny_models import tiny_tokenizer, tiny_trunk

    folder = tmp_path / "owner" / "name" / "main"
    tiny_trunk("bert").save_pretrained(folder)
    tiny_tokenizer("bert").save_pretrained(folder)
    monkeypatch.setenv("HETPREF_MIRROR", str(tmp_path))
    plan = DatasetPlan("planted@1+d=6+rank=2+units=30+users=40", "hub:owner/name", ("all",), (0,))
    suite = Suite("cells", "", (plan,), (MethodPlan("pooled-bt", {}),), 1, 60, 512)

    def cell():
        return next(plan_cells(suite, prepare(plan, Silent(), [inside("Told")]), [inside("Told")]))

    first = cell()
    assert first.prepared.encoder_revision
    assert first.fit_key == cell().fit_key
    (folder / "notes.json").write_text("{}")
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "layer_norm_eps": 1e-6}))
    assert cell().fit_key != first.fit_key


def test_a_method_without_its_model_is_left_out_and_said_once(tmp_path, monkeypatch):
    plugin = Path(__file__).parent / "plugins"
    info = tmp_path / "inside-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: inside\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[hetpref.methods]\ntold+inside = backbone_methods:Told\n")
    monkeypatch.syspath_prepend(str(plugin))
    monkeypatch.syspath_prepend(str(tmp_path))
    planted = "planted@1+d=6+rank=2+units=30+users=40"
    other = DatasetPlan(planted + "+seed=1", "tiny-bert@1", (2,), (0,))
    plans = (DatasetPlan(planted, "tabular@1", ("all",), (0,)), other)
    methods = (MethodPlan("told+inside", {}), MethodPlan("told+inside", {"depth": 2}), MethodPlan("random", {}))
    suite = Suite("cells", "", plans, methods, 1, 60, 512)
    progress, summary = Kept(), Summary()
    cells = planned_cells(suite, Options(), progress, summary)
    told = {(c.method.title, c.prepared.plan.encoder) for c in cells}
    assert told == {
        ("random", "tabular@1"),
        ("random", "tiny-bert@1"),
        ("told+inside", "tiny-bert@1"),
        ("told+inside (depth=2)", "tiny-bert@1"),
    }
    (said,) = [line for line in progress.said if "told+inside" in line]
    assert said == (
        f"{planted} is run without told+inside: told+inside trains inside a text model, and tabular@1 has none; use "
        "--encoder minilm-l6@1"
    )
    assert summary.unsuited == {("told+inside", planted): said.partition(": ")[2]}
    assert summary.exit_code == 0
