"""Batched low-rank adaptation, by every backend, variant and instruction set, against float64 and its autograd."""

from dataclasses import replace
from functools import cache

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from lowrank_fixtures import (
    NAN,
    ROUTES,
    TOLERANCE,
    Case,
    buffers,
    check_gradients,
    near,
    on,
    truth,
)

from methods.lowrank import batched_lora, lora_backward, lora_forward, plan_batch

BF16, F64 = torch.bfloat16, torch.float64
CASES = {
    **{f"rank-{r}": Case(rank=r, base=r % 2 == 0) for r in (1, 2, 3, 5, 7, 8, 12, 17, 31, 64)},
    **{
        f"widths-{m}x{n}": Case(d_in=m, d_out=n, rank=3, base=m == 15)
        for m, n in ((1, 1), (2, 3), (15, 17), (33, 63), (130, 131), (1037, 20), (20, 1037))
    },
    **{f"routing-{each}": Case(routing=each, tokens=70, users=11, base=each == "half")
       for each in ("one-user", "uniform", "sorted", "zipf", "lopsided", "half")},
    "shared-a": Case(shared="a", routing="half"),
    "shared-a-whole": Case(shared="a", routing="uniform", scale="user"),
    "shared-b": Case(shared="b", base=True),
    "shared-a-core": Case(shared="a", core="matrix", rank=5),
    "shared-b-vector": Case(shared="b", core="vector", scale="user"),
    "shared-both-core": Case(shared="ab", core="matrix", base=True, scale="user"),
    "shared-both-vector": Case(shared="ab", core="vector", rank=3, routing="half"),
    "core": Case(core="matrix", rank=8, scale="user", base=True),
    "vector": Case(core="vector", rank=7),
    "scale": Case(scale="user"),
    "one-long-segment": Case(tokens=700, users=3, routing="lopsided", core="vector", scale="user", base=True),
    "long-segments-core": Case(tokens=800, users=2, routing="half", core="matrix", rank=5, d_in=300, d_out=33),
    "long-shared": Case(tokens=800, users=5, shared="ab", core="matrix", d_in=300, d_out=290),
    "few-of-many": Case(tokens=6, users=3000, scale="user", core="matrix", rank=2),
    "past-the-caches": Case(tokens=520, users=150, rank=8, d_in=2048, d_out=2048, routing="uniform"),
    "past-the-caches-odd": Case(tokens=520, users=130, rank=8, d_in=2049, d_out=2051, routing="uniform", base=True),
    "no-tokens": Case(tokens=0, scale="user", core="matrix", base=True),
    "no-tokens-shared": Case(tokens=0, shared="a"),
    "nobody": Case(routing="none", scale="user", core="vector", base=True),
    "nobody-shared": Case(routing="none", shared="ab", core="matrix"),
    "no-users": Case(users=0, base=True),
    "no-users-shared": Case(users=0, shared="b", scale="user"),
    "no-rank": Case(rank=0, base=True),
    "no-rank-core": Case(rank=0, core="matrix", scale="user"),
    "no-rank-vector": Case(rank=0, core="vector", shared="ab"),
    "float64": Case(dtype=F64, base=True),
    "float64-odd": Case(dtype=F64, rank=7, d_in=37, d_out=41, core="matrix", scale="user"),
    "float64-long": Case(dtype=F64, tokens=700, users=3, routing="zipf", shared="b", core="vector", d_in=400),
    "bfloat16": Case(dtype=BF16, rank=8, d_in=64, d_out=48, base=True),
    "bfloat16-odd": Case(dtype=BF16, rank=7, d_in=37, d_out=41, routing="half", scale="user"),
    "bfloat16-shared-a": Case(dtype=BF16, rank=8, shared="a", tokens=90),
    "bfloat16-shared-b": Case(dtype=BF16, rank=8, shared="b", tokens=90),
    "bfloat16-core": Case(dtype=BF16, rank=8, core="matrix"),
    "bfloat16-long": Case(dtype=BF16, rank=8, tokens=4096, users=2, routing="lopsided"),
    "bfloat16-long-shared": Case(dtype=BF16, rank=8, tokens=4096, users=40, shared="a"),
}  # fmt: skip


def aligned(case):
    """Return whether rows begin where `grouped_mm` wants them to; elsewhere that variant gives way to another."""
    width = 16 // case.dtype.itemsize
    return case.dtype != F64 and all(n and n % width == 0 for n in (case.rank, case.d_in, case.d_out))


# The reference adds user by user into a gradient of the input's type: in bfloat16 forty users are too many.
BEYOND = {("reference", "bfloat16-long-shared")}
RUNS = [
    (route, name)
    for name in CASES
    for route in ROUTES
    if (route, name) not in BEYOND and (route != "torch grouped" or aligned(CASES[name]))
]


@pytest.fixture(params=ROUTES)
def backend(request):
    with on(request.param) as name:
        yield name


