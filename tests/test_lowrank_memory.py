"""Whose memory is whose: buffers that overlap are refused, what is written is told, and kept blocks are lent once."""

import copy
import pickle

import pytest
import torch
from lowrank_fixtures import ROUTES, Case, on

from methods.lowrank import batched_lora, lora_backward, lora_forward, memory, plan_batch, release_memory
from methods.lowrank.plan import plan_on_device

CASE = Case(tokens=12, users=4, rank=3, d_in=8, d_out=8)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda plan: pickle.loads(pickle.dumps(plan))])
@pytest.mark.parametrize("route", ROUTES)
def test_a_copy_of_a_plan_stands_alone(route, copied):
    given = CASE.draw()
    with on(route) as backend:
        plan = given.plan()
        right = batched_lora(given.x, given.a, given.b, plan, backend=backend)
        twin = copied(plan)
        plan.order.zero_()
        assert torch.equal(batched_lora(given.x, given.a, given.b, twin, backend=backend), right)


@pytest.mark.parametrize("route", ROUTES)
def test_another_default_device_changes_nothing(route):
    given = CASE.draw()
    with on(route) as backend:
        right = batched_lora(given.x, given.a, given.b, given.plan(), backend=backend)
        plan = given.plan()
        with torch.device("meta"):
            assert torch.equal(batched_lora(given.x, given.a, given.b, plan, backend=backend), right)


def overlapping():
    given = CASE.draw()
    plan = given.plan()
    wide = torch.zeros(CASE.tokens * 8 + 8)
    base, out = wide[: CASE.tokens * 8].view(-1, 8), wide[8:].view(-1, 8)
    yield "out shares memory with base", lambda: batched_lora(given.x, given.a, given.b, plan, base=base, out=out)
    yield "out shares memory with x", lambda: batched_lora(given.x, given.a, given.b, plan, out=given.x)
    _, saved = lora_forward(given.x, given.a, given.b, plan)
    rows = torch.empty(plan.n_active, 3, 8)
    yield "dx shares memory with dy", lambda: lora_backward(given.dy, saved, plan, dx=given.dy)
    yield "dx shares memory with x", lambda: lora_backward(given.dy, saved, plan, dx=given.x)
    yield "da shares memory with db", lambda: lora_backward(given.dy, saved, plan, da=rows, db=rows)


@pytest.mark.parametrize(("said", "call"), list(overlapping()), ids=lambda v: v if isinstance(v, str) else "")
def test_buffers_that_overlap_are_refused(said, call):
    with pytest.raises(ValueError, match=f"{said}; give a buffer of its own"):
        call()


@pytest.mark.parametrize("route", ROUTES)
def test_autograd_is_told_of_what_was_written(route):
    given = CASE.draw()
    weight = torch.zeros(CASE.tokens, 8, requires_grad=True)
    with on(route) as backend:
        z = weight.exp()
        with torch.no_grad():
            batched_lora(given.x, given.a, given.b, given.plan(), base=z, out=z, backend=backend)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            z.sum().backward()
        with pytest.raises(ValueError, match="out= cannot be differentiated"):
            batched_lora(given.x, given.a, given.b, given.plan(), out=weight, backend=backend)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, on its first dual number
@pytest.mark.parametrize("route", ROUTES)
def test_forward_mode_is_refused_not_dropped(route):
    given = CASE.draw()
    with on(route) as backend, torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(given.x, torch.ones_like(given.x))
        with pytest.raises(NotImplementedError, match="jvp"):
            batched_lora(dual, given.a, given.b, given.plan(), backend=backend)


@pytest.mark.parametrize("kinds", [{}, {"shared": "b"}, {"core": "matrix"}], ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_autocast_does_not_reach_inside(route, kinds):
    given = Case(tokens=12, users=4, rank=4, d_in=8, d_out=8, **kinds).draw()
    with on(route) as backend:
        x = given.x.clone().requires_grad_()
        plain = batched_lora(x, given.a, given.b, given.plan(), core=given.core, backend=backend)
        with torch.autocast("cpu", torch.bfloat16):
            y = batched_lora(x, given.a, given.b, given.plan(), core=given.core, backend=backend)
        assert torch.equal(y, plain)
        assert torch.equal(*(torch.autograd.grad(each, x, given.dy)[0] for each in (y, plain)))


def test_dense_buffers_are_dense_where_a_padded_plan_has_as_many_places():
    case = Case(tokens=24, users=8, rank=3, d_in=8, d_out=8).draw()
    ids = torch.tensor([1, 5] * 12)
    plan = plan_on_device(ids, 8)
    assert len(plan.padded_users) == 8
    y, saved = lora_forward(case.x, case.a, case.b, plan, backend="reference")
    da = torch.full((8, 3, 8), torch.nan)
    told = lora_backward(case.dy, saved, plan, da=da)
    assert not told.rows
    exact = plan_batch(ids, 8)
    _, again = lora_forward(case.x, case.a, case.b, exact, backend="reference")
    right = torch.empty(8, 3, 8)
    lora_backward(case.dy, again, exact, da=right)
    assert torch.equal(da, right)
    assert y.shape == (24, 8)


def test_a_scale_gradient_on_another_device_is_refused():
    given = CASE.draw()
    plan = given.plan()
    _, saved = lora_forward(given.x, given.a, given.b, plan, scale=torch.ones(4))
    with pytest.raises(ValueError, match="dscale is on meta"):
        lora_backward(given.dy, saved, plan, dscale=torch.empty(4, device="meta"))


def test_a_block_is_lent_to_one_tensor_at_a_time():
    release_memory()
    first = memory.empty((memory.LARGE,), torch.ones(1), torch.uint8)
    view, place = first[10:], first.data_ptr()
    del first
    assert memory.empty((memory.LARGE,), torch.ones(1), torch.uint8).data_ptr() != place
    del view
    held = [memory.empty((memory.LARGE,), torch.ones(1), torch.uint8) for _ in range(2)]
    assert place in {each.data_ptr() for each in held}
    del held
    assert release_memory() == 2 * memory.block_bytes(memory.LARGE)
    assert release_memory() == 0


def test_no_more_than_the_bound_is_kept(monkeypatch):
    release_memory()
    monkeypatch.setattr(memory, "KEPT_BYTES", 3 * memory.LARGE)
    small = [memory.empty((memory.LARGE,), torch.ones(1), torch.uint8) for _ in range(2)]
    del small
    huge = memory.empty((4 * memory.LARGE,), torch.ones(1), torch.uint8)
    del huge  # more than may be kept: it takes nothing else with it
    held = [memory.empty((memory.LARGE,), torch.ones(1), torch.uint8) for _ in range(5)]
    del held
    assert release_memory() == 3 * memory.LARGE
