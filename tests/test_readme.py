"""The README tells what is so: its table is the committed leaderboard's, and its commands exist."""

import re
import tomllib
from pathlib import Path

import pytest

from benchmarks.cli import app
from leaderboard.board import Board, read_board
from leaderboard.kernel_tables import END as KERNELS_END
from leaderboard.kernel_tables import START as KERNELS_START
from leaderboard.kernel_tables import kernels_block
from leaderboard.readme import END, START, readme_block

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_results_are_those_of_the_committed_leaderboard():
    told = README.split(START + "\n")[1].split(END)[0]
    assert told == readme_block(read_board(ROOT / "docs" / "board" / "leaderboard.json"))


def test_the_kernels_are_those_of_the_committed_leaderboard():
    told = README.split(KERNELS_START + "\n")[1].split(KERNELS_END)[0]
    assert told == kernels_block(read_board(ROOT / "docs" / "board" / "leaderboard.json"))


def test_the_committed_leaderboard_is_as_it_is_written_and_small():
    file = ROOT / "docs" / "board" / "leaderboard.json"
    assert file.read_text(encoding="utf-8") == Board(read_board(file)).to_json()
    assert file.stat().st_size < 1 << 20


def test_the_committed_leaderboard_covers_the_main_job():
    board = read_board(ROOT / "docs" / "board" / "leaderboard.json")
    quick = tomllib.loads((ROOT / "benchmarks" / "suites" / "quick.toml").read_text())
    for plan in quick["datasets"]:
        for regime in ("seen", "unseen"):
            rows = [r for r in board.rows if (r.dataset, r.regime) == (plan["name"], regime) and r.control is None]
            assert {r.n_train for r in rows} == set(plan["n_train"])
            assert {r.method for r in rows} >= {m for m in quick["methods"] if m != "oracle"}
            assert all(len(r.seeds) == quick["seeds"] and r.acc_macro.low is not None for r in rows)
            assert {r.badge for r in rows} == {"rescored"}


@pytest.mark.parametrize("file", [README, *((p.read_text(encoding="utf-8")) for p in (ROOT / "docs").glob("*.md"))])
def test_commands_that_are_named_exist(file):
    known = {c.name or c.callback.__name__ for c in app.registered_commands} | {g.name for g in app.registered_groups}
    assert set(re.findall(r"`?\bhetpref ([a-z]+) ", file)) <= known | {"results", "kernels", "backbone"}


def test_the_example_of_the_kernels_runs():
    text = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    made = {}
    exec(compile(code, "docs/kernels.md", "exec"), made)
    assert made["layer"].b.abs().sum() > 0, "a step was taken"
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 20


def test_files_that_are_linked_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
