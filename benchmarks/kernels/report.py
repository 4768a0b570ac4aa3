"""The report of a kernel benchmark: every cell, geometric means against each rival, the worst cell, and the goals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets_registry.errors import DataError

MODE_TITLES = {"forward": "forward", "both": "forward + backward"}
PEFT_CELL = "full-768x768-r8-u512-t4096-uniform-float32"
CORE_CELL = "core-768x768-r8-u512-t4096-uniform-float32"


@dataclass(frozen=True, slots=True)
class Timing:
    """One contender on one cell and mode: seconds, what it is, and all that the benchmark said of it."""

    backend: str
    role: str
    median_s: float
    told: dict[str, Any]

    @property
    def fraction(self) -> float:
        """Return the share of this machine's roofline: the floor over the median."""
        return self.told["floor_s"] / self.median_s


@dataclass(frozen=True, slots=True)
class Result:
    """One cell and mode with the timings by contender."""

    cell: str
    mode: str
    told: dict[str, Any]
    timings: dict[str, Timing]

    @property
    def rivals(self) -> list[Timing]:
        """Return the rivals, the fastest first."""
        return sorted((t for t in self.timings.values() if t.role == "rival"), key=lambda t: t.median_s)

    @property
    def ours(self) -> list[Timing]:
        """Return ours."""
        return [t for t in self.timings.values() if t.role == "ours"]

    def ratio(self, ours: str, rival: str | None = None) -> float | None:
        """Return a rival's time over ours, above 1 where ours is faster; without a name that of the fastest rival."""
        theirs = self.timings.get(rival) if rival else (self.rivals or [None])[0]
        mine = self.timings.get(ours)
        return theirs.median_s / mine.median_s if theirs and mine else None


