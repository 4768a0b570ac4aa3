"""What is refused, and that the message says what was given and what is allowed."""

import _ctypes
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from datasets_registry.errors import HetprefError
from methods.lowrank import (
    BackendUnavailable,
    available_backends,
    backends,
    batched_lora,
    explain,
    lora_backward,
    lora_forward,
    native,
    plan_batch,
)

F16, F64 = torch.float16, torch.float64
needs_native = pytest.mark.skipif(available_backends()["native"] != "ok", reason=available_backends()["native"])


def zeros(*shape, **told):
    return torch.zeros(*shape, **told)


def call(**changes):
    """Return the arguments of a good call of five tokens and three users, but for the changes."""
    told = {"x": zeros(5, 6), "a": zeros(3, 2, 6), "b": zeros(3, 2, 4), "plan": plan_batch(torch.arange(5) % 3, 3)}
    return told | changes


WRONG = {
    "x of integers": (TypeError, r"x has dtype torch.int64; allowed: torch.float32", {"x": torch.zeros(5, 6).long()}),
    "x no tensor": (TypeError, r"x is list; give a tensor", {"x": [[0.0] * 6] * 5}),
    "x sparse": (TypeError, r"x has layout torch.sparse_coo; give a dense", {"x": zeros(5, 6).to_sparse()}),
    "a of another dtype": (
        TypeError,
        r"a has dtype torch.float64, x has torch.float32",
        {"a": zeros(3, 2, 6, dtype=F64)},
    ),
    "b of another dtype": (
        TypeError,
        r"b has dtype torch.float16, x has torch.float32",
        {"b": zeros(3, 2, 4, dtype=F16)},
    ),
    "core of another dtype": (TypeError, r"core has dtype torch.float64", {"core": zeros(3, 2, dtype=F64)}),
    "base of another dtype": (
        TypeError,
        r"base has dtype torch.float64, x has torch",
        {"base": zeros(5, 4, dtype=F64)},
    ),
    "out of another dtype": (
        TypeError,
        r"out has dtype torch.float64; the buffer must have torch",
        {"out": zeros(5, 4, dtype=F64)},
    ),
    "no plan": (TypeError, r"plan is Tensor; make one with plan_batch", {"plan": torch.arange(5)}),
    "scale no number": (TypeError, r"scale is str; give a number, or a tensor of shape \[3\]", {"scale": "2"}),
    "scale a truth value": (TypeError, r"scale is bool; give a number", {"scale": True}),
    "scale of integers": (TypeError, r"scale has dtype torch.int64; give a floating", {"scale": zeros(3).long()}),
    "x a scalar": (ValueError, r"x is a scalar; give \[..., d_in\]", {"x": zeros(())}),
    "x of another width": (
        ValueError,
        r"x has width 7, a has d_in 6; shapes \[5, 7\] and \[3, 2, 6\]",
        {"x": zeros(5, 7)},
    ),
    "x of other tokens": (ValueError, r"x has 6 tokens \(shape \[2, 3, 6\]\), the plan is of 5", {"x": zeros(2, 3, 6)}),
    "a a vector": (ValueError, r"a has shape \[6\]; allowed: \[U, r, d_in\], or \[r, d_in\] where", {"a": zeros(6)}),
    "b of four dimensions": (
        ValueError,
        r"b has shape \[1, 3, 2, 4\]; allowed: \[U, r, d_out\]",
        {"b": zeros(1, 3, 2, 4)},
    ),
    "a of other users": (ValueError, r"a has 4 users, the plan is of 3", {"a": zeros(4, 2, 6)}),
    "b of other users": (ValueError, r"b has 2 users, the plan is of 3", {"b": zeros(2, 2, 4)}),
    "plan of other users": (ValueError, r"a has 3 users, the plan is of 8", {"plan": plan_batch(torch.arange(5), 8)}),
    "plan of other tokens": (
        ValueError,
        r"x has 5 tokens .* the plan is of 4",
        {"plan": plan_batch(torch.zeros(4).long(), 3)},
    ),
    "two ranks": (ValueError, r"a has rank 2, b has rank 5; shapes \[3, 2, 6\] and \[3, 5, 4\]", {"b": zeros(3, 5, 4)}),
    "nothing per user": (
        ValueError,
        r"both factors are shared and there is no core",
        {"a": zeros(2, 6), "b": zeros(2, 4)},
    ),
    "core of another rank": (
        ValueError,
        r"core has shape \[3, 2, 3\]; allowed: \[3, 2, 2\], or \[3, 2\]",
        {"core": zeros(3, 2, 3)},
    ),
    "core of one user": (
        ValueError,
        r"core has shape \[2, 2\]; allowed: \[3, 2, 2\], or \[3, 2\]",
        {"core": zeros(2, 2)},
    ),
    "scale of other users": (
        ValueError,
        r"scale has shape \[4\]; allowed: a number, or a tensor of",
        {"scale": zeros(4)},
    ),
    "base of another shape": (ValueError, r"base has shape \[5, 6\]; it must be \[5, 4\]", {"base": zeros(5, 6)}),
    "out of another shape": (ValueError, r"out has shape \[4, 5\]; allowed: \[5, 4\]", {"out": zeros(4, 5)}),
    "out not contiguous": (ValueError, r"out is not contiguous \(strides \(1, 5\)\)", {"out": zeros(4, 5).T}),
    "a elsewhere": (ValueError, r"a is on meta, x is on cpu; move them to one", {"a": zeros(3, 2, 6, device="meta")}),
    "core elsewhere": (ValueError, r"core is on meta, x is on cpu", {"core": zeros(3, 2, device="meta")}),
    "scale elsewhere": (ValueError, r"scale is on meta, x is on cpu", {"scale": zeros(3, device="meta")}),
    "base elsewhere": (ValueError, r"base is on meta, x is on cpu", {"base": zeros(5, 4, device="meta")}),
    "out elsewhere": (ValueError, r"out is on meta, x is on cpu", {"out": zeros(5, 4, device="meta")}),
    "plan elsewhere": (
        ValueError,
        r"the plan is on cpu, x is on meta; make it with plan_batch\(..., device=x.device\)",
        {**{name: call()[name].to("meta") for name in ("x", "a", "b")}},
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_operands_that_do_not_fit(name):
    kind, message, changes = WRONG[name]
    told = call(**changes)
    with pytest.raises(kind, match=message):
        batched_lora(**told)
    with pytest.raises(kind, match=message):
        lora_forward(**told)
    if "out" not in changes:
        told["b"] = told["b"].clone().requires_grad_()
        with pytest.raises(kind, match=message):
            batched_lora(**told)


def test_a_written_result_has_no_gradient():
    told = call(out=zeros(5, 4))
    told["a"].requires_grad_()
    with pytest.raises(ValueError, match="out= cannot be differentiated; leave it out, or call lora_forward"):
        batched_lora(**told)
    with torch.no_grad():
        assert batched_lora(**told) is told["out"]


def test_a_kind_of_gradient_that_is_none():
    with pytest.raises(ValueError, match="grad is 'sparse'; allowed: 'dense', 'rows'"):
        batched_lora(**call(), grad="sparse")


BUFFERS = {
    "dy of another shape": (ValueError, r"dy has shape \[4, 4\]; it must be \[5, 4\]", {"dy": zeros(4, 4)}),
    "dy of another dtype": (
        TypeError,
        r"dy has dtype torch.float64, x has torch.float32",
        {"dy": zeros(5, 4, dtype=F64)},
    ),
    "dy elsewhere": (ValueError, r"dy is on meta, x is on cpu", {"dy": zeros(5, 4, device="meta")}),
    "dx of another shape": (ValueError, r"dx has shape \[5, 4\]; allowed: \[5, 6\]", {"dx": zeros(5, 4)}),
    "da of other users": (
        ValueError,
        r"da has shape \[4, 2, 6\]; allowed: \[8, 2, 6\] or \[3, 2, 6\]",
        {"da": zeros(4, 2, 6)},
    ),
    "db of another rank": (ValueError, r"db has shape \[8, 1, 4\]; allowed: \[8, 2, 4\] or", {"db": zeros(8, 1, 4)}),
    "db not contiguous": (ValueError, r"db is not contiguous", {"db": zeros(8, 4, 2).mT}),
    "da of another dtype": (
        TypeError,
        r"da has dtype torch.float64; the buffer must have torch.float32",
        {"da": zeros(8, 2, 6, dtype=F64)},
    ),
    "da elsewhere": (ValueError, r"da is on meta, x is on cpu", {"da": zeros(8, 2, 6, device="meta")}),
    "rows and dense": (
        ValueError,
        r"buffers mix .*\(da 8, db 3\); give all of one kind",
        {"da": zeros(8, 2, 6), "db": zeros(3, 2, 4)},
    ),
    "rows and dense core": (
        ValueError,
        r"buffers mix .*\(da 3, dcore 8\)",
        {"da": zeros(3, 2, 6), "dcore": zeros(8, 2)},
    ),
    "rows and dense scale": (
        ValueError,
        r"buffers mix .*\(da 8, dscale 3\)",
        {"da": zeros(8, 2, 6), "dscale": zeros(3)},
    ),
    "dcore of another kind": (ValueError, r"dcore has shape \[8, 2, 2\]; allowed: \[8, 2\]", {"dcore": zeros(8, 2, 2)}),
    "dscale of other users": (ValueError, r"dscale has shape \[5\]; allowed: \[8\] or \[3\]", {"dscale": zeros(5)}),
    "dscale of another dtype": (
        TypeError,
        r"dscale has dtype torch.float64; the buffer must have torch.float32",
        {"dscale": zeros(8, dtype=F64)},
    ),
}


def saved(**changes):
    """Return what a forward pass of five tokens of three of eight users keeps, and its plan."""
    told = {"x": zeros(5, 6), "a": zeros(8, 2, 6), "b": zeros(8, 2, 4), "plan": plan_batch(torch.arange(5) % 3, 8)}
    told |= {"core": zeros(8, 2), "scale": zeros(8)} | changes
    return lora_forward(**told)[1], told["plan"]


@pytest.mark.parametrize("name", BUFFERS)
def test_buffers_that_do_not_fit(name):
    kind, message, changes = BUFFERS[name]
    with pytest.raises(kind, match=message):
        lora_backward(changes.get("dy", zeros(5, 4)), *saved(), **{k: v for k, v in changes.items() if k != "dy"})


def test_buffers_for_what_was_not_given():
    with pytest.raises(ValueError, match="dcore was given, but the forward call had no core"):
        lora_backward(zeros(5, 4), *saved(core=None), dcore=zeros(8, 2))
    with pytest.raises(ValueError, match="dscale was given, but the scale of the forward call is a number"):
        lora_backward(zeros(5, 4), *saved(scale=2.0), dscale=zeros(8))
    with pytest.raises(ValueError, match=r"da has shape \[8, 2, 6\]; allowed: \[2, 6\]"):
        lora_backward(zeros(5, 4), *saved(a=zeros(2, 6)), da=zeros(8, 2, 6))


def test_the_plan_of_another_call():
    kept, _ = saved()
    with pytest.raises(ValueError, match=r"Plan\(tokens=4, n_users=9, .*is not the plan .*Plan\(tokens=5, n_users=8"):
        lora_backward(zeros(5, 4), kept, plan_batch(zeros(4).long(), 9))
    with pytest.raises(ValueError, match="pass the same one"):
        lora_backward(zeros(5, 4), kept, plan_batch(torch.arange(5) % 3, 8))


@pytest.mark.parametrize(
    ("ids", "users", "kind", "message"),
    [
        (zeros(3), 4, TypeError, r"user_ids has dtype torch.float32; allowed: torch.int32, torch.int64"),
        (zeros(3).bool(), 4, TypeError, r"user_ids has dtype torch.bool"),
        ([0, 1], 4, TypeError, r"user_ids is list; give a tensor of int32 or int64"),
        (zeros(3).long(), -1, ValueError, r"n_users is -1; give the number of users, an integer of at least 0"),
        (zeros(3).long(), 2.0, ValueError, r"n_users is 2.0"),
        (zeros(3).long(), True, ValueError, r"n_users is True"),
        (
            torch.tensor([0, 3, -1, 4, -2, 9]),
            4,
            IndexError,
            r"user id 4 at position 3 is out of range; allowed: 0 to 3, or -1",
        ),
        (torch.tensor([0, -2, 9]), 4, IndexError, r"user id -2 at position 1 is"),
        (torch.tensor([[0, 1, 2], [3, 7, 8]]).int(), 4, IndexError, r"user id 7 at position \(1, 1\) is out of range"),
        (torch.tensor([[0, 3], [7, 1]]).T, 4, IndexError, r"user id 7 at position \(0, 1\) is"),
        (torch.tensor(5), 4, IndexError, r"user id 5 at position 0 is"),
        (
            torch.tensor([-1, 0]),
            0,
            IndexError,
            r"user id 0 at position 1 is out of range; allowed: only -1, as n_users is 0",
        ),
    ],
)
def test_ids_that_are_none(ids, users, kind, message):
    with pytest.raises(kind, match=message):
        plan_batch(ids, users)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("natve", r"did you mean 'native'\?"), ("Torch", "did you mean 'torch'"), ("fast", "no such backend. ")],
)
def test_a_backend_that_is_none(name, hint):
    message = rf"backend '{name}' cannot be used: there is no such backend.*Available for this call: auto, .*torch"
    for operation in (batched_lora, lora_forward, explain):
        with pytest.raises(BackendUnavailable, match=message) as told:
            operation(**call(), backend=name)
        assert told.match(hint)
        assert isinstance(told.value, HetprefError)


