"""The backbone benchmark: rivals train what we train, texts and batches are what they are said to be, goals follow."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.backbone.__main__ import main
from benchmarks.backbone.costs import (
    ALL,
    BY_PERSON,
    GATHERED,
    GLOBAL,
    GROUPS,
    LAST,
    LOCAL,
    MEMORY,
    ONE,
    P_SHARE,
    TABLE,
    Cost,
    Peak,
    Timed,
    read_cost,
    write_cost,
)
from benchmarks.backbone.measure import Entry, entries, measure_group
from benchmarks.backbone.report import END, NONE, START, block, goals, renew, tables
from benchmarks.backbone.step_memory import peak_of
from benchmarks.backbone.trainers import TRAINERS
from benchmarks.backbone.workloads import SHAPED, Workload, drawn, smaller, text_model
from datasets_registry.architectures import architecture
from datasets_registry.errors import DataError, HetprefError, RequestError

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def quiet(text):
    del text


@pytest.mark.parametrize("group", [ALL, LAST, TABLE])
def test_those_who_train_the_same_have_the_same_losses_at_every_step(group):
    chosen = entries(group, None, quick=True)
    found = measure_group(group, chosen, 3, quiet)
    by_what = {}
    for entry, timed in zip(chosen, found, strict=True):
        assert len(timed.seconds) == len(timed.losses) == 3
        by_what.setdefault((TRAINERS[entry.trainer].computes, entry.work), []).append(timed.losses)
    assert {len(each) for each in by_what.values()} == {2}
    for ours, rival in by_what.values():
        np.testing.assert_allclose(rival, ours, rtol=1e-6)
        assert ours[0] - ours[-1] > 1e-4, "it learns"


def test_who_trains_something_else_is_found(monkeypatch):
    right = TRAINERS[GATHERED]
    wrong = replace(right, make=lambda work, cache: right.make(replace(work, rank=work.rank + 1), cache))
    monkeypatch.setitem(TRAINERS, GATHERED, wrong)
    with pytest.raises(HetprefError, match=f"{GATHERED} does not train what {P_SHARE} trains"):
        measure_group(ALL, [e for e in entries(ALL, None, quick=True) if e.trainer in (P_SHARE, GATHERED)], 1, quiet)


@pytest.mark.parametrize("trunk", ["tiny-bert@1", "tiny-llama@1"])
def test_texts_have_the_tokens_that_were_asked_for(trunk):
    work = replace(smaller(Workload()), trunk=trunk)
    model = work.model()
    assert model.lengths.tolist() == work.lengths()
    assert min(work.lengths()) >= work.shortest
    assert max(work.lengths()) <= work.longest
    assert len({model.text.id, trunk}) == 1


@pytest.mark.parametrize(("people", "present"), [(8, 8), (64, 64), (2048, 128), (64, 3)])
def test_a_batch_has_every_text_once_and_all_who_are_present(people, present):
    work = Workload(people=people, present=present)
    batch = work.batch()
    assert sorted([*batch.first, *batch.second]) == list(range(work.sequences))
    counts = np.bincount(batch.user, minlength=people)
    assert (counts > 0).sum() == present
    assert counts[counts > 0].max() - counts[counts > 0].min() <= 1
    assert (np.diff(batch.user) != 0).mean() > 0.5, "people are mixed"
    assert batch.user.tolist() == work.batch().user.tolist()


def test_the_random_trunk_has_the_shape_it_is_named_after():
    sizes = architecture(SHAPED)
    trunk = text_model(None).trunk
    assert sum(p.numel() for p in trunk.parameters()) == sizes.parameters
    assert (trunk.config.num_hidden_layers, trunk.config.num_attention_heads) == (sizes.layers, sizes.heads)


def test_factors_start_alike_for_all_and_differ_by_name():
    assert torch.equal(drawn("layer/a", 2, 3), drawn("layer/a", 2, 3))
    assert not torch.equal(drawn("layer/a", 2, 3), drawn("other/a", 2, 3))
    assert drawn("layer/b", 2, 3).abs().max() > 0


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell a peak")
def test_the_peak_of_a_step_is_measured_and_own_factors_are_counted():
    work = smaller(Workload(people=8, present=4))
    found = peak_of(Entry(LOCAL, work))
    width, layers = 32, 2
    # A and B of query and value, and the head; rows and their gradients, 4 bytes a number
    assert found.factor_bytes == 2 * 4 * 4 * (layers * 2 * 2 * work.rank * width + width)
    assert found.bytes > 0


def made(seconds, peaks=(100, 100)):
    """Return a run's figures, given seconds by group and trainer (and by people, where the group is of people)."""
    steps = []
    for (group, trainer), each in seconds.items():
        for people, of_rounds in each.items() if group == TABLE else {64: each}.items():
            flops = 2 if trainer == GLOBAL else None
            steps.append(Timed(group, trainer, people, min(people, 128), 256, flops, tuple(of_rounds), (0.6, 0.5)))
    told = {
        "date": "2026-01-01",
        "device_class": "cpu-any",
        "threads": 1,
        "rounds": 2,
        "trunk": "made",
        "texts": {"sequences": 256, "comparisons": 128, "people": 64, "shortest": 1, "longest": 2, "rank": 8},
        "measured_with": {"cpu": "none", "packages": {"torch": "0", "peft": "0"}},
        "gemm_flops_per_s": 4.0,
    }
    return Cost(told, tuple(steps), tuple(Peak(LOCAL, n, n, b, n // 4) for n, b in zip((8, 64), peaks, strict=True)))


EVERYTHING = {
    (ALL, LOCAL): (1.0, 2.0, 3.0),
    (ALL, BY_PERSON): (3.0, 8.0, 9.0),
    (ALL, P_SHARE): (1.25, 1.25, 9.0),
    (ALL, GLOBAL): (1.0, 1.0, 1.0),
    (ALL, ONE): (0.5, 0.5, 0.5),
    (TABLE, P_SHARE): {8: (1.0, 1.0), 2048: (1.4, 1.6)},
}


def test_goals_are_judged_by_the_median_of_ratios_within_rounds():
    told = {goal: (found, verdict) for goal, found, verdict in goals(made(EVERYTHING, peaks=(102, 116)))}
    assert told[f"{ALL}: {BY_PERSON} takes at least 3 times as long as {LOCAL}"] == ("3x", "met")
    assert told[f"{ALL}: {P_SHARE} takes at most 1.25 times as long as {GLOBAL}"] == ("1.25x", "met")
    assert told[f"{ALL}: {P_SHARE} takes at most 1.25 times as long as {ONE}"] == ("2.5x", "missed")
    table = f"{P_SHARE} with 2,048 people in the table takes at most 1.5 times as long as with 8"
    assert told[table] == ("1.5x", "met")
    ((goal, memory),) = [(g, f) for g, f in told.items() if g.endswith("the memory of 8")]
    assert memory == ("1x", "met"), goal
    assert not any(LAST in goal for goal in told), "nothing was measured there"


def test_tables_show_what_was_measured_and_only_that():
    first, table, memory, judged = tables(made(EVERYTHING))
    rows = {row[1]: row[2:] for row in first.rows}
    assert rows[BY_PERSON] == ["8", "3.00", "-", ""]
    assert GATHERED not in rows
    assert first.rows[-1][2] == "0.5", "2 FLOP at 4 FLOP/s"
    assert table.rows == [[P_SHARE, "1", "1.5", "1.50"]]
    assert [row[0] for row in memory.rows] == ["8", "64"]
    assert len(judged.rows) == len(goals(made(EVERYTHING)))
    assert [t.title for t in tables(made({}, peaks=(None, None)))] == []


def test_a_file_holds_all_that_was_measured(tmp_path):
    cost = made(EVERYTHING)
    write_cost(cost, tmp_path / "cost.json")
    assert read_cost(tmp_path / "cost.json") == cost
    for broken in ("", "[]", "{}", '{"steps": [{}], "peaks": []}'):
        (tmp_path / "broken.json").write_text(broken)
        with pytest.raises(DataError, match=r"broken\.json is no file of the backbone benchmark"):
            read_cost(tmp_path / "broken.json")


def test_a_page_is_renewed_between_its_marks_alone(tmp_path):
    page, cost = tmp_path / "page.md", made(EVERYTHING)
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    renew(page, cost)
    renew(page, cost)
    assert page.read_text() == f"before\n{START}\n{block(cost)}{END}\nafter\n"
    page.write_text("no marks\n")
    with pytest.raises(RequestError, match="put them where the tables belong"):
        renew(page, cost)


def test_the_documentation_tells_what_was_recorded():
    recorded = ROOT / "docs" / "board" / "backbone-cost.json"
    page = (ROOT / "docs" / "backbone.md").read_text(encoding="utf-8")
    told = page.split(START + "\n")[1].split(END)[0]
    assert told == block(read_cost(recorded) if recorded.exists() else None)
    assert (NONE in told) == (not recorded.exists())


def test_the_command_measures_everything_and_writes_it(tmp_path):
    command = [sys.executable, "-m", "benchmarks.backbone", "--quick", "--rounds", "1", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, check=True)
    (path,) = tmp_path.glob("cpu-*.json")
    cost = read_cost(path)
    assert {each.group for each in cost.steps} == set(GROUPS) - {MEMORY}
    assert {each.trainer for each in cost.steps} == set(TRAINERS)
    assert len(cost.peaks) == 2
    assert json.loads(path.read_text())["measured_with"]["cpu"]
    for shown in tables(cost):
        assert shown.title in done.stdout
    assert "rounds of 6 steps" in done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--only", "memry"], "Did you mean 'memory'"),
        (["--record", "--quick"], "leave out --quick and --only"),
        (["--record", "--only", "memory"], "leave out --quick and --only"),
        (["--quick", "--encoder", "minilm-l6@1"], "leave out --encoder"),
    ],
)
def test_a_wrong_request_ends_with_one_line(words, told, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["backbone", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
