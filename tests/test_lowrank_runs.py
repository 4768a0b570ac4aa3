"""How the backends run: the same bits on every run and number of threads, in a forked process, and in what memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lowrank_fixtures import ROUTES, Case, buffers, on, threads
from torch.profiler import ProfilerActivity, profile

from methods.lowrank import available_backends, lora_backward, lora_forward

NATIVE = [route for route in ROUTES if route.startswith("native")]
LONG = {
    "own": Case(tokens=900, users=4, rank=5, d_in=300, d_out=270, routing="zipf", core="matrix", scale="user"),
    "one-user": Case(tokens=700, users=3, rank=8, d_in=64, d_out=530, routing="one-user", core="vector", base=True),
    "shared": Case(tokens=900, users=60, rank=8, d_in=530, d_out=300, shared="ab", core="matrix", routing="half"),
    "past-the-caches": Case(tokens=520, users=150, rank=8, d_in=2048, d_out=2048, routing="uniform"),
    "bfloat16": Case(tokens=700, users=2, rank=8, d_in=64, d_out=530, shared="b", dtype=torch.bfloat16),
}


def both(given, backend, *, accumulate=False):
    """Return y, and the gradients in the order of their names."""
    plan, into = given.plan(), buffers(given, fill=1.0 if accumulate else float("nan"))
    told = {"scale": given.scale, "core": given.core, "base": given.base, "backend": backend}
    y, saved = lora_forward(given.x, given.a, given.b, plan, **told)
    lora_backward(given.dy, saved, plan, **into, accumulate=accumulate)
    return [y, *into.values()]


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("route", NATIVE)
def test_the_number_of_threads_changes_no_bit(route, kind, accumulate):
    given = LONG[kind].draw()
    with on(route) as backend:
        alone = both(given, backend, accumulate=accumulate)
        for number in (2, 3):
            with threads(number):
                assert all(map(torch.equal, both(given, backend, accumulate=accumulate), alone))


@pytest.mark.parametrize("kind", ["own", "shared", "bfloat16"])
@pytest.mark.parametrize("route", [route for route in ROUTES if route != "reference"])
def test_the_same_call_gives_the_same_bits(route, kind):
    given = LONG[kind].draw()
    with on(route) as backend:
        first = both(given, backend)
        assert all(map(torch.equal, both(given, backend), first))
        with threads(2):
            first = both(given, backend)
            for _ in range(3):
                assert all(map(torch.equal, both(given, backend), first))


FORKS = """
import os
import torch
from methods.lowrank import lora_backward, lora_forward, plan_batch

torch.set_num_threads(2)
draw = torch.Generator().manual_seed(0)
x, a, b = (torch.randn(*shape, generator=draw) for shape in ((600, 32), (5, 4, 32), (5, 4, 24)))
plan = plan_batch(torch.randint(-1, 5, (600,), generator=draw), 5)

def bits():
    y, saved = lora_forward(x, a, b, plan, backend="native")
    made = lora_backward(y, saved, plan)
    return b"".join(each.numpy().tobytes() for each in (y, made.dx, made.da, made.db))

before = bits()
children = []
for _ in range(3):
    child = os.fork()
    if not child:
        same = False
        try:
            same = bits() == before
        finally:
            os._exit(0 if same else 1)
    children.append(child)
    assert bits() == before
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
print("forked")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_computes_too():
    if (why := available_backends()["native"]) != "ok":
        pytest.skip(f"native: {why}")
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=60)
    assert done.stdout == "forked\n", done.stderr[-2000:]


def most_held(call):
    """Return the bytes that torch's allocator held at the worst moment of a call, beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as told:
        call()
    held = most = 0
    for event in told.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("kind", ["own", "shared-a", "shared-b", "core"])
@pytest.mark.parametrize("route", [route for route in ROUTES if route != "reference"])
def test_no_row_of_rank_times_width_is_kept_for_a_token(route, kind, rows, monkeypatch):
    monkeypatch.setattr("methods.lowrank.memory.LARGE", 1 << 62)  # the profiler does not see memory that is kept
    kinds = {"own": {}, "shared-a": {"shared": "a"}, "shared-b": {"shared": "b"}, "core": {"core": "matrix"}}
    tokens, users, rank, width = 512, 16, 64, 256
    given = Case(tokens=tokens, users=users, rank=rank, d_in=width, d_out=width, **kinds[kind]).draw()
    with on(route) as backend:
        both(given, backend)
        plan = given.plan()

        def call():
            y, saved = lora_forward(given.x, given.a, given.b, plan, core=given.core, backend=backend)
            return y, lora_backward(given.dy, saved, plan, **({} if rows else buffers(given)))

        most = most_held(call)
    wide, narrow, factors = tokens * width, tokens * rank, users * rank * width
    # y, dx, and copies of x and dy in the order of users; hidden values; gradients, and factors of those present.
    allowed = 4 * (6 * wide + 12 * narrow + 4 * factors + (tokens * rank * rank if kind == "core" else 0))
    assert 4 * wide < most < allowed < 4 * tokens * rank * width


@pytest.mark.parametrize("route", NATIVE)
def test_the_compiled_kernels_keep_no_such_row_out_of_sight(route):
    tokens, users, rank, width = 1024, 8, 64, 512
    given = Case(tokens=tokens, users=users, rank=rank, d_in=width, d_out=width, shared="a").draw()
    status, forget = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def kib(key):
        return int(next(line for line in status.read_text().splitlines() if line.startswith(key)).split()[1])

    with on(route) as backend:
        both(given, backend)
        try:
            forget.write_text("5")  # the highest use so far is from now on the present one
            before = kib("VmHWM:")
        except (OSError, StopIteration):
            pytest.skip("this system does not tell the most memory that a process has used")
        both(given, backend)
        assert (kib("VmHWM:") - before) * 1024 < tokens * rank * width  # a quarter of its bytes
