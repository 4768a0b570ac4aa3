"""What must hold whatever the kernels do: permutations, plain LoRA, PEFT, finite differences, accumulation."""

from dataclasses import replace

import pytest
import torch
from lowrank_fixtures import OPERANDS, ROUTES, Case, buffers, check_gradients, near, on, truth
from torch import nn

from methods.lowrank import batched_lora, lora_backward, lora_forward, plan_batch

F64 = torch.float64
KINDS = {
    "full": {},
    "core": {"core": "matrix"},
    "vector": {"core": "vector", "scale": "user"},
    "shared-a": {"shared": "a", "scale": "user"},
    "shared-b": {"shared": "b"},
    "shared-both": {"shared": "ab", "core": "matrix"},
}


@pytest.fixture(params=ROUTES)
def backend(request):
    with on(request.param) as name:
        yield name


def both(given, backend, *, rows=False):
    """Return y and the gradients."""
    plan, into = given.plan(), buffers(given, rows=rows)
    told = {"scale": given.scale, "core": given.core, "base": given.base, "backend": backend}
    y, saved = lora_forward(given.x, given.a, given.b, plan, **told)
    lora_backward(given.dy, saved, plan, **into)
    return y, into


@pytest.mark.parametrize("kind", KINDS)
def test_permuted_tokens_give_permuted_rows_and_the_same_factors(backend, kind):
    given = Case(tokens=90, users=5, rank=8, base=True, **KINDS[kind]).draw()
    y, expected = both(given, backend)
    shuffled = torch.randperm(90, generator=torch.Generator().manual_seed(1))
    rows = {name: getattr(given, name)[shuffled] for name in ("x", "dy", "base", "ids")}
    again, found = both(replace(given, **rows), backend)
    near(again, y[shuffled], 2e-6)
    near(found.pop("dx"), expected.pop("dx")[shuffled], 2e-6, "dx")
    check_gradients(given, found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_renamed_users_have_renamed_gradients(backend, kind):
    given = Case(tokens=90, users=9, rank=8, base=True, **KINDS[kind]).draw()
    y, expected = both(given, backend)
    names = torch.randperm(9, generator=torch.Generator().manual_seed(2))  # the new name of each user
    old = names.argsort()
    per_user = {OPERANDS[name]: each[old] for name, each in given.named().items() if not given.whole(name)}
    ids = torch.where(given.ids < 0, -1, names[given.ids.clamp(min=0)])
    again, found = both(replace(given, ids=ids, **per_user), backend)
    near(again, y, 2e-6)
    check_gradients(given, {name: each if given.whole(name) else each[names] for name, each in found.items()}, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_finite_differences(backend, kind):
    given = Case(tokens=6, users=3, rank=2, d_in=3, d_out=4, base=True, dtype=F64, **KINDS[kind]).draw()
    given = given.mapped(lambda each: each.double().requires_grad_())
    plan, names = given.plan(), list(given.named())

    def operation(base, *operands):
        told = dict(zip(names, operands, strict=True))
        scale = told.get("dscale", given.scale)
        return batched_lora(
            told["dx"], told["da"], told["db"], plan, scale=scale, core=told.get("dcore"), base=base, backend=backend
        )

    assert torch.autograd.gradcheck(operation, (given.base, *given.named().values()))


def test_one_user_is_a_linear_layer_with_lora(backend):
    torch.manual_seed(0)
    layer, down, up = nn.Linear(32, 24), nn.Linear(32, 4, bias=False), nn.Linear(4, 24, bias=False)
    x = torch.randn(2, 9, 32, requires_grad=True)
    expected = layer(x) + 1.5 * up(down(x))
    dy = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, [x, down.weight, up.weight, layer.weight, layer.bias], dy)
    a, b = (w.detach()[None].clone().requires_grad_() for w in (down.weight, up.weight.T))
    plan = plan_batch(torch.zeros(2, 9, dtype=torch.int64), 1)
    y = batched_lora(x, a, b, plan, scale=1.5, base=layer(x), backend=backend)
    near(y, expected, 1e-6)
    found = torch.autograd.grad(y, [x, a, b, layer.weight, layer.bias], dy)
    for mine, theirs in zip(found, (wanted[0], wanted[1][None], wanted[2].T[None], *wanted[3:]), strict=True):
        near(mine, theirs, 1e-6)


def test_several_adapters_of_peft(backend):
    lora = pytest.importorskip("peft.tuners.lora")
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    names = ["first", "second", "third"]
    given = Case(tokens=21, users=3, rank=4, routing="mixed").draw()
    linear = nn.Linear(32, 24)
    layer = lora.Linear(linear, "first", r=4, lora_alpha=6, config=peft.LoraConfig(r=4, lora_alpha=6))
    for name in names[1:]:
        layer.update_layer(name, 4, lora_alpha=6, config=peft.LoraConfig(r=4, lora_alpha=6))
    factors = [layer.lora_A[name].weight for name in names], [layer.lora_B[name].weight for name in names]
    for down, up in zip(*factors, strict=True):
        down.requires_grad_()  # PEFT trains one adapter at a time
        nn.init.normal_(up.requires_grad_())  # and begins with zero
    layer.eval()  # in training PEFT has no mixed batches
    x = given.x.clone().requires_grad_()
    theirs = layer(x, adapter_names=["__base__" if user < 0 else names[user] for user in given.ids.tolist()])
    theirs.backward(given.dy)
    a = torch.stack([w.detach() for w in factors[0]]).requires_grad_()
    b = torch.stack([w.detach().T for w in factors[1]]).requires_grad_()
    mine = batched_lora(
        again := given.x.clone().requires_grad_(),
        a,
        b,
        given.plan(),
        scale=6 / 4,
        base=linear(again),
        backend=backend,
    )
    near(mine, theirs, 1e-6)
    mine.backward(given.dy)
    near(again.grad, x.grad, 1e-6)
    for user in range(3):
        near(a.grad[user], factors[0][user].grad, 1e-6, f"A of {names[user]}")
        near(b.grad[user], factors[1][user].grad.T, 1e-6, f"B of {names[user]}")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "shared" in kind])
