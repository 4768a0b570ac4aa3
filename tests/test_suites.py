"""Suites are small declarative files; what is wrong in one is said with what is allowed."""

import pytest

from benchmarks.suites import load_suite, narrowed, suite_names
from datasets_registry import find_dataset
from datasets_registry.errors import RequestError
from datasets_registry.splits import REGIMES
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
METHODS = 'methods = ["pooled-bt"]'
CONFIGURED = "{name = 'x', config = {a = 1}}"
AGAIN = '[[datasets]]\nname = "electricity"\nencoder = "tabular@1"\n'


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
        ((METHODS, "methods = [3]"), r"methods holds 3; allowed: a list of names"),
        ((METHODS, 'methods = "pooled-bt"'), r"methods is 'pooled-bt'; allowed: a list of names"),
        ((METHODS, "methods = {name = 'pooled-bt'}"), r"methods is a single table.*write \[\[methods\]\]"),
        ((METHODS, "methods = [{name = 3}]"), "name is 3; allowed: a name in quotes"),
        ((METHODS, "methods = [{nam = 'x'}]"), "Did you mean 'name'"),
        ((METHODS, "methods = [{config = {}}]"), "it lacks name"),
        ((METHODS, "methods = [{name = 'x', config = 'abc'}]"), "'x': config is 'abc'; allowed: a table"),
        ((METHODS, "methods = [{name = 'x', config = {a = nan}}]"), "config holds a = nan; allowed: .*finite"),
        ((METHODS, "methods = [{name = 'x', config = {a = 2020-01-01}}]"), r"config holds a = datetime\.date"),
        ((METHODS, "methods = ['x', 'y', 'x']"), "names the method 'x' twice with the same options"),
        ((METHODS, f"methods = [{CONFIGURED}, {CONFIGURED}]"), "names the method 'x' twice with the same options"),
        (("seeds = 1", 'seeds = "three"'), "seeds is 'three'; allowed: whole numbers from 1 to 15"),
        (("seeds = 1", "seeds = 0"), "seeds is 0; allowed: whole numbers from 1 to 15"),
        (("seeds = 1", "seeds = 16"), "seeds is 16; allowed: whole numbers from 1 to 15"),
        (("seeds = 1", "seeds = true"), "seeds is True; allowed"),
        (("_s = 10", "_s = -5"), "time_limit_s is -5; allowed: seconds above 0"),
        (("_s = 10", "_s = nan"), "time_limit_s is nan; allowed: seconds above 0"),
        (("_s = 10", "_s = inf"), "time_limit_s is inf; allowed: seconds above 0"),
        (("_s = 10", "_s = 'x'"), "time_limit_s is 'x'; allowed: seconds above 0"),
        (("_mb = 512", '_mb = "lots"'), "memory_limit_mb is 'lots'; allowed: whole numbers of megabytes from 64"),
        (("_mb = 512", "_mb = 63"), "memory_limit_mb is 63; allowed: whole numbers of megabytes from 64"),
        (("_mb = 512", "_mb = 1.5e3"), "memory_limit_mb is 1500.0; allowed: whole numbers"),
        (("title = \"one\"", "title = 1"), "title is 1; allowed: a string"),
        (("title =", "name = '../x'\ntitle ="), "its name is a folder of results"),
        (("title =", "user_shuffle = 1\ntitle ="), "user_shuffle is 1; allowed: true, false"),
        (("title =", "device = 'gpu'\ntitle ="), "device is 'gpu'; allowed: 'cpu', 'cuda', or one GPU of several"),
        (("title =", "device = 'cuda:x'\ntitle ="), "device is 'cuda:x'; allowed"),
        (("title =", "device = 1\ntitle ="), "device is 1; allowed"),
        (("[[datasets]]", "[datasets]"), r"datasets is a single table, \[datasets\]; write \[\[datasets\]\]"),
        (("[[datasets]]", "datasets = ['electricity']\n[x]"), r"datasets holds 'electricity'; allowed: \[\[datasets"),
        (("[[datasets]]", "datasets = 3\n[x]"), r"datasets is 3; allowed: \[\[datasets\]\] tables"),
        (("name = \"electricity@1\"", "name = 3"), "name is 3; allowed: a name in quotes"),
        (("\"tabular@1\"", "[]"), r"electricity@1: encoder is \(\); allowed: a name in quotes"),
        (("\"tabular@1\"", "\"tabular@1\"\nn_train = 4"), r"n_train is 4; allowed: a list, for .* n_train = \[1, 4\]"),
        (("\"tabular@1\"", "\"tabular@1\"\nn_users = 'all'"), "n_users is 'all'; allowed: a list"),
        (("\"tabular@1\"", "\"tabular@1\"\nimbalance = 'zipf'"), "imbalance is 'zipf'; allowed: a list"),
        (("\"tabular@1\"", "\"tabular@1\"\nn_train = [4, 'all', 4]"), "n_train holds 4 twice"),
        (("\"tabular@1\"", "\"tabular@1\"\nimbalance = [{a = 1}]"), "unknown imbalance"),
        (("[[datasets]]", f"{AGAIN}[[datasets]]"), "names the dataset 'electricity@1' twice"),
        (("title =", "regimes = ['known-prompt']\ntitle ="), "regime of suite 'mine' 'known-prompt'. Did you mean"),
        (("title =", "regimes = 'seen'\ntitle ="), "regimes is 'seen'; allowed: a list, for example regimes = "),
        (("title =", "regimes = []\ntitle ="), "regimes is an empty list; allowed: seen, unseen, known-prompts"),
        (("title =", "regims = []\ntitle ="), "Did you mean 'regimes'"),
        (("\"tabular@1\"", "\"tabular@1\"\nregimes = ['unsen']"), "'unsen'. Did you mean 'unseen'"),
        (("\"tabular@1\"", "\"tabular@1\"\nregimes = ['seen', 'seen']"), "regimes holds 'seen' twice"),
        (("\"tabular@1\"", "\"tabular@1\"\nregimes = [3]"), "unknown regime of electricity@1 '3'"),
    ],
)
def test_what_is_wrong_in_a_suite_is_said(change, said, tmp_path):
    path = tmp_path / "mine.toml"
    assert change[0] in GOOD
    path.write_text(GOOD.replace(*change))
    with pytest.raises(RequestError, match=said) as caught:
        load_suite(str(path))
    assert "\n" not in str(caught.value)


