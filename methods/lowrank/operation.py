"""The operation: y = base + scale * B C A x for a batch that mixes many users, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from methods.lowrank.backends import backend_for, backend_named
from methods.lowrank.buffers import check_apart, checked_buffers, gradient_buffer, made_buffers
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
    may be `base`, else shares memory with nothing; like elsewhere in torch it cannot be differentiated. `grad="rows"`
    makes the gradients of per-user factors and cores sparse tensors over the users present, which
    `torch.optim.SparseAdam` takes. Every backend is deterministic; `deterministic=False` allows one that is not, and
    none needs it yet. Under autocast it computes in the dtype of its operands.

    Raises TypeError for mixed dtypes, ValueError for shapes and devices that do not fit, BackendUnavailable for a named
    backend that cannot do it (a named backend is never replaced by another).

    Source: the layer of P-ShareLoRA (arXiv 2503.19201), LoRA (arXiv 2106.09685) with factors per user.

    >>> from methods.lowrank import plan_batch
    >>> plan = plan_batch(torch.tensor([1, 0, -1]), n_users=2)
    >>> x, a, b = torch.ones(3, 4), torch.ones(2, 1, 4), torch.tensor([[[1.0]], [[10.0]]])
    >>> batched_lora(x, a, b, plan, scale=0.5).flatten().tolist()
    [20.0, 2.0, 0.0]
    """
    if not isinstance(deterministic, bool):
        raise TypeError(f"deterministic is {deterministic!r}; give True or False")
    if grad not in ("dense", "rows"):
        raise ValueError(f"grad is {grad!r}; allowed: 'dense', 'rows'")
    operands = (x, a, b, core, scale, base)
    wanted = (*operands, out)
    differentiated = torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in wanted)
    if differentiated or _has_tangent(operands):
        if out is not None:
            raise ValueError("out= cannot be differentiated; leave it out, or call lora_forward and lora_backward")
        told = None if isinstance(scale, Tensor) else scale
        return _BatchedLora.apply(x, a, b, core, scale if told is None else None, base, plan, told, backend, grad)
    problem = problem_of(x, a, b, plan, scale, core)
    _, able = backend_for(backend, problem)
    with _no_autocast(plan.device):
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
        with _no_autocast(plan.device):
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
    left out is not computed, and none may share memory with another tensor of the call; with none given, dx, da, db and
    dcore are made, as rows. Raises ValueError for another plan than the forward's, and for buffers of other shapes,
    strides or devices.
    """
    problem = saved.problem
    if plan is not problem.plan:
        raise ValueError(f"{plan!r} is not the plan of the forward call, {problem.plan!r}; pass the same one")
    with torch.no_grad(), _no_autocast(plan.device):
        rows = rows_like("dy", dy, problem, (*saved.shape[:-1], problem.d_out))
        given = Gradients(dx, da, db, dcore, dscale, accumulate=accumulate)
        written = {"dx": dx, "da": da, "db": db, "dcore": dcore, "dscale": dscale}
        if all(each is None for each in written.values()):
            into = made_buffers(problem, saved.shape)
        else:
            into = checked_buffers(problem, saved.shape, given)
            check_apart(written, _operands(problem) | {"dy": rows, "the hidden values": saved.hidden})
        flat = None if into.dx is None else into.dx.view(-1, problem.d_in)
        backend_named(saved.backend).backward(problem, rows, saved.hidden, replace(into, dx=flat))
        _written(*written.values())
    return into


def _forward(
    problem: Problem, able: Backend, shape: torch.Size, base: Tensor | None, out: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return y in the shape of the batch, and the hidden values."""
    shape_out = (*shape[:-1], problem.d_out)
    below = None if base is None else rows_like("base", base, problem, shape_out)
    if out is None:
        out = empty(shape_out, problem.x)
        return out, able.forward(problem, below, out.view(-1, problem.d_out))
    buffer_like("out", out, problem, [shape_out])
    rows = out.view(-1, problem.d_out)
    if below is not None and below.data_ptr() == rows.data_ptr() and below.stride() == rows.stride():
        below = rows  # written in place: each row is read before it is written
    check_apart({"out": out}, _operands(problem) | {"base": None if below is rows else below})
    hidden = able.forward(problem, below, rows)
    _written(out)
    return out, hidden


def _operands(problem: Problem) -> dict[str, Tensor | None]:
    """Return the operands by name."""
    scale = problem.scale if isinstance(problem.scale, Tensor) else None
    return {"x": problem.x, "a": problem.a, "b": problem.b, "core": problem.core, "scale": scale}


def _written(*buffers: Tensor | None) -> None:
    """Tell autograd that a caller's tensors were written, which a backend that takes their address does not."""
    torch.autograd.graph.increment_version([b for b in buffers if b is not None and not b.is_inference()])


def _no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which torch computes in the dtype of the operands, as the other backends do."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _has_tangent(operands: Sequence[Any]) -> bool:
    """Return whether forward-mode differentiation runs through an operand, which autograd has to hear of, to refuse."""
    level = getattr(forward_ad, "_current_level", -1)
    return level >= 0 and any(isinstance(t, Tensor) and forward_ad.unpack_dual(t).tangent is not None for t in operands)


class _BatchedLora(torch.autograd.Function):
    """The operation with its gradients written out: no activation of width d x r is ever stored."""

    @staticmethod
    def forward(ctx: Any, *operands: Any) -> Tensor:
        x, a, b, core, scale, base, plan, number, backend, grad = operands
        problem = problem_of(x, a, b, plan, number if scale is None else scale, core)
        name, able = backend_for(backend, problem)
        with _no_autocast(plan.device):
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
            gradient_buffer(problem.a, problem, rows=ctx.rows) if want_a else None,
            gradient_buffer(problem.b, problem, rows=ctx.rows) if want_b else None,
            gradient_buffer(problem.core, problem, rows=ctx.rows) if want_core and problem.core is not None else None,
            dy.new_empty(scales, dtype=accumulate_dtype(x.dtype)) if want_scale else None,
            rows=ctx.rows,
        )
        if any(ctx.needs_input_grad[:5]):
            rows = rows_like("dy", dy, problem, tuple(dy.shape))
            with _no_autocast(ctx.plan.device):
                backend_named(ctx.backend).backward(problem, rows, hidden, into)
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
