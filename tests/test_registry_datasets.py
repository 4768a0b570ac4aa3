"""The registry of datasets: specs, cards, what is cleaned, which item is first, and plug-ins."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets_registry import canonical_id, cards, find_dataset, load
from datasets_registry.errors import DataError, HetprefError, RequestError
from datasets_registry.orientation import oriented
from datasets_registry.records import Card, PreferenceData
from datasets_registry.registry import Pieces, built_in, dataset
from datasets_registry.splits import check_manifest, split

CARD = Card(
    name="mine@1", title="t", population="p", licence="CC0", consent="c", source="s", revision="1", sha256="",
    citation="c", simulated=True,
)  # fmt: skip

PLUGIN = '''
import numpy as np
from datasets_registry.records import Card, Comparisons, Items, Users
from datasets_registry.registry import Pieces, dataset

CARD = Card(name={name!r}, title="t", population="p", licence="CC0", consent="c", source="s", revision="1",
            sha256="", citation="c", simulated=True)

@dataset(CARD)
def load(*, flavour: str = "plain") -> Pieces:
    comparisons = Comparisons.of(user=[0, 1, 2], unit=[0, 1, 1], first=[0, 1, 3], second=[1, 2, 4], label={label})
    return Pieces(Users(("a", "b", "c")), Items(("",) * 5, {response}), comparisons,
                  np.array([0, 1, 2], np.int32), ("x", "y", "unused"))
'''
RESPONSES = ("red", "blue", "", "blue", "green")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("electrcity", r"unknown dataset 'electrcity'\. Did you mean 'electricity@1'\?.*List them: hetpref datasets"),
        ("electricity@2", r"no version '2'\. Versions that exist: electricity@1"),
        ("electricity@one", r"no version 'one'"),
        ("planted+rnk=3", r"unknown option of planted@1 'rnk'\. Did you mean 'rank'\?.*Defaults: users=200"),
        ("electricity+people=3", r"unknown option of electricity@1 'people'.*Defaults: none"),
        ("planted+rank=x", r"rank='x' of planted@1 is not a whole number; for example planted@1\+rank=4"),
        ("planted+flip=nan", "not a finite number"),
        ("planted+rank", r"'rank' in 'planted\+rank' is no option; write planted\+option=value"),
        ("planted+rank=1+rank=2", "given twice"),
        ("", "unknown dataset ''"),
    ],
)
def test_a_wrong_request_is_answered_with_what_is_allowed(spec: str, told: str):
    with pytest.raises(RequestError, match=told):
        load(spec)


def test_the_canonical_id_leaves_out_defaults_and_sorts():
    assert canonical_id("planted+users=10+rank=4+d=64+flip=.10") == "planted@1+d=64+flip=0.1+users=10"
    assert load("electricity") is load("electricity@1")


@given(st.floats(0, 1e300), st.integers(0, 2**60))
def test_a_canonical_id_reads_back_as_itself(number: float, seed: int):
    spec = canonical_id(f"planted+temperature={number!r}".replace("e+", "e") + f"+seed={seed}")
    assert canonical_id(spec) == spec


def test_every_built_in_has_a_row_and_a_complete_card():
    rows = {row.name: row for row in cards() if row.dist == "hetpref"}
    assert set(rows) == set(built_in())
    for row in rows.values():
        assert row.unavailable is None
        assert row.card is not None
        assert row.card.notes
        assert find_dataset(row.name).card is row.card


def test_listing_imports_nothing_heavy():
    heavy = ("torch", "scipy", "pandas", "sklearn", "transformers", "pyarrow", "platformdirs", "huggingface_hub")
    code = f"import sys, datasets_registry as d; d.cards(); print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"licence": " "}, "has no licence"),
        ({"source": ""}, "has no source"),
        ({"shares": (0.6, 0.1, 0.1, 0.1)}, r"sum to 1, and sum to 0\.9"),
        ({"shares": (0.7, 0.0, 0.1, 0.2)}, "positive"),
        ({"simulated": False}, "64 hexadecimal digits"),
        ({"name": "Mine"}, "not name@version"),
    ],
)
def test_an_incomplete_card_is_refused(change: dict[str, object], told: str):
    with pytest.raises(DataError, match=told):
        dataset(replace(CARD, **change))


def test_a_loader_with_an_option_that_has_no_default_is_refused():
    def loader(*, path: str) -> Pieces:
        raise AssertionError(path)

    with pytest.raises(DataError, match="'path' must be keyword-only"):
        dataset(CARD)(loader)


def as_written(data: PreferenceData, label: np.ndarray) -> PreferenceData:
    """Return the data as a loader that always puts the preferred item first would write them."""
    c, swap = data.comparisons, label < 0.5
    first, second = np.where(swap, c.second, c.first), np.where(swap, c.first, c.second)
    return replace(data, comparisons=replace(c, first=first, second=second, label=np.maximum(label, 1 - label)))


def test_which_item_is_first_does_not_depend_on_the_label(planted: PreferenceData):
    c = planted.comparisons
    upright = oriented(as_written(planted, c.label)).comparisons
    flipped = oriented(as_written(planted, 1 - c.label)).comparisons
    for name in ("first", "second"):
        np.testing.assert_array_equal(getattr(upright, name), getattr(c, name))
        np.testing.assert_array_equal(getattr(flipped, name), getattr(c, name))
    np.testing.assert_array_equal(upright.label, c.label)
    np.testing.assert_array_equal(flipped.label, 1 - c.label)


def test_soft_labels_follow_the_orientation(planted: PreferenceData):
    c = planted.comparisons
    soft = np.linspace(0, 1, len(c), dtype=np.float32)
    turned = oriented(replace(planted, comparisons=replace(c, label=soft).swapped())).comparisons
    np.testing.assert_allclose(turned.label, soft, atol=1e-6)
    np.testing.assert_array_equal(turned.first, c.first)


Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return a function that puts a real distribution with an entry point on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[str] = []

    def put(point: str, source: str, target: str = "load") -> None:
        module = f"plugin_{len(made)}_{tmp_path.name.replace('-', '_')}"
        made.append(module)
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-3.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 3.2\n")
        (info / "entry_points.txt").write_text(f"[hetpref.datasets]\n{point} = {module}:{target}\n")
        importlib.invalidate_caches()

    yield put
    for module in made:
        sys.modules.pop(module, None)


def plugin(name: str = "colours@1", label: object = (1, 0.5, 0), response: object = RESPONSES) -> str:
    return PLUGIN.format(name=name, label=label, response=response)


def with_attributes(values: str) -> str:
    made = f"{RESPONSES!r}, np.array({values})[:, None], ('shade',)"
    return plugin().replace(f"{RESPONSES!r}", made)


def row_of(name: str) -> str | None:
    return next(row for row in cards() if row.name == name and row.dist != "hetpref").unavailable


def test_a_plugin_is_loaded_cleaned_and_listed(install: Install):
    install("colours", plugin())
    row = next(row for row in cards() if row.name == "colours@1")
    assert (row.version, row.unavailable, row.options) == ("3.2", None, {"flavour": "plain"})
    data = load("colours+flavour=rich")
    assert data.id == "colours@1+flavour=rich"
    assert data.users.ids == ("a", "c")
    assert data.items.response == ("red", "blue", "blue", "green")
    assert data.clusters == ("x", "y")
    assert data.unit_cluster.tolist() == [0, 1]
    c = data.comparisons
    assert [data.items.response[k] for k in np.where(c.label == 1, c.first, c.second)] == ["red", "green"]
    with pytest.raises(RequestError, match="not letters, digits"):
        load("colours+flavour=../x")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import nothing_of_that_name", r"failed to import: ModuleNotFoundError"),
        ("raise SystemExit(3)", r"failed to import: SystemExit"),
        ("def load(): ...", "gives function, not a loader decorated"),
        (plugin(name="other@1"), "named 'other@1'; they must agree"),
        (plugin().replace('licence="CC0"', 'licence=""'), "has no licence"),
    ],
)
def test_a_broken_plugin_is_a_row_and_never_a_crash(install: Install, source: str, told: str):
    install("colours", source)
    with pytest.raises(DataError, match=told):
        load("colours")
    assert told.split(",")[0].split(":")[0].replace("\\", "") in (row_of("colours") or "")
    assert load("electricity").id == "electricity@1"


def test_what_a_plugin_prints_goes_to_stderr(install: Install, capsys: pytest.CaptureFixture[str]):
    source = plugin().replace("    comparisons = ", "    print('loaded')\n    comparisons = ")
    install("colours", "print('imported')\n" + source)
    assert row_of("colours@1") is None
    load("colours")
    told = capsys.readouterr()
    assert told.out == ""
    assert "imported\n" in told.err
    assert "loaded\n" in told.err


@pytest.mark.parametrize("damaged", [[1], {}, None, "text", 3])
def test_a_manifest_that_is_no_object_is_to_be_deleted(damaged: object, planted: PreferenceData):
    with pytest.raises(DataError, match=r"the manifest of planted@1\S* fold 0 draw 0 is damaged.*delete the file"):
        check_manifest(damaged, split(planted))


def without_the_hub() -> list[object]:
    """Return the built-in datasets; those of the hub are slow, as they download a large table."""
    on_hub = {name for name, entry in built_in().items() if entry.card.source.startswith("huggingface.co/")}
    return [pytest.param(name, marks=pytest.mark.slow) if name in on_hub else name for name in built_in()]


@pytest.mark.parametrize("name", without_the_hub())
def test_built_in_datasets_pass_the_checks_of_a_loader(name: str, load_mirrored: Callable[..., PreferenceData]):
    assert np.bincount(load_mirrored(name).comparisons.user).min() > 0


def test_a_plugin_cannot_shadow_a_built_in(install: Install):
    install("electricity", plugin(name="electricity@9"))
    assert "cannot be shadowed" in (row_of("electricity") or "")
    assert load("electricity").id == "electricity@1"
    with pytest.raises(RequestError, match="no version '9'"):
        load("electricity@9")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (plugin(response=("red", ["blue"], "c", "d", "e")), r"Items\.response row 1 is list .*only str is allowed"),
        (plugin(response=("red", None, "c", "d", "e")), r"Items\.response row 1 is NoneType"),
        (plugin(label=(1, 2, 0)), r"label row 1 is 2; allowed: P\(first preferred\) in \[0, 1\]"),
        (plugin(response=("red", "red", "red", "", "x")), "no comparisons left after cleaning"),
        (plugin().replace('("a", "b", "c")', '("a", "a", "c")'), "'a' occurs twice"),
        (plugin().replace('("a", "b", "c")', '("a", "b")'), "that it does not list"),
        (plugin().replace("user=[0, 1, 2]", "user=[0, 0, 2]"), "colours@1: user 'b' has no comparisons"),
        (with_attributes("[1, 2, np.nan, 4, 5]"), "colours@1: attribute 'shade' of item 2 is nan"),
        (with_attributes("[1, 2, 3, np.inf, 5]"), "attribute 'shade' of item 3 is inf"),
        (with_attributes("list('abcde')"), "attributes are <U1; they must be numbers"),
        (plugin().replace("np.array([0, 1, 2], np.int32)", "[0, 1, 2]"), "parts that do not fit together.*TypeError"),
        (plugin().replace("return Pieces", "return 1 / 0, Pieces"), "ZeroDivisionError"),
        (plugin().replace("return Pieces", "return 1, Pieces"), r"returned tuple; it must return registry\.Pieces"),
    ],
)
def test_bad_data_are_refused_with_the_place(install: Install, source: str, told: str):
    install("colours", source)
    with pytest.raises(HetprefError, match=told):
        load("colours")
