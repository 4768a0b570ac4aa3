"""Session fixtures: one cache folder per user, so that wheels are downloaded once, and datasets loaded once."""

from __future__ import annotations

import getpass
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from datasets_registry import load
from datasets_registry.records import PreferenceData
from datasets_registry.sources import UnreachableError


@pytest.fixture(scope="session", autouse=True)
def hetpref_home() -> Iterator[Path]:
    """Set HETPREF_HOME to a folder that lasts between runs, unless the environment sets it; HETPREF_MIRROR stays."""
    told = os.environ.get("HETPREF_HOME")
    folder = Path(told) if told else Path(tempfile.gettempdir()) / f"hetpref-tests-{getpass.getuser()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HETPREF_HOME", str(folder))
        yield folder


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give one test a cache folder of its own, and no mirror."""
    monkeypatch.setenv("HETPREF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HETPREF_MIRROR", raising=False)
    return tmp_path / "home"


@pytest.fixture(scope="session")
def load_mirrored() -> Callable[[str], PreferenceData]:
    """Return `load`, which skips the test where a public repository's file is neither mirrored nor reachable."""

    def loaded(spec: str) -> PreferenceData:
        try:
            return load(spec)
        except UnreachableError as why:
            pytest.skip(f"{spec}: {why}")

    return loaded


@pytest.fixture(scope="session")
def electricity() -> PreferenceData:
    return load("electricity@1")


@pytest.fixture(scope="session")
def planted() -> PreferenceData:
    return load("planted@1+users=60+d=8+rank=2+items=400")
