"""The page's figures: how large it is, how soon its first table is read, how long a board takes, the same bytes."""

import hashlib
import os
import shutil
import subprocess
import sys
import time

import pytest
from board_fixtures import Bench, made, pooled, shrunk

from leaderboard.board import Board, build_board

MEGABYTE = 1_000_000
RENDER = """
import hashlib, sys
from pathlib import Path
from leaderboard.board import read_board
from leaderboard.site import site
print(hashlib.sha256(site(read_board(Path(sys.argv[1]))).encode()).hexdigest())
"""


def pythons():
    """Return this interpreter, and those beside it that can make the page, by version."""
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    found = {own: sys.executable}
    for minor in range(11, 16):
        program = shutil.which(f"python3.{minor}")
        code = "import vl_convert, pydantic, jinja2, numpy, pyarrow"
        if program and subprocess.run([program, "-c", code], capture_output=True).returncode == 0:
            found.setdefault(f"3.{minor}", program)
    return found


def test_a_page_of_thousands_of_rows_is_small_and_its_first_table_is_there_at_once(no_site, large, visit, tmp_path):
    from leaderboard.site import site

    assert len(large.rows) >= 2000
    assert len({r.label for r in large.rows}) == 25
    page = site(large).encode()
    assert len(page) < 3 * MEGABYTE
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_bytes(page)
    with visit(tmp_path) as opened:
        ready = opened.evaluate("performance.timing.domContentLoadedEventEnd - performance.timing.navigationStart")
        assert opened.locator(".board tbody tr").first.is_visible()
        assert ready < 1000, f"the first table was there after {ready} ms"
        started = time.monotonic()
        opened.select_option("[name=budget]", "all")
        assert opened.locator("[name=shown]").inner_text() == f"{len(large.rows)} rows"
        assert time.monotonic() - started < 5


def test_a_board_that_is_too_large_has_its_headline_and_says_where_the_rest_is(no_site, large, monkeypatch):
    import leaderboard.site as made_by

    monkeypatch.setattr(made_by, "MOST_DATA", 1_200_000)
    page = made_by.site(large)
    assert "would make this page too large" in page
    assert '<option value="all">' not in page
    assert page.count("<tr data-row") == sum(r.headline for r in large.rows)


def test_the_page_is_the_same_bytes_each_time(folder):
    before = hashlib.sha256((folder / "site" / "index.html").read_bytes()).hexdigest()
    for seed, program in [("1", sys.executable), *(("2", program) for program in pythons().values())]:
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        told = subprocess.run(
            [program, "-c", RENDER, str(folder)], capture_output=True, text=True, env=environment, check=True
        )
        assert told.stdout.strip() == before, program


@pytest.mark.slow
def test_a_thousand_records_are_a_site_in_half_a_minute(no_site, tmp_path):
    data = {f"made-{i}@1": made(name=f"made-{i}@1", n_users=24, n_units=20, seed=i) for i in range(2)}
    bench = Bench(tmp_path / "records", data=data, n_train=(1, 2, 4, 8, "all"), n_support=(0, 2, 4), seeds=5)
    bench.run({"pooled-bt": pooled, **{f"shrunk-{i}": shrunk for i in range(4)}})
    started = time.monotonic()
    board = build_board([bench.root], (), bench.labels)
    assert board.leaderboard.records.count == 1000
    Board(board.leaderboard).write(tmp_path / "out")
    assert time.monotonic() - started < 30
