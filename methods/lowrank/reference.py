"""The plain loop over users, in the dtype of the input: what every other backend is held to; in float64, the truth.

y_t = base_t + scale_u B_u C_u A_u x_t for the user u of token t; the gradients are the chain rule, written out.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from methods.lowrank.problem import Gradients, Problem


def refuses(problem: Problem) -> str | None:
    """Return None: it computes whatever torch computes."""
    del problem
    return None


def forward(problem: Problem, base: Tensor | None, out: Tensor) -> Tensor:
    """Write y into `out` and return A x, [T, r] in the order of the plan."""
    if base is None:
        out.zero_()
    elif base is not out:
        out.copy_(base)
    hidden = problem.x.new_zeros(problem.plan.tokens, problem.rank)
    for user, tokens, span in segments(problem):
        h = problem.x[tokens] @ of(problem.a, user).T  # (tokens of the user, r)
        hidden[span] = h
        out[tokens] += scale_of(problem, user) * (through(problem, user, h) @ of(problem.b, user))
    return hidden


def backward(problem: Problem, dy: Tensor, hidden: Tensor, into: Gradients) -> None:
    """Fill the gradient buffers, user by user."""
    if not into.accumulate:
        for buffer in (into.dx, into.da, into.db, into.dcore, into.dscale):
            if buffer is not None:
                buffer.zero_()
    for index, (user, tokens, span) in enumerate(segments(problem)):
        row = index if into.rows else user
        x, h, scale = problem.x[tokens], hidden[span], scale_of(problem, user)
        a, b = of(problem.a, user), of(problem.b, user)
        z = through(problem, user, h)
        g = dy[tokens] @ b.T  # (tokens of the user, r)
        if into.dscale is not None:
            into.dscale[row] += (g * z).sum()
        if into.db is not None:
            of(into.db, row).add_(scale * (z.T @ dy[tokens]))
        dz = scale * g
        if into.dcore is not None:
            into.dcore[row] += dz.T @ h if into.dcore.dim() == 3 else (dz * h).sum(0)
        dh = back_through(problem, user, dz)
        if into.da is not None:
            of(into.da, row).add_(dh.T @ x)
        if into.dx is not None:
            into.dx[tokens] += dh @ a


def segments(problem: Problem) -> list[tuple[int, Tensor, slice]]:
    """Return (user, its tokens, where they stand in the plan's order) for every user present."""
    plan, bounds = problem.plan, problem.plan.bounds
    spans = [slice(start, end) for start, end in pairwise(bounds)]
    return [(user, plan.order[span], span) for user, span in zip(plan.users.tolist(), spans, strict=True)]


def of(factor: Tensor, user: int) -> Tensor:
    """Return a user's factor [r, d], or the one that all share."""
    return factor if factor.dim() == 2 else factor[user]


def scale_of(problem: Problem, user: int) -> float | Tensor:
    """Return the scale of a user: of no dimensions, so that it does not change the type of what it multiplies."""
    return problem.scale[user] if isinstance(problem.scale, Tensor) else problem.scale


def through(problem: Problem, user: int, h: Tensor) -> Tensor:
    """Return C h for rows h [n, r]."""
    if problem.core is None:
        return h
    core = problem.core[user]
    return h @ core.T if core.dim() == 2 else h * core


def back_through(problem: Problem, user: int, dz: Tensor) -> Tensor:
    """Return C^T dz for rows dz [n, r]."""
    if problem.core is None:
        return dz
    core = problem.core[user]
    return dz @ core if core.dim() == 2 else dz * core


def unavailable() -> str | None:
    """Return None: it needs nothing but torch."""
    return None
