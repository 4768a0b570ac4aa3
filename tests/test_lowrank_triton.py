"""The Triton kernels against a float64 einsum and its autograd: in the interpreter, and on a GPU where there is one.

The interpreter has to be chosen before Triton is imported, and another test of the same process may have imported it;
so one test here runs this file again in a process of its own, with TRITON_INTERPRET=1, where the tests that take
`device` run on the CPU; in the process of the suite they need a GPU. One thing about a GPU is checked without one: that
its compiler takes every kernel, as the interpreter accepts what a compiler does not.
"""

import dataclasses
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from methods.lowrank import batched_lora, plan_batch, triton_backend
from methods.lowrank.checks import problem_of
from methods.lowrank.plan import plan_on_device
from methods.lowrank.problem import Gradients, accumulate_dtype

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13, torch.float16: 6e-3, torch.bfloat16: 6e-3}
NAMES = ("dx", "da", "db", "dcore", "dscale")
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
on_gpu = (pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"), needs_triton)


@pytest.fixture(params=["cpu" if INTERPRETED else pytest.param("cuda", marks=on_gpu)])
def device(request):
    """Give the device; on the CPU, room that is not written to stays NaN, in the kernels' own buffers too."""
    torch.use_deterministic_algorithms(request.param == "cpu")
    yield request.param
    torch.use_deterministic_algorithms(False)


@dataclass(frozen=True)
class Case:
    """A problem and how it is asked; `ids` is uniform, skewed (a user of many tokens), none (base only) or single."""

    rank: int = 4
    tokens: int = 23
    users: int = 7
    d_in: int = 33
    d_out: int = 21
    ids: str = "uniform"
    shared: str = ""
    core: int = 0
    scale: str = "number"
    base: str = ""
    rows: bool = True
    accumulate: bool = False
    padded: bool = False
    dtype: torch.dtype = torch.float32

    def problem(self, device, seed=0):
        draw = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=draw).to(device, self.dtype)

        ids = torch.randint(-1, self.users, (self.tokens,), generator=draw)
        if self.ids == "skewed":
            ids[torch.randperm(self.tokens, generator=draw)[: self.tokens - self.users]] = self.users - 1
        elif self.ids != "uniform":
            ids.fill_({"none": -1, "single": self.users - 1}[self.ids])
        ids = ids.to(device)
        plan = (plan_on_device if self.padded else plan_batch)(ids, self.users)
        a = normal(*(() if "a" in self.shared else (self.users,)), self.rank, self.d_in)
        b = normal(*(() if "b" in self.shared else (self.users,)), self.rank, self.d_out)
        core = normal(self.users, *[self.rank] * self.core) if self.core else None
        scale = torch.rand(self.users, generator=draw).to(device) + 0.5 if self.scale == "user" else 0.7
        base = normal(self.tokens, self.d_out) if self.base else None
        x = normal(self.tokens, self.d_in)
        return problem_of(x, a, b, plan, scale, core), base, normal(self.tokens, self.d_out)


CASES = {
    **{f"rank-{r}": Case(rank=r, base="apart" if r == 16 else "") for r in (1, 4, 16, 17, 64)},
    "shared-a": Case(shared="a", scale="user", rows=False),
    "shared-b": Case(shared="b", accumulate=True, core=2),
    "shared-both": Case(shared="ab", core=2, scale="user"),
    "core": Case(core=2, rank=5, base="in place", rows=False),
    "vector": Case(core=1, rank=3, scale="user", accumulate=True, base="in place"),
    "scale": Case(scale="user", rows=False, accumulate=True),
    "skewed": Case(ids="skewed", tokens=308, users=8, d_in=18, d_out=21, core=1, scale="user"),
    "skewed-core": Case(ids="skewed", tokens=308, users=8, d_in=18, d_out=17, core=2, accumulate=True, padded=True),
    "sparse": Case(tokens=6, users=300, rank=2, padded=True, scale="user", core=2),
    "sparse-dense": Case(tokens=6, users=30, rank=2, padded=True, rows=False, accumulate=True),
    "one-user": Case(ids="single", users=1, tokens=20),
    "base-only": Case(ids="none", base="apart", padded=True, core=2, scale="user"),
    "base-only-dense": Case(ids="none", rows=False, shared="a"),
    "no-users": Case(users=0, base="apart", ids="none"),
    "no-tokens": Case(tokens=0, rows=False, core=1, scale="user"),
    "no-rank": Case(rank=0, base="apart", core=2),
    "float64": Case(dtype=torch.float64, core=2, base="apart", scale="number"),
    "float16": Case(dtype=torch.float16, core=2, base="apart", scale="user", rank=16, d_in=64, d_out=48),
}
if not INTERPRETED:  # where it is refused
    CASES["bfloat16"] = Case(dtype=torch.bfloat16, core=2, base="apart", rank=8, d_in=768, d_out=136)
