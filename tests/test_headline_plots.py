"""Figures of a headline table: what is on the Pareto front, the spread over people, and names that files can have."""

import json

import pytest
from board_fixtures import Bench, coin, made, oracle, pooled, shrunk

from leaderboard.board import build_board
from leaderboard.headline_plots import front
from leaderboard.page_figures import packed, palette_of
from leaderboard.plots import FIGURE_FILE, MOST_COLOURS, figures, headline_figures, overview


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("plots"), data={"made@1": made(n_users=30, n_units=20)}, seeds=1)
    bench.run({"pooled-bt": pooled, "shrunk": shrunk, "wasteful": shrunk, "oracle": oracle, "other": coin})
    board = build_board([bench.root], (), bench.labels).leaderboard
    sizes = {"pooled-bt": 0.0, "shrunk": 16.0, "wasteful": 64.0, "oracle": 4.0, "other": 8.0}
    costs = [
        c.model_copy(update={"state_bytes_per_user": sizes[c.label], "peak_rss_delta_bytes": 1e6 + sizes[c.label]})
        for c in board.costs
    ]
    return board.model_copy(update={"costs": costs})


def test_a_point_is_on_the_front_if_none_is_as_good_for_less():
    assert front([]) == []
    assert front([(1, 0.5), (1, 0.6), (1, 0.6)]) == [1]
    assert front([(0, 0.5), (2, 0.5), (1, 0.4), (3, 0.9)]) == [0, 3]


def test_the_front_is_of_methods_and_leaves_out_what_costs_more_for_no_more(board):
    shown = figures(board)
    for name in ("bytes-made-1-tabular-1-seen", "memory-made-1-tabular-1-seen-cpu-x86-64"):
        values = {v["method"]: v["front"] for v in shown[name]["data"]["values"]}
        assert values == {"shrunk": "yes", "wasteful": "no", "other": "yes"}
    assert not any(v["method"] == "oracle" for v in shown["bytes-made-1-tabular-1-seen"]["data"]["values"])


def test_people_are_in_the_order_of_the_table(board):
    rows = [r for r in board.rows if r.headline and r.regime == "unseen"]
    values = figures(board)["people-made-1-tabular-1-unseen"]["data"]["values"]
    assert [v["method"] for v in values] == [r.label for r in rows]
    assert all(v["p5"] <= v["p25"] <= v["p50"] <= v["p75"] <= v["p95"] for v in values)


def test_a_headline_table_has_its_figures_and_each_a_name_for_a_file(board):
    by_table = headline_figures(board)
    assert list(by_table) == [("made@1", "tabular@1", "seen"), ("made@1", "tabular@1", "unseen")]
    for drawn in by_table.values():
        assert [name.partition("-")[0] for name in drawn] == ["curve", "people", "bytes", "memory"]
        assert all(FIGURE_FILE.fullmatch(f"{name}.png") for name in drawn)


def test_datasets_that_read_alike_as_file_names_have_figures_each(board):
    def twice(rows):
        return [*rows, *(r.model_copy(update={"dataset": "made+1"}) for r in rows)]

    both = board.model_copy(
        update={"rows": twice(board.rows), "curves": twice(board.curves), "costs": twice(board.costs)}
    )
    assert len(figures(both)) == 2 * len(figures(board))
    assert figures(both).keys() == figures(both).keys()


def test_the_page_has_the_same_figures_in_less_room(board):
    specs = figures(board)
    assert len(json.dumps(packed(specs))) < 0.85 * len(json.dumps(specs))
    assert set(palette_of(specs)) == {r.label for r in board.rows}
    columns = packed(specs)["bytes-made-1-tabular-1-seen"]["data"]["columns"]
    assert columns["bytes"] == [v["bytes"] for v in specs["bytes-made-1-tabular-1-seen"]["data"]["values"]]


def test_of_many_methods_the_leading_ones_have_colours_and_the_others_are_behind(tmp_path):
    bench = Bench(tmp_path / "many", n_train=(2, "all"), n_support=())
    names = [f"shrunk-{i}" for i in range(9)]
    scorers = {
        name: lambda data, rows, n, i=i: shrunk(data, rows, n) + 0.2 * i * coin(data, rows, n)
        for i, name in enumerate(names)
    }
    bench.run({"pooled-bt": pooled, **scorers})
    board = build_board([bench.root], (), bench.labels).leaderboard
    panel = overview(board)["vconcat"][0]["hconcat"][0]
    coloured = set(panel["encoding"]["color"]["scale"]["domain"])
    assert len(coloured) == MOST_COLOURS
    assert set(names[:5]) <= coloured
    behind = {value["method"] for value in panel["layer"][0]["data"]["values"]}
    assert behind | coloured == set(names)  # pooled-bt is a control here
    assert not behind & coloured
