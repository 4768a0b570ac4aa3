"""Kernels as they are shown: the file, tables, the terminal, a README, the page and its figures."""

import csv
import importlib.util
import io
import json

import jsonschema
import pytest
from kernel_fixtures import benchmark, cell, grid, write_kernels

from datasets_registry.errors import RequestError, printable
from leaderboard.board import Board, build_board, read_board
from leaderboard.kernel_plots import (
    MAX_FIGURES,
    MAX_ROOFLINES,
    kernel_figures,
    left_out,
    longest_slice,
    roofline_figures,
)
from leaderboard.kernel_tables import BUFFERS, END, KERNEL_READING, NONE, START, kernel_text, kernels_block
from leaderboard.kernels import KernelInfo
from leaderboard.markdown import markdown, text
from leaderboard.plots import FIGURE_FILE, figures
from leaderboard.publish import publish
from leaderboard.readme import END as RESULTS_END
from leaderboard.readme import START as RESULTS_START
from leaderboard.readme import renew_readme
from leaderboard.schema import FOLDER

needs_site = pytest.mark.skipif(importlib.util.find_spec("vl_convert") is None, reason="vl-convert is not installed")


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    write_kernels(folder, grid())
    return build_board([folder]).leaderboard


def test_the_file_is_read_again_as_it_is_and_satisfies_its_schema(board, tmp_path):
    Board(board).write(tmp_path, pages=False)
    assert read_board(tmp_path) == board
    assert Board(read_board(tmp_path)).to_json() == Board(board).to_json()
    told = json.loads((tmp_path / "leaderboard.json").read_text())
    jsonschema.validate(told, json.loads((FOLDER / "leaderboard.schema.json").read_text()))
    jsonschema.validate(benchmark()["extra_info"], json.loads((FOLDER / "kernel.schema.json").read_text()))
    assert KernelInfo.model_validate(benchmark()["extra_info"]).cell.startswith("full-768x768")
    per_timing = len((tmp_path / "leaderboard.json").read_bytes()) / sum(len(r.timings) for r in board.kernels)
    assert per_timing < 400


def test_a_file_of_comma_separated_values_has_a_line_per_timing(board, tmp_path):
    Board(board).write(tmp_path, pages=False)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "kernels.csv").read_text())))
    assert len(rows) == sum(len(row.timings) for row in board.kernels)
    assert rows[0]["backend"] == "native"
    assert float(rows[0]["median_s"]) == board.kernels[0].timings[0].median_s
    Board(board.model_copy(update={"kernels": []})).write(tmp_path, pages=False)
    assert not (tmp_path / "kernels.csv").exists()


def test_tables_show_every_cell_once_per_mode_and_every_backend_of_ours(board):
    page = markdown(board)
    lines = page.split("## Kernels")[1].splitlines()
    cells = [line for line in lines if line.startswith("| float32 | full | 768^2")]
    assert len(cells) == 12
    assert all(" native" in line for line in cells)
    summaries = [line for line in lines if line.startswith("| float32 | full |") and line not in cells]
    assert len(summaries) == len(board.kernel_summaries) == 4
    # native against gather-bmm with 8 users, 256 tokens: 2 and 6 floors of 25.6 us.
    assert "| forward | native | 0.0512 | 50% | gather-bmm | 0.154 | 3 |" in cells[0]
    assert "cpu-x86\\_64 (Some Processor), 1 thread" in page
    assert "torch 2.13.0; commit cccccccccccc" in page


def test_the_terminal_has_a_line_per_backend(board):
    lines = kernel_text(board)
    assert len([line for line in lines if "of the roofline" in line]) == 4
    assert "full, float32, forward: native: 3x over 6 cells, worst 3x at " in "\n".join(lines)
    assert "\n".join(lines).strip() in text(board)


def test_a_readme_is_renewed_in_both_blocks(board, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"a\n{RESULTS_START}\n{RESULTS_END}\nb\n{START}\nold\n{END}\nc\n")
    renew_readme(readme, board)
    once = readme.read_text()
    renew_readme(readme, board)
    assert readme.read_text() == once
    assert once.split(START + "\n")[1].split(END)[0] == kernels_block(board)
    assert once.endswith(f"{END}\nc\n")
    assert "old" not in once
    renew_readme(readme, board.model_copy(update={"kernels": [], "kernel_summaries": [], "kernel_runs": []}))
    assert f"{START}\n{NONE}\n{END}" in readme.read_text()
    readme.write_text(f"{RESULTS_START}\n{RESULTS_END}\n{START}\n")
    with pytest.raises(RequestError, match="kernels block"):
        renew_readme(readme, board)
    assert readme.read_text() == f"{RESULTS_START}\n{RESULTS_END}\n{START}\n"


def hostile(board):
    """Return the board with text that no record may have, as if the check had been forgotten."""
    evil = "</script><b>|\x1b[31m"
    rows = [
        row.model_copy(
            update={
                "cell": evil,
                "routing": evil,
                "timings": [
                    t.model_copy(update={"backend": evil}) if t.backend == "native" else t for t in row.timings
                ],
            }
        )
        for row in board.kernels
    ]
    summaries = [
        s.model_copy(update={"backend": evil, "worst": s.worst.model_copy(update={"cell": evil})})
        for s in board.kernel_summaries
    ]
    runs = [run.model_copy(update={"python": evil, "packages": {evil: evil}}) for run in board.kernel_runs]
    return board.model_copy(update={"kernels": rows, "kernel_summaries": summaries, "kernel_runs": runs})