def read_results(path: Path) -> list[Result]:
    """Return what a benchmark file holds, in its order; raises DataError where it is none."""
    try:
        found: dict[tuple[str, str], Result] = {}
        for each in json.loads(path.read_text(encoding="utf-8"))["benchmarks"]:
            told = each["extra_info"]
            result = found.setdefault((told["cell"], told["mode"]), Result(told["cell"], told["mode"], told, {}))
            name = told["backend"]
            result.timings[name] = Timing(name, told["role"], float(each["stats"]["median"]), told)
    except (OSError, ValueError, KeyError, TypeError) as why:
        raise DataError(f"{path} is no file of the kernel benchmark ({why}); measure again") from why
    return list(found.values())


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean.

    >>> geometric_mean([1.0, 4.0])
    2.0
    """
    logs = [math.log(v) for v in values]
    return math.exp(math.fsum(logs) / len(logs))


def print_report(results: Sequence[Result]) -> None:
    """Print the tables and the goals on stdout."""
    from benchmarks.printing import print_table

    names = list(dict.fromkeys(t.backend for r in results for t in r.ours))
    for mode, title in MODE_TITLES.items():
        shown = [r for r in results if r.mode == mode]
        if not shown:
            continue
        print(f"\n{title}: milliseconds (share of the roofline), and how many times the fastest rival's time is ours")
        print_table(["cell", "floor", *names, "fastest rival", *(f"x {n}" for n in names)], _rows(shown, names))
        print(f"\n{title}: geometric means of rivals' times over ours")
        print_table(["against", "cells", *names], _means(shown, names))
    for name, reasons in _left_out(results).items():
        print(f"left out: {name} in {len(reasons)} of {len(results)}: {reasons[0]}")
    first = results[0].told
    streams = [r.told["bandwidth_bytes_per_s"] / 1e9 for r in results]
    print(
        f"\n{first['device']} ({first['device_class']}), {first['threads']} thread, in the same run: GEMM "
        f"{first['gemm_flops_per_s'] / 1e9:.0f} GFLOP/s, streams {min(streams):.1f} to {max(streams):.1f} GB/s by how "
        "much a cell moves"
    )
    for goal, verdict in goals(results):
        print(f"{verdict}: {goal}")


def _rows(results: Sequence[Result], names: Sequence[str]) -> list[list[str]]:
    out: list[list[str]] = []
    for r in results:
        ours = [_milliseconds(r.timings.get(n)) for n in names]
        ratios = ["-" if (ratio := r.ratio(n)) is None else f"{ratio:.2f}" for n in names]
        best = f"{r.rivals[0].backend} {1e3 * r.rivals[0].median_s:.3g}" if r.rivals else "-"
        floor = min(t.told["floor_s"] for t in r.timings.values())
        out.append([r.cell.removesuffix("-float32"), f"{1e3 * floor:.3g}", *ours, best, *ratios])
    return out


def _milliseconds(timing: Timing | None) -> str:
    return "-" if timing is None else f"{1e3 * timing.median_s:.3g} ({timing.fraction:.0%})"


def _means(results: Sequence[Result], names: Sequence[str]) -> list[list[str]]:
    rivals = sorted({t.backend for r in results for t in r.rivals})
    out: list[list[str]] = []
    for rival in [None, *rivals]:
        means = [_mean_against(results, name, rival) for name in names]
        compared = sum(bool(r.rivals) if rival is None else rival in r.timings for r in results)
        out.append([rival or "the fastest of each cell", str(compared), *means])
    worst: list[str] = []
    for name in names:
        found = [(ratio, r.cell) for r in results if (ratio := r.ratio(name)) is not None]
        ratio, cell = min(found, default=(math.nan, "-"))
        worst.append(f"{ratio:.2f} {cell.removesuffix('-float32')}")
    return [*out, ["worst cell", "", *worst]]


def _mean_against(results: Sequence[Result], ours: str, rival: str | None) -> str:
    ratios = [ratio for r in results if (ratio := r.ratio(ours, rival)) is not None]
    return f"{geometric_mean(ratios):.2f}" if ratios else "-"


def _left_out(results: Sequence[Result]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for r in results:
        for name, reason in r.told["left_out"].items():
            out.setdefault(name, []).append(reason)
    return out


def goals(results: Sequence[Result]) -> list[tuple[str, str]]:
    """Return every goal with what was found, and "met", "missed" or "not measured"."""
    out: list[tuple[str, str]] = []

    def judge(goal: str, values: Sequence[float], of: Callable[[Sequence[float]], float], bound: float) -> None:
        if not values:
            out.append((goal, "not measured"))
            return
        found = of(values)
        met = found <= bound if of is max else found >= bound
        out.append((f"{goal}; found {found:.3g}", "met" if met else "missed"))

    full = [r for r in results if r.told["variant"] == "full"]

    def ratios(ours: str, *modes: str, of: Sequence[Result] = full) -> list[float]:
        return [ratio for r in of if r.mode in modes and (ratio := r.ratio(ours)) is not None]

    def at(cell: str, mode: str, rival: str) -> list[float]:
        found = (r.ratio("native", rival) for r in results if (r.cell, r.mode) == (cell, mode))
        return [ratio for ratio in found if ratio is not None]

    for name, cells in (("every full cell", full), ("every cell", results)):
        found = ratios("torch", "forward", "both", of=cells)
        judge(f"torch at least 1/1.1 of the fastest rival in {name}", found, min, 1 / 1.1)
    judge(
        "native >= 3x the fastest rival, forward, geometric mean of the full cells",
        ratios("native", "forward"),
        geometric_mean,
        3,
    )
    judge(
        "native >= 2.5x, forward + backward, geometric mean of the full cells",
        ratios("native", "both"),
        geometric_mean,
        2.5,
    )
    judge("native in no cell below 1x", ratios("native", "forward", "both", of=results), min, 1)
    kept = [r.timings.get("native (buffers)") for r in full if r.told["tokens"] == 4096]
    judge(
        "native (buffers) >= 50 % of the roofline in every full cell at T=4096",
        [t.fraction for t in kept if t],
        min,
        0.5,
    )
    for rival, name in (("plain loop", "the plain loop"), ("peft", "PEFT itself")):
        judge(f"native >= 18x {name} at 768, r 8, U 512, T 4096, forward", at(PEFT_CELL, "forward", rival), min, 18)
        judge(f"native >= 200x {name} there, forward + backward", at(PEFT_CELL, "both", rival), min, 200)
    judge("native >= 14x the plain loop with a core, forward", at(CORE_CELL, "forward", "plain loop"), min, 14)
    judge("native >= 135x there, forward + backward", at(CORE_CELL, "both", "plain loop"), min, 135)
    judge("native takes at most 2 (T r + active r d) numbers besides results, share", _memory(results), max, 1)
    return out


def _memory(results: Sequence[Result]) -> list[float]:
    """Return by cell what native took besides y and the gradients, over 2 (T r + active r (d_in + d_out)) numbers.

    A page and what the allocator rounds up are not the kernel's: two MiB are let pass.
    """
    out: list[float] = []
    for r in results:
        mine = r.timings.get("native")
        if mine is None or mine.told["extra_peak_bytes"] is None or r.told["variant"] != "full":
            continue
        t = r.told
        width = t["d_in"] + t["d_out"]
        factors = t["active"] * t["rank"] * width
        given = t["tokens"] * width + factors if r.mode == "both" else t["tokens"] * t["d_out"]
        beyond = mine.told["extra_peak_bytes"] - 4 * given - (2 << 20)
        out.append(max(beyond, 0) / (4 * 2 * (t["tokens"] * t["rank"] + factors)))
    return out