def test_a_suite_that_is_not_utf8_is_told_where(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(GOOD.replace("one", "\xfcber").encode("latin-1"))
    with pytest.raises(RequestError, match=r"is not UTF-8 \(byte 0xfc at place 10\); save it as UTF-8"):
        load_suite(str(path))
    path.write_text(GOOD, encoding="utf-8-sig")
    assert load_suite(str(path)).title == "one"


def test_two_configs_of_a_method_and_two_options_of_a_dataset_are_allowed(tmp_path):
    path = tmp_path / "mine.toml"
    more = '[[datasets]]\nname = "planted@1+users=50"\nencoder = "tabular@1"\n'
    more += '[[datasets]]\nname = "planted@1"\nencoder = "tabular@1"\n'
    path.write_text(GOOD.replace(METHODS, f"methods = ['x', {CONFIGURED}]") + more)
    suite = load_suite(str(path))
    assert [m.config for m in suite.methods] == [{}, {"a": 1}]
    assert len(suite.datasets) == 3
    path.write_text(GOOD + more + more.split("[[datasets]]")[1].join(["[[datasets]]", ""]).replace("@1+", "+rank=4+"))
    with pytest.raises(RequestError, match=r"names the dataset 'planted@1\+users=50' twice"):
        load_suite(str(path))


def test_a_dataset_that_cannot_be_had_is_left_to_the_run(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD + "".join(f'[[datasets]]\nname = "nothing@{n}"\nencoder = "tabular@1"\n' for n in (1, 2)))
    assert [d.name for d in load_suite(str(path)).datasets] == ["electricity@1", "nothing@1", "nothing@2"]


def test_a_suite_of_ones_own_is_given_by_its_path(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    assert load_suite(str(path)).name == "mine"
    with pytest.raises(RequestError, match="no suite file"):
        load_suite(str(tmp_path / "other.toml"))


def test_a_suite_says_where_its_methods_work(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    assert load_suite(str(path)).device == "cpu"
    for device in ("cpu", "cuda", "cuda:3"):
        path.write_text(f'device = "{device}"\n{GOOD}')
        assert load_suite(str(path)).device == device


@pytest.mark.parametrize(
    ("of_all", "of_one", "told"),
    [
        ("", "", ("seen", "unseen")),
        ('regimes = ["known-prompts", "seen"]', "", ("seen", "known-prompts")),
        ('regimes = ["seen"]', 'regimes = ["known-prompts", "unseen", "seen"]', REGIMES),
    ],
)
def test_a_suite_names_its_regimes_for_all_datasets_or_for_one(of_all, of_one, told, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(f"{of_all}\n{GOOD}{of_one}\n")
    suite = load_suite(str(path))
    assert suite.regimes_of(suite.datasets[0]) == told


def test_a_suite_is_narrowed_by_a_request():
    suite = load_suite("smoke")
    assert narrowed(suite) == suite
    assert narrowed(suite, seeds=None, device=None) == suite
    other = narrowed(suite, ["planted"], "minilm-l6@1", seeds=2, device="cuda", time_limit_s=5)
    (plan,) = other.datasets
    assert (plan.name, plan.encoder, plan.n_train) == ("planted@1+users=100", "minilm-l6@1", (4, "all"))
    assert (other.seeds, other.device, other.time_limit_s) == (2, "cuda", 5)
    assert other.methods == suite.methods
    (added,) = narrowed(suite, ["train"]).datasets
    assert (added.name, added.encoder, added.n_train) == ("train@1", "tabular@1", ())
    assert {d.encoder for d in narrowed(suite, encoder="hub:owner/name").datasets} == {"hub:owner/name"}


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"encoder": "minilm"}, "Did you mean 'minilm-l6@1'"),
        ({"encoder": "hub:name"}, "hub:OWNER/NAME"),
        ({"datasets": ["electrcity"]}, "Did you mean 'electricity@1'"),
        ({"device": "gpu"}, "device is 'gpu'; allowed"),
        ({"seeds": 99}, "seeds is 99; allowed"),
        ({"time_limit_s": float("inf")}, "time_limit_s is inf; allowed"),
    ],
    ids=str,
)
def test_a_wrong_request_of_a_suite_is_said(request_, said):
    with pytest.raises(RequestError, match=said):
        narrowed(load_suite("smoke"), **request_)
