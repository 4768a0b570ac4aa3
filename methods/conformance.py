"""The conformance suite: what every method must hold, run on a small simulated world that it makes itself.

A check is one decorated function that raises `Failed` or `Skipped`. What a method cannot hold it declares in
`spec.expected_failures`, with the reason; a declared check that passes is reported as failed, so that they stay true.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datasets_registry.errors import MethodError, unknown
from datasets_registry.records import Comparisons, Float32, Items, Truth
from methods.interface import Array, Budget, Histories, Method, MethodSpec, UserState, World

Status = Literal["passed", "failed", "expected-failure", "skipped"]
BUDGET = Budget(seed=7, trials=4)
_SEEN, _NEW, _ITEMS, _D = 12, 4, 48, 6
_BACKBONE = "tiny-bert@1"  # random weights, made on the spot


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The outcome of one check, and why if it did not pass."""

    name: str
    status: Status
    why: str = ""


class Failed(MethodError):
    """A method does not hold what a check asks."""


class Skipped(MethodError):
    """A check does not apply to a method."""


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """What a method is run on: a world, training and validation tables, everybody's histories and their queries.

    `people` are user rows: seen ones, then new ones. `queries.user` is a position in `people`; its labels are hidden.
    """

    world: World
    train: Comparisons
    val: Comparisons
    histories: Comparisons
    queries: Comparisons
    people: Array