def half():
    return {name: each.half() if isinstance(each, torch.Tensor) else each for name, each in call().items()}


@needs_native
@pytest.mark.parametrize("gradient", [False, True])
def test_a_named_backend_is_never_replaced(gradient):
    told = half()
    told["a"].requires_grad_(gradient)
    message = "backend 'native' cannot be used: it has no kernels for torch.float16; it has them for torch.float32"
    with pytest.raises(BackendUnavailable, match=message):
        batched_lora(**told, backend="native")
    assert batched_lora(**told).dtype == F16
    assert lora_forward(**told)[1].backend == "torch"
    with pytest.raises(BackendUnavailable, match=r"its ranks end at 256, this is 257.*auto, reference, torch"):
        batched_lora(**call(a=zeros(3, 257, 6), b=zeros(3, 257, 4)), backend="native")


def test_triton_needs_its_device():
    if (why := available_backends()["triton"]) == "ok":
        pytest.skip("there is a device for Triton")
    with pytest.raises(BackendUnavailable) as told:
        batched_lora(**call(), backend="triton")
    assert why in str(told.value)
    assert "Available for this call: auto, reference, torch" in str(told.value)


SWITCHED_OFF = """
import torch
from methods.lowrank import BackendUnavailable, available_backends, batched_lora, lora_forward, plan_batch

assert available_backends()["native"] == "it is switched off by HETPREF_NATIVE=0", available_backends()
x, a, plan = torch.ones(2, 3), torch.ones(1, 1, 3), plan_batch(torch.zeros(2, dtype=torch.int64), 1)
assert batched_lora(x, a, a, plan).tolist() == [[3.0] * 3] * 2
assert lora_forward(x, a, a, plan)[1].backend == "torch"
try:
    batched_lora(x, a, a, plan, backend="native")
except BackendUnavailable as why:
    print(why)
"""


