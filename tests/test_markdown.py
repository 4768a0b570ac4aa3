"""What a person reads: failures by kind, no number that is another's, budgets as they are asked for, and it fits."""

import importlib.util
import json
import os

import pytest
from board_fixtures import Bench, made, pooled, shrunk

from datasets_registry.errors import DataError
from leaderboard.board import build_board
from leaderboard.markdown import TERMINAL_WIDTH, budgets_at_gain, clipped, markdown, text
from leaderboard.plots import figures, overview
from leaderboard.records import printable
from leaderboard.rows import Failure, Skipped

needs_site = pytest.mark.skipif(importlib.util.find_spec("vl_convert") is None, reason="vl-convert is not installed")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("markdown"), data={"made@1": made(n_users=30, n_units=25)}, seeds=2)
    bench.run({"pooled-bt": pooled, "shrunk": shrunk})
    bench.run({"broken": shrunk}, status="failed")
    return bench


@pytest.fixture(scope="module")
def board(bench):
    return build_board([bench.root], (), bench.labels).leaderboard


def line_of(page, method):
    return next(line for line in page.splitlines() if f" {method} " in line and line.startswith("| –"))


def test_equal_failures_are_one_line_with_their_number(board):
    lines = [line for line in markdown(board).splitlines() if line.startswith("- broken")]
    n = sum(f.label == "broken" for f in board.failures)
    assert lines == [f"- broken on made@1, {n} cells: failed: ValueError: made to fail"]


def test_one_failure_says_where_and_a_long_reason_is_clipped(board):
    (one, *_) = (f for f in board.failures if f.regime == "unseen")
    long = one.model_copy(update={"reason": "why " * 200})
    page = markdown(board.model_copy(update={"failures": [long]}))
    (line,) = (line for line in page.splitlines() if line.startswith("- broken"))
    where = f"n_train {one.n_train}, n_support {one.n_support}, seed {one.seed}"
    assert where in line.replace("\\", "")
    assert where in text(board.model_copy(update={"failures": [long]}))
    assert len(line) < 280
    assert line.endswith("…")
    assert len(clipped("why " * 200)) <= 160


def test_what_was_left_out_for_one_reason_is_one_line(board):
    skipped = [Skipped(name=f"records/{k}", reason="offline") for k in range(7)] + [Skipped(name="x", reason="half")]
    page = markdown(board.model_copy(update={"skipped": skipped}))
    assert [line for line in page.splitlines() if "offline" in line] == ["- 7 records: offline"]
    assert "- x: half" in page


def test_a_row_that_is_all_imputed_has_none_of_pooleds_numbers(board):
    rows = [r for r in board.rows if r.label == "broken"]
    assert {r.imputed for r in rows} == {1}
    assert all(r.acc_macro.value is not None for r in rows)
    cells = [cell.strip() for cell in line_of(markdown(board), "broken").strip("|").split("|")]
    assert cells[3:11] == ["–"] * 8
    assert "imputed 100%" in cells[11]


def test_n_at_gain_is_a_budget_of_the_grid(board):
    row = next(r for r in board.rows if r.label == "shrunk" and r.regime == "seen" and r.headline)
    every = next(c for c in board.curves if c.label == "shrunk" and c.regime == "seen").points[-1]
    assert every.n == "all"

    def told(n):
        cell = row.n_at_gain.model_copy(update={"value": n})
        return budgets_at_gain(board)(row.model_copy(update={"n_at_gain": cell}))

    assert told(every.n_mean) == f"all ({every.n_mean:.3g})"
    assert told(4.0) == "4"
    assert told(1024.0) == "1024"
    assert told(None) == "–"


@pytest.mark.parametrize("width", [176, 140, 120, 100, 80, 66])
def test_the_tables_fit_the_terminal_and_no_number_is_cut(board, width):
    lines = text(board.model_copy(update={"failures": []}), width).splitlines()
    tables = [line for line in lines if line.startswith((" ", "tier"))]
    assert max(map(len, tables)) <= width
    head = next(line for line in lines if line.startswith("tier"))
    assert "accuracy" in head
    assert "gain" in head
    row = next(r for r in board.rows if r.label == "shrunk" and r.headline)
    assert any(f"{row.acc_macro.low:.3f}, {row.acc_macro.high:.3f}]" in line for line in lines)


