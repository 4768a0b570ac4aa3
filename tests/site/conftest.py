"""A real headless Chromium on a real page: what it says and what it asks for is recorded, and must be nothing."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from site_fixtures import evil, hostile_board, large_board, small_board

from leaderboard.board import Board

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
REQUIRED = os.environ.get("HETPREF_BROWSER") == "required"


@pytest.fixture(scope="session")
def no_site():
    """Skip, or fail where a browser is asked for, without what makes the page."""
    pytest.importorskip("vl_convert", reason='the page needs pip install "hetpref[site]"')


@pytest.fixture(scope="module")
def browser(no_site):
    """Start Chromium, that of the system: Playwright's own need not be there."""
    program = os.environ.get("HETPREF_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing = "playwright is not installed: tox run -e site"
    else:
        missing = "" if program else "there is no Chromium: apt-get install chromium, or name one in HETPREF_CHROMIUM"
    if missing:
        (pytest.fail if REQUIRED else pytest.skip)(missing)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=[*FLAGS])
        yield started
        started.close()


@pytest.fixture
def visit(browser):
    """Open a page of a folder from file://, without a network; whatever it says or asks for fails the test."""

    @contextmanager
    def opened(folder, *, quiet=True, width=1280, height=900, **context):
        asked, said = [], []
        here = browser.new_context(offline=True, viewport={"width": width, "height": height}, **context)
        page = here.new_page()
        own = (folder / "site" / "index.html").as_uri()
        page.on("request", lambda r: asked.append(r.url) if r.url != own and not r.url.startswith("data:") else None)
        page.on("console", lambda m: said.append(f"{m.type}: {m.text}"))
        page.on("pageerror", lambda e: said.append(f"error: {e}"))
        page.set_default_timeout(10_000)
        page.goto(own)
        page.said = said
        try:
            yield page
        finally:
            here.close()
        if quiet:
            assert not said
            assert not asked

    return opened


def written(board, folder):
    Board(board).write(folder)
    return folder


@pytest.fixture(scope="session")
def board(tmp_path_factory):
    return small_board(tmp_path_factory.mktemp("site-records"))


@pytest.fixture(scope="session")
def folder(board, no_site, tmp_path_factory):
    return written(board, tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="session")
def hostile(board, no_site, tmp_path_factory):
    return written(hostile_board(board, evil), tmp_path_factory.mktemp("site-hostile"))


@pytest.fixture(scope="session")
def large(board):
    return large_board(board)


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory):
    """Return the folder that screenshots are left in: that of HETPREF_SCREENSHOTS, or a temporary one."""
    told = os.environ.get("HETPREF_SCREENSHOTS")
    folder = Path(told) if told else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
