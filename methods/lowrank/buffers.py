"""Buffers that a caller gives for results: of the right form, and each alone in its memory."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from methods.lowrank.checks import buffer_like
from methods.lowrank.memory import empty
from methods.lowrank.plan import Plan
from methods.lowrank.problem import Gradients, Problem, accumulate_dtype


def gradient_buffer(operand: Tensor, problem: Problem, *, rows: bool) -> Tensor:
    """Return an empty buffer for a gradient; with `rows`, a row per segment where the operand is per user."""
    per_user = operand.dim() == 3 or operand is problem.core
    if not per_user or not rows:
        return empty(tuple(operand.shape), operand)
    return empty((len(problem.plan.padded_users), *operand.shape[1:]), operand)


def made_buffers(problem: Problem, shape: tuple[int, ...]) -> Gradients:
    """Return buffers for all gradients but the scale's, as rows."""
    core = None if problem.core is None else gradient_buffer(problem.core, problem, rows=True)
    da, db = (gradient_buffer(each, problem, rows=True) for each in (problem.a, problem.b))
    return Gradients(empty(shape, problem.x), da, db, core, rows=True)


def checked_buffers(problem: Problem, shape: tuple[int, ...], given: Gradients) -> Gradients:
    """Return a caller's buffers with `rows` set as their shapes say.

    Raises ValueError where one does not fit, or rows and dense are mixed. Where a plan on a GPU has as many places as
    there are users, both have the same shape: then the buffers are dense.
    """
    plan = problem.plan
    if given.dcore is not None and problem.core is None:
        raise ValueError("dcore was given, but the forward call had no core")
    if given.dscale is not None and not isinstance(problem.scale, Tensor):
        raise ValueError("dscale was given, but the scale of the forward call is a number")
    per_user: dict[str, Tensor] = {}
    operands = (("da", given.da, problem.a), ("db", given.db, problem.b), ("dcore", given.dcore, problem.core))
    for name, buffer, operand in operands:
        if buffer is None or operand is None:
            continue
        if operand.dim() == 2 and name != "dcore":
            buffer_like(name, buffer, problem, [tuple(operand.shape)])
        else:
            each = tuple(operand.shape[1:])
            per_user[name] = buffer_like(name, buffer, problem, [(n, *each) for n in _row_counts(plan, buffer)])
    if given.dscale is not None:
        allowed = [(n,) for n in _row_counts(plan, given.dscale)]
        sums = accumulate_dtype(problem.x.dtype)
        per_user["dscale"] = buffer_like("dscale", given.dscale, problem, allowed, sums)
    counts = {name: len(buffer) for name, buffer in per_user.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {n}" for name, n in counts.items())
        raise ValueError(f"buffers mix a row per user with a row per user present ({told}); give all of one kind")
    if given.dx is not None:
        buffer_like("dx", given.dx, problem, [shape])
    rows = not counts or next(iter(counts.values())) != plan.n_users
    return Gradients(given.dx, given.da, given.db, given.dcore, given.dscale, rows, given.accumulate)


def check_apart(written: Mapping[str, Tensor | None], read: Mapping[str, Tensor | None]) -> None:
    """Raise ValueError where a buffer shares memory with another one, or with an operand.

    What is written while it is still read would be right on one backend and wrong on the next.
    """
    spans = {name: _span(each) for name, each in (*read.items(), *written.items()) if each is not None and each.numel()}
    for name in written:
        if name not in spans:
            continue
        first, last = spans[name]
        for other, (start, end) in spans.items():
            if other != name and first < end and start < last:
                raise ValueError(f"{name} shares memory with {other}; give a buffer of its own")


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return where a tensor's memory begins and ends."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    first = tensor.data_ptr()
    return first, first + (reach + 1) * tensor.element_size()


def _row_counts(plan: Plan, given: Tensor) -> list[int]:
    """Return how many rows a per-user buffer may have; a GPU is not waited for where the bound it knows is given."""
    known = [plan.n_users, len(plan.padded_users)]
    return known if given.dim() and len(given) in known else [plan.n_users, plan.n_active]
