"""The registry of datasets: one file per dataset under `datasets_registry/catalog/`, and plug-ins by entry point.

A dataset is a card and a loader, tied by `@dataset(card)`. A plug-in names the decorated loader in the entry-point
group `hetpref.datasets` under the dataset's name; it is imported only when it is named or listed, cannot shadow a
built-in, and one that fails to import is a row "unavailable: why", never a crash.

A dataset is asked for as `name[@version][+option=value]*`, e.g. `movielens100k@1+people=300`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from datasets_registry.errors import DataError, HetprefError, RequestError, unknown
from datasets_registry.orientation import cleaned, oriented
from datasets_registry.records import Card, Comparisons, Int32, Items, PreferenceData, Truth, Users

GROUP = "hetpref.datasets"
LIST_THEM = "List them: hetpref datasets"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*@[0-9]+")
_TEXT = re.compile(r"[A-Za-z0-9._-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}(?:[ ,;]+[0-9a-f]{64})*")


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """What a loader returns: people, items, comparisons in any order of the pair, and the cluster of every unit."""

    users: Users
    items: Items
    comparisons: Comparisons
    unit_cluster: Int32
    clusters: tuple[str, ...]
    truth: Truth | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A registry entry: the card, the loader, and the loader's options with their defaults."""

    card: Card
    loader: Callable[..., Pieces]
    options: Mapping[str, int | float | str] = field(default_factory=dict[str, int | float | str])

    def __call__(self, **options: Any) -> Pieces:
        """Run the loader itself: neither cleaned nor oriented."""
        sys.audit("hetpref.load", self.card.name)
        return self.loader(**options)


@dataclass(frozen=True, slots=True)
class Listing:
    """One row of the listing: a card with its options, or the reason why there is none."""

    name: str
    dist: str
    version: str
    card: Card | None
    options: Mapping[str, int | float | str] = field(default_factory=dict[str, int | float | str])
    unavailable: str | None = None


def dataset(card: Card) -> Callable[[Callable[..., Pieces]], Dataset]:
    """Tie a card to its loader (a decorator), whose keyword-only arguments with defaults are the dataset's options.

    Raises DataError for a card without licence, source, revision, citation, consent or population, for shares that do
    not sum to 1, and for an option without a default of type int, float or str.
    """
    _check_card(card)

    def tie(loader: Callable[..., Pieces]) -> Dataset:
        options: dict[str, int | float | str] = {}
        for name, parameter in inspect.signature(loader).parameters.items():
            if parameter.kind is not parameter.KEYWORD_ONLY or type(parameter.default) not in (int, float, str):
                raise DataError(
                    f"{card.name}: the loader's argument {name!r} must be keyword-only with an int, float or str "
                    "default; it is an option of the dataset's spec"
                )
            options[name] = parameter.default
        return Dataset(card, loader, options)

    return tie


def load(spec: str) -> PreferenceData:
    """Return a dataset by its spec `name[@version][+option=value]*`, cleaned, oriented and checked.

    The last few are kept in memory. Raises RequestError for an unknown name, version or option, DataError for data
    that are not what they must be or cannot be had.
    """
    entry, options = _parsed(spec)
    sys.audit("hetpref.load", canonical(entry, options))  # in a cell's process nobody may
    return _loaded(entry, canonical(entry, options), tuple(sorted(options.items())))


def find_dataset(spec: str) -> Dataset:
    """Return the registry entry of a spec; its options are checked and not used."""
    return _parsed(spec)[0]


def canonical_id(spec: str) -> str:
    """Return the canonical id of a spec: name@version, then the options that differ from their defaults, by key."""
    return canonical(*_parsed(spec))


def canonical(entry: Dataset, options: Mapping[str, int | float | str]) -> str:
    """Return name@version, then the options that differ from their defaults, sorted by key."""
    told = [f"+{k}={_shown(v)}" for k, v in sorted(options.items()) if v != entry.options[k]]
    return entry.card.name + "".join(told)