LAUNCHES = {"fused": {}, "split": {"splits": 2, "groups": 2}, "short": {"short": 4}, "as chosen": None}
# The interpreter is slow, and most cases have nothing to tell of the other two.
RUNS = [
    (name, launch)
    for name in CASES
    for launch in LAUNCHES
    if launch in ("fused", "split") or not INTERPRETED or name in ("rank-4", "rank-17", "core", "vector", "float16")
]


def launch_of(name, problem, width_in, width_out):
    """Return small sizes, so that a small problem has many tiles, blocks and pieces."""
    chosen = triton_backend.launch_for(problem, width_in, width_out)
    small = {"rows": 16, "columns": 32, "expand_columns": 16, "short": 1, "longest_piece": 40, "splits": 0, "groups": 1}
    if problem.plan.tokens > 200:
        small |= {"rows": 64, "longest_piece": 128}
    return chosen if LAUNCHES[name] is None else dataclasses.replace(chosen, **(small | LAUNCHES[name]))


def truth(problem, base, dy):
    """Return y and the gradients, a row per user of U, in float64, and the ids."""
    plan, told = problem.plan, {}
    for name in ("x", "a", "b", "core", "scale"):
        each = getattr(problem, name)
        told[name] = each.double().requires_grad_() if isinstance(each, torch.Tensor) else each
    ids, adapted = plan.ids.clamp(min=0), (plan.ids >= 0)[:, None]

    def own(name):
        each = told[name]
        return each.expand(plan.tokens, *each.shape) if each.dim() == 2 and name != "core" else each[ids]

    y = dy.double() * 0 if base is None else base.double()
    if plan.n_users:
        inner = torch.einsum("trd,td->tr", own("a"), told["x"])
        if problem.core is not None:
            inner = own("core") * inner if problem.core.dim() == 2 else torch.einsum("tij,tj->ti", own("core"), inner)
        scale = told["scale"][ids][:, None] if isinstance(problem.scale, torch.Tensor) else problem.scale
        y = y + torch.where(adapted, scale * torch.einsum("trd,tr->td", own("b"), inner), 0)
        y.backward(dy.double())
    grads = {}
    for buffer, name in zip(NAMES, ("x", "a", "b", "core", "scale"), strict=True):
        if isinstance(told[name], torch.Tensor):
            grads[buffer] = torch.zeros_like(told[name]) if told[name].grad is None else told[name].grad
    return y.detach(), grads


def buffers(case, problem, grads):
    """Return gradient buffers poisoned with NaN, or with numbers where they are added to."""
    rows = len(problem.plan.padded_users) if case.rows else case.users
    made = {}
    for name, grad in grads.items():
        whole = name == "dx" or (name == "da" and problem.shared_a) or (name == "db" and problem.shared_b)
        dtype = accumulate_dtype(case.dtype) if name == "dscale" else case.dtype
        shape = grad.shape if whole else (rows, *grad.shape[1:])
        made[name] = torch.full(shape, 2.0 if case.accumulate else float("nan"), dtype=dtype, device=grad.device)
    return Gradients(**made, rows=case.rows, accumulate=case.accumulate)


def compare(case, problem, into, grads):
    """Compare every gradient, those of a row per user user by user; absent users' rows are untouched or zero."""
    start, users = 2.0 if case.accumulate else 0.0, problem.plan.users
    for name, grad in grads.items():
        found, expected = getattr(into, name), grad + start
        if name == "dx" or (name == "da" and problem.shared_a) or (name == "db" and problem.shared_b):
            near(found, expected, case)
            continue
        if case.rows:
            assert (found[len(users) :] == start).all()
            found = found[: len(users)]
        else:
            absent = torch.ones(case.users, dtype=torch.bool, device=users.device).index_fill_(0, users, False)
            assert (found[absent] == start).all()
            found = found[users]
        # A user's dscale is one number, in which large terms may cancel: only of all users together can much be said.
        pairs = [(found, expected[users])] if name == "dscale" else zip(found, expected[users], strict=True)
        for mine, wanted in pairs:
            near(mine, wanted, case)


def near(found, expected, case):
    assert not found.isnan().any()
    assert (found - expected).norm() <= TOLERANCE[case.dtype] * expected.norm().clamp(min=1e-30)


