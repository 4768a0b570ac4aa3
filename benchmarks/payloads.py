"""What a cell's process is handed, cut from a dataset: the labels it may see, and queries with their labels hidden."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from benchmarks.cell_process import Answer, Payload, Question
from benchmarks.cells import Cell
from benchmarks.choice_sets import completed
from datasets_registry.protocol import PROTOCOL, Count, Regime, generator, seed_of
from datasets_registry.records import Comparisons, Float32, Int32, PreferenceData, Rows
from datasets_registry.splits import Split
from methods.interface import Array, Budget

Part = Regime | Literal["validation"]


def build_payload(cell: Cell, seconds: float) -> Payload:
    """Return everything that the cell's process gets; no query label is in it."""
    data, spec, split = cell.prepared.data, cell.method.cls.spec, cell.split
    train = data.comparisons.take(split.train(cell.fit.n_train, cell.fit.n_users, cell.fit.imbalance))
    val = data.comparisons.take(asked(cell, "validation").rows)
    if cell.fit.control == "user_shuffle":
        train, val = shuffled(train, *_context(cell), "train"), shuffled(val, *_context(cell), "val")
    questions = [_question(cell, "validation", "validation", train)]
    for task in cell.fit.tasks:
        history = train
        if task.regime != "seen":
            history = data.comparisons.take(split.support(task.n_support or 0, task.regime))
        questions.append(_question(cell, task.title, task.regime, history, wrong=True))
    return Payload(
        method=cell.method.cls,
        config=cell.method.config,
        budget=Budget(
            seed=seed_of(PROTOCOL, data.id, cell.repetition.fold, cell.repetition.repetition),
            device=cell.device,
            seconds=seconds,
        ),
        dataset=data.id,
        items=data.items,
        n_users=len(data.users),
        encoder=cell.prepared.plan.encoder,
        features=cell.prepared.features if "features" in spec.needs else None,
        user_metadata=dict(data.users.metadata) if "user-metadata" in spec.needs else None,
        truth=data.truth if "truth" in spec.needs and cell.method.dist == "hetpref" else None,
        train=train,
        val=val,
        questions=tuple(q for q in questions if len(q.queries)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """The rows of a part of a split, and the table in which they are asked (`choice_sets.completed`)."""

    rows: Rows
    table: Comparisons
    stands: Rows
    sign: Float32


def asked(cell: Cell, part: Part) -> Asked:
    """Return what a cell asks of a part; queries are the same for every budget and method."""
    n_val = cell.fit.n_train if part == "validation" else "all"
    part = "unseen" if part == "known-prompts" else part  # the same people and queries, after another support
    return _asked(cell.prepared.data, cell.split, part, cell.fit.n_users, n_val)


@lru_cache(maxsize=64)
def _asked(data: PreferenceData, split: Split, part: Part, n_users: Count, n_val: Count) -> Asked:
    rows = split.validation(n_users, n_val) if part == "validation" else split.query(part, n_users)
    return Asked(rows, *completed(data.comparisons.take(rows)))


def columns_of(answer: Answer, title: str, cell: Cell, part: Part) -> dict[str, Array]:
    """Return the columns of a margins file: the row of each query and what the cell answered to it."""
    given = asked(cell, part)
    told = {k.removeprefix(f"{title}/"): v for k, v in answer.arrays.items() if k.startswith(f"{title}/")}
    return {"row": given.rows.astype(np.int32), **{k: v[given.stands] * given.sign for k, v in told.items()}}


def shuffled(comparisons: Comparisons, *context: object) -> Comparisons:
    """Return the table with its (user, unit) groups dealt to other people, each keeping the size of their history.

    The control of protocol.md: a method that gains over pooled after this has personalised by something else than what
    people said.
    """
    pairs = np.stack([comparisons.user, comparisons.unit], axis=1)
    groups, member = np.unique(pairs, axis=0, return_inverse=True)
    dealt = generator(*context, "user-shuffle").permutation(groups[:, 0])
    return comparisons.for_users(dealt[member.reshape(-1)])


def _question(cell: Cell, title: str, part: Part, history: Comparisons, *, wrong: bool = False) -> Question:
    queries = asked(cell, part).table
    users = np.unique(queries.user).astype(np.int32)
    return Question(
        title=title,
        users=users,
        history=history.take(np.isin(history.user, users)),
        queries=queries,
        wrong=another_user(len(users), *_context(cell), title) if wrong and len(users) > 1 else None,
    )


def another_user(n: int, *context: object) -> Int32:
    """Return for each of n positions another one, int32 [n]: a seeded cycle through everybody, so nobody keeps theirs.

    >>> bool((another_user(5, "doc") == np.arange(5)).any())
    False
    """
    around = generator(*context, "wrong-user").permutation(n)
    other = np.empty(n, np.int32)
    other[around] = np.roll(around, 1)
    return other


def _context(cell: Cell) -> tuple[Any, ...]:
    return (PROTOCOL, cell.prepared.data.id, cell.repetition.fold, cell.repetition.draw)