def forward(given, backend, out=None):
    """Return y, what is kept for the backward pass, and the plan."""
    plan = given.plan()
    told = {"scale": given.scale, "core": given.core, "base": given.base, "backend": backend}
    return *lora_forward(given.x, given.a, given.b, plan, out=out, **told), plan


@cache
def drawn(name):
    """Return the operands of a case, and the truth."""
    given = CASES[name].draw()
    return given, *truth(given)


@pytest.mark.parametrize(("route", "name"), RUNS)
def test_it_agrees_with_float64(route, name):
    given, y, expected = drawn(name)
    with on(route) as backend:
        found, saved, plan = forward(given, backend, torch.full_like(given.dy, NAN))
        near(found, y, TOLERANCE[given.x.dtype])
        for rows in (False, True):
            for start in (0.0, 2.0):
                into = buffers(given, rows=rows, fill=start or NAN)
                lora_backward(given.dy, saved, plan, **into, accumulate=start != 0)
                check_gradients(given, into, expected, rows=rows, start=start)


@pytest.mark.parametrize("kind", ["core", "scale", "shared-both-vector", "routing-half"])
def test_only_what_is_asked_for_is_computed(backend, kind):
    given = CASES[kind].draw()
    expected = truth(given)[1]
    _, saved, plan = forward(given, backend)
    for name, buffer in buffers(given).items():
        told = lora_backward(given.dy, saved, plan, **{name: buffer})
        assert [each for each in expected if getattr(told, each) is not None] == [name]
        check_gradients(given, {name: buffer}, expected)
    made = lora_backward(given.dy, saved, plan)
    found = {name: getattr(made, name) for name in expected if name != "dscale"}
    check_gradients(given, found, expected, rows=True)


@pytest.mark.parametrize("kind", ["core", "scale", "shared-a", "shared-both-core", "few-of-many", "no-rank-core"])
@pytest.mark.parametrize("grad", ["dense", "rows"])
def test_autograd_is_the_explicit_buffers(backend, kind, grad):
    given = CASES[kind].draw()
    y, saved, plan = forward(given, backend)
    into = buffers(given)
    lora_backward(given.dy, saved, plan, **into)
    told = given.mapped(lambda each: each.clone().requires_grad_())
    again = batched_lora(
        told.x, told.a, told.b, plan, scale=told.scale, core=told.core, base=told.base, backend=backend, grad=grad
    )
    assert torch.equal(again, y)
    again.backward(given.dy)
    if given.base is not None:
        assert torch.equal(told.base.grad, given.dy)
    for name, leaf in told.named().items():
        sparse = grad == "rows" and name in ("da", "db", "dcore") and not given.whole(name)
        assert leaf.grad.is_sparse == sparse
        if sparse:
            assert leaf.grad.coalesce().indices()[0].tolist() == plan.users.tolist()
        near(leaf.grad.to_dense() if sparse else leaf.grad, into[name], TOLERANCE[given.x.dtype], name)


def bits(tensor):
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


@pytest.mark.parametrize("kind", ["full", "shared-a", "shared-b", "shared-core"])
@pytest.mark.parametrize("dtype", [torch.float32, F64, BF16])
@pytest.mark.parametrize("in_place", [False, True])
def test_tokens_without_an_adapter_keep_the_base_and_touch_nothing(backend, kind, dtype, in_place):
    kinds = {"full": {}, "shared-a": {"shared": "a"}, "shared-b": {"shared": "b"},
             "shared-core": {"shared": "ab", "core": "matrix"}}  # fmt: skip
    given = Case(routing="half", tokens=41, base=True, rank=8, scale="user", dtype=dtype, **kinds[kind]).draw()
    clean, saved, plan = forward(given, backend)
    left = given.ids < 0
    expected = buffers(given)
    lora_backward(given.dy, saved, plan, **expected)
    spoilt = given.mapped(torch.clone)
    spoilt.x[left] = spoilt.dy[left] = NAN
    spoilt.base[left] = -0.0
    first = left.nonzero()[0, 0]
    bits(spoilt.base)[first] = bits(torch.tensor([NAN], dtype=dtype)) + 5  # a NaN that carries something
    below = spoilt.base.clone()
    found, saved, plan = forward(spoilt, backend, spoilt.base if in_place else torch.full_like(below, 3.0))
    assert torch.equal(bits(found[left]), bits(below[left]))
    assert torch.equal(found[~left], clean[~left])
    assert in_place == (found is spoilt.base)
    into = buffers(spoilt)
    lora_backward(spoilt.dy, saved, plan, **into)
    for name, each in into.items():
        assert torch.equal(each, expected[name]), name
    assert not into["dx"][left].any()


