"""Suites: what a run measures, one small declarative TOML file each.

Adding a suite is adding `benchmarks/suites/NAME.toml`; a path to such a file works wherever a suite's name does.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from benchmarks.experiments import EXPERIMENTS
from datasets_registry.errors import HetprefError, RequestError, unknown
from datasets_registry.protocol import FOLDS, Count, Regime
from datasets_registry.splits import REGIMES

# The whole protocol: every fold of people and prompts, three times each.
MOST_SEEDS = 3 * FOLDS
# 30 days and 16 TiB: what a limit may be without overflowing the system's own.
MOST_SECONDS = 30 * 86_400
LEAST_MB, MOST_MB = 64, 1 << 24
# The names of `benchmarks.kernels.shapes.GRIDS`, which a listing does not import.
_KERNEL_GRIDS = ("quick", "full")
_DEVICE = re.compile(r"cpu|cuda(:[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class DatasetPlan:
    """One dataset of a suite: its id, the encoder, and the grids of data per user.

    Empty grids mean the protocol's own grid as far as the dataset has it, no `regimes` those of the suite.
    """

    name: str
    encoder: str
    n_train: tuple[Count, ...] = ()
    n_support: tuple[int, ...] = ()
    n_users: tuple[Count, ...] = ("all",)
    imbalance: tuple[str, ...] = ("none",)
    regimes: tuple[Regime, ...] = ()

    def __post_init__(self) -> None:
        _text(f"dataset {self.name!r:.60}", "name", self.name)
        _text(self.name, "encoder", self.encoder)
        for name, least in (("n_train", 1), ("n_support", 0), ("n_users", 1)):
            also = "" if name == "n_support" else ", or 'all'"
            for n in _grid(self.name, name, getattr(self, name), f"[{max(least, 1)}, 4]"):
                if not _whole(n, least) and (n != "all" or name == "n_support"):
                    raise RequestError(f"{self.name}: {name} holds {n!r}; allowed: whole numbers from {least}{also}")
        for kind in _grid(self.name, "imbalance", self.imbalance, '["none", "zipf"]'):
            if kind not in ("none", "zipf"):
                raise unknown(f"imbalance of {self.name}", str(kind), ["none", "zipf"])
        _regimes(self.name, self.regimes)


@dataclass(frozen=True, slots=True)
class MethodPlan:
    """One method of a suite and the options that differ from its defaults."""

    name: str
    config: dict[str, Any]

    def __post_init__(self) -> None:
        _text(f"method {self.name!r:.60}", "name", self.name)
        if not isinstance(self.config, dict):
            raise RequestError(
                f"method {self.name!r}: config is {self.config!r:.60}; allowed: a table of its options, for example "
                "config = {rank = 8}"
            )
        for key, value in self.config.items():
            if _canonical(value) is None:
                raise RequestError(
                    f"method {self.name!r}: config holds {key} = {value!r:.60}; allowed: strings, booleans, finite "
                    "numbers, and lists and tables of these"
                )


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite: datasets x methods x seeds, and the limits of one cell.

    `kernels` is the grid of the kernel benchmark that a run ends with ("quick" or "full"), or None for none. `device`
    is where methods that can use it work: "cpu", "cuda", or one GPU of several, "cuda:1". `regimes` are measured on
    every dataset that does not name its own.
    """

    name: str
    title: str
    datasets: tuple[DatasetPlan, ...]
    methods: tuple[MethodPlan, ...]
    seeds: int
    time_limit_s: float
    memory_limit_mb: int
    user_shuffle: bool = True
    kernels: str | None = None
    device: str = "cpu"
    regimes: tuple[Regime, ...] = ("seen", "unseen")

    def __post_init__(self) -> None:
        where = f"suite {self.name!r:.60}"
        _text(where, "name", self.name)
        if any(sign in self.name for sign in "/\\") or self.name in (".", ".."):
            raise RequestError(f"{where}: its name is a folder of results; allowed: a name without / and \\")
        if not isinstance(self.title, str):
            raise RequestError(f"{where}: title is {self.title!r:.60}; allowed: a string in quotes")
        if not _whole(self.seeds, 1) or self.seeds > MOST_SEEDS:
            raise RequestError(
                f"{where}: seeds is {self.seeds!r:.60}; allowed: whole numbers from 1 to {MOST_SEEDS} (the whole "
                f"protocol: {FOLDS} folds, three times each)"
            )
        limit = self.time_limit_s
        number = isinstance(limit, int | float) and not isinstance(limit, bool)
        if not number or not math.isfinite(limit) or not 0 < limit <= MOST_SECONDS:
            raise RequestError(
                f"{where}: time_limit_s is {limit!r:.60}; allowed: seconds above 0, at most {MOST_SECONDS}"
            )
        if not _whole(self.memory_limit_mb, LEAST_MB) or self.memory_limit_mb > MOST_MB:
            raise RequestError(
                f"{where}: memory_limit_mb is {self.memory_limit_mb!r:.60}; allowed: whole numbers of megabytes from "
                f"{LEAST_MB} to {MOST_MB}"
            )
        if not isinstance(self.user_shuffle, bool):
            raise RequestError(f"{where}: user_shuffle is {self.user_shuffle!r:.60}; allowed: true, false")
        if self.kernels is not None and self.kernels not in _KERNEL_GRIDS:
            raise RequestError(
                f"{where}: kernels is {self.kernels!r:.60}; allowed: a grid of the kernel benchmark, "
                f"{' or '.join(map(repr, _KERNEL_GRIDS))}, or leave it out"
            )
        if not isinstance(self.device, str) or not _DEVICE.fullmatch(self.device):
            raise RequestError(
                f"{where}: device is {self.device!r:.60}; allowed: 'cpu', 'cuda', or one GPU of several, as in 'cuda:1'"
            )
        if not _regimes(where, self.regimes):
            raise RequestError(f"{where}: regimes is an empty list; allowed: {', '.join(REGIMES)}, at least one")
        if twice := _repeated(_identities(self.datasets)):
            raise RequestError(f"{where} names the dataset {twice!r} twice; give it once, with the grids of both")
        if twice := _repeated((m.name, _canonical(m.config)) for m in self.methods):
            raise RequestError(
                f"{where} names the method {twice[0]!r} twice with the same options; give it once, or other options"
            )

    def regimes_of(self, plan: DatasetPlan) -> tuple[Regime, ...]:
        """Return the regimes that a dataset is measured in, in the protocol's order."""
        wanted = plan.regimes or self.regimes
        return tuple(regime for regime in REGIMES if regime in wanted)

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


