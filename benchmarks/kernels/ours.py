"""The operation of `methods.lowrank`: a contender per backend, by autograd, and with buffers that are kept."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.contenders import Contender, Ready, gradient
from benchmarks.kernels.operands import Mode, Operands, Outcome
from datasets_registry.errors import HetprefError
from methods.lowrank import Plan, available_backends, batched_lora, explain, lora_backward, lora_forward, plan_batch

_PLANS = 5
MEASURED = ("torch", "native")


def _plan_of(given: Operands) -> tuple[Plan, float]:
    """Return the plan of a cell, and the median of the seconds that it takes."""
    ids, taken = torch.from_numpy(given.ids), list[float]()
    plan = plan_batch(ids, given.cell.users)
    for _ in range(_PLANS):
        start = time.process_time()
        plan = plan_batch(ids, given.cell.users)
        taken.append(time.process_time() - start)
    return plan, statistics.median(taken)


def _told(given: Operands, plan: Plan, backend: str, mode: Mode) -> str:
    """Return the backend and variant that a call takes."""
    told = explain(given.x, given.a, given.b, plan, core=given.core, backend=backend, backward=mode == "both")
    return f"{told['backend']}: {told['variant']}"


def _by_autograd(backend: str, given: Operands, mode: Mode) -> Ready:
    plan, plan_s = _plan_of(given)
    told = _told(given, plan, backend, mode)
    with_gradients = mode == "both"
    x, a, b = (t.detach().requires_grad_(with_gradients) for t in (given.x, given.a, given.b))
    core = None if given.core is None else given.core.detach().requires_grad_(with_gradients)

    def run() -> Tensor:
        with torch.set_grad_enabled(with_gradients):
            y = batched_lora(x, a, b, plan, core=core, backend=backend, grad="rows")
        if with_gradients:
            y.backward(given.dy)
        return y

    def outcome(y: Tensor) -> Outcome:
        if not with_gradients:
            return Outcome(y)
        rows = [None if each is None else _rows(gradient(each), given) for each in (a, b, core)]
        return Outcome(y.detach(), gradient(x), *rows)

    def reset() -> None:
        for each in (x, a, b, core):
            if each is not None:
                each.grad = None

    return Ready(run, outcome, reset, told, plan_s)


def _rows(found: Tensor, given: Operands) -> Tensor:
    """Return a gradient of users present as rows, or a shared factor's as it is."""
    if not found.is_sparse:
        return found
    found = found.coalesce()
    if found.indices()[0].tolist() != given.users.tolist():
        raise ValueError(f"a row gradient of {found.indices().shape[1]} users, of whom {given.active} are present")
    return found.values()


def _into_buffers(backend: str, given: Operands, mode: Mode) -> Ready:
    plan, plan_s = _plan_of(given)
    told = _told(given, plan, backend, mode)

    def kept(tensor: Tensor, rows: bool) -> Tensor:
        # What is in a buffer beforehand must not show in what is computed.
        shape = (given.active, *tensor.shape[1:]) if rows else tensor.shape
        return torch.full(shape, torch.nan, dtype=tensor.dtype)

    y = kept(given.dy, False)
    into: dict[str, Any] = {}
    if mode == "both":
        into = {"dx": kept(given.x, False), "da": kept(given.a, given.a.dim() == 3)}
        into["db"] = kept(given.b, given.b.dim() == 3)
        if given.core is not None:
            into["dcore"] = kept(given.core, True)

    def run() -> None:
        _, saved = lora_forward(given.x, given.a, given.b, plan, core=given.core, out=y, backend=backend)
        if into:
            lora_backward(given.dy, saved, plan, **into)

    return Ready(run, lambda _: Outcome(y, **into), backend=told, plan_s=plan_s)


def _refusal(backend: str, given: Operands, mode: Mode) -> str | None:
    del mode
    if (reason := available_backends()[backend]) != "ok":
        return reason
    ids = torch.from_numpy(given.ids)
    try:
        explain(given.x, given.a, given.b, plan_batch(ids, given.cell.users), core=given.core, backend=backend)
    except HetprefError as why:
        return str(why)
    return None


def _auto_refusal(given: Operands, mode: Mode) -> str | None:
    """Return why "auto" is not measured: it takes what is measured under its own name."""
    told = _told(given, _plan_of(given)[0], "auto", mode).partition(":")[0]
    return f"it takes {told}, which is measured" if told in MEASURED else None


def _ours(name: str, make: Any, backend: str) -> Contender:
    return Contender(
        name,
        "ours",
        lambda given, mode: make(backend, given, mode),
        _auto_refusal if backend == "auto" else lambda given, mode: _refusal(backend, given, mode),
    )


OURS = (
    _ours("torch", _by_autograd, "torch"),
    _ours("native", _by_autograd, "native"),
    _ours("native (buffers)", _into_buffers, "native"),
    _ours("auto", _by_autograd, "auto"),
)
