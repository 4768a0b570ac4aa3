"""Which backends there are, whether each can run here, and which one `auto` takes."""

from __future__ import annotations

import difflib
import importlib
from functools import cache
from types import ModuleType
from typing import cast

from methods.lowrank import tuning
from methods.lowrank.problem import Backend, BackendUnavailable, Problem

# One entry per backend: its module, imported on first use.
MODULES = {
    "reference": "methods.lowrank.reference",
    "torch": "methods.lowrank.torch_segments",
    "native": "methods.lowrank.native",
    "triton": "methods.lowrank.triton_backend",
}


def available_backends() -> dict[str, str]:
    """Return every backend with "ok", or with the reason why it cannot be used here.

    >>> available_backends()["torch"]
    'ok'
    """
    return {name: why_not(name) or "ok" for name in MODULES}


@cache
def why_not(name: str) -> str | None:
    """Return why a backend cannot be used on this machine, or None; one that fails to load takes down no other."""
    try:
        return backend_named(name).unavailable()
    except Exception as why:
        return f"it failed to load: {type(why).__name__}: {why}"


def backend_for(name: str, problem: Problem, mode: str = "forward") -> tuple[str, Backend]:
    """Return the backend of a name, or with "auto" the one that the measured table names; never another than named.

    Raises BackendUnavailable with the reason and what is available.
    """
    if name != "auto":
        if reason := _refusal(name, problem):
            raise BackendUnavailable(f"backend {name!r} cannot be used: {reason}. {_alternatives(name, problem)}")
        return name, backend_named(name)
    for each in _preferred(problem, mode):
        if not _refusal(each, problem):
            return each, backend_named(each)
    return "torch", backend_named("torch")


def _preferred(problem: Problem, mode: str) -> tuple[str, ...]:
    if problem.x.device.type == "cuda":
        return ("triton",)
    # Only a measured loss keeps the compiled kernels from being tried first.
    return () if tuning.nearest(problem, mode).backend == "torch" else ("native",)


def _refusal(name: str, problem: Problem) -> str | None:
    if name not in MODULES:
        near = difflib.get_close_matches(str(name), [*MODULES, "auto"], n=1, cutoff=0.5)
        return "there is no such backend" + (f"; did you mean {near[0]!r}?" if near else "")
    return why_not(name) or backend_named(name).refuses(problem)


def _alternatives(name: str, problem: Problem) -> str:
    able = [other for other in MODULES if other != name and not _refusal(other, problem)]
    return f"Available for this call: auto, {', '.join(able)}"


def backend_named(name: str) -> Backend:
    """Return a backend that has been found able."""
    return cast(Backend, _module(name))


@cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(MODULES[name])
