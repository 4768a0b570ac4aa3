"""The results in a README: whole where there are few tables, summed up where there are many."""

import re

import pytest
from board_fixtures import Bench, made, oracle, pooled, shrunk

from leaderboard.board import build_board
from leaderboard.readme import readme_block

NAMES = ["one@1", "other@1", "third@1", "last@1"]


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    data = {name: made(name, n_users=20, n_units=20, seed=i) for i, name in enumerate(NAMES)}
    bench = Bench(tmp_path_factory.mktemp("readme"), data=data, n_train=("all",), n_support=(4,))
    bench.run({"pooled-bt": pooled, "shrunk": shrunk, "oracle": oracle})
    return build_board([bench.root], (), bench.labels).leaderboard


def lines(block, title):
    """Return the cells of the table under a title, by the first of each line."""
    table = block.split(title)[1].split("\n\n")[1]
    return {row[0]: row[1:] for row in ([c.strip() for c in line.strip("|").split("|")] for line in table.splitlines())}


def test_many_tables_are_summed_up(board):
    block = readme_block(board)
    assert len(block.splitlines()) < 30
    means = lines(block, "**Means over datasets**")
    overall = {(e.label, e.regime): e for e in board.overall}
    assert means["shrunk"][0].startswith(f"{overall['shrunk', 'seen'].gain.value:+.3f} [")
    assert means["shrunk"][1].startswith(f"{overall['shrunk', 'unseen'].gain.value:+.3f} [")
    rows = [r for r in board.rows if r.label == "shrunk" and r.regime == "seen" and r.headline]
    assert float(means["shrunk"][4]) == pytest.approx(sum(r.specificity.value for r in rows) / 4, abs=5e-4)
    assert list(means)[2:] == sorted(means.keys() - {"method", "---"}, key=lambda m: -overall[m, "seen"].gain.value)
    assert "oracle" not in means, "a control has no place among methods"


def test_every_accuracy_and_tier_is_there(board):
    for regime in ("seen", "unseen"):
        matrix = lines(readme_block(board), f"**Accuracy, {regime} people**")
        assert [*matrix["method"]] == sorted(NAMES)
        found = {(r.label, r.dataset): r for r in board.rows if r.regime == regime and r.headline}
        for label in ("pooled-bt", "shrunk", "*oracle*"):
            for name, cell in zip(matrix["method"], matrix.get(label, matrix.get(f"*{label}*")), strict=True):
                row = found[label.strip("*"), name]
                tier = f" ({row.tier})" if row.tier else ""
                assert cell == f"{row.acc_macro.value:.3f}{tier}"


def test_few_tables_stand_whole(board):
    few = [r for r in board.rows if r.dataset in NAMES[:2]]
    block = readme_block(board.model_copy(update={"rows": few}))
    assert len(re.findall(r"\*\*(one|other)@1, (seen|unseen) people\*\*", block)) == 4
