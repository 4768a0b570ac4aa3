"""Kernels on the board: typed rows from hostile files, ratios within one run and device."""

import json
import math
import os
import shutil
import subprocess
import sys

import pytest
from board_fixtures import Bench, made, pooled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_fixtures import INFO, benchmark, cell, grid, rival, write_kernels

from datasets_registry.errors import RequestError, printable
from leaderboard.board import Board, build_board
from leaderboard.kernel_summaries import best_rival, geometric_mean, summarised
from leaderboard.kernels import MAX_KERNEL_BYTES, gather_kernels
from leaderboard.verify import verify

SOURCE = """
import json, pathlib
import pytest

INFO = json.loads(pathlib.Path(__file__).with_name("info.json").read_text())

@pytest.mark.parametrize("backend", ["native", "loop"])
def test_kernel(benchmark, backend):
    benchmark.extra_info.update(INFO, backend=backend, role="ours" if backend == "native" else "rival")
    benchmark.pedantic(sum, args=([1] * 100,), rounds=5)
"""


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    write_kernels(folder, grid())
    return build_board([folder]).leaderboard


def built(folder, rows, name="kernels.json"):
    write_kernels(folder, rows, name)
    return gather_kernels([folder])


def test_what_pytest_benchmark_writes_is_read(tmp_path):
    (tmp_path / "kernels").mkdir()
    told = benchmark()["extra_info"] | {"remark": "what is not asked for is ignored", "nested": {"a": [1]}}
    (tmp_path / "info.json").write_text(json.dumps(told))
    (tmp_path / "test_made.py").write_text(SOURCE)
    out = tmp_path / "kernels" / "real.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", "."]
    command += ["--benchmark-only", f"--benchmark-json={out}", "test_made.py"]
    # pytest-benchmark measures nothing where it takes itself for a worker of pytest-xdist.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60, env=alone)
    stats = {b["extra_info"]["backend"]: b["stats"] for b in json.loads(out.read_text())["benchmarks"]}
    kernels = gather_kernels([tmp_path])
    (row,) = kernels.rows
    assert kernels.skipped == []
    assert {t.backend: t.median_s for t in row.timings} == {
        name: pytest.approx(told["median"], rel=1e-3) for name, told in stats.items()
    }
    assert verify(tmp_path) == []


def test_a_cell_and_mode_is_one_row_with_every_backend(board):
    assert len(board.kernels) == 12
    assert {len(row.timings) for row in board.kernels} == {5}
    for row in board.kernels:
        assert [t.role for t in row.timings] == ["ours", "ours", "rival", "rival", "anchor"]
        for each in row.timings:
            assert each.fraction == pytest.approx(row.floor_s / each.median_s, rel=1e-3)
            assert each.tokens_per_s == pytest.approx(row.tokens / each.median_s, rel=1e-3)
    places = [(r.users, r.tokens, ("forward", "both").index(r.mode)) for r in board.kernels]
    assert places == sorted(places)


def test_the_summary_is_the_geometric_mean_the_worst_cell_and_each_rival(board):
    by_who = {(s.backend, s.mode): s for s in board.kernel_summaries}
    assert set(by_who) == {(b, m) for b in ("native", "torch") for m in ("forward", "both")}
    for (backend, _), s in by_who.items():
        ours = {"native": 2, "torch": 5}[backend]
        # Per token: the loop takes as long as there are users, gather-bmm always 6; both for two counts of tokens.
        wanted = math.exp(sum(math.log(min(users, 6) / ours) for users in (8, 64, 512)) / 3)
        assert s.ratio == pytest.approx(wanted, rel=1e-3)
        assert {r.backend: r.ratio for r in s.rivals} == {
            "gather-bmm": pytest.approx(6 / ours, rel=1e-3),
            "loop": pytest.approx((8 * 64 * 512) ** (1 / 3) / ours, rel=1e-3),
        }
        assert (s.cells, s.compared) == (6, 6)
        assert s.fraction == pytest.approx(1 / ours, rel=1e-3)
    assert summarised(board.kernels) == board.kernel_summaries


def test_anchors_and_ours_are_no_rivals(tmp_path):
    rows = [benchmark(2e-4), benchmark(1e-9, backend="torch"), benchmark(1e-9, role="anchor", backend="base-gemm")]
    (row,) = built(tmp_path, rows).rows
    assert best_rival(row) is None
    for summary in summarised([row]):
        assert (summary.cells, summary.compared, summary.ratio, summary.worst) == (1, 0, None, None)


