"""Every feature-level method has as many trained parameters as it says, and refuses options that mean nothing."""

import inspect
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from planted_people import world_of
from small_configs import SMALL

from datasets_registry.errors import RequestError
from methods.conformance import BUDGET, small_stage
from methods.interface import Histories
from methods.registry import built_in, create, find

FEATURE = {name: cls for name, cls in built_in().items() if cls.spec.level == "feature"}
D = 6  # of the small stage

# Sizes that differ from one another, so that no letter can stand for another one.
CONFIGS = {
    "clustered-bt": {"clusters": 4},
    "gp-preference": {"landmarks": 11},
    "hierarchical-bt": {"dimensions": 4, "iterations": 3},
    "hyre": {"heads": 7, "people": 3, "iterations": 2},
    "lore": {"rank": 5, "iterations": 2},
    "matrix-factorisation": {"rank": 3},
    "maxmin-em": {"clusters": 4},
    "mrm": {"rank": 3, "steps": 1},
    "nearest-user": {"people": 9},
    "p-share-lora-linear": {"rank": 4, "iterations": 3},
    "pref": {"rank": 4, "iterations": 2},
    "rfm": {"rank": 4, "iterations": 2},
    "gpo": {"width": 128, "layers": 6, "heads": 4, "steps": 0},
}
LETTERS = {
    "clustered-bt": lambda m: {"K": 4},
    "copl": lambda m: {"n_items": len(m.items_), "d_e": m.embedding, "r": m.rank, "E": m.experts},
    "dpl-categorical": lambda m: {"m": m.atoms},
    "gp-preference": lambda m: {"m": m.landmarks},
    "hierarchical-bt": lambda m: {"k": min(D, m.dimensions)},
    "hyre": lambda m: {"K": m.heads},
    "lore": lambda m: {"K": m.rank},
    "matrix-factorisation": lambda m: {"n_items": 48, "k": m.rank},
    "maxmin-em": lambda m: {"K": 4},
    "mrm": lambda m: {"K": m.rank},
    "nearest-user": lambda m: {"n": 9},
    "p-share-lora-linear": lambda m: {"r": m.rank},
    "pal-a": lambda m: {"K": m.prototypes},
    "pal-b": lambda m: {"K": m.prototypes},
    "pref": lambda m: {"K": m.rank},
    "rfm": lambda m: {"K": m.rank},
    "spl": lambda m: {"w": m.width, "l": m.latent, "h": m.width / 2},
    "vpl": lambda m: {"w": m.width, "l": m.latent},
}


def staged(name, d=D):
    stage = small_stage(FEATURE[name].spec)
    if d != D:
        features = np.random.default_rng(0).normal(size=(48, d))
        stage = replace(stage, world=world_of(features, stage.world.n_users))
    return stage


def fitted(name, stage, **config):
    method = find(name)(**{**SMALL.get(name, {}), **config})
    method.fit(stage.train, stage.val, stage.world, BUDGET)
    return method


