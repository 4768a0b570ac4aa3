"""Publishing to the hub, by its own client, to a hub on loopback that takes what it is sent."""

import base64
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest
from board_fixtures import Bench, pooled, shrunk

from leaderboard.board import build_board
from leaderboard.publish import SUMS, contents

pytest.importorskip("huggingface_hub")


class Hub(http.server.BaseHTTPRequestHandler):
    """What the client asks of a hub when it creates a dataset and uploads a folder of small files."""

    def do_GET(self):
        self._answer(404, {"error": "not here"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub = self.server
        hub.tokens.add(self.headers.get("Authorization"))
        if hub.refuses:
            return self._answer(403, {"error": "a token that may write is needed"})
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            hub.created.append(json.loads(body))
            return self._answer(200, {"url": f"http://127.0.0.1:{hub.server_port}/datasets/a/board", "name": "a/board"})
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        if "/commit/" in self.path:
            for line in body.decode().splitlines():
                told = json.loads(line)
                if told["key"] == "file":
                    hub.files[told["value"]["path"]] = base64.b64decode(told["value"]["content"])
            url = f"http://127.0.0.1:{hub.server_port}/datasets/a/board/commit/{'1' * 40}"
            return self._answer(200, {"commitUrl": url, "commitOid": "1" * 40, "success": True})
        return self._answer(404, {"error": self.path})

    def _answer(self, status, told):
        raw = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.created, server.files, server.tokens, server.refuses = [], {}, set(), False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture
def board(tmp_path):
    bench = Bench(tmp_path / "r", n_train=("all",), n_support=(), seeds=1)
    bench.run({"pooled-bt": pooled, "shrunk": shrunk})
    build_board([bench.root], (), bench.labels).write(tmp_path / "board", pages=False)
    return tmp_path / "board"


def published(board, hub, tmp_path):
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_TOKEN": "hf_made_up",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-m", "benchmarks.cli", "publish", board, "--to", "hf://datasets/a/board"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_every_file_goes_to_the_hub_with_a_readme(board, hub, tmp_path):
    done = published(board, hub, tmp_path)
    assert done.returncode == 0, done.stderr
    sent = contents(board)
    assert hub.files == {**sent, "README.md": hub.files["README.md"]}
    assert hub.files["README.md"].endswith(sent["leaderboard.md"])
    assert hub.created[0]["type"] == "dataset"
    assert hub.tokens == {"Bearer hf_made_up"}
    assert f"uploaded {SUMS} " in done.stdout
    assert "hf_made_up" not in done.stdout + done.stderr


def test_a_hub_that_refuses_is_said_and_nothing_is_claimed(board, hub, tmp_path):
    hub.refuses = True
    done = published(board, hub, tmp_path)
    assert done.returncode == 1
    assert "the hub refused the upload to a/board" in done.stderr
    assert "uploaded" not in done.stdout
    assert "hf_made_up" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