def test_the_worst_cell_is_named_with_its_rival(tmp_path):
    rows = cell({"native": 1e-3}, {"loop": 2e-3, "gather-bmm": 5e-4}, users=128)
    rows += cell({"native": 1e-3}, {"loop": 4e-3, "gather-bmm": 8e-3}, users=256)
    (summary,) = summarised(built(tmp_path, rows).rows)
    assert (summary.worst.ratio, summary.worst.rival) == (0.5, "gather-bmm")
    assert "u128" in summary.worst.cell
    assert summary.ratio == geometric_mean([0.5, 4.0])


@pytest.mark.parametrize(
    "other", [{"device_class": "cuda-sm90"}, {"device": "Another"}, {"threads": 2}, {"dtype": "bfloat16"}]
)
def test_nothing_is_compared_across_devices_threads_or_dtypes(tmp_path, other):
    rows = [*cell({"native": 1e-3}, {"loop": 4e-3}), rival("gather-bmm", 1e-6, **other)]
    kernels = built(tmp_path, rows)
    assert len(kernels.rows) == 2
    (summary,) = summarised(kernels.rows)
    assert summary.ratio == 4
    assert [r.backend for r in summary.rivals] == ["loop"]


def test_a_cell_of_two_runs_is_taken_whole_from_one(tmp_path):
    write_kernels(tmp_path, cell({"native": 1e-3}, {"loop": 4e-3}), "full.json")
    write_kernels(tmp_path, cell({"native": 1e-6}, {}) + cell({"native": 1e-3}, {}, users=128), "ours-alone.json")
    kernels = gather_kernels([tmp_path])
    assert [r.users for r in kernels.rows] == [64, 128]
    assert {t.backend: t.median_s for t in kernels.rows[0].timings} == {"native": 1e-3, "loop": 4e-3}
    assert kernels.skipped == [
        ("kernels/ours-alone.json", f"1 cell also measured in {tmp_path.name}/kernels/full.json, which counts")
    ]
    assert sorted(run.cells for run in kernels.runs) == [1, 1]


def test_a_clean_tree_goes_before_a_dirty_one(tmp_path):
    dirty = {"source": {"commit": "d" * 40, "dirty": True}}
    write_kernels(tmp_path, cell({"native": 1e-6}, {"loop": 1.0, "peft": 1.0}, **dirty), "dirty.json")
    alone = gather_kernels([tmp_path])
    assert [run.dirty for run in alone.runs] == [True]
    write_kernels(tmp_path, cell({"native": 1e-3}, {"loop": 4e-3}), "clean.json")
    kernels = gather_kernels([tmp_path])
    assert [(run.dirty, run.commit) for run in kernels.runs] == [(False, "c" * 40)]
    assert kernels.rows[0].timings[0].median_s == 1e-3


def test_invented_rivals_give_no_weight(tmp_path):
    invented = {f"invented-{n}": 1.0 for n in range(9)}
    write_kernels(tmp_path, cell({"native": 1e-6}, {"loop": 1.0, **invented}), "many.json")
    write_kernels(tmp_path, cell({"native": 1e-3}, {"loop": 4e-3, "gather-bmm": 5e-3}), "honest.json")
    (row,) = gather_kernels([tmp_path]).rows
    assert {t.backend: t.median_s for t in row.timings} == {"native": 1e-3, "loop": 4e-3, "gather-bmm": 5e-3}


def test_notes_on_copies_do_not_depend_on_where_folders_stand(tmp_path):
    rows = [*cell({"native": 1e-3}, {"loop": 4e-3}), benchmark(rank=-1)]
    told = []
    for here, there in (("a", "z"), ("z", "a")):
        write_kernels(tmp_path / here / "r", rows, "one.json")
        write_kernels(tmp_path / there / "r", rows, "two.json")
        told.append(gather_kernels([tmp_path / here / "r", tmp_path / there / "r"]).skipped)
        shutil.rmtree(tmp_path / here)
        shutil.rmtree(tmp_path / there)
    assert told[0] == told[1]
    assert len(told[0]) == 1


