"""The registry of methods: built-in files under `methods/catalog/`, and plug-ins by entry point.

A built-in registers itself with `@register`; a plug-in names its class in the entry-point group `hetpref.methods` and
is imported only when it is named or listed. One that fails to import is a row "unavailable: why", never a crash.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, TypeVar

from datasets_registry.errors import HetprefError, MethodError, RequestError, unknown
from methods.interface import Method, MethodSpec

GROUP = "hetpref.methods"
# Names are folders of results and parts of module names.
NAME = re.compile(r"[a-z0-9][a-z0-9+-]{0,63}")
NAMES = "1 to 64 small letters, digits, hyphens and +, starting with a letter or digit, for instance 'my-method'"
_BUILT_IN: dict[str, type[Method]] = {}
M = TypeVar("M", bound=type[Method])


@dataclass(frozen=True, slots=True)
class Listing:
    """One row of the listing: a spec, or the reason why there is none."""

    name: str
    dist: str
    version: str
    spec: MethodSpec | None
    unavailable: str | None = None


def register(cls: M) -> M:
    """Class decorator: make a built-in method known by its spec's name."""
    name = cls.spec.name
    if name in _BUILT_IN and _BUILT_IN[name].__qualname__ != cls.__qualname__:
        raise MethodError(f"the method name {name!r} is taken by {_BUILT_IN[name].__module__}")
    _BUILT_IN[name] = cls
    return cls


def built_in() -> Mapping[str, type[Method]]:
    """Return the built-in methods by name, importing every file of the catalogue."""
    from methods import catalog

    for module in pkgutil.iter_modules(catalog.__path__):
        importlib.import_module(f"{catalog.__name__}.{module.name}")
    return dict(sorted(_BUILT_IN.items()))


def find(name: str) -> type[Method]:
    """Return the class of a method; raises RequestError with the nearest name, MethodError if a plug-in fails."""
    known = built_in()
    if name in known:
        return known[name]
    plugins = {p.name: p for p in entry_points(group=GROUP)}
    if name not in plugins:
        raise unknown("method", name, [*known, *plugins], then="List them: hetpref methods")
    try:
        return _loaded(plugins[name])
    except HetprefError:
        raise
    except BaseException as why:
        if isinstance(why, KeyboardInterrupt):
            raise
        raise MethodError(f"the plug-in method {name!r} failed to import: {reason(why)}") from why


def create(name: str, /, **config: Any) -> Method:
    """Create a method by name; an option it does not take is refused with those it does.

    Raises RequestError for an unknown name or option, MethodError for a method whose constructor fails, whose
    hyper-parameters are not keyword-only with defaults, or whose values cannot be written as JSON.
    """
    cls = find(name)
    accepted = _accepted(name, cls)
    for given in config:
        if given not in accepted:
            raise unknown(f"option of {name}", given, accepted, then=f"Defaults: {accepted}")
    must_be_json(name, {**accepted, **config})
    try:
        with redirect_stdout(sys.stderr):
            method = cls(**config)
            kept = method.config
    except (Exception, SystemExit) as why:
        told = f" with {config}" if config else ""
        raise MethodError(
            f"the method {name!r} cannot be constructed{told}: {reason(why)}; its __init__ must store its "
            "hyper-parameters untouched under their own names and do nothing else"
        ) from why
    must_be_json(name, kept)
    return method


def must_be_json(name: str, values: Mapping[str, Any]) -> None:
    """Raise MethodError unless every hyper-parameter can be written as JSON: records and saved methods hold them."""
    for key, value in values.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise MethodError(
                f"the hyper-parameter {key}={value!r:.80} of the method {name!r} cannot be written as JSON; allowed: "
                "numbers (no NaN or infinity), strings, booleans, None, and lists and dicts of these"
            ) from None


def reason(why: BaseException) -> str:
    """Return an exception as one line: its type and the first line of what it says."""
    return f"{type(why).__name__}: {str(why).partition(chr(10))[0]}"


def listing() -> list[Listing]:
    """Return a row per method, built-in first, plug-ins after; never raises for a plug-in."""
    from importlib.metadata import version

    ours = version("hetpref")
    rows = [Listing(name, "hetpref", ours, cls.spec) for name, cls in built_in().items()]
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        dist = point.dist.name if point.dist else "?"
        number = point.dist.version if point.dist else "?"
        if point.name in _BUILT_IN:
            why = f"the name {point.name!r} is built in and cannot be shadowed; rename the plug-in"
            rows.append(Listing(point.name, dist, number, None, why))
            continue
        try:
            rows.append(Listing(point.name, dist, number, _loaded(point).spec))
        except KeyboardInterrupt:
            raise
        except BaseException as why:
            rows.append(Listing(point.name, dist, number, None, reason(why)))
    return rows


def origin(name: str) -> tuple[str, str]:
    """Return the distribution and version that a method comes from."""
    from importlib.metadata import version

    if name in built_in():
        return "hetpref", version("hetpref")
    for point in entry_points(group=GROUP):
        if point.name == name and point.dist:
            return point.dist.name, point.dist.version
    raise RequestError(f"no distribution provides the method {name!r}")


def _accepted(name: str, cls: type[Method]) -> dict[str, Any]:
    """Return the hyper-parameters and their defaults; raises MethodError for one without, or not keyword-only."""
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.kind is not parameter.KEYWORD_ONLY or parameter.default is parameter.empty:
            raise MethodError(
                f"the argument {str(parameter)!r} of the constructor of the method {name!r} must be keyword-only and "
                f"have a default: def __init__(self, *, {parameter.name}=...)"
            )
    return cls.hyperparameters()


def _loaded(point: Any) -> type[Method]:
    # What a plug-in prints must not stand among the JSON that a command writes to stdout.
    with redirect_stdout(sys.stderr):
        cls = point.load()
    if not (inspect.isclass(cls) and issubclass(cls, Method)):
        raise MethodError(f"entry point {point.name!r} gives {cls!r}, not a subclass of methods.interface.Method")
    spec = getattr(cls, "spec", None)
    if not isinstance(spec, MethodSpec) or spec.name != point.name:
        told = getattr(spec, "name", None)
        raise MethodError(f"entry point {point.name!r} gives a method whose spec.name is {told!r}; they must agree")
    if not NAME.fullmatch(spec.name):
        raise MethodError(f"spec.name {spec.name!r} is no name for a method; allowed: {NAMES}")
    return cls
