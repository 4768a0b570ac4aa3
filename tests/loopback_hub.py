"""A loopback hub that serves made dataset repositories to the real client, and can break off a download."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TESTS = Path(__file__).parent


class Hub(http.server.ThreadingHTTPServer):
    """Repositories by (name, revision), and how their downloads go wrong, each file once.

    `asked` are the paths asked for. A file of `broken` breaks off in the middle; one of `stalled` stops there, sets
    `half`, and says no more until `end` is set.
    """

    files: dict[tuple[str, str], dict[str, bytes]]
    asked: list[str]
    broken: set[str]
    stalled: set[str]
    half: threading.Event
    end: threading.Event

    def commit(self, repository: str, revision: str) -> str:
        """Return the commit of a revision: itself, or one that follows from the content."""
        if re.fullmatch(r"[0-9a-f]{40}", revision):
            return revision
        names = self.files[repository, revision]
        told = "".join(f"{name}{hashlib.sha256(raw).hexdigest()}" for name, raw in sorted(names.items()))
        return hashlib.sha1(told.encode()).hexdigest()

    def downloads(self) -> list[str]:
        """Return the paths of files that were asked for by GET or HEAD."""
        return [path for path in self.asked if "/resolve/" in path]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)
        for (repository, revision), files in self.server.files.items():
            commit = self.server.commit(repository, revision)
            api, resolve = f"/api/datasets/{repository}", f"/datasets/{repository}/resolve/{commit}/"
            headers = {"X-Repo-Commit": commit}
            if path == f"{api}/revision/{revision}":
                siblings = [{"rfilename": name} for name in files]
                told = {"id": repository, "sha": commit, "siblings": siblings}
                return self.send(json.dumps(told).encode(), headers, body=body)
            if path.startswith(f"{api}/tree/{commit}"):
                listed = [
                    {"type": "file", "path": name, "size": len(raw), "oid": hashlib.sha1(raw).hexdigest()}
                    for name, raw in files.items()
                ]
                return self.send(json.dumps(listed).encode(), headers, body=body)
            if path.startswith(resolve) and path.removeprefix(resolve) in files:
                raw = files[path.removeprefix(resolve)]
                headers["ETag"] = f'"{hashlib.sha256(raw).hexdigest()}"'
                headers["Accept-Ranges"] = "bytes"
                return self.send(raw, headers, body=body)
        self.send_response(404)
        self.send_header("X-Error-Code", "RevisionNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def send(self, raw: bytes, headers: Mapping[str, str], *, body: bool) -> None:
        start = int(m[1]) if (m := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(raw) - 1}/{len(raw)}")
        for name, value in (*headers.items(), ("Content-Length", str(len(raw) - start))):
            self.send_header(name, value)
        self.end_headers()
        name = self.path.rsplit("/", 1)[-1]
        if not body:
            return
        wrong = name in self.server.broken | self.server.stalled
        self.wfile.write(raw[start : start + (len(raw) - start) // 2] if wrong else raw[start:])
        if wrong:
            self.wfile.flush()
            if name in self.server.stalled:
                self.server.half.set()
                self.server.end.wait(60)
            self.server.broken.discard(name)
            self.server.stalled.discard(name)
            self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        return

    def handle(self) -> None:
        # A client that went away, or a connection that this hub cut, is no error of a test.
        try:
            super().handle()
        except (OSError, ValueError):
            self.close_connection = True


@contextmanager
def running() -> Iterator[Hub]:
    """Run a hub with no repository in a thread."""
    with Hub(("127.0.0.1", 0), Handler) as hub:
        hub.files, hub.asked, hub.broken, hub.stalled = {}, [], set(), set()
        hub.half, hub.end = threading.Event(), threading.Event()
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class Client:
    """A process that knows a hub, a cache under `home` and no mirror, and answers lines of JSON, one for one.

    The hub's client reads its environment once; and a process that stays is started once.
    """

    def __init__(self, code: str, hub: Hub, home: Path, *, offline: bool = False) -> None:
        told = client_environment(hub, home, offline=offline)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([sys.executable, "-c", code], env=told, text=True, **pipes)

    def send(self, *asked: object) -> None:
        """Send a question without waiting for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()

    def ask(self, *asked: object) -> Any:
        """Return the answer to a question."""
        assert self.process.stdout is not None
        self.send(*asked)
        line = self.process.stdout.readline()
        assert line, "the client's process ended"
        return json.loads(line)

    def end(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.wait()


def run_client(code: str, hub: Hub, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in such a process, to its end."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=client_environment(hub, home), capture_output=True, text=True, check=False)


def client_environment(hub: Hub, home: Path, *, offline: bool = False) -> dict[str, str]:
    """Return the environment of such a process."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and k != "HETPREF_MIRROR"}
    told = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(TESTS),
        "no_proxy": "*",
    }
    return kept | told
