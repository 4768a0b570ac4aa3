"""`hetpref fetch`: what it got, from where, how large; what was wrong, and that a run can be offline afterwards."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from hub_dataset_fixtures import MAKERS, Made, hub_files, write_mirror
from loopback_hub import Hub, run_client, running
from typer.testing import CliRunner, Result

from benchmarks.fetch_command import fetch, readable
from datasets_registry import load, registry
from datasets_registry.errors import HetprefError, RequestError
from datasets_registry.splits import split

ARENA, PRISM = "arena-personalized@1", "prism@1"
FETCH = """
import sys, typer
from hub_dataset_fixtures import MAKERS
from benchmarks.fetch_command import fetch

for make in (MAKERS[spec] for spec in sys.argv[1:] if spec in MAKERS):
    made = make()
    made.source.rows.clear()
    made.source.rows.update({split: len(rows) for split, rows in made.rows.items()})
app = typer.Typer()
app.command()(fetch)
app([*sys.argv[1:], "--json"])
"""


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HETPREF_MIRROR", str(tmp_path / "mirror"))
    registry._loaded.cache_clear()
    return tmp_path / "mirror"


@pytest.fixture
def hub() -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub")
    with running() as found:
        yield found


def typed(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(fetch)
    return CliRunner().invoke(app, arguments)


def test_it_shows_each_file_with_its_size_and_sha256_and_what_the_dataset_is(mirror: Path):
    write_mirror(mirror, MAKERS[ARENA]())
    done = typed(ARENA, "--json")
    assert done.exit_code == 0
    (told,) = json.loads(done.stdout)
    data = load(ARENA)
    assert told["id"] == ARENA
    assert (told["people"], told["comparisons"], told["items"]) == (15, len(data.comparisons), len(data.items))
    assert (told["digest"], told["split"]) == (data.digest, split(data).digest)
    assert [file["origin"] for file in told["files"]] == ["mirror"] * 3
    for file in told["files"]:
        raw = (mirror / file["name"]).read_bytes()
        assert (file["size"], file["sha256"]) == (len(raw), hashlib.sha256(raw).hexdigest())
    registry._loaded.cache_clear()
    shown = typed(ARENA)
    assert shown.exit_code == 0
    for word in (ARENA, "mirror", "train.parquet", data.digest[:16], split(data).digest[:16]):
        assert word in shown.output


def test_one_that_fails_is_told_with_the_reason_and_the_others_are_fetched(mirror: Path):
    made = MAKERS[PRISM]()
    write_mirror(mirror, MAKERS[ARENA]())
    write_mirror(mirror, Made(made.source, {"train": []}, made.schema.remove(0).remove(2)))
    done = typed(PRISM, ARENA)
    assert done.exit_code == 1
    assert "not fetched: prism@1: HannahRoseKirk/prism-alignment utterances/train at 18ab5cf" in done.output
    assert "user_id missing. Found: " in done.output
    assert "train.parquet" in done.output
    told = {each["id"]: each for each in json.loads(typed(PRISM, ARENA, "--json").stdout)}
    assert told[ARENA]["problem"] is None
    assert "user_id missing" in told[PRISM]["problem"]
    assert told[PRISM]["files"] == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((ARENA, "prysm"), "unknown dataset 'prysm'. Did you mean 'prism@1'?"),
        ((f"{ARENA}+n=1",), "unknown option of arena-personalized@1 'n'"),
        ((ARENA, "--encoder", "minilm"), "unknown encoder 'minilm'"),
    ],
)
def test_a_wrong_name_is_told_before_or_instead_of_a_download(arguments: tuple[str, ...], told: str, mirror: Path):
    write_mirror(mirror, MAKERS[ARENA]())
    done = typed(*arguments)
    assert isinstance(done.exception, RequestError)
    assert told in str(done.exception)


def test_what_needs_no_download_says_so(mirror: Path):
    done = typed("planted@1+users=20", "--encoder", "tabular@1", "--json")
    assert done.exit_code == 0
    dataset, encoder = json.loads(done.stdout)
    assert dataset["files"] == []
    assert dataset["source"] == "simulated from a seed"
    assert encoder["source"].startswith("no model")
    assert "tabular@1: no model" in typed("planted@1+users=20", "--encoder", "tabular@1").output


def test_a_model_that_cannot_be_opened_is_a_problem_and_no_crash(mirror: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    done = typed("planted@1+users=20", "--encoder", f"hub:someone/model@{'d' * 40}", "--json")
    assert done.exit_code == 1
    _, model = json.loads(done.stdout)
    assert "transformers" in model["problem"]


def test_a_second_fetch_takes_everything_from_the_cache(hub: Hub, tmp_path: Path):
    for spec in (ARENA, PRISM):
        made = MAKERS[spec]()
        hub.files[made.source.repository, made.source.revision] = hub_files(made)
    first = run_client(FETCH, hub, tmp_path, ARENA, PRISM)
    assert first.returncode == 0, first.stderr
    downloads = hub.downloads()
    again = run_client(FETCH, hub, tmp_path, ARENA, PRISM)
    assert again.returncode == 0, again.stderr
    assert hub.downloads() == downloads
    got, kept = json.loads(first.stdout), json.loads(again.stdout)
    assert {file["origin"] for each in got for file in each["files"]} == {"download"}
    assert {file["origin"] for each in kept for file in each["files"]} == {"cache"}
    for each in got + kept:
        for file in each["files"]:
            file.pop("origin")
    assert got == kept


def test_sizes_are_readable():
    assert [readable(n) for n in (0, 999, 1_000, 83_300_000, 2_000_000_000_000)] == [
        *("0 B", "999 B", "1.0 kB", "83.3 MB", "2000.0 GB")
    ]
    assert issubclass(RequestError, HetprefError)