def test_columns_are_left_out_from_the_right_in_one_order(board):
    names = ["worst 10 %", "harm", "AULC", "n@gain", "NLL (T)"]
    for width in range(60, 177):
        head = next(line for line in text(board, width).splitlines() if line.startswith("tier"))
        there = [name in head for name in names]
        assert there == sorted(there, reverse=True), width
    assert all(name in text(board, 176) for name in names)


def test_the_width_is_the_terminals(board, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert text(board) == text(board, 80)
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr("shutil.get_terminal_size", os.terminal_size)
    assert text(board) == text(board, TERMINAL_WIDTH)


def hostile(board):
    """Return a board whose text has what no record may have, as if the check had been forgotten."""
    evil = "shrunk\x1b[31m\x00\ufffe"
    rows = [r.model_copy(update={"label": evil}) if r.label == "shrunk" else r for r in board.rows]
    curves = [c.model_copy(update={"label": evil}) if c.label == "shrunk" else c for c in board.curves]
    costs = [c.model_copy(update={"label": evil, "device_class": evil}) for c in board.costs]
    failed = [Failure.model_construct(**{**dict(f), "reason": evil}) for f in board.failures]
    skipped = [Skipped.model_construct(name=evil, reason=evil)]
    new = {"rows": rows, "curves": curves, "costs": costs, "failures": failed, "skipped": skipped}
    return board.model_copy(update=new)


def test_text_for_people_has_no_control_characters(board):
    for page in (markdown(hostile(board)), text(hostile(board))):
        assert "shrunk[31m" in page.replace("\\", "")
        assert printable(page) == page


def test_figures_have_no_control_characters(board):
    shown = json.dumps([figures(hostile(board)), overview(hostile(board))], ensure_ascii=False)
    assert "shrunk[31m" in shown
    assert "\\u00" not in shown
    assert printable(shown) == shown


@needs_site
def test_hostile_text_ends_no_renderer_and_is_not_on_the_page(board):
    import vl_convert

    from leaderboard.site import site

    for spec in figures(hostile(board)).values():
        assert vl_convert.vegalite_to_svg(json.dumps(spec))
    page = site(hostile(board))
    before_library = page[: page.index('id="page-data"')]
    assert "shrunk[31m" in before_library
    assert printable(before_library) == before_library


@needs_site
def test_the_page_shows_what_the_tables_show(board):
    from leaderboard.site import site

    page = site(board)
    line = next(line for line in page.split("<tr ") if "data-row" in line and ">broken</th>" in line)
    assert "0." not in line.split("</th>")[1].split("<td>feature")[0]
    assert page.count("broken on made@1") == 1


def test_a_name_with_controls_that_was_skipped_ends_no_board(bench, tmp_path):
    other = Bench(tmp_path / "r", data=bench.data, n_train=("all",), n_support=(), seeds=1)
    path = sorted(other.run({"pooled-bt": pooled}).glob("records/*/*/*.json"))[0]
    told = json.loads(path.read_text()) | {"\x1b[31mevil": 1}
    path.with_name("\x1b[31m.json").write_text(json.dumps(told))
    skipped = build_board([other.root], (), other.labels).leaderboard.skipped
    assert [printable(s.name + s.reason) for s in skipped] == [s.name + s.reason for s in skipped]
    assert "evil" in skipped[0].reason


@pytest.mark.parametrize("line", ["[1]", "3", '"text"', "null", "{", '{"a": NaN}', '{"a": "\\ud800"}', "[" * 100_000])
def test_a_ledger_that_is_not_of_objects_is_said(bench, tmp_path, line):
    other = Bench(tmp_path / "r", data=bench.data, n_train=("all",), n_support=(), seeds=1)
    other.run({"pooled-bt": pooled})
    (other.root / "submissions.jsonl").write_text('{"method": "a"}\n' + line + "\n")
    with pytest.raises(DataError, match=r"submissions\.jsonl.*append-only"):
        build_board([other.root], (), other.labels)