def small_stage(spec: MethodSpec, rows: Array | None = None, *, zero: bool = False) -> Stage:
    """Return the simulated stage: 12 seen and 4 new people, ties and soft labels among the labels.

    rows: int [16], the user row that each person has (0..15 when None). `zero` blanks the features. The world holds
    only what the spec asks for, and every array is read-only.
    """
    draw = np.random.default_rng(20)
    n = _SEEN + _NEW
    rows = np.arange(n) if rows is None else np.asarray(rows)
    attributes = draw.normal(size=(_ITEMS, _D)).astype(np.float32)
    theta = (draw.normal(size=_D) + draw.normal(size=(n, 2)) @ draw.normal(size=(2, _D))).astype(np.float32)
    items = Items(
        tuple(f"question {i // 2}" for i in range(_ITEMS)),
        tuple("word " * (1 + int(size)) + str(i) for i, size in enumerate(draw.integers(0, 30, _ITEMS))),
        _frozen(attributes),
        tuple(f"attribute {k}" for k in range(_D)),
    )
    placed = np.zeros((int(rows.max()) + 1, _D), np.float32)
    placed[rows] = theta
    features = np.zeros_like(attributes) if zero else attributes
    world = World(
        dataset="conformance",
        items=items,
        n_users=len(placed),
        features=_frozen(features.copy()) if "features" in spec.needs else None,
        encoder="tabular@1" if "features" in spec.needs else _BACKBONE if "backbone" in spec.needs else None,
        user_metadata={"group": tuple("ab"[row % 2] for row in range(len(placed)))}
        if "user-metadata" in spec.needs
        else None,
        truth=Truth(_frozen(placed), _frozen(np.eye(_D, 2, dtype=np.float32)), _frozen(theta.mean(0)), 1.0, 0.0)
        if "truth" in spec.needs
        else None,
    )

    def said(people: Array, each: int, start: int) -> Comparisons:
        user = np.repeat(people, each)
        first = draw.integers(0, _ITEMS, len(user))
        second = (first + draw.integers(1, _ITEMS, len(user))) % _ITEMS
        margin = np.einsum("nk,nk->n", attributes[first] - attributes[second], theta[user])
        label = (draw.random(len(user)) < 1 / (1 + np.exp(-margin))).astype(float)
        label[::7] = 0.5
        label[3::11] = np.abs(label[3::11] - 0.2)
        table = Comparisons.of(user=rows[user], unit=first // 2, first=first, second=second, label=label)
        return _read_only(replace(table, order=(table.order % each + start).astype(np.int32)))

    seen, new = np.arange(_SEEN), np.arange(_SEEN, n)
    train, val, support, queries = said(seen, 10, 0), said(seen, 3, 10), said(new, 5, 0), said(np.arange(n), 6, 99)
    position = np.repeat(np.arange(n), 6)
    histories = _read_only(Comparisons.concatenate([train, support]))
    return Stage(world, train, val, histories, _read_only(queries.for_users(position).hidden()), rows)


def _frozen(array: Array) -> Array:
    array.setflags(write=False)
    return array


def _read_only(table: Comparisons) -> Comparisons:
    return Comparisons(**{f.name: _frozen(getattr(table, f.name).copy()) for f in fields(table)})


@dataclass(eq=False)
class Subject:
    """A method under test; the fits that several checks need are made once."""

    cls: type[Method]
    config: dict[str, Any] = field(default_factory=dict[str, Any])

    @cached_property
    def stage(self) -> Stage:
        """Return the stage that most checks run on."""
        return small_stage(self.cls.spec)

    @cached_property
    def method(self) -> Method:
        """Return the method fitted on the stage."""
        return self.fitted(self.stage)

    @cached_property
    def states(self) -> list[UserState]:
        """Return the state of every person of the stage."""
        return self.adapted(self.method, self.stage)

    @cached_property
    def margins(self) -> Float32:
        """Return the margins of the stage's queries."""
        return self.method.margins(self.states, self.stage.queries)

    def fitted(self, stage: Stage) -> Method:
        """Return a fresh method fitted on a stage."""
        method = self.cls(**self.config)
        answer = method.fit(stage.train, stage.val, stage.world, BUDGET)
        if answer is not None:
            raise Failed(f"fit returned {type(answer).__name__}; it must return None and keep what it learned")
        return method

    def adapted(self, method: Method, stage: Stage) -> list[UserState]:
        """Return the state of every person of a stage."""
        return method.adapt(stage.people.tolist(), Histories.group(stage.histories, stage.people), BUDGET)

    def scored(self, stage: Stage) -> Float32:
        """Return the margins of a fresh fit on a stage."""
        method = self.fitted(stage)
        return method.margins(self.adapted(method, stage), stage.queries)


Check = Callable[[Subject], None]
CHECKS: dict[str, Check] = {}


def conformance(name: str) -> Callable[[Check], Check]:
    """Register a check under the name that reports and `spec.expected_failures` use."""

    def keep(check: Check) -> Check:
        CHECKS[name] = check
        return check

    return keep


def check(method: str | type[Method], **config: Any) -> list[CheckResult]:
    """Return one result per check; `config` are hyper-parameters to check the method with."""
    import methods.conformance_checks  # noqa: F401  (fills CHECKS)
    from methods.registry import find

    cls = find(method) if isinstance(method, str) else method
    for declared in cls.spec.expected_failures:
        if declared not in CHECKS:
            raise unknown(f"conformance check (in {cls.spec.name}'s spec.expected_failures)", declared, CHECKS)
    subject = Subject(cls, config)
    return [_outcome(name, CHECKS[name], subject) for name in CHECKS]


def _outcome(name: str, run: Check, subject: Subject) -> CheckResult:
    declared = subject.cls.spec.expected_failures.get(name)
    try:
        run(subject)
    except Skipped as why:
        return CheckResult(name, "skipped", str(why))
    except KeyboardInterrupt:
        raise
    except BaseException as why:
        if declared is not None:
            return CheckResult(name, "expected-failure", declared)
        text = str(why) if isinstance(why, Failed) else f"{type(why).__name__}: {why}"
        return CheckResult(name, "failed", text)
    if declared is not None:
        return CheckResult(name, "failed", f"it passes; remove the declaration ({declared}) from expected_failures")
    return CheckResult(name, "passed")


def must_agree(got: Array, expected: Array, what: str, *, tolerance: float = 1e-4) -> None:
    """Raise Failed unless two arrays agree to `tolerance` of their largest magnitude."""
    if got.shape != expected.shape:
        raise Failed(f"{what}: shape {got.shape} instead of {expected.shape}")
    apart = float(np.abs(got.astype(np.float64) - expected).max(initial=0.0))
    allowed = tolerance * (1.0 + float(np.abs(expected).max(initial=0.0)))
    if not apart <= allowed:
        raise Failed(f"{what}: differs by {apart:.3g}, allowed {allowed:.3g}")


def must_be_margins(margins: Array, n: int, what: str = "margins") -> None:
    """Raise Failed unless margins are float32 [n] and finite."""
    if not isinstance(margins, np.ndarray) or margins.dtype != np.float32 or margins.shape != (n,):
        told = f"{margins.dtype} {margins.shape}" if isinstance(margins, np.ndarray) else type(margins).__name__
        raise Failed(f"{what} must be float32 ({n},), got {told}")
    if not np.isfinite(margins).all():
        raise Failed(f"{what}: {int((~np.isfinite(margins)).sum())} of {n} are not finite")


def saved_and_loaded(method: Method, world: World) -> Method:
    """Return the method after a round trip through a folder."""
    with tempfile.TemporaryDirectory() as folder:
        method.save(Path(folder) / "method")
        return type(method).load(Path(folder) / "method", world)


def positions(queries: Comparisons, order: Sequence[int] | Array) -> Comparisons:
    """Return queries that point to the same people after the states were put in `order`."""
    place = np.empty(len(order), np.int64)
    place[np.asarray(order)] = np.arange(len(order))
    return queries.for_users(place[queries.user])