@functools.cache
def built_in() -> Mapping[str, Dataset]:
    """Return the built-in datasets by `name@version`, importing every file of the catalogue."""
    from datasets_registry import catalog

    found: dict[str, Dataset] = {}
    for module in pkgutil.iter_modules(catalog.__path__):
        for value in vars(importlib.import_module(f"{catalog.__name__}.{module.name}")).values():
            if isinstance(value, Dataset):
                if value.card.name in found:
                    raise DataError(f"two files of the catalogue define {value.card.name}; give one another version")
                found[value.card.name] = value
    return dict(sorted(found.items()))


def cards() -> list[Listing]:
    """Return a row per dataset, built-in first, plug-ins after; never raises for a plug-in."""
    from importlib.metadata import version

    ours = version("hetpref")
    known = built_in()
    rows = [Listing(name, "hetpref", ours, d.card, d.options) for name, d in known.items()]
    taken = {name.partition("@")[0] for name in known}
    for point in _plugins():
        dist = point.dist.name if point.dist else "?"
        number = point.dist.version if point.dist else "?"
        if point.name.partition("@")[0] in taken:
            why = f"the name {point.name!r} is built in and cannot be shadowed; rename the plug-in's dataset"
            rows.append(Listing(point.name, dist, number, None, unavailable=why))
            continue
        try:
            found = _plugged(point)
            rows.append(Listing(found.card.name, dist, number, found.card, found.options))
        except HetprefError as why:
            rows.append(Listing(point.name, dist, number, None, unavailable=str(why)))
    return rows


def _parsed(spec: str) -> tuple[Dataset, dict[str, int | float | str]]:
    wanted, *settings = spec.split("+")
    entry = _found(wanted)
    options: dict[str, int | float | str] = dict(entry.options)
    given: set[str] = set()
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise RequestError(f"{setting!r} in {spec!r} is no option; write {wanted}+option=value")
        if key not in options:
            defaults = ", ".join(f"{k}={_shown(v)}" for k, v in options.items())
            raise unknown(f"option of {entry.card.name}", key, options, then=f"Defaults: {defaults or 'none'}")
        if key in given:
            raise RequestError(f"the option {key!r} is given twice in {spec!r}; give it once")
        given.add(key)
        options[key] = _value(entry.card.name, key, text, entry.options[key])
    return entry, options


def _found(wanted: str) -> Dataset:
    """Return the entry of `name[@version]`; without a version, the highest there is."""
    known: dict[str, Dataset] = dict(built_in())
    name, at, version = wanted.partition("@")
    if not any(k.partition("@")[0] == name for k in known):
        points = {p.name.partition("@")[0]: p for p in _plugins()}
        if name not in points:
            raise unknown("dataset", wanted, [*known, *points], then=LIST_THEM)
        found = _plugged(points[name])
        known[found.card.name] = found
    versions = sorted((int(k.partition("@")[2]), k) for k in known if k.partition("@")[0] == name)
    if not at:
        return known[versions[-1][1]]
    if wanted not in known:
        there = ", ".join(k for _, k in versions)
        raise RequestError(f"{name} has no version {version!r}. Versions that exist: {there}. {LIST_THEM}")
    return known[wanted]


def _value(name: str, key: str, text: str, default: int | float | str) -> int | float | str:
    kind = type(default)
    try:
        value = kind(text)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError
        if isinstance(value, str) and not _TEXT.fullmatch(value):
            raise ValueError
    except ValueError:
        allowed = {int: "a whole number", float: "a finite number", str: "letters, digits, '.', '_' and '-'"}[kind]
        raise RequestError(
            f"option {key}={text!r} of {name} is not {allowed}; for example {name}+{key}={_shown(default)}"
        ) from None
    return value


def _shown(value: int | float | str) -> str:
    """Return a value as it stands in a spec: shortest form that reads back the same, and without a plus sign."""
    return repr(value).removesuffix(".0").replace("e+", "e") if isinstance(value, float) else str(value)


