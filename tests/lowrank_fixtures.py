"""For the tests of methods/lowrank: every way to compute it, made-up problems, and the truth in float64."""

import platform
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch

from methods.lowrank import available_backends, native, plan_batch, torch_segments
from methods.lowrank.problem import accumulate_dtype

X86 = platform.machine().lower() in ("x86_64", "amd64")
INSTRUCTION_SETS = ("x86-64-v2", "x86-64-v3", "x86-64-v4") if X86 else ("generic",)
ROUTES = (
    "reference",
    *(f"torch {variant}" for variant in torch_segments.VARIANTS),
    *(f"native {name}" for name in INSTRUCTION_SETS),
    "auto",
)
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13, torch.bfloat16: 6e-3}
OPERANDS = {"dx": "x", "da": "a", "db": "b", "dcore": "core", "dscale": "scale"}
NAN = float("nan")


@contextmanager
def on(route):
    """Give the name of a route's backend, which until the end computes by that variant or set, on one thread."""
    backend, _, way = route.partition(" ")
    if backend != "auto" and (why := available_backends()[backend]) != "ok":
        pytest.skip(f"{backend}: {why}")
    with pytest.MonkeyPatch.context() as patch:
        before = native.instruction_set() if backend == "native" else ""
        if backend == "native" and not native.use_instruction_set(way):
            pytest.skip(f"neither this processor nor this build has {way}")
        if backend == "torch":
            able = torch_segments.variants
            patch.setattr(
                torch_segments,
                "variant_of",
                lambda problem, mode="forward": way if way in able(problem) else "lengths",
            )
        try:
            with threads(1):
                yield backend
        finally:
            if before:
                native.use_instruction_set(before)


