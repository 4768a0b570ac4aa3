"""Configurations of one method are told apart by what differs between them, alike in every table, figure and file."""

import importlib.util
import json

import pytest
from board_fixtures import Bench, made, oracle, pooled, shrunk
from hypothesis import given
from hypothesis import strategies as st

from datasets_registry.errors import RequestError, printable
from leaderboard.board import build_board
from leaderboard.compare import compare
from leaderboard.entrant_labels import apart, labeller
from leaderboard.markdown import markdown, text
from leaderboard.panel import Entrant
from leaderboard.plots import figures
from leaderboard.records import canonical_sha256
from leaderboard.submission import submit

DEFAULTS = {"rank": 8, "core": "none", "init": "independent", "start": None}


def told(*configs):
    """Return what is added to the name of each configuration, in order."""
    by_digest = {canonical_sha256(config): config for config in configs}
    return list(apart(by_digest).values())


def test_one_configuration_has_the_bare_name():
    assert told(DEFAULTS) == [""]


def test_departures_from_the_defaults_are_named_and_the_defaults_are_bare():
    kernel, warm = DEFAULTS | {"core": "kernel"}, DEFAULTS | {"init": "warmup"}
    assert told(DEFAULTS, kernel, warm) == ["", " (core=kernel)", " (init=warmup)"]
    both = kernel | {"rank": 16, "start": "a/b"}
    assert told(DEFAULTS, both, warm) == ["", " (core=kernel, rank=16, start=a/b)", " (init=warmup)"]


def test_of_two_neither_is_the_usual_one():
    assert told(DEFAULTS, DEFAULTS | {"core": "kernel"}) == [" (core=none)", " (core=kernel)"]
    assert told({"rank": 1}, {"rank": 2}, {"rank": 3}) == [" (rank=1)", " (rank=2)", " (rank=3)"]


def test_an_option_that_some_do_not_have():
    assert told({}, {"core": "kernel"}) == ["", " (core=kernel)"]
    assert told({"rank": None}, {"rank": 2}) == [" (rank=none)", " (rank=2)"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (True, "true"),
        (0.5, "0.5"),
        ([1, 2], "[1,2]"),
        ("two words", '"two words"'),
        ("x) (user shuffle", '"x) (user shuffle"'),
        ("\u202eevil", '"\\u202eevil"'),
        ("line\nbreak", '"line\\nbreak"'),
    ],
    ids=str,
)
def test_values_are_shown_so_that_they_are_nothing_else(value, shown):
    assert told({"a": 1}, {"a": value}, {"a": 1, "b": 2})[1] == f" (a={shown})"


def test_what_no_short_text_tells_apart_has_its_digest():
    long = [{"text": letter * 80} for letter in "xy"]
    assert told(*long) == [f" #{canonical_sha256(c)[:8]}" for c in long]
    alike = [{"rank": None}, {"rank": "none"}]
    assert told(*alike) == [f" #{canonical_sha256(c)[:8]}" for c in alike]


values = st.one_of(st.none(), st.booleans(), st.integers(0, 3), st.sampled_from(["none", "kernel", "0", "\u202e"]))
configs = st.dictionaries(st.sampled_from(["a", "b", "c d", "\u202e"]), values, max_size=4)


@given(st.lists(configs, min_size=1, max_size=6))
def test_labels_are_distinct_printable_and_do_not_depend_on_the_order(many):
    by_digest = {canonical_sha256(config): config for config in many}
    labels = apart(by_digest)
    assert len(set(labels.values())) == len(by_digest)
    assert apart(dict(reversed(by_digest.items()))) == labels
    for label in labels.values():
        assert label.isascii()
        assert printable(label) == label


def entrant(config, *, dist="hetpref", version="1", control=None):
    return Entrant("m", dist, version, canonical_sha256(config), "method", "backbone", control)


