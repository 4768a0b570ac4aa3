"""Suites are small declarative files; what is wrong in one is said with what is allowed."""

import pytest

from benchmarks.suites import load_suite, suite_names
from datasets_registry import find_dataset
from datasets_registry.errors import RequestError
from methods.registry import create

GOOD = """
title = "one"
seeds = 1
time_limit_s = 10
memory_limit_mb = 512
methods = ["pooled-bt"]

[[datasets]]
name = "electricity@1"
encoder = "tabular@1"
"""


@pytest.mark.parametrize("name", suite_names())
def test_a_built_in_suite_names_what_exists(name):
    suite = load_suite(name)
    assert suite.seeds >= 1
    for plan in suite.datasets:
        assert find_dataset(plan.name).card.name == plan.name.split("+")[0]
    for plan in suite.methods:
        assert create(plan.name, **plan.config).spec.name == plan.name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("seeds = 1", "sedes = 1"), "Did you mean 'seeds'"),
        (("methods = [\"pooled-bt\"]", "methods = []"), "names no methods"),
        (("seeds = 1", ""), "seeds"),
        (("encoder =", "encodr ="), "Did you mean 'encoder'"),
        (("title = \"one\"", "title = "), "not TOML"),
        (("encoder = \"tabular@1\"", "encoder = \"tabular@1\"\nn_train = [0]"), "n_train holds 0"),
        (("encoder = \"tabular@1\"", "encoder = \"tabular@1\"\nn_support = [\"all\"]"), "n_support holds 'all'"),
        (("encoder = \"tabular@1\"", "encoder = \"tabular@1\"\nimbalance = [\"zip\"]"), "Did you mean 'zipf'"),
    ],
)
def test_what_is_wrong_in_a_suite_is_said(change, said, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace(*change))
    with pytest.raises(RequestError, match=said):
        load_suite(str(path))


def test_a_suite_of_ones_own_is_given_by_its_path(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    assert load_suite(str(path)).name == "mine"
    with pytest.raises(RequestError, match="no suite file"):
        load_suite(str(tmp_path / "other.toml"))