def test_the_order_of_folders_and_copies_change_nothing(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    write_kernels(a, cell({"native": 1e-3}, {"loop": 4e-3}))
    write_kernels(b, cell({"native": 2e-3}, {"loop": 4e-3}) + cell({"native": 1e-3}, {"loop": 2e-3}, users=128))
    once = gather_kernels([a, b])
    assert gather_kernels([b, a]) == once
    shutil.copytree(a, tmp_path / "c")
    shutil.copy(a / "kernels" / "kernels.json", a / "kernels" / "copy.json")
    again = gather_kernels([tmp_path / "c", b, a])
    assert (again.rows, again.runs) == (once.rows, once.runs)


def test_dense_gradients_have_their_own_floor_and_stand_beside_rows(tmp_path):
    rows = [benchmark(1e-3, mode="both", grad="rows", floor_s=5e-4, bytes=1000)]
    rows += [benchmark(4e-3, mode="both", grad="dense", floor_s=3e-3, bytes=9000)]
    rows += [rival("loop", 8e-3, mode="both", grad="dense", floor_s=3e-3, bytes=9000)]
    (row,) = built(tmp_path, rows).rows
    assert (row.floor_s, row.bytes) == (5e-4, 1000)
    assert {(t.backend, t.grad): (t.fraction, t.floor_s) for t in row.timings} == {
        ("native", "rows"): (0.5, None),
        ("native", "dense"): (0.75, 3e-3),
        ("loop", "dense"): (0.375, 3e-3),
    }
    assert {s.grad: s.ratio for s in summarised([row])} == {"rows": 8, "dense": 2}


def test_small_times_keep_their_digits(tmp_path):
    (row,) = built(tmp_path, [benchmark(1.23456e-7, iqr=9.8765e-10, floor_s=3.14159e-8)]).rows
    (timing,) = row.timings
    assert (timing.median_s, timing.iqr_s, row.floor_s) == (1.235e-7, 9.88e-10, 3.142e-8)
    assert timing.error == 3.22e-7


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *(
            (("extra_info", name), value)
            for name in ("backend", "cell", "device")
            for value in ("", "a\x1b[31m", "a\nb")
        ),
        (("extra_info", "routing"), "\u202etxt"),
        (("extra_info", "variant"), "x" * 200),
        (("extra_info", "kernel"), "<script>"),
        (("extra_info", "role"), "judge"),
        (("extra_info", "mode"), "sideways"),
        (("extra_info", "grad"), True),
        (("extra_info", "tokens"), "256"),
        (("extra_info", "tokens"), 0),
        (("extra_info", "users"), -1),
        (("extra_info", "users"), 10**400),
        (("extra_info", "active"), 65),
        (("extra_info", "rank"), 8.0),
        (("extra_info", "threads"), True),
        (("extra_info", "flops"), float("nan")),
        (("extra_info", "bytes"), float("inf")),
        (("extra_info", "floor_s"), 0),
        (("extra_info", "gemm_flops_per_s"), "fast"),
        (("extra_info", "error"), -1.0),
        (("extra_info", "error"), sys.float_info.max),
        (("extra_info", "error"), 10**400),
        (("extra_info", "plan_s"), sys.float_info.max),
        *(
            (("extra_info", "backend"), each)
            for each in (" ", "a ", "\u3000", "\u200b", "a\u200e", "a\u200f", "\u061ca")
        ),
        (("extra_info", "repeatable"), 1),
        (("extra_info", "environment"), {"python": "3.12", "packages": {"torch": 2}}),
        (("extra_info", "environment"), {"python": "3.12", "packages": {f"p{i}": "1" for i in range(500)}}),
        (("extra_info", "source"), {"commit": "c", "dirty": "no"}),
        (("extra_info",), []),
        (("stats", "median"), float("nan")),
        (("stats", "median"), 5e-324),
        (("stats", "median"), None),
        (("stats", "iqr"), -1.0),
        (("stats", "rounds"), 0),
        (("stats",), None),
    ],
)
def test_a_row_that_is_not_whole_is_left_out_with_its_reason_and_the_others_stay(tmp_path, place, value):
    wrong = benchmark(users=64)
    at = wrong
    for name in place[:-1]:
        at = at[name]
    at[place[-1]] = value
    kernels = built(tmp_path, [*cell({"native": 1e-3}, {"loop": 4e-3}, users=128, active=100), wrong])
    assert [r.users for r in kernels.rows] == [128]
    (skipped,) = kernels.skipped
    assert place[-1] in skipped[1]
    assert printable("".join(skipped)) == "".join(skipped)
    assert (
        {r.field for r in verify(tmp_path)} >= {r.field for r in verify(tmp_path / "kernels" / "kernels.json")} > set()
    )
    assert Board(build_board([tmp_path]).leaderboard).to_json()


@pytest.mark.parametrize("name", sorted(set(INFO) | {"cell"}))
def test_every_field_is_needed(tmp_path, name):
    wrong = benchmark()
    del wrong["extra_info"][name]
    kernels = built(tmp_path, [wrong])
    assert kernels.rows == []
    assert kernels.skipped[0][1].startswith(f"extra_info.{name}: found nothing")


def test_a_backend_is_timed_once_per_cell(tmp_path):
    kernels = built(tmp_path, [benchmark(1e-3), benchmark(1e-6)])
    assert [t.median_s for t in kernels.rows[0].timings] == [1e-3]
    assert "second timing" in kernels.skipped[0][1]


