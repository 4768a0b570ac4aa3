"""What happens inside a cell's process: fit, adapt, margins and the wrong-user control, over arrays without labels.

The process is handed the labels that a method may see and nothing else: no dataset object, no query label. It answers
with arrays and numbers as safetensors and JSON, never pickle. A question that the method is unable to answer is left
out with the reason, and the others are answered.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.meters import Clock, MemoryMeter, peak_device_bytes
from datasets_registry.errors import MethodError, UnableError, printable
from datasets_registry.records import Comparisons, Float32, Int32, Items, Truth
from methods.interface import Array, Budget, Histories, Method, UserState, World

_SWAPPED_SAMPLE = 64
_REASON_CHARACTERS = 2000


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """One measurement to make: whose histories, which queries (labels hidden), and whose state is the wrong one.

    users: int32 [n] rows of the dataset; history, queries: `user` is the dataset's row; wrong: int32 [n] positions.
    """

    title: str
    users: Int32
    history: Comparisons
    queries: Comparisons
    wrong: Int32 | None


@dataclass(frozen=True, slots=True, eq=False)
class Payload:
    """Everything that a cell's process gets."""

    method: type[Method]
    config: dict[str, Any]
    budget: Budget
    dataset: str
    items: Items
    n_users: int
    encoder: str
    features: Path | None
    user_metadata: dict[str, tuple[str, ...]] | None
    truth: Truth | None
    train: Comparisons
    val: Comparisons
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What a cell's process gives back: margin columns by name, costs, and how many texts the method cut.

    `skipped` tells by the title of a question why the method is unable to answer it; it has no columns then.
    """

    arrays: dict[str, Array]
    cost: dict[str, float | int | None]
    truncated: int = 0
    skipped: dict[str, str] = field(default_factory=dict[str, str])

    def pack(self) -> tuple[bytes, bytes]:
        """Return the answer as a safetensors blob and a JSON blob."""
        from safetensors.numpy import save

        told = {"cost": self.cost, "truncated": self.truncated, "skipped": self.skipped}
        return save({k: np.asarray(v, order="C") for k, v in self.arrays.items()}), json.dumps(told).encode()

    @classmethod
    def unpack(cls, arrays: bytes, told: bytes) -> Answer:
        """Read what `pack` wrote."""
        from safetensors.numpy import load

        # safetensors hands arrays back in any order; files written from them must not depend on it
        return cls(dict(sorted(load(arrays).items())), **json.loads(told))


def answer(payload: Payload) -> Answer:
    """Run one cell: fit once, then answer every question with it.

    Raises UnableError when `fit` does, or when the method can answer no question, for one reason.
    """
    seed_everything(payload.budget.seed)
    memory, clock = MemoryMeter(), Clock(payload.budget.device)
    world = world_of(payload)
    method = payload.method(**payload.config)
    with clock.measure("fit"):
        method.fit(payload.train, payload.val, world, payload.budget)
    arrays: dict[str, Array] = {}
    skipped: dict[str, str] = {}
    states: list[UserState] = []
    asked = adapted = 0
    for question in payload.questions:
        taken = Clock(payload.budget.device)
        try:
            states, columns = _answered(method, question, payload.budget, taken)
        except UnableError as why:
            skipped[question.title] = reason(why)
            continue
        arrays |= columns
        for name, seconds in taken.seconds.items():
            clock.seconds[name] = clock.seconds.get(name, 0.0) + seconds
        asked += len(question.queries)
        adapted += len(question.users)
    if not arrays and len(set(skipped.values())) == 1:
        raise UnableError(next(iter(skipped.values())))
    cost: dict[str, float | int | None] = {
        "fit_s": clock.seconds["fit"],
        "adapt_s_per_user": clock.seconds.get("adapt", 0.0) / max(adapted, 1),
        "comparisons_per_s": asked / max(clock.seconds.get("margins", 0.0), 1e-9),
        "train_comparisons_per_s": _per_second(method, clock.seconds["fit"]),
        "trained_params": int(method.n_trained),
        "params_per_user": _mean([s.n_parameters for s in states]),
        "state_bytes_per_user": _mean([s.nbytes for s in states]),
        "peak_device_bytes": peak_device_bytes(payload.budget.device),
        "peak_rss_delta_bytes": memory.peak_delta(),
    }
    return Answer(arrays, cost, int(method.truncated), skipped)


def reason(why: UnableError) -> str:
    """Return what a method says of why it is unable, as a record can hold it."""
    return printable(str(why).strip())[:_REASON_CHARACTERS] or "the method raised UnableError and did not say why"


def _answered(
    method: Method, question: Question, budget: Budget, clock: Clock
) -> tuple[list[UserState], dict[str, Array]]:
    """Return the states of a question's people and its margin columns by name."""
    histories = Histories.group(question.history, question.users)
    with clock.measure("adapt"):
        states = method.adapt([int(u) for u in question.users], histories, budget)
    _check_states(states, len(question.users), question.title)
    queries = _positioned(question.queries, question.users)
    with clock.measure("margins"):
        columns = {f"{question.title}/margin": _margins(method, states, queries, question.title)}
    if question.wrong is not None:
        others = [states[int(at)] for at in question.wrong]
        columns[f"{question.title}/wrong_user"] = _margins(method, others, queries, question.title)
    return states, columns


