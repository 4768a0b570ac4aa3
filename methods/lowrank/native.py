"""Backend `native`: compiled CPU kernels behind a C interface without torch, called through ctypes on the data.

The library is built when the package is installed and a C++ compiler is there (setup.py); it holds the kernels once per
instruction set and takes the best that the processor has. `HETPREF_NATIVE=0` switches it off.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.lowrank.problem import Gradients, Problem, accumulate_dtype

LIBRARY = Path(__file__).with_name("_native.so")
ABI = 1
MAX_RANK = 256
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
_BUILD = "with a C++ compiler (g++ or clang++) on the machine, install hetpref again (pip install -e .)"

_integer, _pointer = ctypes.c_int64, ctypes.c_void_p


class _Call(ctypes.Structure):
    """The structure LowrankCall of native_code/abi.h."""

    _fields_ = [
        *((name, _integer) for name in ("tokens", "n_base", "n_active", "n_users", "d_in", "d_out", "rank", "dtype")),
        *((name, _pointer) for name in ("order", "users", "offsets", "x")),
        ("x_stride", _integer),
        ("a", _pointer),
        ("b", _pointer),
        ("a_stride", _integer),
        ("b_stride", _integer),
        ("core", _pointer),
        ("core_kind", _integer),
        ("user_scale", _pointer),
        ("scale", ctypes.c_double),
        ("hidden", _pointer),
        ("base", _pointer),
        ("base_stride", _integer),
        ("y", _pointer),
        ("dy", _pointer),
        ("dy_stride", _integer),
        *((name, _pointer) for name in ("dx", "da", "db", "dcore", "dscale", "scratch")),
        *((name, _integer) for name in ("rows", "accumulate", "threads")),
    ]


@cache
def _loaded() -> tuple[Any, str | None]:
    """Return the library and None, or None and why there is none."""
    if os.environ.get("HETPREF_NATIVE") == "0":
        return None, "it is switched off by HETPREF_NATIVE=0"
    if not LIBRARY.is_file():
        return None, f"it was not compiled when the package was installed; {_BUILD}"
    try:
        library = ctypes.CDLL(str(LIBRARY))
        library.lowrank_abi.restype = _integer
        if (found := library.lowrank_abi()) != ABI:
            return None, f"the compiled library is of another version ({found}, needed {ABI}); {_BUILD}"
        library.lowrank_call_bytes.restype = _integer
        if (found := library.lowrank_call_bytes()) != ctypes.sizeof(_Call):
            return None, f"the compiled library takes calls of {found} bytes, not {ctypes.sizeof(_Call)}; {_BUILD}"
        library.lowrank_isa.restype = ctypes.c_char_p
        for name in ("lowrank_forward", "lowrank_backward"):
            getattr(library, name).argtypes = [ctypes.POINTER(_Call)]
            getattr(library, name).restype = None
    except (OSError, AttributeError) as why:
        return None, f"the compiled library cannot be loaded: {why}; {_BUILD}"
    if library.lowrank_isa() is None:
        return None, "this processor has none of the instruction sets that were compiled for"
    return library, None


def unavailable() -> str | None:
    """Return why the compiled kernels cannot be used, or None."""
    return _loaded()[1]


def refuses(problem: Problem) -> str | None:
    """Return why a problem cannot be computed here, or None."""
    if problem.x.device.type != "cpu":
        return f"it computes on the CPU, x is on {problem.x.device}"
    if problem.x.dtype not in DTYPES:
        return f"it has no kernels for {problem.x.dtype}; it has them for {', '.join(map(str, DTYPES))}"
    if problem.rank > MAX_RANK:
        return f"its ranks end at {MAX_RANK}, this is {problem.rank}"
    return None


def instruction_set() -> str:
    """Return the instruction set in use, for example "x86-64-v4"."""
    return _loaded()[0].lowrank_isa().decode()


def use_instruction_set(name: str) -> bool:
    """Use the kernels of another instruction set from now on; return whether the processor and the build have it."""
    return _loaded()[0].lowrank_use_isa(name.encode()) == 0


def forward(problem: Problem, base: Tensor | None, out: Tensor) -> Tensor:
    """Write y into `out` and return A x, [T, r], in the type of sums and the order of the plan."""
    hidden = problem.x.new_empty(problem.plan.tokens, problem.rank, dtype=accumulate_dtype(problem.x.dtype))
    call = _call(problem, hidden)
    call.y = out.data_ptr()
    if base is not None:
        call.base, call.base_stride = base.data_ptr(), base.stride(0)
    _loaded()[0].lowrank_forward(ctypes.byref(call))
    return hidden


def backward(problem: Problem, dy: Tensor, hidden: Tensor, into: Gradients) -> None:
    """Fill the gradient buffers, given dL/dy."""
    scratch = hidden.new_empty(3, *hidden.shape)
    call = _call(problem, hidden)
    call.dy, call.dy_stride = dy.data_ptr(), dy.stride(0)
    da, db = _in_type_of_sums(into.da, hidden.dtype), _in_type_of_sums(into.db, hidden.dtype)
    call.dx, call.da, call.db = _address(into.dx), _address(da), _address(db)
    call.dcore, call.dscale, call.scratch = _address(into.dcore), _address(into.dscale), scratch.data_ptr()
    call.rows, call.accumulate = into.rows, into.accumulate
    _loaded()[0].lowrank_backward(ctypes.byref(call))
    for target, summed in ((into.da, da), (into.db, db)):
        if target is not None and summed is not None and summed is not target:
            target.copy_(summed)


def _call(problem: Problem, hidden: Tensor) -> _Call:
    """Return what forward and backward have in common; the tensors must outlive the call."""
    plan, x, a, b, core, scale = problem.plan, problem.x, problem.a, problem.b, problem.core, problem.scale
    per_user = isinstance(scale, Tensor)
    rank, d_in = a.shape[-2:]
    d_out = b.shape[-1]
    call = _Call(
        plan.tokens,
        plan.n_base,
        plan.n_active,
        plan.n_users,
        d_in,
        d_out,
        rank,
        DTYPES[x.dtype],
        *plan.addresses,
        x.data_ptr(),
        x.stride(0),
        a.data_ptr(),
        b.data_ptr(),
        0 if a.dim() == 2 else rank * d_in,
        0 if b.dim() == 2 else rank * d_out,
        _address(core),
        0 if core is None else 1 if core.dim() == 3 else 2,
        scale.data_ptr() if per_user else None,
        0.0 if per_user else scale,
        hidden.data_ptr(),
    )
    call.threads = torch.get_num_threads()
    return call


def _in_type_of_sums(target: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return the buffer of a factor's gradient, or a copy in the type in which its sums over tokens are kept."""
    return target if target is None or target.dtype == dtype else target.to(dtype)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