def test_without_a_base_they_are_zero(backend):
    given = replace(Case(routing="half").draw(), scale=2)
    given.x[given.ids < 0] = NAN
    out = forward(given, backend, torch.full_like(given.dy, NAN))[0]
    assert not bits(out[given.ids < 0]).any()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_batch_of_sequences_is_its_tokens(backend, dtype):
    given = Case(tokens=24, core="vector", base=True).draw()
    y, saved, plan = forward(given, backend)
    expected = lora_backward(given.dy, saved, plan)
    shaped = plan_batch(given.ids.to(dtype).view(2, 3, 4), given.users)
    told = {"scale": given.scale, "core": given.core, "base": given.base.view(2, 3, 4, -1), "backend": backend}
    again, saved = lora_forward(given.x.view(2, 3, 4, -1), given.a, given.b, shaped, **told)
    assert again.shape == (2, 3, 4, given.dy.shape[-1])
    assert torch.equal(again.flatten(0, 2), y)
    found = lora_backward(given.dy.view(2, 3, 4, -1), saved, shaped)
    assert found.dx.shape == (2, 3, 4, given.x.shape[-1])
    assert torch.equal(found.dx.flatten(0, 2), expected.dx)
    assert torch.equal(found.da, expected.da)
    assert torch.equal(found.dcore, expected.dcore)
    single = plan_batch(torch.tensor(3), given.users)
    alone = batched_lora(given.x[0], given.a, given.b, single, backend=backend)
    near(alone, given.b[3].T @ (given.a[3] @ given.x[0]), 2e-6)


def transposed(tensor):
    return tensor.T.contiguous().T


def spaced(tensor):
    wide = torch.full((len(tensor), tensor.shape[1] + 5), NAN, dtype=tensor.dtype)
    wide[:, 2:-3] = tensor
    return wide[:, 2:-3]


@pytest.mark.parametrize("laid", [transposed, spaced, lambda rows: torch.stack([rows, rows], 1)[:, 0]])
def test_strides_do_not_matter(backend, laid):
    given = Case(core="matrix", base=True, scale="user").draw()
    y, saved, plan = forward(given, backend)
    expected = lora_backward(given.dy, saved, plan)
    a = given.a.mT.contiguous().mT
    strided = replace(given, x=laid(given.x), base=laid(given.base), a=a)
    again, saved, _ = forward(strided, backend)
    assert torch.equal(again, y)
    found = lora_backward(laid(given.dy), saved, saved.problem.plan)
    for name in ("dx", "da", "db", "dcore"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_an_expanded_gradient_is_that_of_a_sum(backend):
    given = Case().draw()
    x = given.x.requires_grad_()
    batched_lora(x, given.a, given.b, given.plan(), scale=given.scale, backend=backend).sum().backward()
    near(x.grad, truth(replace(given, dy=torch.ones_like(given.dy)))[1]["dx"], 2e-6)
    one = given.x[:1].detach().expand(24, -1)  # rows of stride 0
    y = batched_lora(one, given.a, given.b, given.plan(), scale=given.scale, backend=backend)
    near(y, truth(replace(given, x=one))[0], 2e-6)


WAYS = [route for route in ROUTES if route.startswith(("torch", "native"))]


@st.composite
def cases(draw):
    shared = draw(st.sampled_from(["", "a", "b", "ab"]))
    return Case(
        tokens=draw(st.integers(0, 70)),
        users=draw(st.integers(0, 9)),
        rank=draw(st.integers(0, 19)),
        d_in=draw(st.integers(1, 70)),
        d_out=draw(st.integers(1, 70)),
        routing=draw(st.sampled_from(["mixed", "uniform", "one-user", "sorted", "zipf", "lopsided", "half", "none"])),
        shared=shared,
        core=draw(st.sampled_from(["matrix", "vector"] if shared == "ab" else ["", "matrix", "vector"])),
        scale=draw(st.sampled_from(["number", "user"])),
        base=draw(st.booleans()),
        dtype=draw(st.sampled_from([torch.float32, F64, BF16])),
        seed=draw(st.integers(0, 99)),
    )


@pytest.mark.parametrize("route", WAYS)
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True, database=None)
@hypothesis.given(case=cases(), rows=st.booleans())
def test_whatever_the_problem(route, case, rows):
    given = case.draw()
    with on(route) as backend:
        y, saved, plan = forward(given, backend, torch.full_like(given.dy, NAN))
        into = buffers(given, rows=rows)
        lora_backward(given.dy, saved, plan, **into)
    expected_y, expected = truth(given)
    # Small sums of one rank may cancel to anything: what is drawn at random is held to the size of the terms.
    sizes_y, sizes = truth(given.mapped(torch.abs))
    tolerance = TOLERANCE[case.dtype]
    near(y, expected_y, tolerance, sizes=sizes_y)
    users = plan.users
    for name, found in into.items():
        if not given.whole(name):
            found = found if rows else found[users]
            expected[name], sizes[name] = expected[name][users], sizes[name][users]
        near(found, expected[name], tolerance, name, sizes[name])
