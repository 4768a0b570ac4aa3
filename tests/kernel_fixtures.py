"""Kernel benchmarks with made times, as pytest-benchmark files hold them."""

import json

INFO = {
    "kernel": "batched-lora",
    "backend": "native",
    "role": "ours",
    "variant": "full",
    "mode": "forward",
    "grad": None,
    "dtype": "float32",
    "tokens": 256,
    "users": 64,
    "active": 60,
    "d_in": 768,
    "d_out": 768,
    "rank": 8,
    "routing": "uniform",
    "flops": 6_291_456,
    "bytes": 4_521_984,
    "floor_s": 1e-4,
    "gemm_flops_per_s": 9.4e10,
    "bandwidth_bytes_per_s": 4.3e10,
    "error": 3.21987e-7,
    "repeatable": True,
    "extra_peak_bytes": 8192,
    "plan_s": 1.5e-5,
    "device": "Some Processor",
    "device_class": "cpu-x86_64",
    "threads": 1,
    "environment": {"python": "3.12.1", "packages": {"torch": "2.13.0"}},
    "source": {"commit": "c" * 40, "dirty": False},
}


def benchmark(median=2e-4, iqr=1e-5, name=None, **changes):
    """Return one row of a file; `changes` are of its extra_info, and the cell is named after its shape."""
    info = {**INFO, **changes}
    shape = f"{info['d_in']}x{info['d_out']}-r{info['rank']}-u{info['users']}-t{info['tokens']}"
    info.setdefault("cell", f"{info['variant']}-{shape}-{info['routing']}-{info['dtype']}")
    stats = {"median": median, "iqr": iqr, "rounds": 7, "mean": median, "data": [median] * 7}
    return {"name": name or f"{info['backend']}-{info['mode']}-{info['cell']}", "stats": stats, "extra_info": info}


def rival(backend, median, **changes):
    return benchmark(median, backend=backend, role="rival", **{"grad": None, "plan_s": None, **changes})


def cell(ours, rivals, **changes):
    """Return the rows of one cell: seconds of ours and of its rivals by backend."""
    return [
        *(benchmark(seconds, backend=name, **changes) for name, seconds in ours.items()),
        *(rival(name, seconds, **changes) for name, seconds in rivals.items()),
    ]


def write_kernels(folder, rows, name="kernels.json"):
    """Write a file under `kernels/` of a results folder; returns its path."""
    path = folder / "kernels" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"version": "5.2.3", "machine_info": {}, "benchmarks": rows}))
    return path


def grid():
    """Return rows over users and tokens, forward and both, with ours, two rivals and an anchor."""
    out = []
    for users in (8, 64, 512):
        for tokens in (256, 4096):
            for mode, grad in (("forward", None), ("both", "rows")):
                least = tokens * 1e-7 * (3 if grad else 1)
                shared = {
                    "users": users,
                    "tokens": tokens,
                    "active": min(users, tokens),
                    "mode": mode,
                    "floor_s": least,
                    "grad": grad,
                }
                out += cell({"native": 2 * least, "torch": 5 * least}, {"loop": users * least}, **shared)
                out += [rival("gather-bmm", 6 * least, **shared)]
                out += [
                    benchmark(least, role="anchor", backend="base-gemm", error=None, **shared),
                ]
    return out
