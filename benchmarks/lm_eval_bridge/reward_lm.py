"""A fitted method as a language model of lm-eval: any method of the board is evaluated by its tasks.

A "log-likelihood" is the reward that the method gives an answer for the person whom the document names; the text of the
prompt is not read, since the method was told what the person said by `adapt`. It answers exported tasks only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.cell_process import seed_everything, world_of
from benchmarks.cells import Cell
from benchmarks.payloads import build_payload
from datasets_registry.errors import RequestError
from datasets_registry.records import Comparisons
from methods.interface import Histories, Method, UserState


@dataclass(frozen=True, slots=True, eq=False)
class Adapted:
    """A fitted method, and the states of people by their ids."""

    method: Method
    states: Mapping[str, UserState]


def adapted(cell: Cell, seconds: float = float("inf")) -> Adapted:
    """Fit the method of a cell and adapt it to everybody that the cell's first measurement asks about."""
    payload = build_payload(cell, seconds)
    seed_everything(payload.budget.seed)
    method = payload.method(**payload.config)
    method.fit(payload.train, payload.val, world_of(payload), payload.budget)
    question = next(q for q in payload.questions if q.title == cell.fit.tasks[0].title)
    people = [int(user) for user in question.users]
    states = method.adapt(people, Histories.group(question.history, question.users), payload.budget)
    ids = cell.prepared.data.users.ids
    return Adapted(method, dict(zip((ids[user] for user in people), states, strict=True)))


def reward_lm(fitted: Adapted) -> Any:
    """Return a fitted method as lm-eval's `LM`; raises RequestError where lm-eval is not installed."""
    try:
        from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
    except ImportError as why:
        raise RequestError("lm-eval is not installed: pip install 'hetpref[lm-eval]'") from why

    class RewardLM(Rewards, LM):
        """`Rewards` with the parts of `LM` that the evaluator asks for."""

        def __init__(self) -> None:
            LM.__init__(self)
            Rewards.__init__(self, fitted)

    return RewardLM()


class Rewards:
    """The answers of an `LM`: the log-likelihood of an answer is the reward of `request.doc["user"]`.

    A method without rewards (a pairwise judge) gives half of the margin, averaged over both orders, to `first` and its
    negative to `second`, so that the difference is the margin.
    """

    def __init__(self, fitted: Adapted) -> None:
        self._method = fitted.method
        self._states = fitted.states

    def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """Return (reward, False) per request; raises RequestError for a person without a state."""
        docs = [request.doc for request in requests]
        strange = next((doc.get("user") for doc in docs if doc.get("user") not in self._states), None)
        if strange is not None or any("user" not in doc for doc in docs):
            raise RequestError(
                f"no state of the person {strange!r:.60}; a reward model answers the tasks of `hetpref export lm-eval` "
                "that are of the split and regime that it was adapted in"
            )
        people = list(dict.fromkeys(doc["user"] for doc in docs))
        place = {person: k for k, person in enumerate(people)}
        states = [self._states[person] for person in people]
        user = np.array([place[doc["user"]] for doc in docs], np.int64)
        items = np.array([doc["second_item" if r.idx else "first_item"] for doc, r in zip(docs, requests, strict=True)])
        rewards = self._method.rewards(states, user, items)
        if rewards is None:
            queries = Comparisons.of(
                user=user,
                unit=[doc["unit"] for doc in docs],
                first=[doc["first_item"] for doc in docs],
                second=[doc["second_item"] for doc in docs],
                label=np.full(len(docs), np.nan),
            )
            margins = self._method.margins(states, queries).astype(np.float64)
            margins = (margins - self._method.margins(states, queries.swapped())) / 2
            rewards = np.where([r.idx for r in requests], -margins, margins) / 2
        return [(float(value), False) for value in rewards]

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        """Raise RequestError: a reward model gives no probability of text."""
        raise RequestError("a reward model has no perplexity; give tasks of `hetpref export lm-eval`")

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """Raise RequestError: a reward model writes nothing."""
        raise RequestError("a reward model generates no text; give tasks of `hetpref export lm-eval`")