def narrowed(
    suite: Suite, datasets: Sequence[str] | None = None, encoder: str | None = None, **limits: Any
) -> Suite:
    """Return a suite with only some datasets, or others; all through one encoder; with other limits.

    `limits` are fields of a suite (seeds, device, time_limit_s, memory_limit_mb); None leaves a thing as it is. A
    dataset that the suite does not have comes with the encoder of its card and the protocol's grids. Raises
    RequestError for an unknown dataset or encoder, and for a limit that no suite may have.
    """
    plans = suite.datasets if datasets is None else _chosen(suite, datasets)
    if encoder is not None:
        must_be_known(encoder)
        plans = tuple(replace(plan, encoder=encoder) for plan in plans)
    return replace(suite, datasets=plans, **{name: value for name, value in limits.items() if value is not None})


def must_be_known(encoder: str) -> None:
    """Raise RequestError for an encoder that is none; of a model of the hub only the form of its id is looked at."""
    from datasets_registry.encoders import find_encoder
    from datasets_registry.text_models import has_text_model

    if not has_text_model(encoder):
        find_encoder(encoder)


def _chosen(suite: Suite, datasets: Sequence[str]) -> tuple[DatasetPlan, ...]:
    from datasets_registry import canonical_id, find_dataset

    plans = {d.name: d for d in suite.datasets}
    by_family = {d.name.split("@")[0]: d for d in suite.datasets}
    chosen: list[DatasetPlan] = []
    for given in datasets:
        plan = plans.get(given) or by_family.get(given)
        if plan is None:
            name = canonical_id(given)
            plan = plans.get(name) or DatasetPlan(name, find_dataset(given).card.encoder)
        if plan not in chosen:
            chosen.append(plan)
    return tuple(chosen)


def suite_names() -> list[str]:
    """Return the names of the built-in suites."""
    return sorted(f.name.removesuffix(".toml") for f in files(__name__).iterdir() if f.name.endswith(".toml"))


