"""Experiments: what `hetpref run NAME` knows besides suites. They write no record, and nothing of them is ranked."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets_registry.errors import RequestError

# Options of `hetpref run` that an experiment takes, too; `suite` is its name.
TAKEN = ("suite", "out", "fresh", "record", "as_json")


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment: what a listing shows, and the module whose `measure(out=, fresh=, record=, as_json=)` runs it."""

    name: str
    title: str
    datasets: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: int
    module: str

    @property
    def summary(self) -> dict[str, Any]:
        """Return what a listing shows, in the form of `Suite.summary`."""
        told = {key: getattr(self, key) for key in ("name", "title", "seeds")}
        return {**told, "datasets": list(self.datasets), "methods": list(self.methods)}

    def run(self, given: Iterable[str], out: Path | None, *, fresh: bool, record: bool, as_json: bool) -> None:
        """Run it; `given` names the options on the command line.

        Raises RequestError for an option that is a suite's alone.
        """
        if foreign := [f"--{name.replace('_', '-')}" for name in given if name not in TAKEN]:
            raise RequestError(
                f"{self.name} is an experiment and not a suite: leave out {', '.join(foreign)}; allowed: --out, "
                f"--fresh, --record, --json. More: python -m {self.module.rpartition('.')[0]} --help"
            )
        importlib.import_module(self.module).measure(
            out=out or Path("results") / self.name, fresh=fresh, record=record, as_json=as_json
        )


EXPERIMENTS: dict[str, Experiment] = {
    each.name: each
    for each in (
        Experiment(
            name="pitfalls",
            title="Published defects, made on purpose: the inflated figure of each beside the honest one",
            datasets=("llmfao@1", "electricity@1"),
            methods=("pooled-bt", "per-user-bt", "random", "p-share-lora", "p-share-lora-linear", "lora-global"),
            seeds=3,
            module="benchmarks.pitfalls.command",
        ),
    )
}