def value_of(formula, letters):
    """Return what a formula of a spec gives: "d K + K (K + 1) / 2, ..."; what follows a comma explains it."""
    text = re.sub(r"\b(encoder|decoder) ", "", formula).split(", ")[0].replace(";", " +").replace("^", "**")
    return eval(re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", text), {"__builtins__": {}}, letters)


def stated(name, method):
    """Return the count that a method's spec tells: its formula's value, or the number or the sum it gives in words."""
    formula = method.spec.shared_parameters
    letters = {**method.config, "d": D, **LETTERS.get(name, lambda m: {})(method)}
    if name == "gpo":
        return int(re.search(r"([\d,]+) at d = 4096", formula)[1].replace(",", ""))
    if name == "copl":
        graph, model = formula.split("; ")
        first, gate = model.removesuffix(" with d_g = d_e / 2").split(", and twice the gate's ")
        letters["d_g"] = letters["d_e"] // 2
        return sum(value_of(part, letters) for part in (graph, *first.split(", "))) + 2 * value_of(gate, letters)
    return value_of(formula, letters)


def test_a_formula_is_read_as_it_stands():
    letters = {"d": 6, "K": 5, "k": 4, "width": 8}
    for formula, value in (("d", 6), ("d K + K", 35), ("d + k (k + 1) / 2, k = min(d, 4)", 16), ("2 d width^2", 768)):
        assert value_of(formula, letters) == value


@pytest.mark.parametrize("name", FEATURE)
def test_as_many_parameters_are_trained_as_the_spec_says(name):
    method = fitted(name, staged(name, 4096 if name == "gpo" else D), **CONFIGS.get(name, {}))
    assert method.n_trained == stated(name, method)


@pytest.mark.parametrize(
    ("name", "config", "shared", "own"),
    [
        ("lore", {"rank": 5, "iterations": 1}, 20_480, 5),
        ("mrm", {"steps": 1}, 8194, 2),
        ("pref", {"iterations": 1}, 4096 * 5 + 5, 5),
        ("rfm", {"rank": 8, "iterations": 1}, 4096 * 8 + 8, 8),
        ("hyre", {"heads": 7, "people": 3, "iterations": 1}, 4096 * 7, 7),
    ],
)
def test_counts_at_the_published_size(name, config, shared, own):
    stage = staged(name, 4096)
    if name == "pref":
        config = {**config, "start": "random"}  # the SVD's Gram matrix of features takes half a minute
    method = fitted(name, stage, **config)
    states = method.adapt(stage.people.tolist(), Histories.group(stage.histories, stage.people), BUDGET)
    assert method.n_trained == shared
    assert {s.n_parameters for s in states} == {own}


WRONG = {"int": (-1, 1.5, True, "x", math.nan), "float": (-1.0, True, "x", math.nan), "str": ("x", 3), "bool": ("x", 1)}
# What may not be 0 because it is divided by, or because nothing would be left.
ABOVE_ZERO = {
    "clustered-bt": ("clusters", "restarts", "iterations"),
    "gp-preference": ("landmarks", "length", "share", "amplitude", "people"),
    "hierarchical-bt": ("prior", "dimensions", "people"),
    "hyre": ("heads", "people", "ridge"),
    "lore": ("rank", "rate", "new_rate", "temperature"),
    "matrix-factorisation": ("penalty", "item_penalty"),
    "maxmin-em": ("clusters", "beta", "restarts", "iterations"),
    "mrm": ("rank", "outer_rate", "tasks", "query_share", "tail"),
    "nearest-user": ("k", "people"),
    "p-share-lora-linear": ("rank", "alpha", "init_scale", "shrinkage"),
    "per-user-bt": ("shrinkage",),
    "pref": ("rank", "ridge"),
    "rfm": ("rank", "ridge"),
}
BELOW_ONE = {"gp-preference": ("share",), "mrm": ("query_share",)}


@pytest.mark.parametrize("name", [name for name, cls in FEATURE.items() if cls.hyperparameters()])
def test_an_option_that_means_nothing_is_refused(name):
    stage, wrongly = staged(name), []
    for option, parameter in inspect.signature(find(name)).parameters.items():
        wrong = WRONG[parameter.annotation.split(" | ")[0]]
        wrong += (0,) * (option in ABOVE_ZERO.get(name, ())) + (1.0,) * (option in BELOW_ONE.get(name, ()))
        for value in wrong:
            try:
                fitted(name, stage, **{option: value})
            except RequestError as why:
                told = str(why)
            else:
                told = "it is accepted"
            if f"{option}={value!r}" not in told or "allowed" not in told:
                wrongly.append((option, value, told))
    assert not wrongly


@pytest.mark.parametrize("name", [name for name, cls in FEATURE.items() if cls.hyperparameters()])
def test_the_defaults_and_what_tuning_may_try_are_allowed(name):
    cls = find(name)
    configs = [{}, *({option: value} for option, values in cls.search.items() for value in values)]
    for config in configs:
        method = create(name, **config)
        for option, limit in method.limits().items():
            assert limit.allows(getattr(method, option)), (config, option)


def test_a_shared_a_is_sent_to_the_method_that_has_one():
    stage = staged("p-share-lora-linear")
    with pytest.raises(RequestError, match="the backbone method p-share-lora takes share='A'"):
        fitted("p-share-lora-linear", stage, share="A")