def test_the_compiled_kernels_can_be_switched_off():
    told = os.environ | {"HETPREF_NATIVE": "0"}
    done = subprocess.run([sys.executable, "-c", SWITCHED_OFF], env=told, capture_output=True, text=True, timeout=120)
    expected = "backend 'native' cannot be used: it is switched off by HETPREF_NATIVE=0. "
    assert done.stdout == expected + "Available for this call: auto, reference, torch\n", done.stderr


@pytest.fixture
def library(monkeypatch, tmp_path):
    """Give a way to put a file in the place of the compiled kernels; they are as they were afterwards."""
    monkeypatch.delenv("HETPREF_NATIVE", raising=False)

    def put(content):
        path = tmp_path / "_native.so"
        path.unlink(missing_ok=True)  # one that is loaded must not be written over
        if content is not None:
            path.write_bytes(content)
        monkeypatch.setattr(native, "LIBRARY", path)
        for cached in (native._loaded, backends.why_not):
            cached.cache_clear()
        return available_backends()["native"]

    yield put
    for cached in (native._loaded, backends.why_not):
        cached.cache_clear()


def other_library():
    """Return a library that is none of ours."""
    path = getattr(_ctypes, "__file__", None)
    if path is None:
        pytest.skip(f"this Python has {sysconfig.get_config_var('MODULE__CTYPES')} built in")
    return Path(path).read_bytes()


@pytest.mark.parametrize("kind", ["missing", "empty", "garbage", "another"])
def test_a_library_that_cannot_be_used_gives_its_reason(library, kind):
    content = {"missing": None, "empty": b"", "garbage": os.urandom(4096)}
    why = library(other_library() if kind == "another" else content[kind])
    assert ("it was not compiled" if kind == "missing" else "cannot be loaded") in why
    assert "install hetpref again" in why
    assert lora_forward(**call())[1].backend == "torch"
    with pytest.raises(BackendUnavailable, match="Available for this call: auto, reference, torch"):
        batched_lora(**call(), backend="native")


@needs_native
def test_a_library_of_another_version_gives_its_reason(library, monkeypatch, tmp_path):
    ours = tmp_path / "ours.so"
    shutil.copy(native.LIBRARY, ours)
    assert library(ours.read_bytes()) == "ok"
    monkeypatch.setattr(native, "ABI", native.ABI + 1)
    assert "is of another version" in library(ours.read_bytes())
