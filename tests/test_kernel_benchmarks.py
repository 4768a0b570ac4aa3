"""The kernel benchmark: rivals compute what the formula says, cells are what they are named, a run gives a record."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.kernel_step import measure_kernels
from benchmarks.kernels.as_written import AS_WRITTEN
from benchmarks.kernels.contenders import Contender, Ready
from benchmarks.kernels.measure import CONTENDERS, Limits, measure_cell
from benchmarks.kernels.operands import Outcome, errors, operands, truth
from benchmarks.kernels.options import cpu_model, measured_with, one_line
from benchmarks.kernels.ours import OURS
from benchmarks.kernels.peak_memory import peak_memory
from benchmarks.kernels.report import goals, read_results
from benchmarks.kernels.rivals import RIVALS
from benchmarks.kernels.run import affordable, result_path, run_cells
from benchmarks.kernels.shapes import GRIDS, ROUTINGS, VARIANTS, Cell, full, quick, user_ids
from benchmarks.kernels.throughput import plot
from benchmarks.kernels.tune import rows_of, table_of
from benchmarks.suites import load_suite
from datasets_registry.errors import DataError, RequestError
from leaderboard.kernels import read_kernel_file
from leaderboard.verify import verify
from methods.lowrank import plan_batch
from methods.lowrank.checks import problem_of
from methods.lowrank.work import Peaks, Work, work_of

SHORT = Limits(rounds=2, least=2, least_behind=1, seconds=0.0, longest_s=60.0)
SMALL = Cell(24, 40, 4, 9, 30)


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("routing", ["uniform", "zipf-1.5", "one-and-rest", "half-base"])
def test_every_contender_computes_the_formula_and_its_gradients(variant, routing):
    given = operands(replace(SMALL, routing=routing, variant=variant))
    checked = set()
    for mode in ("forward", "both"):
        right = truth(given, mode)
        for contender in (*RIVALS, *AS_WRITTEN, *OURS):
            if contender.refuses(given, mode):
                continue
            ready = contender.make(given, mode)
            for _ in range(2):  # what a first call leaves behind must not show
                ready.reset()
                result = ready.run()
            assert max(errors(ready.outcome(result), right).values()) < 2e-6, contender.name
            checked.add(contender.name)
    assert {"torch", "loop", "gather-bmm", "padded-bmm", "bucket-bmm", "grouped-mm", "plain loop"} <= checked
    assert ("peft" in checked) == (variant == "full")


def test_the_truth_is_what_autograd_says_in_float64():
    given = operands(Cell(5, 3, 2, 4, 12, "half-base", "core", "float64"))
    x, a, b, core = (t.requires_grad_() for t in (given.x, given.a, given.b, given.core))
    ids = torch.from_numpy(given.ids)
    cores = core[ids.clamp_min(0)] * (ids >= 0)[:, None, None]
    y = torch.einsum("ti,ri,tsr,so->to", x, a, cores, b)
    grads = torch.autograd.grad(y, (x, a, b, core), given.dy)
    right = truth(given, "both")
    found = (right.dx, right.da, right.db, right.dcore)
    for mine, wanted in zip(found, (*grads[:3], grads[3][given.users]), strict=True):
        torch.testing.assert_close(mine.detach(), wanted)
    torch.testing.assert_close(right.y, y.detach())


def test_an_error_is_not_hidden_by_other_users():
    given = operands(replace(SMALL, routing="one-and-rest"))
    right = truth(given, "both")
    found = truth(given, "both")
    rare = int(np.argmin(given.lengths))
    found.da[rare] = 0
    assert errors(found, right)["da"] == pytest.approx(1)
    found.y[0, 0] = torch.nan
    assert np.isnan(errors(found, right)["y"])
    with pytest.raises(ValueError, match="dx has shape None"):
        errors(Outcome(found.y, None, found.da, found.db), right)


def test_a_contender_that_is_wrong_is_never_timed():
    def make(given, mode):
        right = truth(given, mode)
        return Ready(lambda: Outcome(right.y * (1 + 1e-3)), lambda outcome: outcome)

    wrong = Contender("wrong", "rival", make)
    result = measure_cell(SMALL, "forward", SHORT, [wrong, *RIVALS])
    assert result.measured["wrong"].samples == []
    assert "y 1.0e-03" in result.measured["wrong"].fault
    assert all(m.samples for name, m in result.measured.items() if name != "wrong")
    assert "wrong is WRONG" in result.line()


def test_a_rival_that_would_take_too_long_is_left_out_and_said():
    result = measure_cell(SMALL, "forward", replace(SHORT, longest_s=0.0), CONTENDERS)
    assert "estimated to take" in result.left_out["gather-bmm"]
    assert result.measured["loop"].samples
    assert result.measured["torch"].repeatable


@pytest.mark.parametrize("routing", ROUTINGS)
def test_routing_is_seeded_and_in_range(routing):
    cell = Cell(8, 8, 1, 64, 2048, routing)
    ids = user_ids(cell)
    assert (ids == user_ids(cell)).all()
    assert ids.shape == (2048,)
    assert ids.min() >= -1
    assert ids.max() < 64
    assert (user_ids(replace(cell, tokens=64)) != ids[:64]).any() or routing == "one-user"


def test_routing_is_what_it_is_called():
    told = {name: user_ids(Cell(8, 8, 1, 64, 2048, name)) for name in ROUTINGS}
    counts = {name: np.sort(np.bincount(ids[ids >= 0], minlength=64))[::-1] for name, ids in told.items()}
    assert counts["one-user"][:2].tolist() == [2048, 0]
    assert counts["one-and-rest"][:3].tolist() == [2047, 1, 0]
    assert (np.diff(told["sorted"]) >= 0).all()
    assert (told["half-base"] < 0).sum() == 1024
    assert counts["uniform"][0] < counts["zipf-1.1"][0] < counts["zipf-1.5"][0]
    # The first of Zipf's users has its closed form's share, within four standard deviations.
    for exponent in (1.1, 1.5):
        share = 1 / (np.arange(1, 65) ** -exponent).sum()
        found = counts[f"zipf-{exponent}"][0] / 2048
        assert abs(found - share) < 4 * np.sqrt(share * (1 - share) / 2048)


def test_the_grids_name_every_cell_once():
    for grid in (quick(), full()):
        names = [cell.name for cell in grid]
        assert len(set(names)) == len(names)
    assert set(quick()) <= set(full())
    assert {c.routing for c in full()} == set(ROUTINGS)
    assert {c.variant for c in full()} == set(VARIANTS)


def work(cell, mode):
    given = operands(cell)
    plan = plan_batch(torch.from_numpy(given.ids), cell.users)
    return work_of(problem_of(given.x, given.a, given.b, plan, 1.0, given.core), backward=mode == "both")


def test_work_has_its_closed_form():
    # 20 tokens, two users present of nine: one with a token, one with 19.
    cell = Cell(24, 40, 4, 9, 20, "one-and-rest")
    factors = 2 * 4 * (24 + 40)
    assert work(cell, "forward") == Work(20 * 2 * 4 * (24 + 40), 4 * (20 * (24 + 40) + factors))
    assert work(cell, "both") == Work(3 * 20 * 2 * 4 * (24 + 40), 4 * (20 * (3 * 24 + 2 * 40) + 3 * factors))
    shared = work(replace(cell, variant="core"), "forward")
    assert shared == Work(20 * 2 * 4 * (24 + 40 + 4), 4 * (20 * (24 + 40) + 4 * (24 + 40) + 2 * 16))
    half = work(replace(cell, routing="half-base"), "forward")
    assert half.flops * 2 == work(cell, "forward").flops


def test_the_floor_is_the_slower_of_arithmetic_and_traffic():
    peaks = Peaks(gemm_flops_per_s=94e9, streams={1 << 20: 43e9})
    few, many = (work(Cell(256, 256, 16, users, 512), "both") for users in (4, 512))
    assert peaks.floor_s(few) == few.flops / 94e9
    assert peaks.floor_s(many) == many.bytes / 43e9


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lets a process set its peak back")
def test_peak_memory_counts_what_was_taken_and_given_back():
    _, taken = peak_memory(lambda: torch.ones(8 << 20).sum())
    assert taken is not None
    # The system counts resident pages in batches.
    assert 31 << 20 <= taken < 48 << 20


def test_a_cell_that_does_not_fit_into_memory_is_left_out_and_said():
    small, large = Cell(64, 64, 4, 8, 16), Cell(4096, 4096, 64, 4096, 64)
    assert large.operand_bytes == 4 * (64 * 2 * 4096 + 2 * 4096 * 64 * 4096)
    said = []
    assert affordable([small, large], 6 * small.operand_bytes, said.append) == [small]
    assert large.name in said[0]


def made_result(path, medians, **told):
    """Write a file of one cell: a benchmark per (name, role, median in seconds)."""
    info = {
        **{
            "cell": "full-8x8",
            "mode": "forward",
            "variant": "full",
            "users": 8,
            "tokens": 4096,
            "active": 8,
            "rank": 4,
        },
        **{"d_in": 8, "d_out": 8, "floor_s": 1.0, "left_out": {}, "extra_peak_bytes": 0, "device": "cpu"},
        **{"device_class": "cpu-x86_64", "threads": 1, "gemm_flops_per_s": 1e9, "bandwidth_bytes_per_s": 1e9},
        **told,
    }
    rows = [
        {"stats": {"median": m}, "extra_info": {**info, "backend": name, "role": role}} for name, role, m in medians
    ]
    path.write_text(json.dumps({"benchmarks": rows}))
    return read_results(path)


def test_goals_are_judged_against_the_fastest_rival(tmp_path, capsys):
    from benchmarks.kernels.report import print_report

    medians = [("torch", "ours", 4.0), ("native", "ours", 1.5), ("native (buffers)", "ours", 1.25)]
    medians += [("loop", "rival", 9.0), ("bucket-bmm", "rival", 3.0), ("base GEMM", "anchor", 0.1)]
    results = made_result(tmp_path / "a.json", medians)
    verdicts = dict(goals(results))
    assert verdicts["torch at least 1/1.1 of the fastest rival in every full cell; found 0.75"] == "missed"
    assert verdicts["native >= 3x the fastest rival, forward, geometric mean of the full cells; found 2"] == "missed"
    assert verdicts["native in no cell below 1x; found 2"] == "met"
    assert verdicts["native (buffers) >= 50 % of the roofline in every full cell at T=4096; found 0.8"] == "met"
    assert verdicts["native >= 2.5x, forward + backward, geometric mean of the full cells"] == "not measured"
    print_report(results)
    said = capsys.readouterr().out
    assert "bucket-bmm 3e+03" in said
    assert "1.5e+03 (67%)" in said
    spec = plot(results, "users")
    assert {v["of"] for v in spec["data"]["values"]} == {*(m[0] for m in medians[:3]), "fastest rival", "roofline"}


def test_a_file_that_is_none_is_said(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(DataError, match="is no file of the kernel benchmark"):
        read_results(tmp_path / "a.json")


def kernels(*words):
    command = [sys.executable, "-m", "benchmarks.kernels", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=dict(os.environ))


def test_a_run_writes_records_prints_its_table_and_is_not_run_twice(tmp_path):
    words = ("--only", "full-384x384-r4-u8-t256", "--out", tmp_path)
    done = kernels(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "forward + backward: geometric means" in done.stdout
    assert "of the fastest rival in every full cell; found" in done.stdout
    (path,) = (tmp_path / "kernels").glob("*.json")
    file = read_kernel_file(path)
    assert file.faults == []
    assert {(t.info.backend, t.info.mode) for t in file.timed} >= {("torch", "both"), ("loop", "forward")}
    assert all(t.info.error < 2e-6 for t in file.timed if t.info.role == "ours")
    told = json.loads(path.read_text())
    assert "node" not in told["machine_info"]
    assert (told["clock"], told["interleaved"], told["measured_with"]) == ("process_time", True, measured_with())
    assert {t.info.device for t in file.timed} == {cpu_model()}
    assert verify(tmp_path) == []
    for each in told["benchmarks"]:
        assert each["stats"]["rounds"] == len(each["stats"]["data"])
        assert min(each["stats"]["data"]) > 0
    again = kernels(*words)
    assert "was measured before" in again.stderr
    assert json.loads(path.read_text()) == told
    assert verify(tmp_path) == []


def test_what_a_file_has_of_other_cells_stays_if_it_was_measured_with_the_same(tmp_path, monkeypatch):
    def part(cells, limits, run):
        return True, {"measured_with": measured_with(), "datetime": "now", "benchmarks": [row(cell) for cell in cells]}

    def row(cell):
        return {"extra_info": {"cell": cell.name}}

    def written():
        return [each["extra_info"]["cell"] for each in json.loads(result_path(tmp_path).read_text())["benchmarks"]]

    monkeypatch.setattr("benchmarks.kernels.run._measure", part)
    said = []
    few, many = quick()[:2], quick()[:9]
    assert run_cells(many, "quick", tmp_path, False, said.append).written == {cell.name for cell in many}
    assert run_cells(few, "quick", tmp_path, False, said.append).written == {cell.name for cell in few}
    assert sorted(written()) == sorted(cell.name for cell in many)
    assert "7 other cells" in said[-1]
    assert "datetime" not in json.loads(result_path(tmp_path).read_text())
    monkeypatch.setattr("benchmarks.kernels.run.measured_with", lambda: {**measured_with(), "cpu": "another"})
    run_cells(few, "quick", tmp_path, False, said.append)
    assert "part 1 of 1: 2 cells" in said[-2]  # nothing is taken from another machine's parts
    assert "no longer in" in said[-1]
    assert written() == [cell.name for cell in few]


def test_a_run_of_which_every_part_failed_leaves_the_file_and_says_that_nothing_was_measured(tmp_path, monkeypatch):
    before = result_path(tmp_path)
    before.parent.mkdir(parents=True)
    before.write_text('{"benchmarks": []}')
    monkeypatch.setattr("benchmarks.kernels.run._measure", lambda *_: (False, None))
    outcome = run_cells(quick()[:1], "quick", tmp_path, True, print)
    assert not outcome.written
    assert not outcome.right
    assert before.read_text() == '{"benchmarks": []}'


def test_a_run_that_is_stopped_says_how_it_goes_on(tmp_path):
    command = [sys.executable, "-m", "benchmarks.kernels", "--out", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as run:
        assert "part 1 of" in run.stderr.readline()
        run.send_signal(signal.SIGINT)
        said = run.stderr.read()
    assert run.returncode == 130
    # What the measuring process itself still says may come after it.
    assert "stopped; the same command goes on from here\n" in said


def test_a_name_of_a_processor_is_a_line_that_can_be_shown():
    assert one_line(" A\x1b[31m\tB\n ") == "A[31m B"
    assert len(one_line("x" * 200)) == 80
    assert 1 <= len(cpu_model()) <= 80


def test_wrong_requests_are_said_in_a_line(tmp_path):
    (tmp_path / "file").touch()
    for words, said in (
        (("--grid", "quik"), "Did you mean 'quick'"),
        (("--only", "nothing"), "no cell of the quick grid has 'nothing' in its name"),
        (("--out", tmp_path / "file" / "below"), "cannot be written: Not a directory"),
    ):
        done = kernels(*words)
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_the_tuning_table_names_the_fastest():
    rows = list(rows_of(Cell(32, 32, 4, 6, 40), SHORT))
    assert [row["mode"] for row in rows] == ["forward", "backward"]
    for row in rows:
        by_torch = {n.removeprefix("torch "): s for n, s in row["seconds"].items() if n != "native"}
        assert by_torch[row["best"]["torch_variant"]] == min(by_torch.values())
        assert row["best"]["backend"] in (("native", "torch") if "native" in row["seconds"] else (None,))
    assert json.loads(table_of(rows))["rows"] == rows


def test_the_quick_suite_ends_with_the_kernels_and_the_smoke_suite_does_not(tmp_path):
    assert load_suite("quick").kernels in GRIDS
    assert load_suite("smoke").kernels is None
    with pytest.raises(RequestError, match=r"kernels is 'all'; allowed: .*'quick' or 'full'"):
        replace(load_suite("smoke"), kernels="all")


def test_a_run_is_not_lost_with_its_kernel_benchmark(tmp_path, monkeypatch):
    said = []
    suite = load_suite("quick")
    assert measure_kernels(replace(suite, kernels=None), tmp_path, False, said.append)
    assert said == []
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", shutil.which("false"))
        assert not measure_kernels(suite, tmp_path, False, said.append)
    assert "the run's own results are whole" in said[-1]
    monkeypatch.setitem(sys.modules, "pytest_benchmark", None)
    assert measure_kernels(suite, tmp_path, False, said.append)
    assert 'pip install "hetpref[kernels]"' in said[-1]
