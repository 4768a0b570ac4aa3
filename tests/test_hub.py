"""The hub as a source: mirrors in every form, a loopback hub for the real client, its cache, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loopback_hub import Hub, running

from datasets_registry.errors import DataError, RequestError
from datasets_registry.hub import PARQUET, HubSource, hub_table

REPOSITORY = "someone/opinions"
SOURCE = HubSource(REPOSITORY, "votes", PARQUET, ("who", "about.text", "answers.text"), {"train": 3})
ROWS = [
    {"who": w, "about": {"text": t, "year": 1}, "answers": [{"text": "a"}, {"text": None}], "unread": 1.5}
    for w, t in (("p", "x"), ("q", None), ("p", "z"))
]
TABLE = pa.Table.from_pylist(ROWS)
PLACE = Path(REPOSITORY, PARQUET, "votes")


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a mirror in which the dataset's splits are looked for."""
    monkeypatch.setenv("HETPREF_MIRROR", os.pathsep.join([str(tmp_path / "empty"), str(tmp_path / "mirror")]))
    (tmp_path / "mirror" / PLACE).mkdir(parents=True)
    return tmp_path / "mirror" / PLACE


def wanted(table: pa.Table) -> list[dict[str, object]]:
    return table.select(["who", "about", "answers"]).to_pylist()


def test_a_mirror_may_hold_a_split_as_parquet_jsonl_or_shards(mirror: Path):
    pq.write_table(TABLE, mirror / "train.parquet")
    (mirror / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (mirror / "validation").mkdir()
    pq.write_table(TABLE.slice(0, 1), mirror / "validation" / "0000.parquet")
    pq.write_table(TABLE.slice(1), mirror / "validation" / "0001.parquet")
    for split in ("train", "test", "validation"):
        table = hub_table(SOURCE, split)
        assert table.column_names == ["who", "about", "answers"]
        assert wanted(table) == wanted(TABLE)


def test_a_mirror_may_hold_a_part_of_the_rows(mirror: Path):
    pq.write_table(TABLE.slice(0, 1), mirror / "train.parquet")
    assert hub_table(SOURCE, "train").num_rows == 1


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_other_columns_are_named_with_those_expected(mirror: Path, form: str):
    rows = [{"who": "p", "about": {"body": "x"}, "answers": ["a"]}]
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), mirror / "train.parquet")
    else:
        (mirror / "train.jsonl").write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(
        DataError,
        match=r"^someone/opinions votes/train at refs/convert/parquet .*: about\.text, answers\.text missing\. "
        r"Found: who, about\.body, answers\. Expected: who, about\.text, answers\.text$",
    ):
        hub_table(SOURCE, "train")


@pytest.mark.parametrize("name", ["train.parquet", "train.jsonl"])
def test_a_damaged_file_is_named(mirror: Path, name: str):
    (mirror / name).write_bytes(b"{no table")
    with pytest.raises(DataError, match=rf"{name} \(someone/opinions votes/train .* cannot be read .*damaged"):
        hub_table(SOURCE, "train")


def test_without_the_client_it_is_said_which_extra_brings_it(mirror: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        RequestError,
        match=r"huggingface_hub is not installed: pip install 'hetpref\[hub\]', or set HETPREF_MIRROR to a folder that "
        r"holds it as <folder>/someone/opinions/refs/convert/parquet/votes/train\.parquet",
    ):
        hub_table(SOURCE, "train")


def test_the_pin_is_of_everything_that_is_checked():
    others = [
        replace(SOURCE, **change)
        for change in (
            {"repository": "someone/else"},
            {"config": "other"},
            {"revision": "0" * 40},
            {"columns": ("who",)},
            {"rows": {"train": 4}},
        )
    ]
    assert len({each.pin for each in (SOURCE, *others)}) == 6
    assert replace(SOURCE, columns=SOURCE.columns[::-1]).pin == SOURCE.pin


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub")
    files = {"README.md": b"# Opinions\n"}
    for split, table in (("train/0000", TABLE.slice(0, 2)), ("train/0001", TABLE.slice(2)), ("test/0000", TABLE)):
        pq.write_table(table, tmp_path / "file")
        files[f"votes/{split}.parquet"] = (tmp_path / "file").read_bytes()
    with running() as hub:
        hub.files[REPOSITORY, PARQUET] = files
        yield hub


def read_elsewhere(tmp_path: Path, hub: Hub, split: str = "train", offline: bool = False, **change: object) -> str:
    """Return what a process that knows only the environment gets: the rows as JSON, or the error's kind and words."""
    source = replace(SOURCE, **change)
    code = (
        "import json\n"
        "from datasets_registry.errors import HetprefError\n"
        "from datasets_registry.hub import HubSource, hub_table\n"
        f"try: print(json.dumps(hub_table({source!r}, {split!r}).to_pylist()))\n"
        "except HetprefError as why: print(type(why).__name__, why)\n"
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and k != "HETPREF_MIRROR"}
    told = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "no_proxy": "*",
    }
    done = subprocess.run([sys.executable, "-c", code], env=kept | told, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_client_downloads_a_split_once_and_no_other(hub: Hub, tmp_path: Path):
    assert json.loads(read_elsewhere(tmp_path, hub)) == wanted(TABLE)
    downloaded = hub.downloads()
    assert {path.rsplit("/", 2)[-2] for path in downloaded} == {"train"}
    assert json.loads(read_elsewhere(tmp_path, hub)) == wanted(TABLE)
    assert hub.downloads() == downloaded
    asked = len(hub.asked)
    assert json.loads(read_elsewhere(tmp_path, hub, offline=True)) == wanted(TABLE)
    told = read_elsewhere(tmp_path, hub, offline=True, split="test")
    assert told.startswith("UnreachableError ")
    assert "HETPREF_MIRROR" in told
    told = read_elsewhere(tmp_path, hub, offline=True, revision="main")
    assert told.startswith("UnreachableError cannot get someone/opinions votes/train at main from the hub (")
    assert len(hub.asked) == asked


def test_another_number_of_rows_is_refused(hub: Hub, tmp_path: Path):
    told = read_elsewhere(tmp_path, hub, rows={"train": 4})
    assert told.startswith("DataError someone/opinions votes/train at refs/convert/parquet has 3 rows on the hub, ")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"split": "other"}, "UnreachableError someone/opinions votes/other at refs/convert/parquet is not to be had"),
        ({"revision": "d" * 40}, f"UnreachableError cannot get someone/opinions votes/train at {'d' * 40} from"),
    ],
)
def test_what_the_hub_has_not_is_said(hub: Hub, tmp_path: Path, change: dict[str, str], told: str):
    assert read_elsewhere(tmp_path, hub, **change).startswith(told)
