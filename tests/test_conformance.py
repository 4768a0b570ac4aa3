"""The conformance suite finds what it is there to find: one broken method per check."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from datasets_registry.errors import RequestError
from methods.catalog.per_user_bt import PerUserBT
from methods.catalog.pooled_bt import PooledBT
from methods.conformance import CHECKS, check
from methods.interface import unstack


def _of(results, name):
    assert name in CHECKS
    return next(r for r in results if r.name == name)


class Shouting(PerUserBT):
    def __init__(self, *, shrinkage=None, loud=1):
        super().__init__(shrinkage=shrinkage)
        self.loud = loud * 2


class Positional(PerUserBT):
    def __init__(self, shrinkage=None):
        super().__init__(shrinkage=shrinkage)


class Unwritable(PerUserBT):
    def __init__(self, *, shrinkage=None, kernel=abs):
        super().__init__(shrinkage=shrinkage)
        self.kernel = kernel


class Double(PerUserBT):
    def margins(self, states, queries):
        return super().margins(states, queries).astype(np.float64)


class FirstWins(PerUserBT):
    def margins(self, states, queries):
        return super().margins(states, queries) + np.float32(0.1)


class OtherRewards(PerUserBT):
    def rewards(self, states, users, items):
        return 2 * super().rewards(states, users, items)


class Unseeded(PerUserBT):
    def fit(self, train, val, world, budget):
        super().fit(train, val, world, budget)
        self.theta_ = self.theta_ + np.random.default_rng().normal(size=self.theta_.shape).astype(np.float32)


class Peeking(PerUserBT):
    def margins(self, states, queries):
        return super().margins(states, queries) + np.nan_to_num(queries.label - queries.label.mean())


class ByRow(PerUserBT):
    def adapt(self, users, history, budget):
        states = super().adapt(users, history, budget)
        return [unstack(theta=s.arrays["theta"][None] + 0.01 * u)[0] for s, u in zip(states, users, strict=True)]


class Writing(PerUserBT):
    def adapt(self, users, history, budget):
        self.world.features[0] = 0
        return super().adapt(users, history, budget)


class Greedy(PerUserBT):
    def adapt(self, users, history, budget):
        if any(len(h) == 0 for h in history):
            raise ValueError("mean of empty slice")
        return super().adapt(users, history, budget)


class Crowd(PerUserBT):
    def adapt(self, users, history, budget):
        states = super().adapt(users, history, budget)
        centre = np.mean([s.arrays["theta"] for s in states], axis=0) if states else 0
        return [unstack(theta=(s.arrays["theta"] - centre)[None])[0] for s in states]


class LastSaid(PerUserBT):
    def adapt(self, users, history, budget):
        return super().adapt(users, [h.take(slice(-1, None)) for h in history], budget)


class Remembering(PerUserBT):
    def adapt(self, users, history, budget):
        self._kept = super().adapt(users, history, budget)
        return self._kept

    def margins(self, states, queries):
        return super().margins(self._kept[: len(states)], queries)


class Forgetful(PerUserBT):
    def fit(self, train, val, world, budget):
        super().fit(train, val, world, budget)
        self.hidden = self.theta_.copy()

    def weights(self, states):
        return super().weights(states) + 0 * self.hidden


class Opinionated(PooledBT):
    def margins(self, states, queries):
        return super().margins(states, queries) + np.sign(queries.first - queries.second).astype(np.float32)


@pytest.mark.parametrize(
    ("broken", "name"),
    [
        (Shouting, "the constructor stores hyper-parameters untouched"),
        (Positional, "the constructor stores hyper-parameters untouched"),
        (Unwritable, "the constructor stores hyper-parameters untouched"),
        (Double, "margins are float32, one per query, finite"),
        (FirstWins, "margins are antisymmetric in first and second"),
        (OtherRewards, "rewards agree with margins"),
        (Unseeded, "one seed, one result"),
        (Peeking, "query labels are not read"),
        (ByRow, "renaming people changes nothing"),
        (ByRow, "permuting people permutes results"),
        (Writing, "inputs are not changed"),
        (Greedy, "an empty history works"),
        (Crowd, "other people in the call change nothing"),
        (LastSaid, "the order within a history is irrelevant"),
        (Remembering, "margins depend on the state alone"),
        (Forgetful, "save and load keep the method"),
        (Opinionated, "features without information give no preference"),
    ],
)
def test_a_broken_method_is_found(broken, name):
    result = _of(check(broken), name)
    assert result.status == "failed"
    assert result.why


def test_a_hyperparameter_that_is_no_json_is_named():
    result = _of(check(Unwritable), "the constructor stores hyper-parameters untouched")
    assert "kernel=<built-in function abs> of the method 'per-user-bt' cannot be written as JSON" in result.why


@pytest.mark.parametrize("name", ["A", "a_b", "a" * 65])
def test_a_name_that_cannot_be_a_folder_is_found(name):
    class Named(PooledBT):
        spec = replace(PooledBT.spec, name=name)

    assert "is no name for a method" in _of(check(Named), "the spec is filled in").why


def test_a_declared_failure_is_expected_and_its_reason_shown():
    class Declared(FirstWins):
        spec = replace(
            PerUserBT.spec,
            expected_failures={
                "margins are antisymmetric in first and second": "it leans to the first on purpose",
                "rewards agree with margins": "the lean is no reward",
                "features without information give no preference": "the lean stays",
            },
        )

    results = check(Declared)
    assert [r for r in results if r.status == "failed"] == []
    found = _of(results, "margins are antisymmetric in first and second")
    assert (found.status, found.why) == ("expected-failure", "it leans to the first on purpose")


def test_a_declaration_that_holds_no_longer_is_a_failure():
    class Overcautious(PooledBT):
        spec = replace(PooledBT.spec, expected_failures={"an empty history works": "long ago"})

    result = _of(check(Overcautious), "an empty history works")
    assert result.status == "failed"
    assert "remove the declaration" in result.why


def test_a_declaration_of_no_check_is_refused():
    class Misspelt(PooledBT):
        spec: ClassVar = replace(PooledBT.spec, expected_failures={"an empty histry works": "?"})

    with pytest.raises(RequestError, match="Did you mean 'an empty history works'"):
        check(Misspelt)