def run(case, problem, base, dy, launch, grads):
    out = base.clone() if case.base == "in place" else torch.full_like(dy, float("nan"))
    below = out if case.base == "in place" else base
    hidden = triton_backend.forward(problem, below, out, launch_of(launch, problem, case.d_in, case.d_out))
    into = buffers(case, problem, grads)
    triton_backend.backward(problem, dy, hidden, into, launch_of(launch, problem, case.d_out, case.d_in))
    return out, into


@pytest.mark.parametrize(("name", "launch"), RUNS)
def test_kernels_agree_with_float64(name, launch, device):
    case = CASES[name]
    problem, base, dy = case.problem(device)
    y, grads = truth(problem, base, dy)
    out, into = run(case, problem, base, dy, launch, grads)
    near(out, y, case)
    left = problem.plan.ids < 0
    assert torch.equal(out[left], torch.zeros_like(out[left]) if base is None else base[left])
    compare(case, problem, into, grads)


def test_only_what_is_asked_for_is_computed(device):
    case = Case(core=2, scale="user")
    problem, base, dy = case.problem(device)
    grads = truth(problem, base, dy)[1]
    hidden = triton_backend.forward(problem, base, torch.empty_like(dy))
    for name in NAMES:
        into = buffers(case, problem, {name: grads[name]})
        triton_backend.backward(problem, dy, hidden, into)
        compare(case, problem, into, {name: grads[name]})


@pytest.mark.parametrize("shared", ["", "a", "b"])
def test_tokens_without_an_adapter_touch_nothing(device, shared):
    case = Case(core=2, base="apart", shared=shared)
    problem, base, dy = case.problem(device)
    y, grads = truth(problem, base, dy)
    left = problem.plan.ids < 0
    assert left.any()
    problem.x[left] = dy[left] = float("nan")
    out, into = run(case, problem, base, dy, "fused", grads)
    near(out, y, case)
    compare(case, problem, into, grads)


def test_offsets_beyond_32_bits(device):
    users, width = 2**27 + 2, 16
    plan = plan_on_device(torch.tensor([users - 1, 0], device=device), users)
    told = {"dtype": torch.float16, "device": device}
    a = torch.empty(users, 1, width, **told)  # over 2^31 numbers, two rows of which are ever touched
    a[0], a[-1] = 1.0, 2.0
    x, out = torch.ones(2, width, **told), torch.empty(2, 3, **told)
    problem = problem_of(x, a, torch.ones(1, 3, **told), plan, 1.0, None)
    hidden = triton_backend.forward(problem, None, out)
    assert out.tolist() == [[32.0] * 3, [16.0] * 3]
    dx = torch.empty_like(x)
    triton_backend.backward(problem, out, hidden, Gradients(dx=dx))
    assert dx.tolist() == [[192.0] * width, [48.0] * width]


def test_permuted_tokens_give_permuted_rows(device):
    case = Case(tokens=40)
    problem, _, _ = case.problem(device)
    shuffled = torch.randperm(case.tokens, generator=torch.Generator().manual_seed(5)).to(device)
    plan = plan_batch(problem.plan.ids[shuffled], case.users)
    y, again = (torch.empty(case.tokens, case.d_out, device=device) for _ in range(2))
    triton_backend.forward(problem, None, y)
    triton_backend.forward(dataclasses.replace(problem, x=problem.x[shuffled], plan=plan), None, again)
    torch.testing.assert_close(again, y[shuffled])


def test_the_same_call_gives_the_same_bits(device):
    case = Case(ids="skewed", tokens=100, users=5, d_in=18, d_out=17, core=2)
    problem, base, dy = case.problem(device)
    grads = truth(problem, base, dy)[1]
    (y, first), (again, second) = (run(case, problem, base, dy, "split", grads) for _ in range(2))
    assert torch.equal(y, again)
    assert all(torch.equal(getattr(first, name), getattr(second, name)) for name in grads)


def test_the_operation_is_differentiable(device):
    problem, base, dy = Case(core=1, scale="user", base="apart").problem(device)
    y, grads = truth(problem, base, dy)
    leaves = [t.clone().requires_grad_() for t in (problem.x, problem.a, problem.b, problem.core, problem.scale)]
    x, a, b, core, scale = leaves
    out = batched_lora(x, a, b, problem.plan, scale=scale, core=core, base=base, backend="triton")
    out.backward(dy)
    torch.testing.assert_close(out.double(), y, rtol=1e-5, atol=1e-5)
    for leaf, name in zip(leaves, NAMES, strict=True):
        torch.testing.assert_close(leaf.grad.double(), grads[name], rtol=1e-5, atol=1e-5)