@contextmanager
def threads(number):
    """Let torch, and so `native`, use so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def routed(routing, tokens, users, draw):
    """Return the ids of a batch, int64 [tokens]; "mixed" has tokens without an adapter among the others."""
    if not users or not tokens or routing == "none":
        return torch.full((tokens,), -1)
    ids = torch.randint(users, (tokens,), generator=draw)
    if routing == "mixed":
        ids = torch.randint(-1, users, (tokens,), generator=draw)
    elif routing == "one-user":
        ids.fill_(users // 2)
    elif routing == "sorted":
        ids = ids.sort().values
    elif routing == "zipf":
        ids = torch.multinomial(1 / torch.arange(1.0, users + 1) ** 1.1, tokens, replacement=True, generator=draw)
    elif routing == "lopsided":  # one token of one user, all others of another
        ids.fill_(users - 1)
        ids[tokens // 2 : tokens // 2 + 1] = 0
    elif routing == "half":
        ids[torch.randperm(tokens, generator=draw)[: tokens // 2]] = -1
    else:
        assert routing == "uniform", routing
    return ids


@dataclass(frozen=True)
class Operands:
    """What a call is given, and the gradient that comes back to it; `scale` is a number or [U]."""

    x: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    core: torch.Tensor | None
    scale: float | torch.Tensor
    base: torch.Tensor | None
    dy: torch.Tensor
    ids: torch.Tensor
    users: int

    def plan(self):
        return plan_batch(self.ids, self.users)

    def named(self):
        """Return the operands that can have a gradient, by the names of their gradients."""
        told = {gradient: getattr(self, name) for gradient, name in OPERANDS.items()}
        return {gradient: each for gradient, each in told.items() if isinstance(each, torch.Tensor)}

    def whole(self, gradient):
        """Return whether this gradient is one for all users."""
        return gradient == "dx" or (gradient in ("da", "db") and self.named()[gradient].dim() == 2)

    def mapped(self, change):
        """Return the operands with every tensor but the ids changed."""
        told = {name: getattr(self, name) for name in ("x", "a", "b", "core", "scale", "base", "dy")}
        return replace(self, **{k: change(each) for k, each in told.items() if isinstance(each, torch.Tensor)})


@dataclass(frozen=True)
class Case:
    """A problem to draw: `shared` names factors; `core` is "matrix" or "vector", `scale` "number" or "user"."""

    tokens: int = 24
    users: int = 7
    rank: int = 4
    d_in: int = 32
    d_out: int = 24
    routing: str = "mixed"
    shared: str = ""
    core: str = ""
    scale: str = "number"
    base: bool = False
    dtype: torch.dtype = torch.float32
    seed: int = 0

    def draw(self):
        draw = torch.Generator().manual_seed(self.seed)

        def normal(*shape):
            return torch.randn(*shape, generator=draw).to(self.dtype)

        per_user = (self.users,)
        core = {"": None, "matrix": (self.rank, self.rank), "vector": (self.rank,)}[self.core]
        return Operands(
            x=normal(self.tokens, self.d_in),
            a=normal(*(() if "a" in self.shared else per_user), self.rank, self.d_in),
            b=normal(*(() if "b" in self.shared else per_user), self.rank, self.d_out),
            core=None if core is None else normal(self.users, *core),
            scale=torch.rand(self.users, generator=draw) + 0.5 if self.scale == "user" else 0.7,
            base=normal(self.tokens, self.d_out) if self.base else None,
            dy=normal(self.tokens, self.d_out),
            ids=routed(self.routing, self.tokens, self.users, draw),
            users=self.users,
        )


def truth(given):
    """Return y and the gradients, a row per user, in float64: every token's factors gathered, and torch's autograd."""
    told = given.mapped(lambda each: each.double().requires_grad_())
    adapted = given.ids >= 0
    users, x = given.ids[adapted], told.x[adapted]

    def own(factor):
        return factor.expand(len(users), *factor.shape) if factor.dim() == 2 else factor[users]

    h = torch.einsum("trd,td->tr", own(told.a), x)
    if told.core is not None:
        core = told.core[users]
        h = core * h if core.dim() == 2 else torch.einsum("tij,tj->ti", core, h)
    scale = told.scale[users][:, None] if isinstance(told.scale, torch.Tensor) else told.scale
    y = torch.zeros_like(told.dy) if told.base is None else told.base
    y = y.index_add(0, adapted.nonzero()[:, 0], scale * torch.einsum("trd,tr->td", own(told.b), h))
    leaves = told.named()
    grads = torch.autograd.grad(y, list(leaves.values()), told.dy.detach(), materialize_grads=True)
    return y.detach(), dict(zip(leaves, grads, strict=True))


def buffers(given, *, rows=False, fill=NAN):
    """Return a buffer for every gradient, full of NaN or of what is added to: a row per user (present)."""
    made, count = {}, len(given.plan().users) if rows else given.users
    for name, each in given.named().items():
        shape = each.shape if given.whole(name) else (count, *each.shape[1:])
        dtype = accumulate_dtype(given.x.dtype) if name == "dscale" else given.x.dtype
        made[name] = torch.full(shape, fill, dtype=dtype)
    return made


def check_gradients(given, found, expected, *, rows=False, start=0.0):
    """Hold every gradient to the truth, those of per-user operands user by user; absent users' are exactly zero.

    A user's core and scale have gradients that are sums of products of few numbers, and may be small because large
    terms cancel. They are held to the size of the terms: the gradient that operands without signs have.
    """
    unsigned = truth(given.mapped(torch.abs))[1] if {"dcore", "dscale"} & found.keys() else {}
    users = given.plan().users
    for name, each in found.items():
        tolerance = TOLERANCE[given.x.dtype]
        if given.whole(name):
            near(each, expected[name] + start, tolerance, name)
            continue
        if not rows:
            absent = torch.ones(given.users, dtype=torch.bool).index_fill_(0, users, False)
            assert (each[absent] == start).all(), f"{name}: absent users"
            each = each[users]
        sizes = unsigned[name] if name in ("dcore", "dscale") else expected[name]
        near_by_user(each, expected[name][users] + start, tolerance, name, sizes[users] + start)


def near(found, expected, tolerance, what="y", sizes=None):
    """Compare by the relative Frobenius norm, or relative to that of `sizes`; what is zero is exactly so."""
    near_by_user(found[None], expected[None], tolerance, what, None if sizes is None else sizes[None])


def near_by_user(found, expected, tolerance, what, sizes=None):
    """Compare every row of the first dimension by itself."""
    assert found.shape == expected.shape, what
    shape = (len(found), expected[:1].numel())
    error = (found.double() - expected).reshape(shape).norm(dim=1)
    size = (expected if sizes is None else sizes).double().reshape(shape).norm(dim=1)
    relative = (error / size.clamp(min=1e-300)).tolist()
    assert (error <= tolerance * size).all(), f"{what}: relative errors {relative}"
