"""Publishing never writes into the folder that is published."""

import pytest
from board_fixtures import Bench, pooled

from datasets_registry.errors import RequestError
from leaderboard.board import build_board
from leaderboard.publish import publish


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("publish") / "r", n_train=("all",), n_support=(), seeds=1)
    build_board([bench.run({"pooled-bt": pooled})], (), bench.labels).write(bench.root, pages=False)
    return bench.root


def everything(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_folder_itself_and_what_is_in_it_are_no_targets(folder, tmp_path):
    before = everything(folder)
    (tmp_path / "link").symlink_to(folder)
    for target in (folder, folder / "public", folder / "records", folder / ".." / folder.name, tmp_path / "link"):
        for dry_run in (True, False):
            with pytest.raises(RequestError, match="outside of"):
                publish(folder, str(target), dry_run=dry_run)
    assert everything(folder) == before


def test_a_folder_beside_it_is_a_target(folder, tmp_path):
    assert publish(folder, str(tmp_path / f"{folder.name}-public"))
    assert (tmp_path / f"{folder.name}-public" / "leaderboard.json").is_file()
