"""The operation: y = base + scale * B C A x for a batch that mixes many users, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from methods.lowrank.backends import backend_for, backend_named
from methods.lowrank.checks import buffer_like, problem_of, rows_like
from methods.lowrank.memory import empty
from methods.lowrank.plan import Plan
from methods.lowrank.problem import Backend, Gradients, Problem, accumulate_dtype


@dataclass(frozen=True, slots=True)
class Saved:
    """What `lora_forward` keeps for `lora_backward`: the operands, the hidden A x, and which backend made it."""

    problem: Problem
    hidden: Tensor
    backend: str
    shape: tuple[int, ...]


def batched_lora(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    plan: Plan,
    *,
    scale: float | Tensor = 1.0,
    core: Tensor | None = None,
    base: Tensor | None = None,
    out: Tensor | None = None,
    backend: str = "auto",
    grad: Literal["dense", "rows"] = "dense",
    deterministic: bool = True,
) -> Tensor:
    """Return base + scale * B_u C_u A_u x for every token, u being its user; differentiable in every operand.

    `x` is [..., d_in] with as many tokens as `plan` has; `a` [U, r, d_in] and `b` [U, r, d_out] are rank-major, or
    [r, d] where all users share one; `core` is None, [U, r, r] or [U, r] (a diagonal); `scale` a number or [U]; `base`
    [..., d_out], zero if left out. A token of id -1 gets the base's bits, or zero. `out` is written if it is given, and
    may be `base`; like elsewhere in torch it cannot be differentiated. `grad="rows"` makes the gradients of per-user
    factors and cores sparse tensors over the users present, which `torch.optim.SparseAdam` takes. Every backend is
    deterministic; `deterministic=False` allows one that is not, and none needs it yet.

    Raises TypeError for mixed dtypes, ValueError for shapes and devices that do not fit, BackendUnavailable for a named
    backend that cannot do it (a named backend is never replaced by another).

    Source: the layer of P-ShareLoRA (arXiv 2503.19201), LoRA (arXiv 2106.09685) with factors per user.

    >>> from methods.lowrank import plan_batch
    >>> plan = plan_batch(torch.tensor([1, 0, -1]), n_users=2)
    >>> x, a, b = torch.ones(3, 4), torch.ones(2, 1, 4), torch.tensor([[[1.0]], [[10.0]]])
    >>> batched_lora(x, a, b, plan, scale=0.5).flatten().tolist()
    [20.0, 2.0, 0.0]
    """
    del deterministic
    if grad not in ("dense", "rows"):
        raise ValueError(f"grad is {grad!r}; allowed: 'dense', 'rows'")
    operands = (x, a, b, core, scale, base)
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in operands):
        if out is not None:
            raise ValueError("out= cannot be differentiated; leave it out, or call lora_forward and lora_backward")
        told = None if isinstance(scale, Tensor) else scale
        return _BatchedLora.apply(x, a, b, core, scale if told is None else None, base, plan, told, backend, grad)
    problem = problem_of(x, a, b, plan, scale, core)
    _, able = backend_for(backend, problem)
    return _forward(problem, able, x.shape, base, out)[0]


def lora_forward(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    plan: Plan,
    *,
    scale: float | Tensor = 1.0,
    core: Tensor | None = None,
    base: Tensor | None = None,
    out: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Saved]:
    """Return y and what `lora_backward` needs: `batched_lora` for trainers that manage gradients themselves."""
    with torch.no_grad():
        problem = problem_of(x, a, b, plan, scale, core)
        name, able = backend_for(backend, problem)
        y, hidden = _forward(problem, able, x.shape, base, out)
    return y, Saved(problem, hidden, name, tuple(x.shape))


def lora_backward(
    dy: Tensor,
    saved: Saved,
    plan: Plan,
    *,
    dx: Tensor | None = None,
    da: Tensor | None = None,
    db: Tensor | None = None,
    dcore: Tensor | None = None,
    dscale: Tensor | None = None,
    accumulate: bool = False,
) -> Gradients:
    """Fill gradient buffers, given dL/dy of the shape of y; return them.

    `dx` has the shape of x. `da`, `db` and `dcore` have the shape of what they are the gradient of (a row per user;
    absent users' rows become zero), or a row per user present, [n_active, ...] in the order of `plan.users` (on a GPU
    rather a row for each of `plan.padded_users`, for which nothing waits): all of them the one or all the other.
    `dscale` (float32, or float64 for float64) is [U] or [n_active] likewise. `accumulate` adds to the buffers. A buffer
    left out is not computed; with none given, dx, da, db and dcore are made, as rows. Raises ValueError for another
    plan than the forward's, and for buffers of other shapes, strides or devices.
    """
    problem = saved.problem
    if plan is not problem.plan:
        raise ValueError(f"{plan!r} is not the plan of the forward call, {problem.plan!r}; pass the same one")
    with torch.no_grad():
        shape = (*saved.shape[:-1], problem.d_out)
        rows = rows_like("dy", dy, problem, shape)
        if all(each is None for each in (dx, da, db, dcore, dscale)):
            dx = empty(saved.shape, problem.x)
            da, db = _buffer(problem.a, problem, rows=True), _buffer(problem.b, problem, rows=True)
            dcore = None if problem.core is None else _buffer(problem.core, problem, rows=True)
        into = _checked_buffers(problem, saved.shape, dx, da, db, dcore, dscale, accumulate)
        backend_named(saved.backend).backward(problem, rows, saved.hidden, into)
    return Gradients(dx, da, db, dcore, dscale, into.rows, accumulate)


def _checked_buffers(
    problem: Problem,
    shape: tuple[int, ...],
    dx: Tensor | None,
    da: Tensor | None,
    db: Tensor | None,
    dcore: Tensor | None,
    dscale: Tensor | None,
    accumulate: bool,
) -> Gradients:
    """Return the buffers as a backend takes them; raises where one does not fit, or rows and dense are mixed."""
    plan = problem.plan
    if dcore is not None and problem.core is None:
        raise ValueError("dcore was given, but the forward call had no core")
    if dscale is not None and not isinstance(problem.scale, Tensor):
        raise ValueError("dscale was given, but the scale of the forward call is a number")
    per_user: dict[str, Tensor] = {}
    for name, given, operand in (("da", da, problem.a), ("db", db, problem.b), ("dcore", dcore, problem.core)):
        if given is None or operand is None:
            continue
        if operand.dim() == 2 and name != "dcore":
            buffer_like(name, given, problem, [tuple(operand.shape)])
        else:
            each = tuple(operand.shape[1:])
            per_user[name] = buffer_like(name, given, problem, [(n, *each) for n in _row_counts(plan, given)])
    if dscale is not None:
        allowed = _row_counts(plan, dscale)
        if tuple(dscale.shape) not in {(n,) for n in allowed} or not dscale.is_contiguous():
            told = " or ".join(f"[{n}]" for n in allowed)
            raise ValueError(f"dscale has shape {list(dscale.shape)}; allowed: {told}, contiguous")
        if dscale.dtype != (wanted := accumulate_dtype(problem.x.dtype)):
            raise TypeError(f"dscale has dtype {dscale.dtype}; it must be {wanted}")
        per_user["dscale"] = dscale
    counts = {name: len(given) for name, given in per_user.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {n}" for name, n in counts.items())
        raise ValueError(f"buffers mix a row per user with a row per user present ({told}); give all of one kind")
    rows = not counts or next(iter(counts.values())) != plan.n_users or len(plan.padded_users) == plan.n_users
    flat = None if dx is None else buffer_like("dx", dx, problem, [shape]).view(-1, problem.d_in)
    return Gradients(flat, da, db, dcore, dscale, rows, accumulate)


def _row_counts(plan: Plan, given: Tensor) -> list[int]:
    """Return how many rows a per-user buffer may have; a GPU is not waited for where the bound it knows is given."""
    known = [plan.n_users, len(plan.padded_users)]
    return known if given.dim() and len(given) in known else [plan.n_users, plan.n_active]


def _forward(
    problem: Problem, able: Backend, shape: torch.Size, base: Tensor | None, out: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return y in the shape of the batch, and the hidden values."""
    shape_out = (*shape[:-1], problem.d_out)
    if out is None:
        out = empty(shape_out, problem.x)
    elif buffer_like("out", out, problem, [shape_out]) is base:
        # Written in place: the same rows as they are read.
        rows = out.view(-1, problem.d_out)
        return out, able.forward(problem, rows, rows)
    below = None if base is None else rows_like("base", base, problem, shape_out)
    return out, able.forward(problem, below, out.view(-1, problem.d_out))


