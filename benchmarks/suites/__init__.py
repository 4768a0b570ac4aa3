"""Suites: what a run measures, one small declarative TOML file each.

Adding a suite is adding `benchmarks/suites/NAME.toml`; a path to such a file works wherever a suite's name does.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from datasets_registry.errors import RequestError, unknown
from datasets_registry.protocol import Count


@dataclass(frozen=True, slots=True)
class DatasetPlan:
    """One dataset of a suite: its id, the encoder, and the grids of data per user.

    Empty grids mean the protocol's own grid as far as the dataset has it.
    """

    name: str
    encoder: str
    n_train: tuple[Count, ...] = ()
    n_support: tuple[int, ...] = ()
    n_users: tuple[Count, ...] = ("all",)
    imbalance: tuple[str, ...] = ("none",)

    def __post_init__(self) -> None:
        for name, least in (("n_train", 1), ("n_support", 0), ("n_users", 1)):
            for n in getattr(self, name):
                whole = isinstance(n, int) and not isinstance(n, bool) and n >= least
                if not whole and (n != "all" or name == "n_support"):
                    also = "" if name == "n_support" else ", or 'all'"
                    raise RequestError(f"{self.name}: {name} holds {n!r}; allowed: whole numbers from {least}{also}")
        for kind in self.imbalance:
            if kind not in ("none", "zipf"):
                raise unknown(f"imbalance of {self.name}", kind, ["none", "zipf"])


@dataclass(frozen=True, slots=True)
class MethodPlan:
    """One method of a suite and the options that differ from its defaults."""

    name: str
    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite: datasets x methods x seeds, and the limits of one cell."""

    name: str
    title: str
    datasets: tuple[DatasetPlan, ...]
    methods: tuple[MethodPlan, ...]
    seeds: int
    time_limit_s: float
    memory_limit_mb: int
    user_shuffle: bool = True

    @property
    def summary(self) -> dict[str, Any]:
        """Return what a listing shows."""
        return {
            "name": self.name,
            "title": self.title,
            "datasets": [d.name for d in self.datasets],
            "methods": [m.name for m in self.methods],
            "seeds": self.seeds,
        }


def suite_names() -> list[str]:
    """Return the names of the built-in suites."""
    return sorted(f.name.removesuffix(".toml") for f in files(__name__).iterdir() if f.name.endswith(".toml"))


def load_suite(name: str) -> Suite:
    """Return a suite by name, or from a path that ends in `.toml`; raises RequestError that names the wrong key."""
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise RequestError(f"no suite file {name!r}. Built-in suites: {', '.join(suite_names())}")
        return _parse(path.stem, path.read_text(encoding="utf-8"))
    if name not in suite_names():
        raise unknown("suite", name, suite_names(), then="List them: hetpref suites")
    return _parse(name, (files(__name__) / f"{name}.toml").read_text(encoding="utf-8"))


def _parse(name: str, text: str) -> Suite:
    try:
        told = tomllib.loads(text)
    except tomllib.TOMLDecodeError as why:
        raise RequestError(f"suite {name!r} is not TOML: {why}") from why
    datasets = tuple(_record(DatasetPlan, d, f"suite {name!r}, dataset") for d in told.pop("datasets", []))
    methods = tuple(
        MethodPlan(m, {})
        if isinstance(m, str)
        else _record(MethodPlan, {"config": {}, **m}, f"suite {name!r}, method")
        for m in told.pop("methods", [])
    )
    if not datasets or not methods:
        raise RequestError(f"suite {name!r} names no {'datasets' if not datasets else 'methods'}; give at least one")
    return _record(Suite, {"name": name, **told, "datasets": datasets, "methods": methods}, f"suite {name!r}")


def _record(kind: type, told: dict[str, Any], where: str) -> Any:
    known = [f.name for f in fields(kind)]
    for key in told:
        if key not in known:
            raise unknown(f"key of {where}", key, known)
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}
    try:
        return kind(**values)
    except TypeError as why:
        raise RequestError(f"{where}: {why}; a whole entry has {', '.join(known)}") from why
