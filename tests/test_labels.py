"""Labels come from the registry: nothing a record names makes it load what is too large, or ask twice in vain."""

import pytest
from board_fixtures import Bench

from datasets_registry.errors import DataError, HetprefError, RequestError
from leaderboard.labels import Labels


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ("users=9000000", "4,000,000"),
        ("units=90000", "4,000,000"),
        ("choices=900", "4,000,000"),
        ("items=900000", "200,000"),
        ("d=5000", "4,096"),
        ("d=4000+units=1+users=90000", "100,000,000"),
    ],
)
def test_a_simulation_that_is_too_large_is_refused_before_it_is_made(options, limit, monkeypatch):
    import datasets_registry

    monkeypatch.setattr(datasets_registry, "load", lambda spec: pytest.fail("it was loaded"))
    spec = f"planted@1+{options}+items=10000" if "items" not in options else f"planted@1+{options}"
    with pytest.raises(DataError, match=limit):
        Labels().data(spec)


def test_a_simulation_of_a_sensible_size_is_loaded():
    assert len(Labels().data("planted@1+items=200+users=30").users) == 30


def test_an_unknown_dataset_or_option_is_said_as_ever():
    for spec in ("nobody@1", "planted@1+nothing=1", "planted@1+users=many"):
        with pytest.raises(RequestError):
            Labels().data(spec)


def test_a_dataset_that_cannot_be_had_is_tried_once(tmp_path):
    asked = []

    def load(spec):
        asked.append(spec)
        raise DataError("offline")

    labels = Labels(load=load)
    for _ in range(3):
        with pytest.raises(HetprefError, match="offline"):
            labels.digest("made@1")
    assert asked == ["made@1"]
    assert labels.unavailable("made@1") == "offline"
    assert Bench(tmp_path).labels.unavailable("made@1") is None


def test_the_traceback_of_a_failure_does_not_grow():
    labels = Labels(load=lambda spec: (_ for _ in ()).throw(DataError("offline")))
    depths = []
    for _ in range(4):
        try:
            labels.data("made@1")
        except DataError as why:
            depth, at = 0, why.__traceback__
            while at:
                depth, at = depth + 1, at.tb_next
            depths.append(depth)
    assert depths[1] == depths[2] == depths[3]