def test_hostile_text_is_shown_as_text(board):
    for page in (markdown(hostile(board)), kernels_block(hostile(board)), text(hostile(board))):
        assert "script" in page
        assert printable(page) == page
    assert "<b>" not in markdown(hostile(board))
    assert "\\u00" not in json.dumps(figures(hostile(board)), ensure_ascii=False)


@needs_site
def test_the_page_has_a_sortable_table_and_shows_hostile_text_as_text(board):
    from leaderboard.site import site

    page = site(board)
    section = page.split('aria-labelledby="kernels"')[1].split("</section>")[0]
    assert section.count("<tr data-device") == len(board.kernel_summaries)
    assert section.count('class="sortable"') == 1
    assert section.count('class="figure"') == 3
    told = json.loads(page.split('id="page-data">')[1].split("</script>")[0])["kernels"]
    assert len(told["rows"]) == 24
    assert {len(row) for row in told["rows"]} == {len(told["columns"])}
    evil = site(hostile(board))
    assert "<b>" not in evil.split('id="page-data"')[0]
    assert evil.lower().count("</script") == page.lower().count("</script") == 3


def test_a_figure_joins_cells_that_differ_in_the_axis_alone(board):
    shown = kernel_figures(board)
    assert len(shown) == 2
    assert all(FIGURE_FILE.fullmatch(f"{name}.svg") for name in shown)
    forward = [row for row in board.kernels if row.mode == "forward"]
    assert [(r.users, r.tokens) for r in longest_slice(forward, "users")] == [(8, 4096), (64, 4096), (512, 4096)]
    assert [(r.users, r.tokens) for r in longest_slice(forward, "tokens")] == [(512, 256), (512, 4096)]
    mixed = [row.model_copy(update={"rank": row.users}) for row in forward]
    assert len({r.users for r in longest_slice(mixed, "users")}) == 3
    assert "ranks 8 to 512" in json.dumps(kernel_figures(board.model_copy(update={"kernels": mixed})))
    assert kernel_figures(board.model_copy(update={"kernels": board.kernels[:1]})) == {}


def test_a_roofline_holds_every_cell_under_its_roof(board):
    (spec,) = roofline_figures(board).values()
    roof, points = (layer["data"]["values"] for layer in spec["layer"])
    assert len(points) == 2 * len(board.kernels)
    assert {p["who"] for p in points} == {"native", "native, rows", "fastest rival"}
    assert [p["FLOP/s"] for p in roof] == sorted(p["FLOP/s"] for p in roof)
    peak, bandwidth = board.kernels[0].gemm_flops_per_s, board.kernels[0].bandwidth_bytes_per_s
    assert roof[1]["FLOPs per byte"] == pytest.approx(peak / bandwidth, rel=1e-3)
    rows = [row for n in range(MAX_ROOFLINES + 1) for row in other_device(board, threads=n + 1)]
    assert len(roofline_figures(board.model_copy(update={"kernels": rows}))) == MAX_ROOFLINES
    assert roofline_figures(board.model_copy(update={"kernels": []})) == {}


def other_device(board, **told):
    return [row.model_copy(update=told) for row in board.kernels]


def test_devices_that_read_alike_have_a_figure_each(board):
    rows = other_device(board, device="Some CPU") + other_device(board, device="some-cpu")
    both = board.model_copy(update={"kernels": rows})
    shown = kernel_figures(both)
    assert len(shown) == 4
    assert kernel_figures(both) == shown
    assert {"Some CPU", "some-cpu"} == {spec["title"].split("(")[1].split(")")[0] for spec in shown.values()}
    assert all(FIGURE_FILE.fullmatch(f"{name}.svg") for name in shown)
    # The order of rows is no part of a name.
    assert kernel_figures(board.model_copy(update={"kernels": rows[::-1]})).keys() == shown.keys()


def test_figures_are_no_more_than_are_looked_at_and_the_rest_is_told(board):
    rows = [row for n in range(MAX_FIGURES) for row in other_device(board, threads=n + 1)]
    many = board.model_copy(update={"kernels": rows})
    assert len(kernel_figures(many)) == MAX_FIGURES
    assert left_out(many).startswith(f"{MAX_FIGURES} figures of kernels are not drawn")
    assert left_out(board) is None


def test_buffers_that_are_kept_are_said_to_be_an_unlike_comparison(tmp_path):
    assert BUFFERS in KERNEL_READING
    for backend, said in (("native", False), ("native (buffers)", True)):
        write_kernels(tmp_path, cell({backend: 1e-3}, {"loop": 4e-3}))
        assert (BUFFERS in kernels_block(build_board([tmp_path]).leaderboard)) is said


@needs_site
def test_figures_are_drawn_published_and_the_same_each_time(board, tmp_path):
    Board(board).write(tmp_path / "one")
    Board(board).write(tmp_path / "two")
    drawn = {p.name: p.read_bytes() for p in (tmp_path / "one" / "plots").glob("kernel-*.svg")}
    assert len(drawn) == 3
    assert {p.name: p.read_bytes() for p in (tmp_path / "two" / "plots").glob("kernel-*.svg")} == drawn
    publish(tmp_path / "one", str(tmp_path / "public"))
    there = {p.relative_to(tmp_path / "public").as_posix() for p in (tmp_path / "public").rglob("*") if p.is_file()}
    assert {"kernels.csv", *(f"plots/{name}" for name in drawn)} <= there
