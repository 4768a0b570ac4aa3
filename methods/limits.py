"""What options may be: a test, and how it is told to whoever gave another value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from datasets_registry.errors import RequestError

if TYPE_CHECKING:
    from methods.interface import Method


@dataclass(frozen=True, slots=True)
class Limit:
    """A test of an option's value, and in words what passes it."""

    allows: Callable[[Any], bool]
    told: str


Limits = dict[str, Limit]


def whole(least: int = 1) -> Limit:
    """Return the limit of counts: whole numbers from `least`.

    >>> [whole().allows(v) for v in (1, 0, 1.0, True)]
    [True, False, False, False]
    """
    return Limit(lambda v: _is(v, int) and v >= least, f"whole numbers from {least}")


def number(least: float = 0, below: float = inf) -> Limit:
    """Return the limit of finite numbers from `least`, and below `below` where that is given."""
    end = "" if below == inf else f" to below {below:g}"
    return Limit(lambda v: _is(v, int | float) and least <= v < below, f"numbers from {least:g}{end}")


ABOVE = Limit(lambda v: _is(v, int | float) and 0 < v < inf, "numbers above 0")
INSIDE = Limit(lambda v: _is(v, int | float) and 0 < v < 1, "numbers between 0 and 1, the ends excluded")
SHARE = Limit(lambda v: _is(v, int | float) and 0 <= v <= 1, "numbers from 0 to 1")
FLAG = Limit(lambda v: isinstance(v, bool), "true, false")


def one_of(*values: str) -> Limit:
    """Return the limit of words."""
    return Limit(lambda v: v in values, ", ".join(values))


def or_none(limit: Limit, instead: str = "") -> Limit:
    """Return a limit that None passes, too; `instead` says what None stands for.

    >>> or_none(whole()).told
    'whole numbers from 1, or None'
    """
    return Limit(lambda v: v is None or limit.allows(v), f"{limit.told}, or None{instead}")


def must_hold(method: Method, limits: Mapping[str, Limit]) -> None:
    """Raise RequestError for the first option of a method that is beyond its limit."""
    for name, limit in limits.items():
        value = getattr(method, name)
        if not limit.allows(value):
            raise RequestError(f"{method.spec.name}: {name}={value!r:.60}; allowed: {limit.told}")


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
