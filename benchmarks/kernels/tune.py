"""`python -m benchmarks.kernels.tune`: measure the table by which `backend="auto"` and the torch backend choose.

Writes `methods/lowrank/tuning/cpu.json`: for every shape and pass the fastest backend and the fastest way of the torch
backend, with the medians in seconds, each measured in turns on one thread into buffers that are kept.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

from benchmarks.kernels.contenders import Contender, Ready
from benchmarks.kernels.measure import Limits, Measured, take_turns
from benchmarks.kernels.operands import Operands, operands
from benchmarks.kernels.shapes import Cell, seeded
from benchmarks.meters import environment, source
from datasets_registry.atomic_write import write_atomically
from methods.lowrank import available_backends, plan_batch, torch_segments
from methods.lowrank.checks import problem_of
from methods.lowrank.problem import Gradients, Problem

Pass = Literal["forward", "backward"]
_TABLE = Path(torch_segments.__file__).parent / "tuning" / "cpu.json"
_LIMITS = Limits(rounds=40, least=7, least_behind=7, seconds=0.1, longest_s=float("inf"))


def cells() -> list[Cell]:
    """Return the shapes that are measured: the table is looked up by the nearest of them."""
    return [
        Cell(d, d, rank, users, tokens, routing)
        for d in (384, 768, 2048)
        for rank in (4, 8, 16)
        for users in (8, 64, 512, 2048)
        for tokens in (256, 4096)
        for routing in ("uniform", "zipf-1.1")
    ]


def rows_of(cell: Cell, limits: Limits = _LIMITS) -> Iterator[dict[str, Any]]:
    """Yield the rows of a cell: one of the forward and one of the backward pass."""
    given = operands(cell)
    plan = plan_batch(torch.from_numpy(given.ids), cell.users)
    problem = problem_of(given.x, given.a, given.b, plan, 1.0, given.core)
    for mode in ("forward", "backward"):
        seconds = _seconds(problem, given, mode, limits)
        torch_only = {name.removeprefix("torch "): s for name, s in seconds.items() if name.startswith("torch ")}
        # Where nothing was compiled the table does not say that the compiled kernels lose.
        fastest = min(seconds, key=lambda name: seconds[name]).split()[0] if "native" in seconds else None
        yield {
            "kind": problem.kind,
            "tokens": given.tokens,
            "active": given.active,
            "longest": given.longest,
            "d_in": cell.d_in,
            "d_out": cell.d_out,
            "rank": cell.rank,
            "mode": mode,
            "best": {"backend": fastest, "torch_variant": min(torch_only, key=lambda name: torch_only[name])},
            "seconds": {name: float(f"{s:.3g}") for name, s in seconds.items()},
        }


def _seconds(problem: Problem, given: Operands, mode: Pass, limits: Limits) -> dict[str, float]:
    """Return the median seconds of a pass by every way: "torch <variant>", and "native" where it is there."""
    out = torch.empty_like(given.dy)
    da, db = (t.new_empty(given.active, *t.shape[1:]) for t in (given.a, given.b))
    into = Gradients(dx=torch.empty_like(given.x), da=da, db=db)

    def passes(backend: Any, **more: Any) -> Callable[[], Any]:
        hidden = backend.forward(problem, None, out, **more)
        if mode == "forward":
            return lambda: backend.forward(problem, None, out, **more)
        return lambda: backend.backward(problem, given.dy, hidden, into, **more)

    calls = {f"torch {v}": passes(torch_segments, variant=v) for v in torch_segments.variants(problem)}
    if available_backends()["native"] == "ok":
        from methods.lowrank import native

        calls["native"] = passes(native)
    turns = [
        Measured(Contender(name, "ours", lambda given, mode, run=run: Ready(run, None)), Ready(run, None))
        for name, run in calls.items()
    ]
    for each in turns:
        each.ready.run()
    take_turns(turns, limits, random.Random(seeded("kernel tuning", given.cell.name, mode)))
    return {each.contender.name: each.median for each in turns}


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table as JSON with a row per line, so that a changed row is a changed line."""
    where = environment("cpu", threads=1)
    head = {"device": where.device, "device_class": where.device_class, "threads": 1, "dtype": "float32"}
    head |= {"torch": torch.__version__, "commit": source().commit}
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    told = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    return "{\n" + ",\n".join(lines) + f',\n "rows": [\n{told}\n ]\n}}\n'


def tune(
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the table.")] = _TABLE,
    only: Annotated[str, typer.Option(metavar="TEXT", help="Only cells whose name holds this; to try it.")] = "",
) -> None:
    """Measure which backend, and which way of the torch backend, is fastest for every shape; takes minutes.

    Example: python -m benchmarks.kernels.tune --out /tmp/cpu.json
    """
    torch.set_num_threads(1)
    chosen = [cell for cell in cells() if only in cell.name]
    rows: list[dict[str, Any]] = []
    for number, cell in enumerate(chosen, 1):
        for row in rows_of(cell):
            rows.append(row)
            best = row["best"]
            told = f"{best['backend'] or 'native was not measured'}, torch by {best['torch_variant']}"
            print(f"{number}/{len(chosen)} {cell.name} {row['mode']}: {told}", file=sys.stderr, flush=True)
    if not rows:
        raise typer.BadParameter(f"no cell has {only!r} in its name; names are like {cells()[0].name}")
    write_atomically(out, table_of(rows).encode())
    print(out)


if __name__ == "__main__":
    typer.run(tune)