def test_it_says_what_it_refuses(device):
    problem, _, _ = Case(rank=129).problem(device)
    assert triton_backend.unavailable() is None
    assert "rank 129" in triton_backend.refuses(problem)
    problem, _, _ = Case(dtype=torch.bfloat16).problem(device)
    assert ("bfloat16" in (triton_backend.refuses(problem) or "")) == INTERPRETED
    if not INTERPRETED:
        assert "x is on cpu" in triton_backend.refuses(Case().problem("cpu")[0])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available() or INTERPRETED, reason="no CUDA device")
def test_a_captured_graph_follows_the_ids():
    case = Case(tokens=64, users=40, rank=8, d_in=96, d_out=80, base="apart", padded=True)
    problem, base, dy = case.problem("cuda")
    ids, out = problem.plan.ids.clone(), torch.empty_like(dy)
    grads = truth(problem, base, dy)[1]
    into = buffers(case, problem, grads)

    def step():
        now = dataclasses.replace(problem, plan=plan_batch(ids, case.users, check=False))
        triton_backend.backward(now, dy, triton_backend.forward(now, base, out), into)

    step()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for most in (3, case.users):
        ids.copy_(torch.arange(case.tokens, device="cuda") % (most + 1) - 1)
        torch._foreach_mul_([out, into.dx, into.da, into.db], float("nan"))
        graph.replay()
        now = dataclasses.replace(problem, plan=plan_batch(ids, case.users))
        y, grads = truth(now, base, dy)
        near(out, y, case)
        compare(case, now, into, grads)


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter's process")
def test_the_interpreter_agrees():
    told = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    told["TRITON_INTERPRET"] = "1"
    here, command = Path(__file__), [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, cwd=here.parent.parent, env=told, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


COMPILED = {
    "bfloat16": Case(dtype=torch.bfloat16, tokens=512, users=9, rank=16, d_in=256, d_out=128, core=2, base="apart"),
    "float32": Case(tokens=1100, users=3, d_in=133, core=1, scale="user", rows=False, accumulate=True),
}


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("name", COMPILED)
def test_the_compiler_of_a_gpu_takes_every_kernel(name, monkeypatch, hetpref_home):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(hetpref_home / "triton"))
    launches = []
    monkeypatch.setattr(triton_backend, "_kernels", lambda: Recorder(launches))
    problem, base, dy = COMPILED[name].problem("cpu")
    grads = truth(problem, base, dy)[1]
    for launch in ("as chosen", "split"):
        run(COMPILED[name], problem, base, dy, launch, grads)
    assert {kernel for kernel, _ in launches} >= {"adapt", "shrink_part", "reduce_tokens", "sum_pieces"}
    for kernel, arguments in launches:
        assert compiled_for_sm_90(kernel, arguments).asm["cubin"]


class Recorder:
    """Takes the place of the kernels' module, and writes down what is launched."""

    def __init__(self, launches):
        from methods.lowrank import triton_kernels

        self.tl, self._launches = triton_kernels.tl, launches

    def __getattr__(self, kernel):
        launch = lambda **arguments: self._launches.append((kernel, arguments))  # noqa: E731
        return type("Kernel", (), {"__getitem__": lambda self, grid: launch})()


def compiled_for_sm_90(kernel, arguments):
    """Compile one kernel as a launch with these arguments would."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from methods.lowrank import triton_kernels

    function = getattr(triton_kernels, kernel)
    signature, known, aligned = {}, {}, {}
    for place, parameter in enumerate(function.params):
        value = arguments[parameter.name]
        tensor = isinstance(value, torch.Tensor)
        varies = tensor or isinstance(value, float) or parameter.do_not_specialize
        if parameter.is_constexpr or (not varies and value == 1):
            signature[parameter.name], known[parameter.name] = "constexpr", value
            continue
        number = "fp32" if isinstance(value, float) else "i32"
        signature[parameter.name] = "*" + TYPES[value.dtype] if tensor else number
        if tensor or (not varies and value % 16 == 0):
            aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=function, signature=signature, constexprs=known, attrs=aligned)
    options = {name: arguments[name] for name in ("num_warps", "num_stages", "enable_fp_fusion")}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int32: "i32", torch.int64: "i64"}


@needs_triton
@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="there is a device")
def test_it_says_why_it_cannot_be_used(monkeypatch):
    assert "TRITON_INTERPRET=1" in triton_backend.unavailable()
    import triton.language  # noqa: F401

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "after Triton had been imported" in triton_backend.unavailable()