def test_a_shared_factor_is_the_same_factor_for_every_user(backend, kind):
    given = Case(tokens=30, users=6, **KINDS[kind]).draw()
    repeated = {name: getattr(given, name).expand(6, -1, -1) for name in KINDS[kind]["shared"]}
    y, shared = both(given, backend)
    again, own = both(replace(given, **repeated), backend)
    near(again, y, 2e-6)
    for name in repeated:
        near(own[f"d{name}"].sum(0), shared[f"d{name}"], 2e-6)


def test_rows_are_the_dense_gradients_of_those_present(backend):
    given = Case(tokens=8, users=40, core="matrix", scale="user").draw()
    users = given.plan().users
    y, dense = both(given, backend)
    again, rows = both(given, backend, rows=True)
    assert torch.equal(y, again)
    for name, each in rows.items():
        assert torch.equal(each, dense[name] if name == "dx" else dense[name][users]), name


def test_a_sparse_gradient_takes_a_step_of_sparse_adam(backend):
    given = Case(tokens=8, users=40, core="matrix").draw()
    told = given.mapped(lambda each: each.clone().requires_grad_())
    plan = given.plan()
    factors = [told.a, told.b, told.core]
    step = torch.optim.SparseAdam(factors, lr=0.1)
    y = batched_lora(told.x, told.a, told.b, plan, scale=0.7, core=told.core, backend=backend, grad="rows")
    y.backward(given.dy)
    step.step()
    present = torch.zeros(40, dtype=torch.bool).index_fill_(0, plan.users, True)
    for before, after in zip((given.a, given.b, given.core), factors, strict=True):
        assert torch.equal(after[~present], before[~present])
        moved = (after - before)[present].detach()
        torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.1), rtol=0.01, atol=0)  # Adam's first step
        assert after.grad.is_sparse


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_adds(backend, kind, rows):
    given = Case(tokens=40, users=9, **KINDS[kind]).draw()
    plan, into = given.plan(), buffers(given, rows=rows)
    _, saved = lora_forward(given.x, given.a, given.b, plan, scale=given.scale, core=given.core, backend=backend)
    lora_backward(given.dy, saved, plan, **into)
    once = {name: each.clone() for name, each in into.items()}
    told = lora_backward(given.dy, saved, plan, **into, accumulate=True)
    assert all(getattr(told, name) is each for name, each in into.items())
    for name, each in into.items():
        near(each, 2 * once[name], 2e-6, name)


def test_gradients_of_two_calls_add_up(backend):
    given = Case().draw()
    a, plan = given.a.clone().requires_grad_(), given.plan()
    for _ in range(2):
        batched_lora(given.x, a, given.b, plan, backend=backend).backward(given.dy)
    near(a.grad, 2 * truth(replace(given, scale=1.0))[1]["da"], 2e-6)


def test_an_operand_that_was_changed_is_noticed(backend):
    given = Case().draw()
    a = given.a.clone().requires_grad_()
    y = batched_lora(given.x, a, given.b, given.plan(), backend=backend)
    given.x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(given.dy)


@pytest.mark.parametrize("kind", ["full", "core", "shared-both"])
def test_no_rank_is_the_base(backend, kind):
    given = Case(rank=0, base=True, **KINDS[kind]).draw()
    y, into = both(given, backend)
    assert torch.equal(y, given.base)
    assert not any(each.any() for each in into.values())