def _buffer(operand: Tensor, problem: Problem, *, rows: bool) -> Tensor:
    """Return an empty buffer for the gradient of a factor or core."""
    per_user = operand.dim() == 3 or operand is problem.core
    if not per_user or not rows:
        return empty(tuple(operand.shape), operand)
    return empty((len(problem.plan.padded_users), *operand.shape[1:]), operand)


class _BatchedLora(torch.autograd.Function):
    """The operation with its gradients written out: no activation of width d x r is ever stored."""

    @staticmethod
    def forward(ctx: Any, *operands: Any) -> Tensor:
        x, a, b, core, scale, base, plan, number, backend, grad = operands
        problem = problem_of(x, a, b, plan, number if scale is None else scale, core)
        name, able = backend_for(backend, problem)
        y, hidden = _forward(problem, able, x.shape, base, None)
        # What may have been made contiguous is saved as it was used; the versions of the operands are still watched.
        per_user = problem.scale if isinstance(problem.scale, Tensor) else None
        ctx.save_for_backward(problem.x, problem.a, problem.b, problem.core, per_user, hidden)
        ctx.plan, ctx.number, ctx.backend, ctx.rows, ctx.shape = plan, number, name, grad == "rows", x.shape
        ctx.scale_dtype = None if scale is None else scale.dtype
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (dy,) = grads
        x, a, b, core, scale, hidden = ctx.saved_tensors
        problem = Problem(x, a, b, core, ctx.number if scale is None else scale, ctx.plan)
        want_x, want_a, want_b, want_core, want_scale, want_base = ctx.needs_input_grad[:6]
        dx = empty(ctx.shape, x) if want_x else None
        scales = len(ctx.plan.padded_users) if ctx.rows else ctx.plan.n_users
        into = Gradients(
            None if dx is None else dx.view(-1, problem.d_in),
            _buffer(problem.a, problem, rows=ctx.rows) if want_a else None,
            _buffer(problem.b, problem, rows=ctx.rows) if want_b else None,
            _buffer(problem.core, problem, rows=ctx.rows) if want_core and problem.core is not None else None,
            dy.new_empty(scales, dtype=accumulate_dtype(x.dtype)) if want_scale else None,
            rows=ctx.rows,
        )
        if any(ctx.needs_input_grad[:5]):
            backend_named(ctx.backend).backward(problem, rows_like("dy", dy, problem, tuple(dy.shape)), hidden, into)
        told: list[Tensor | None] = [dx]
        for operand, given in ((a, into.da), (b, into.db), (core, into.dcore)):
            sparse = ctx.rows and operand is not None and (operand is core or operand.dim() == 3)
            told.append(_as_gradient(given, operand, ctx.plan) if sparse and operand is not None else given)
        dscale = into.dscale
        if dscale is not None:
            if ctx.rows:
                present = dscale[: ctx.plan.n_active]
                dscale = dscale.new_zeros(ctx.plan.n_users).index_copy_(0, ctx.plan.users, present)
            dscale = dscale.to(ctx.scale_dtype)
        return (*told, dscale, dy if want_base else None, None, None, None, None)


def _as_gradient(given: Tensor | None, operand: Tensor, plan: Plan) -> Tensor | None:
    """Return rows as autograd takes them: a sparse tensor over the users present."""
    if given is None:
        return None
    size = tuple(operand.shape)
    rows = given[: plan.n_active]
    return torch.sparse_coo_tensor(plan.users[None], rows, size, is_coalesced=True, check_invariants=False)