def test_distributions_and_versions_come_before_options_and_the_control_last():
    kernel = {"core": "kernel"}
    there = [(entrant(DEFAULTS), DEFAULTS), (entrant(kernel, version="2"), kernel)]
    label = labeller(there)
    assert [label(e) for e, _ in there] == ["m 1", "m 2"]
    there += [(entrant({}, version="2"), {}), (entrant({}, dist="other", version="2"), {})]
    label = labeller(there)
    ours = ["m [hetpref] 1", "m [hetpref] 2 (core=kernel)", "m [hetpref] 2"]
    assert [label(e) for e, _ in there] == [*ours, "m [other] 2"]
    shuffled = entrant(kernel, version="2", control="user_shuffle")
    assert label(shuffled) == "m [hetpref] 2 (core=kernel) (user shuffle)"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    data = {"made@1": made(n_users=30, n_units=25)}
    bench = Bench(tmp_path_factory.mktemp("labels"), data=data, seeds=2)
    bench.run({"pooled-bt": pooled})
    bench.run({"shrunk": shrunk}, config=DEFAULTS)
    bench.run({"shrunk": oracle}, config=DEFAULTS | {"core": "kernel"})
    bench.run({"shrunk": pooled}, config=DEFAULTS | {"init": "warmup"})
    bench.write("shrunk", pooled, "made@1", 0, "all", "seen", None, config=DEFAULTS, control="user_shuffle")
    return bench


LABELS = {"shrunk", "shrunk (core=kernel)", "shrunk (init=warmup)", "shrunk (user shuffle)", "pooled-bt"}


def test_every_part_of_the_board_tells_them_apart(bench):
    board = build_board([bench.root], (), bench.labels).leaderboard
    assert {r.label for r in board.rows} == {c.label for c in board.costs} == LABELS
    assert {c.label for c in board.curves} == LABELS
    assert {o.label for o in board.overall} == LABELS - {"pooled-bt", "shrunk (user shuffle)"}
    rows = [(r.label, r.n_train, r.n_support, r.regime) for r in board.rows]
    assert len(set(rows)) == len(rows)
    for row in board.rows:
        assert ("core=kernel" in row.label) == (row.config.get("core") == "kernel")
    for page in (markdown(board), text(board, 200)):
        assert "shrunk (core=kernel)" in page
    drawn = {v["method"] for spec in figures(board).values() for v in spec["data"]["values"]}
    assert drawn >= LABELS - {"shrunk (user shuffle)"}


def test_ranks_that_are_equal_are_in_the_order_of_labels(bench, tmp_path):
    other = Bench(tmp_path / "r", data=bench.data, n_train=("all",), n_support=(), seeds=1)
    other.run({"pooled-bt": pooled})
    for core in ("x", "kernel", "none"):
        other.run({"shrunk": shrunk}, config={"core": core})
    rows = [r for r in build_board([other.root], (), bench.labels).leaderboard.rows if r.method == "shrunk"]
    assert {r.rank.value for r in rows} == {1}
    assert [r.label for r in rows] == ["shrunk (core=kernel)", "shrunk (core=none)", "shrunk (core=x)"]


def test_compare_knows_the_labels(bench):
    found = compare("shrunk (core=kernel)", "shrunk", bench.root, bench.labels)
    assert found[0].difference > 0
    with pytest.raises(RequestError, match=r"Did you mean 'shrunk \(core=kernel\)'"):
        compare("shrunk (core=kernal)", "shrunk", bench.root, bench.labels)


def test_a_submission_says_which_of_them_a_row_is(bench, tmp_path):
    lines = submit("shrunk", bench.root, tmp_path / "out", bench.labels).text.splitlines()
    for label in ("shrunk (core=kernel): ", "shrunk (init=warmup): ", ""):
        assert sum(line.startswith(f"{label}made@1, seen, n_train all") for line in lines) == 1


@pytest.mark.skipif(importlib.util.find_spec("vl_convert") is None, reason="vl-convert is not installed")
def test_the_page_shows_them(bench):
    from leaderboard.site import site

    page = site(build_board([bench.root], (), bench.labels).leaderboard)
    assert ">shrunk (core=kernel)</th>" in page
    assert json.dumps("shrunk (core=kernel)") in page
