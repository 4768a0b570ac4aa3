"""The rules of the house: imports go one way, and listing commands load nothing heavy."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "datasets_registry": set(),
    "methods": {"datasets_registry"},
    "leaderboard": {"datasets_registry"},
    # The runner writes what the leaderboard reads: the record, the results folder and how a Markdown table is written
    # are all that they share.
    "benchmarks": {"datasets_registry", "methods", *(f"leaderboard.{m}" for m in ("records", "store", "table_cells"))},
}
OURS = set(ALLOWED)
HEAVY = {"torch", "transformers", "huggingface_hub", "datasets", "lm_eval", "sklearn", "scipy", "altair", "pyarrow"}


def modules():
    return sorted(p for package in OURS for p in (ROOT / package).rglob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    told = path.relative_to(ROOT).as_posix()
    commands = {"benchmarks/cli.py", "benchmarks/submission_commands.py", "benchmarks/figures/bench_scoring.py"}
    if told in commands or told.startswith("benchmarks/pitfalls/"):
        pytest.skip("the command line, and what is an experiment about scoring, may use all four")
    for name in imported(path):
        top = name.split(".")[0]
        if top in OURS and top != package:
            allowed = any(name == a or name.startswith(a + ".") for a in ALLOWED[package])
            parent = any(a.startswith(name + ".") for a in ALLOWED[package])
            assert allowed or parent, f"{path.name} imports {name}"


def test_the_leaderboard_never_imports_torch():
    for path in (ROOT / "leaderboard").rglob("*.py"):
        assert not any(name.split(".")[0] == "torch" for name in imported(path)), path


@pytest.mark.parametrize("command", ["--help", "datasets", "methods", "suites", "run --help"])
def test_listings_load_nothing_heavy(command):
    code = (
        "import sys, json, contextlib, io\n"
        "from benchmarks.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    with contextlib.suppress(SystemExit):\n"
        f"        main({command.split()!r})\n"
        "print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not HEAVY & set(json.loads(done.stdout.splitlines()[-1]))


def test_every_file_is_one_room():
    long = {p.name: n for p in modules() if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400}
    assert not long


def test_no_file_has_a_name_that_says_nothing():
    vague = {"utils", "helpers", "common", "misc", "util", "helper"}
    assert not [p for p in modules() if p.stem in vague]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_imports(path):
    import importlib

    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    if "bench_" in name:
        pytest.skip("a benchmark file")
    importlib.import_module(name)
