"""A cell's key holds everything of ours that can move a margin, and nothing else."""

import dataclasses
import importlib
from pathlib import Path

import pytest

from benchmarks import code_digest
from benchmarks.cells import MethodEntry, plan_cells
from benchmarks.code_digest import source_sha256
from benchmarks.runner import prepare
from benchmarks.suites import DatasetPlan, MethodPlan, Suite
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
    keys = [record_key(c.fit_key, t.regime, t.n_support) for c in cells for t in c.tasks]
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
