"""The measured table by which `auto` chooses: for every measured shape, the backend and the variant that were fastest.

`tuning/cpu.json` is part of the repository and is written by `python -m benchmarks.kernels.tune`. A shape that was not
measured takes the row of the nearest one, in the logarithms of what decides: tokens per user, users present, how much
longer the longest segment is than the mean, and rank times width.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from methods.lowrank.problem import Problem

_FOLDER = Path(__file__).parent / "tuning"


@dataclass(frozen=True, slots=True)
class Choice:
    """What was fastest at the nearest measured shape; a backend of None: nothing was measured for this device."""

    backend: str | None
    torch_variant: str | None


def nearest(problem: Problem, mode: str) -> Choice:
    """Return the choice for a problem; `mode` is "forward" or "backward"."""
    plan = problem.plan
    if plan.device.type != "cpu" or not plan.n_active:
        return Choice(None, None)
    tokens = plan.tokens - plan.n_base
    return _nearest(mode, tokens, plan.n_active, plan.longest, problem.rank, problem.d_in + problem.d_out)


@lru_cache(maxsize=1024)  # the layers of a step ask alike, and no two steps do: it must not grow with training
def _nearest(mode: str, tokens: int, active: int, longest: int, rank: int, width: int) -> Choice:
    places, choices = _table("cpu", mode)
    if not choices:
        return Choice(None, None)
    asked = np.log(_place(tokens, active, longest, max(rank, 1) * width))
    return choices[int(((places - asked) ** 2).sum(1).argmin())]


@cache
def _table(device: str, mode: str) -> tuple[NDArray[np.float64], list[Choice]]:
    """Return where the measured shapes stand and what was fastest there."""
    path = _FOLDER / f"{device}.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    mine = [row for row in rows if row["mode"] == mode]
    places = [
        _place(row["tokens"], row["active"], row["longest"], row["rank"] * (row["d_in"] + row["d_out"])) for row in mine
    ]
    choices = [Choice(row["best"]["backend"], row["best"]["torch_variant"]) for row in mine]
    return np.log(np.array(places).reshape(len(mine), 4)), choices


def _place(tokens: int, active: int, longest: int, size: int) -> tuple[float, float, float, float]:
    """Return where a shape stands, before the logarithm."""
    return tokens / active, active, longest * active / tokens, size
