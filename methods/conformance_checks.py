"""The checks themselves, one function each, in the order in which they are reported."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace

import numpy as np

from datasets_registry.records import Comparisons
from methods.conformance import (
    BUDGET,
    Failed,
    Skipped,
    Subject,
    conformance,
    must_agree,
    must_be_margins,
    positions,
    saved_and_loaded,
    small_stage,
)
from methods.interface import Histories, UserState
from methods.registry import NAME, NAMES, must_be_json

LOOSE = 2e-2  # another order of floating-point sums, carried through an iterative fit


@conformance("the spec is filled in")
def _spec(subject: Subject) -> None:
    spec = subject.cls.spec
    if not NAME.fullmatch(spec.name):
        raise Failed(f"spec.name {spec.name!r} is no name for a method; allowed: {NAMES}")
    for part in fields(spec):
        value = getattr(spec, part.name)
        if isinstance(value, str) and not value.strip():
            raise Failed(f"spec.{part.name} is empty")


@conformance("the constructor stores hyper-parameters untouched")
def _constructor(subject: Subject) -> None:
    for parameter in inspect.signature(subject.cls).parameters.values():
        if parameter.kind is not parameter.KEYWORD_ONLY or parameter.default is parameter.empty:
            raise Failed(f"hyper-parameter {parameter.name!r} must be keyword-only and have a default")
    given = {**subject.cls.hyperparameters(), **subject.config}
    must_be_json(subject.cls.spec.name, given)
    method = subject.cls(**given)
    for name, value in given.items():
        if not hasattr(method, name) or getattr(method, name) is not value:
            raise Failed(f"{name}={value!r} is not stored untouched under its own name")
    if learned := method.learned():
        raise Failed(f"the constructor sets learned state: {sorted(learned)}")
    subject.fitted(subject.stage)
    if subject.method.config != given:
        raise Failed(f"fit changed hyper-parameters: {given} became {subject.method.config}")


@conformance("margins are float32, one per query, finite")
def _margins(subject: Subject) -> None:
    if len(subject.states) != len(subject.stage.people):
        raise Failed(f"adapt returned {len(subject.states)} states for {len(subject.stage.people)} people")
    must_be_margins(subject.margins, len(subject.stage.queries))


@conformance("margins are antisymmetric in first and second")
def _antisymmetric(subject: Subject) -> None:
    if subject.cls.spec.scoring == "pairwise":
        raise Skipped("a pairwise method's margins are averaged over both orders by the harness")
    swapped = subject.method.margins(subject.states, subject.stage.queries.swapped())
    must_agree(swapped, -subject.margins, "margins of swapped queries")


@conformance("rewards agree with margins")
def _rewards(subject: Subject) -> None:
    q = subject.stage.queries
    first = subject.method.rewards(subject.states, q.user, q.first)
    second = subject.method.rewards(subject.states, q.user, q.second)
    if first is None or second is None:
        raise Skipped("the method has no pointwise rewards")
    must_be_margins(first, len(q), "rewards")
    must_agree(first - second, subject.margins, "reward(first) - reward(second) against margins")


@conformance("one seed, one result")
def _seed(subject: Subject) -> None:
    if subject.scored(subject.stage).tobytes() != subject.margins.tobytes():
        raise Failed("two fits with the same seed differ; draw only from generators seeded by budget.seed")


@conformance("query labels are not read")
def _labels(subject: Subject) -> None:
    queries = subject.stage.queries
    told = replace(queries, label=(np.arange(len(queries)) % 2).astype(np.float32))
    margins = subject.method.margins(subject.states, told)
    must_agree(margins, subject.margins, "margins with other labels", tolerance=0.0)


@conformance("renaming people changes nothing")
def _renaming(subject: Subject) -> None:
    renamed = small_stage(subject.cls.spec, 2 * np.arange(len(subject.stage.people)) + 3)
    must_agree(subject.scored(renamed), subject.margins, "margins under other user rows")


@conformance("permuting people permutes results")
def _permuting(subject: Subject) -> None:
    order = np.random.default_rng(3).permutation(len(subject.stage.people))
    must_agree(
        subject.scored(small_stage(subject.cls.spec, order)),
        subject.margins,
        "margins after people were permuted in training",
        tolerance=LOOSE,
    )


@conformance("orientation of training rows is irrelevant")
def _orientation(subject: Subject) -> None:
    stage = subject.stage

    def turned(table: Comparisons) -> Comparisons:
        odd = np.arange(len(table)) % 2 == 1
        swapped = table.swapped()
        columns = {k: np.where(odd, v, table.columns()[k]) for k, v in swapped.columns().items()}
        return Comparisons(**columns)

    other = replace(stage, train=turned(stage.train), val=turned(stage.val), histories=turned(stage.histories))
    must_agree(subject.scored(other), subject.margins, "margins after rows were turned round", tolerance=LOOSE)


@conformance("inputs are not changed")
def _inputs(subject: Subject) -> None:
    before = [c.tobytes() for c in subject.stage.histories.columns().values()]
    states = [{k: v.tobytes() for k, v in s.arrays.items()} for s in subject.states]
    subject.method.margins(subject.states, subject.stage.queries)
    if [c.tobytes() for c in subject.stage.histories.columns().values()] != before:
        raise Failed("adapt or margins changed a history")
    if [{k: v.tobytes() for k, v in s.arrays.items()} for s in subject.states] != states:
        raise Failed("margins changed a state")


@conformance("an empty history works")
def _empty(subject: Subject) -> None:
    people = subject.stage.people
    nothing = Histories.group(Comparisons.empty(), people)
    states = subject.method.adapt(people.tolist(), nothing, BUDGET)
    must_be_margins(subject.method.margins(states, subject.stage.queries), len(subject.stage.queries))
    if subject.method.adapt([], Histories.group(Comparisons.empty(), []), BUDGET):
        raise Failed("adapt returned states for nobody")
    must_be_margins(subject.method.margins(states, subject.stage.queries.take([])), 0, "margins of no queries")


@conformance("a plain sequence of histories works")
def _sequence(subject: Subject) -> None:
    people = subject.stage.people
    plain = list(Histories.group(subject.stage.histories, people))
    states = subject.method.adapt(people.tolist(), plain, BUDGET)
    must_agree(subject.method.margins(states, subject.stage.queries), subject.margins, "margins from a list")


@conformance("one comparison works")
def _one_comparison(subject: Subject) -> None:
    stage = subject.stage
    one = replace(stage, train=stage.train.take([0]), val=stage.val.take([]))
    method = subject.fitted(one)
    states = method.adapt([int(stage.people[0])], [stage.histories.take([0])], BUDGET)
    queries = stage.queries.take(stage.queries.user == 0)
    must_be_margins(method.margins(states, queries), len(queries))


@conformance("a single person works")
def _single(subject: Subject) -> None:
    stage = subject.stage
    row = stage.people[0]
    alone = replace(stage, train=stage.train.take(stage.train.user == row), val=stage.val.take(stage.val.user == row))
    must_be_margins(subject.scored(alone), len(stage.queries))


@conformance("a person beyond those seen works")
def _beyond(subject: Subject) -> None:
    stage = subject.stage
    far = stage.world.n_users + 1000
    support = stage.histories.take(stage.histories.user == stage.people[-1])
    states = subject.method.adapt([far], [support], BUDGET)
    queries = stage.queries.take(stage.queries.user == 0)
    must_be_margins(subject.method.margins(states, queries), len(queries))


@conformance("other people in the call change nothing")
def _others(subject: Subject) -> None:
    people = subject.stage.people[::3]
    states = subject.method.adapt(people.tolist(), Histories.group(subject.stage.histories, people), BUDGET)
    at = np.flatnonzero(np.isin(subject.stage.queries.user, np.arange(0, len(subject.stage.people), 3)))
    queries = subject.stage.queries.take(at)
    margins = subject.method.margins(states, queries.for_users(queries.user // 3))
    must_agree(margins, subject.margins[at], "margins when fewer people were adapted together", tolerance=1e-3)


@conformance("other queries in the call change nothing")
def _other_queries(subject: Subject) -> None:
    at = np.arange(0, len(subject.stage.queries), 3)
    margins = subject.method.margins(subject.states, subject.stage.queries.take(at))
    must_agree(margins, subject.margins[at], "margins when fewer queries were asked together", tolerance=1e-5)


@conformance("the order within a history is irrelevant")
def _order(subject: Subject) -> None:
    if subject.cls.spec.adaptation == "in-context":
        raise Skipped("an in-context method may read the order")
    table = subject.stage.histories
    turned = replace(table, order=(200 - table.order).astype(np.int32))
    people = subject.stage.people
    states = subject.method.adapt(people.tolist(), Histories.group(turned, people), BUDGET)
    must_agree(subject.method.margins(states, subject.stage.queries), subject.margins, "margins", tolerance=1e-3)


@conformance("margins depend on the state alone")
def _state_alone(subject: Subject) -> None:
    order = np.random.default_rng(5).permutation(len(subject.states))
    margins = subject.method.margins([subject.states[i] for i in order], positions(subject.stage.queries, order))
    must_agree(margins, subject.margins, "margins when states were handed over in another order", tolerance=1e-5)


@conformance("states survive serialisation")
def _serialised(subject: Subject) -> None:
    states = [UserState.from_bytes(state.to_bytes()) for state in subject.states]
    must_agree(subject.method.margins(states, subject.stage.queries), subject.margins, "margins", tolerance=0.0)


@conformance("save and load keep the method")
def _saved(subject: Subject) -> None:
    loaded = saved_and_loaded(subject.method, subject.stage.world)
    if loaded.config != subject.method.config:
        raise Failed(f"hyper-parameters {subject.method.config} came back as {loaded.config}")
    must_agree(loaded.margins(subject.states, subject.stage.queries), subject.margins, "margins", tolerance=1e-6)
    again = loaded.margins(subject.adapted(loaded, subject.stage), subject.stage.queries)
    must_agree(again, subject.margins, "margins of states that the loaded method made", tolerance=1e-5)


@conformance("features without information give no preference")
def _zero(subject: Subject) -> None:
    if "features" not in subject.cls.spec.needs or subject.cls.spec.level != "feature":
        raise Skipped("the method does not read features alone")
    margins = subject.scored(small_stage(subject.cls.spec, zero=True))
    must_be_margins(margins, len(subject.stage.queries))
    must_agree(margins, np.zeros_like(margins), "margins of items with equal features", tolerance=1e-6)