def load_suite(name: str) -> Suite:
    """Return a suite by name, or from a path that ends in `.toml`; raises RequestError that names the wrong key."""
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise RequestError(f"no suite file {name!r}. Built-in suites: {', '.join(suite_names())}")
        try:
            return _parse(path.stem, path.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as why:
            raise RequestError(
                f"suite file {name!r} is not UTF-8 (byte {why.object[why.start]:#04x} at place {why.start}); save it "
                "as UTF-8, which TOML asks for"
            ) from why
        except OSError as why:
            raise RequestError(f"suite file {name!r} cannot be read ({why.strerror}); make it readable") from why
    if name not in suite_names():
        raise unknown("suite", name, [*suite_names(), *EXPERIMENTS], then="List them: hetpref suites")
    return _parse(name, (files(__name__) / f"{name}.toml").read_text(encoding="utf-8"))


def _parse(name: str, text: str) -> Suite:
    where = f"suite {name!r}"
    try:
        told = tomllib.loads(text)
    except tomllib.TOMLDecodeError as why:
        raise RequestError(f"{where} is not TOML: {why}") from why
    except RecursionError:
        raise RequestError(f"{where} is nested too deeply; a suite needs no more than tables and lists") from None
    datasets = tuple(
        _record(DatasetPlan, d, f"{where}, dataset")
        for d in _entries(where, "datasets", told.pop("datasets", []), "[[datasets]] tables with name and encoder")
    )
    methods = tuple(
        MethodPlan(m, {}) if isinstance(m, str) else _record(MethodPlan, {"config": {}, **m}, f"{where}, method")
        for m in _entries(
            where,
            "methods",
            told.pop("methods", []),
            'a list of names, methods = ["pooled-bt"], or [[methods]] tables with name and config',
            names=True,
        )
    )
    if not datasets or not methods:
        raise RequestError(f"{where} names no {'datasets' if not datasets else 'methods'}; give at least one")
    return _record(Suite, {"name": name, **told, "datasets": datasets, "methods": methods}, where)


def _entries(where: str, key: str, given: Any, allowed: str, *, names: bool = False) -> list[Any]:
    """Return the entries of a list of tables (and, with `names`, of strings); raises RequestError for anything else."""
    if isinstance(given, dict):
        raise RequestError(f"{where}: {key} is a single table, [{key}]; write [[{key}]], once for each")
    if not isinstance(given, list):
        raise RequestError(f"{where}: {key} is {given!r:.60}; allowed: {allowed}")
    for each in given:
        if not isinstance(each, dict) and not (names and isinstance(each, str)):
            raise RequestError(f"{where}: {key} holds {each!r:.60}; allowed: {allowed}")
    return given


def _record(kind: type, told: dict[str, Any], where: str) -> Any:
    known = [f.name for f in fields(kind)]
    for key in told:
        if key not in known:
            raise unknown(f"key of {where}", key, known)
    if lacking := [f.name for f in fields(kind) if f.default is MISSING and f.name not in told]:
        raise RequestError(f"{where}: it lacks {', '.join(lacking)}; a whole entry has {', '.join(known)}")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in told.items()})


def _text(where: str, key: str, given: Any) -> None:
    if not isinstance(given, str) or not given.strip():
        raise RequestError(f"{where}: {key} is {given!r:.60}; allowed: a name in quotes")


def _whole(given: Any, least: int) -> bool:
    return isinstance(given, int) and not isinstance(given, bool) and given >= least


def _grid(where: str, key: str, given: Any, example: str) -> tuple[Any, ...]:
    """Return a grid; raises RequestError when it is no list, or holds a value twice, which would be run twice."""
    if not isinstance(given, tuple):
        raise RequestError(f"{where}: {key} is {given!r:.60}; allowed: a list, for example {key} = {example}")
    if twice := _repeated(map(repr, given)):
        raise RequestError(f"{where}: {key} holds {twice} twice; give every value once")
    return given


def _regimes(where: str, given: Any) -> tuple[Any, ...]:
    """Return the regimes of a suite or dataset; raises RequestError for what is none."""
    for regime in _grid(where, "regimes", given, '["seen", "unseen", "known-prompts"]'):
        if regime not in REGIMES:
            raise unknown(f"regime of {where}", str(regime), REGIMES)
    return given


def _repeated(values: Iterable[Any]) -> Any:
    """Return the first value that has occurred before, else None."""
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def _identities(plans: tuple[DatasetPlan, ...]) -> list[str]:
    """Return what tells datasets apart: canonical ids where two entries may be one, so that a listing stays light."""
    families = [plan.name.partition("+")[0].partition("@")[0] for plan in plans]
    return [_id(p.name) if families.count(f) > 1 else p.name for p, f in zip(plans, families, strict=True)]


def _id(name: str) -> str:
    from datasets_registry import canonical_id

    try:
        return canonical_id(name)
    except HetprefError:
        return name  # a run reports a dataset that cannot be had, and goes on with the others


def _canonical(value: Any) -> str | None:
    """Return a value as JSON, or None where it is none: a date, infinity or NaN."""
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError):
        return None