def test_two_plans_of_one_cell_that_no_sum_can_hold(tmp_path):
    write_kernels(tmp_path, [benchmark(plan_s=1.7e308), benchmark(backend="torch", plan_s=1.7e308), rival("loop", 1.0)])
    board = build_board([tmp_path])
    assert [len(row.timings) for row in board.leaderboard.kernels] == [1]
    assert board.to_json()


def test_many_faults_are_few_lines(tmp_path):
    rows = [benchmark(tokens=f"no-{n}") for n in range(60)] + [benchmark(rank=-1)] * 50
    kernels = built(tmp_path, rows)
    assert len(kernels.skipped) == 21
    assert "and 90 more faults" in "".join(reason for _, reason in kernels.skipped)
    listed = verify(tmp_path)
    assert len(listed) == 21
    assert "90 more faults" in listed[-1].found


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff\xfe",
        b"[1]",
        b"[" * 100_000,
        b'{"benchmarks": NaN}',
        b'{"benchmarks": {}}',
        b'{"benchmarks": [null]}',
        b'{"benchmarks": ["a"]}',
        b'{"benchmarks": [[1]]}',
        b'{"benchmarks": [{"name": "\\ud800", "stats": 1}]}',
    ],
)
def test_a_file_that_is_none_is_left_out_with_its_reason(tmp_path, raw):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "a.json").write_bytes(raw)
    board = build_board([tmp_path])
    assert board.leaderboard.kernels == []
    assert board.leaderboard.skipped
    assert board.to_json()
    assert verify(tmp_path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    ),
    name=st.sampled_from(sorted([*INFO, "cell"])),
)
def test_any_value_is_a_row_or_a_reason(tmp_path, value, name):
    rows = [benchmark(), rival("loop", 4e-3)]
    rows[0]["extra_info"][name] = value
    write_kernels(tmp_path, rows)
    kernels = gather_kernels([tmp_path])
    assert kernels.rows
    assert sum(len(row.timings) for row in kernels.rows) == 2 or kernels.skipped
    summarised(kernels.rows)


def test_links_large_files_and_pipes_are_not_opened(tmp_path):
    outside = write_kernels(tmp_path / "outside", [benchmark()])
    folder = tmp_path / "r" / "kernels"
    folder.mkdir(parents=True)
    (folder / "link.json").symlink_to(outside)
    with (folder / "large.json").open("wb") as file:
        file.truncate(MAX_KERNEL_BYTES + 1)
    (folder / "folder.json").mkdir()
    kernels = gather_kernels([tmp_path / "r"])
    assert kernels.rows == []
    assert len(kernels.skipped) == 3
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "kernels").symlink_to(tmp_path / "outside" / "kernels")
    assert gather_kernels([tmp_path / "s"]).rows == []
    found = {(r.file, r.field) for r in verify(tmp_path / "r")}
    assert {("kernels/link.json", "file"), ("kernels/large.json", "size")} <= found


def test_verify_looks_at_what_a_board_reads(tmp_path):
    write_kernels(tmp_path, [benchmark()])
    (tmp_path / "kernels" / ".parts").mkdir()
    (tmp_path / "kernels" / ".parts" / "a.json").write_text("half of")
    (tmp_path / "kernels" / "throughput-forward.svg").write_text("<svg/>")
    assert verify(tmp_path) == []
    assert verify(tmp_path / "kernels" / "kernels.json") == []


def test_a_record_of_a_method_called_kernels_is_read_as_a_record(tmp_path):
    path = tmp_path / "records" / "made@1" / "kernels" / "0.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"benchmarks": [benchmark()]}))
    assert "protocol" in {r.field for r in verify(path)}


def test_kernels_stand_beside_records_and_change_none(tmp_path):
    bench = Bench(
        tmp_path / "r", data={"made@1": made(n_users=30, n_units=25)}, n_train=("all",), n_support=(), seeds=1
    )
    bench.run({"pooled-bt": pooled})
    without = build_board([bench.root], (), bench.labels).leaderboard
    write_kernels(tmp_path / "k", grid())
    both = build_board([bench.root, tmp_path / "k"], (), bench.labels).leaderboard
    kept = {"kernels": [], "kernel_summaries": [], "kernel_runs": []}
    assert both.model_copy(update=kept) == without
    assert len(both.kernels) == 12
    assert without.kernels == []


def test_a_folder_without_anything_is_a_wrong_request(tmp_path):
    (tmp_path / "kernels").mkdir()
    with pytest.raises(RequestError, match=r"kernels/\*\.json"):
        build_board([tmp_path])
