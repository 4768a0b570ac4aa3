"""What the operation accepts: shapes, dtypes and devices that fit together, or an error that says what does not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from methods.lowrank.plan import Plan
from methods.lowrank.problem import Problem, accumulate_dtype

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def problem_of(x: Tensor, a: Tensor, b: Tensor, plan: Plan, scale: float | Tensor, core: Tensor | None) -> Problem:
    """Return the checked operands, x flattened to [T, d_in] with contiguous rows.

    Raises TypeError for what is no floating-point tensor and for mixed dtypes, ValueError for shapes, ranks and devices
    that do not fit, a plan of another T or U, and two shared factors without a core.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"plan is {type(plan).__name__}; make one with plan_batch(user_ids, n_users)")
    _check_kinds(x, a, b, core, plan)
    _check_shapes(x, a, b, core, plan)
    if isinstance(scale, Tensor):
        scale = _checked_scale(scale, plan, x)
    elif isinstance(scale, bool) or not isinstance(scale, int | float):
        raise TypeError(f"scale is {type(scale).__name__}; give a number, or a tensor of shape [{plan.n_users}]")
    rows = x.reshape(-1, x.shape[-1])
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    return Problem(
        rows,
        a if a.is_contiguous() else a.contiguous(),
        b if b.is_contiguous() else b.contiguous(),
        core if core is None or core.is_contiguous() else core.contiguous(),
        scale,
        plan,
    )


def _check_kinds(x: Tensor, a: Tensor, b: Tensor, core: Tensor | None, plan: Plan) -> None:
    """Raise for operands of several dtypes or devices, or that are no dense tensors."""
    dtype, device = _kind(x, "x")
    if dtype not in _FLOATS:
        raise TypeError(f"x has dtype {dtype}; allowed: {', '.join(map(str, _FLOATS))}")
    for name, each in (("a", a), ("b", b), ("core", core)):
        if each is None:
            continue
        found, place = _kind(each, name)
        if found != dtype:
            raise TypeError(f"{name} has dtype {found}, x has {dtype}; cast them to one dtype")
        if place != device:
            raise ValueError(f"{name} is on {place}, x is on {device}; move them to one device")
    if plan.device != device:
        raise ValueError(
            f"the plan is on {plan.device}, x is on {device}; make it with plan_batch(..., device=x.device)"
        )


def _kind(value: Any, name: str) -> tuple[torch.dtype, torch.device]:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is {type(value).__name__}; give a tensor")
    if value.layout != torch.strided:
        raise TypeError(f"{name} has layout {value.layout}; give a dense tensor")
    return value.dtype, value.device


def _check_shapes(x: Tensor, a: Tensor, b: Tensor, core: Tensor | None, plan: Plan) -> None:
    users = plan.n_users
    if x.dim() < 1:
        raise ValueError("x is a scalar; give [..., d_in], a row per token")
    for name, factor, width in (("a", a, "d_in"), ("b", b, "d_out")):
        if factor.dim() not in (2, 3):
            raise ValueError(
                f"{name} has shape {_shape(factor)}; allowed: [U, r, {width}], or [r, {width}] where shared"
            )
        if factor.dim() == 3 and factor.shape[0] != users:
            raise ValueError(f"{name} has {factor.shape[0]} users, the plan is of {users}; they must be the same")
    if a.shape[-2] != b.shape[-2]:
        raise ValueError(f"a has rank {a.shape[-2]}, b has rank {b.shape[-2]}; shapes {_shape(a)} and {_shape(b)}")
    if x.shape[-1] != a.shape[-1]:
        raise ValueError(f"x has width {x.shape[-1]}, a has d_in {a.shape[-1]}; shapes {_shape(x)} and {_shape(a)}")
    if not x.shape[-1] or not b.shape[-1]:
        raise ValueError(f"d_in is {x.shape[-1]}, d_out is {b.shape[-1]}; both must be at least 1")
    if (tokens := x.shape[:-1].numel()) != plan.tokens:
        raise ValueError(
            f"x has {tokens} tokens (shape {_shape(x)}), the plan is of {plan.tokens}; plan this batch anew"
        )
    if a.dim() == b.dim() == 2 and core is None:
        raise ValueError("both factors are shared and there is no core, so nothing is per user; use two matmuls")
    if core is None:
        return
    rank = a.shape[-2]
    if tuple(core.shape) not in ((users, rank, rank), (users, rank)):
        raise ValueError(
            f"core has shape {_shape(core)}; allowed: [{users}, {rank}, {rank}], or [{users}, {rank}] for a diagonal"
        )


def _checked_scale(scale: Tensor, plan: Plan, x: Tensor) -> Tensor:
    if tuple(scale.shape) != (plan.n_users,):
        raise ValueError(f"scale has shape {_shape(scale)}; allowed: a number, or a tensor of shape [{plan.n_users}]")
    if not scale.is_floating_point():
        raise TypeError(f"scale has dtype {scale.dtype}; give a floating-point tensor")
    if scale.device != x.device:
        raise ValueError(f"scale is on {scale.device}, x is on {x.device}; move them to one device")
    return scale.to(accumulate_dtype(x.dtype)).contiguous()


def rows_like(name: str, given: Tensor, problem: Problem, shape: tuple[int, ...]) -> Tensor:
    """Return `base` or `dy` as [T, d_out] with contiguous rows; raises as `problem_of` does."""
    dtype, device = _kind(given, name)
    if dtype != problem.x.dtype:
        raise TypeError(f"{name} has dtype {dtype}, x has {problem.x.dtype}; cast them to one dtype")
    if device != problem.x.device:
        raise ValueError(f"{name} is on {device}, x is on {problem.x.device}; move them to one device")
    if tuple(given.shape) != shape:
        raise ValueError(f"{name} has shape {_shape(given)}; it must be {list(shape)}")
    rows = given.reshape(-1, given.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def buffer_like(
    name: str, given: Tensor, problem: Problem, allowed: list[tuple[int, ...]], wanted: torch.dtype | None = None
) -> Tensor:
    """Return a buffer that may be written: contiguous, on x's device, of an allowed shape, of x's dtype or `wanted`."""
    dtype, device = _kind(given, name)
    if dtype != (wanted or problem.x.dtype):
        raise TypeError(f"{name} has dtype {dtype}; the buffer must have {wanted or problem.x.dtype}")
    if device != problem.x.device:
        raise ValueError(f"{name} is on {device}, x is on {problem.x.device}; the buffer must be on x's device")
    if tuple(given.shape) not in allowed:
        raise ValueError(f"{name} has shape {_shape(given)}; allowed: {' or '.join(str(list(s)) for s in allowed)}")
    if not given.is_contiguous():
        raise ValueError(f"{name} is not contiguous (strides {given.stride()}); give a contiguous buffer")
    return given


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