@functools.lru_cache(maxsize=6)
def _loaded(entry: Dataset, identity: str, options: tuple[tuple[str, int | float | str], ...]) -> PreferenceData:
    try:
        with redirect_stdout(sys.stderr):
            pieces = entry.loader(**dict(options))
    except HetprefError:
        raise
    except Exception as why:
        raise DataError(f"the loader of {identity} failed: {type(why).__name__}: {why}") from why
    if not isinstance(pieces, Pieces):
        raise DataError(f"the loader of {identity} returned {type(pieces).__name__}; it must return registry.Pieces")
    try:
        data = _checked(entry, identity, pieces)
    except HetprefError:
        raise
    except IndexError as why:
        problem = "its comparisons refer to people, items, units or clusters that it does not list"
        raise DataError(f"the loader of {identity} is wrong: {problem} ({why})") from why
    except Exception as why:
        told = f"{type(why).__name__}: {why}"
        raise DataError(
            f"the loader of {identity} gives parts that do not fit together ({told}); see registry.Pieces"
        ) from why
    for column in (*data.comparisons.columns().values(), data.unit_cluster):
        column.setflags(write=False)
    return data


def _checked(entry: Dataset, identity: str, pieces: Pieces) -> PreferenceData:
    """Return what a loader gave, checked, cleaned and oriented."""
    from datasets_registry.encoders import must_be_finite

    try:
        must_be_finite(pieces.items)
    except DataError as why:
        raise DataError(f"{identity}: {why}") from why
    said = np.bincount(pieces.comparisons.user, minlength=len(pieces.users))
    # A person whose comparisons are all dropped below is dropped with them; one who never had any is a loader's slip.
    if len(said) == len(pieces.users) and len(said) and said.min() == 0:
        raise DataError(
            f"{identity}: user {pieces.users.ids[int(said.argmin())]!r} has no comparisons; the loader must leave "
            "such people out"
        )
    parts = cleaned(pieces.users, pieces.items, pieces.comparisons, pieces.unit_cluster, pieces.clusters, pieces.truth)
    if not len(parts["comparisons"]):
        raise DataError(f"{identity} has no comparisons left after cleaning: every response is empty or a duplicate")
    return oriented(PreferenceData(id=identity, card=entry.card, **parts))


def _plugins() -> list[Any]:
    from importlib.metadata import entry_points

    return sorted(entry_points(group=GROUP), key=lambda p: p.name)


def _plugged(point: Any) -> Dataset:
    try:
        # What a plug-in prints must not stand among the JSON that a command writes to stdout.
        with redirect_stdout(sys.stderr):
            found = point.load()
    except KeyboardInterrupt:
        raise
    except BaseException as why:
        raise DataError(f"the plug-in dataset {point.name!r} failed to import: {type(why).__name__}: {why}") from why
    if not isinstance(found, Dataset):
        raise DataError(
            f"entry point {point.name!r} gives {type(found).__name__}, not a loader decorated with "
            "datasets_registry.registry.dataset(card)"
        )
    if found.card.name.partition("@")[0] != point.name.partition("@")[0]:
        raise DataError(f"entry point {point.name!r} gives a dataset named {found.card.name!r}; they must agree")
    return found


def _check_card(card: Card) -> None:
    if not _NAME.fullmatch(card.name):
        raise DataError(f"card name {card.name!r} is not name@version, such as my-survey@1 (lower case)")
    for key in ("licence", "source", "revision", "citation", "consent", "population", "title"):
        if not str(getattr(card, key)).strip():
            raise DataError(f"the card of {card.name} has no {key}; fill it in: nobody may use data without knowing it")
    if not card.simulated and not _SHA256.fullmatch(card.sha256):
        raise DataError(f"the card of {card.name} has sha256 {card.sha256!r}; give 64 hexadecimal digits per file")
    shares = np.asarray(card.shares, float)
    if shares.shape != (4,) or not (shares > 0).all() or abs(shares.sum() - 1) > 1e-6:
        raise DataError(
            f"the card of {card.name} has shares {card.shares}; they must be four positive numbers (train, validation, "
            f"support, query) that sum to 1, and sum to {shares.sum():g}"
        )
