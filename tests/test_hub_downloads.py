"""The hub's datasets from a loopback hub by the real client: once, from the cache, offline, changed, interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hub_dataset_fixtures import MAKERS, Made, hub_files, write_mirror
from loopback_hub import Client, Hub, running

from datasets_registry import load, registry

pytest.importorskip("huggingface_hub")
# Loads specs as a run does; the numbers of rows that are checked are those of the made tables, unless told otherwise.
LOAD = """
import json, sys
from hub_dataset_fixtures import MAKERS
from datasets_registry import load, registry
from datasets_registry.errors import HetprefError
from datasets_registry.receipts import receipts

made = {spec: make() for spec, make in MAKERS.items()}
real = {spec: dict(each.source.rows) for spec, each in made.items()}
for line in sys.stdin:
    checked, *specs = json.loads(line)
    registry._loaded.cache_clear()
    answer = {}
    for spec in specs:
        rows = made[spec].source.rows
        rows.clear()
        rows.update(real[spec] if checked == "real" else {s: len(r) for s, r in made[spec].rows.items()})
        with receipts() as seen:
            try:
                told = load(spec).digest
            except HetprefError as why:
                told = f"{type(why).__name__} {why}"
        answer[spec] = (told, sorted({each.origin for each in seen}))
    print(json.dumps(answer), flush=True)
"""
PRISM, ARENA, COMMUNITY = "prism@1", "arena-personalized@1", "community-alignment@1"
Told = dict[str, tuple[str, list[str]]]


@dataclass(frozen=True)
class Place:
    """A hub, the cache that its clients share, and two of them."""

    hub: Hub
    home: Path
    online: Client
    offline: Client

    def serve(self, *specs: str) -> None:
        for spec in specs:
            made = MAKERS[spec]()
            self.hub.files[made.source.repository, made.source.revision] = hub_files(made)

    def loaded(self, *specs: str, offline: bool = False, rows: str = "made") -> Told:
        """Return, by spec, the digest or the error's kind and words, and where the files came from."""
        return (self.offline if offline else self.online).ask(rows, *specs)

    def forget(self) -> None:
        """Empty the cache, and the hub."""
        shutil.rmtree(self.home / "hf", ignore_errors=True)
        self.hub.files.clear()
        self.hub.asked.clear()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("clients")
    with running() as hub:
        found = Place(hub, home, Client(LOAD, hub, home), Client(LOAD, hub, home, offline=True))
        yield found
        found.online.end()
        found.offline.end()


@pytest.fixture
def place(both: Place) -> Place:
    both.forget()
    return both


def test_every_dataset_is_downloaded_once_and_is_the_same_offline_and_from_a_mirror(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    place.serve(*MAKERS)
    first = place.loaded(*MAKERS)
    downloads = place.hub.downloads()
    assert {origin for _, origins in first.values() for origin in origins} == {"download", "cache"}
    assert not [path for path in downloads if path.endswith("README.md")]
    second = place.loaded(*MAKERS)
    assert {spec: origins for spec, (_, origins) in second.items()} == {spec: ["cache"] for spec in MAKERS}
    assert place.hub.downloads() == downloads
    asked = len(place.hub.asked)
    assert place.loaded(*MAKERS, offline=True) == second
    assert len(place.hub.asked) == asked
    monkeypatch.setenv("HETPREF_MIRROR", str(tmp_path / "mirror"))
    registry._loaded.cache_clear()
    for spec, make in MAKERS.items():
        write_mirror(tmp_path / "mirror", make())
        assert load(spec).digest == first[spec][0] == second[spec][0]


def test_a_commit_whose_files_are_cached_is_not_asked_for_again(place: Place):
    place.serve(PRISM)
    place.loaded(PRISM)
    asked = len(place.hub.asked)
    place.loaded(PRISM)
    assert len(place.hub.asked) == asked


def test_offline_without_a_copy_it_is_said_what_to_do(place: Place):
    told, _ = place.loaded(PRISM, offline=True)[PRISM]
    assert told.startswith("UnreachableError cannot get HannahRoseKirk/prism-alignment utterances/train at 18ab5cf")
    assert "HETPREF_MIRROR" in told
    assert "HF_HUB_OFFLINE" in told
    assert place.hub.asked == []


def test_another_revision_is_never_taken_for_the_pinned_one(place: Place):
    made = MAKERS[PRISM]()
    place.hub.files[made.source.repository, "d" * 40] = hub_files(made)
    place.hub.files[made.source.repository, "main"] = hub_files(made)
    told, _ = place.loaded(PRISM)[PRISM]
    assert told.startswith("UnreachableError cannot get HannahRoseKirk/prism-alignment utterances/train at 18ab5cf")


def test_a_conversion_that_changed_is_refused_by_its_columns_and_its_rows(place: Place):
    place.serve(ARENA)
    good, _ = place.loaded(ARENA)[ARENA]
    made = MAKERS[ARENA]()
    files, where = place.hub.files, (made.source.repository, made.source.revision)
    fewer = Made(made.source, made.rows | {"train": made.rows["train"][1:]}, made.schema)
    files[where] = hub_files(fewer)
    told, _ = place.loaded(ARENA)[ARENA]
    assert "arena_personalized_0125 default/train at refs/convert/parquet has" in told
    assert "its content has changed" in told
    renamed = made.schema.set(made.schema.get_field_index("user_id"), made.schema.field("user_id").with_name("person"))
    rows = {split: [{**row, "person": row["user_id"]} for row in part] for split, part in made.rows.items()}
    files[where] = hub_files(Made(made.source, rows, renamed))
    told, _ = place.loaded(ARENA)[ARENA]
    assert "has not the columns that its loader reads: user_id missing. Found: person, " in told
    files[where] = hub_files(made)
    assert place.loaded(ARENA)[ARENA][0] == good


def test_made_tables_are_not_taken_for_the_real_ones(place: Place):
    place.serve(PRISM)
    told, _ = place.loaded(PRISM, rows="real")[PRISM]
    assert "rows on the hub, expected 68,371: its content has changed, or the download is a part of it" in told


def test_a_download_that_breaks_off_is_resumed_or_told_and_never_half_used(place: Place):
    place.serve(PRISM)
    place.hub.broken = {"utterances.jsonl"}
    told, origins = place.loaded(PRISM)[PRISM]
    if told.startswith("UnreachableError "):  # an older client does not resume by itself
        told, origins = place.loaded(PRISM)[PRISM]
    assert place.hub.broken == set()
    assert origins == ["download"]
    place.forget()
    place.serve(PRISM)
    assert told == place.loaded(PRISM)[PRISM][0]


def test_a_run_that_is_killed_in_a_download_leaves_no_half_table(place: Place):
    place.serve(COMMUNITY)
    place.hub.stalled = {"0000.parquet"}
    killed = Client(LOAD, place.hub, place.home)
    killed.send("made", COMMUNITY)
    assert place.hub.half.wait(60)
    killed.end()
    place.hub.end.set()
    told, _ = place.loaded(COMMUNITY, offline=True)[COMMUNITY]
    assert told.startswith("UnreachableError ")
    told, origins = place.loaded(COMMUNITY)[COMMUNITY]
    assert len(told) == 64
    assert origins == ["download"]