def world_of(payload: Payload) -> World:
    """Return what the method of a payload may look at, the features being memory-mapped."""
    needs = payload.method.spec.needs
    features = None
    if "features" in needs and payload.features is not None:
        features = np.load(payload.features, mmap_mode="r", allow_pickle=False)
    return World(
        dataset=payload.dataset,
        items=payload.items,
        n_users=payload.n_users,
        features=features,
        encoder=payload.encoder if features is not None or "backbone" in needs else None,
        user_metadata=payload.user_metadata,
        truth=payload.truth,
    )


def _positioned(queries: Comparisons, users: Int32) -> Comparisons:
    """Return the queries with `user` as the position of the person in `users`."""
    place = np.full(int(max(users.max(initial=-1), queries.user.max(initial=-1))) + 1, -1, np.int32)
    place[users] = np.arange(len(users), dtype=np.int32)
    return queries.for_users(place[queries.user])


def _margins(method: Method, states: list[UserState], queries: Comparisons, title: str) -> Float32:
    margins = _checked(method.margins(states, queries), len(queries), title)
    if method.spec.scoring == "pairwise" or not _antisymmetric(method, states, queries, margins, title):
        margins = (margins - _checked(method.margins(states, queries.swapped()), len(queries), title)) / 2
    return margins.astype(np.float32)


def _antisymmetric(
    method: Method, states: list[UserState], queries: Comparisons, margins: Float32, title: str
) -> bool:
    """Return whether a few swapped queries have negated margins: a preference for a position is none for an item."""
    few = queries.take(slice(0, _SWAPPED_SAMPLE))
    swapped = _checked(method.margins(states, few.swapped()), len(few), title)
    allowed = 1e-3 * float(np.abs(margins).max(initial=0.0))
    return bool((np.abs(swapped + margins[:_SWAPPED_SAMPLE]) <= allowed).all())


def _checked(margins: Any, n: int, title: str) -> Float32:
    try:
        array = np.asarray(margins, dtype=np.float32)
    except (TypeError, ValueError) as why:
        raise MethodError(f"{title}: margins are not numbers ({type(margins).__name__}: {why})") from why
    if array.shape != (n,):
        raise MethodError(f"{title}: margins have shape {array.shape}, expected ({n},): one per query")
    if not np.isfinite(array).all():
        raise MethodError(f"{title}: {int((~np.isfinite(array)).sum())} of {n} margins are NaN or infinite")
    return array


def _check_states(states: Any, n: int, title: str) -> None:
    if not isinstance(states, list) or len(states) != n or not all(isinstance(s, UserState) for s in states):
        got = f"{len(states)} entries" if isinstance(states, list) else type(states).__name__
        raise MethodError(f"{title}: adapt returned {got}, expected a list of {n} UserState, one per person asked for")


def seed_everything(seed: int) -> None:
    """Seed the generators that a method might draw from besides its own."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _per_second(method: Method, seconds: float) -> float | None:
    """Return how many comparisons a second `fit` learned from, where the method tells how many; a pass counts anew."""
    told = method.comparisons_trained
    if told is None:
        return None
    if isinstance(told, bool) or not isinstance(told, int | np.integer) or told < 0:
        raise MethodError(f"comparisons_trained is {told!r:.80}; it must be a count of comparisons, or None")
    return int(told) / max(seconds, 1e-9)


def _mean(values: list[int]) -> float:
    return float(np.mean(values)) if values else 0.0
