"""What prompt methods share: a language model, a history written within a budget of tokens, and what a state is.

A person's state is the text that stands before every question about them. Nothing is learned from other people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets_registry.records import Comparisons, Float32, Float64
from methods.interface import Budget, Histories, Method, UserState, World
from methods.limits import Limits, must_hold, one_of, whole
from methods.prompt.language_models import Asked, LanguageModel, must_be_a_language_model, open_language_model
from methods.prompt.rendering import HistoryBudget, Keep, Scribe

Array = NDArray[Any]
A, B = " A", " B"


@dataclass(kw_only=True, eq=False, repr=False)
class PromptMethod(Method):
    """A language model that is told what a person said.

    lm: its name (`language_models`). history_tokens: the most tokens of a history; comparisons beyond it are left out
    whole. keep: which end of the history stays. response_tokens: an answer that is told in a history is cut to so many.
    """

    lm: str = "smollm2-135m@1"
    history_tokens: int = 512
    response_tokens: int = 128
    keep: Keep = "newest"

    _device: str = field(init=False, default="cpu")
    _model: LanguageModel | None = field(init=False, default=None)
    _scribe: Scribe | None = field(init=False, default=None)

    def limits(self) -> Limits:
        """Return by option what is allowed; a method adds its own."""
        return {
            "history_tokens": whole(0),
            "response_tokens": whole(4),
            "keep": one_of("newest", "oldest"),
        }

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Open the language model; nothing is trained."""
        must_hold(self, self.limits())
        must_be_a_language_model(self.lm)
        self.world = world
        self._device = budget.device
        self._model = self._scribe = None
        _ = self.model

    @property
    def model(self) -> LanguageModel:
        """Return the language model, opened when it is first asked for."""
        if self._model is None:
            self._model = open_language_model(self.lm, self._device)
        return self._model

    @property
    def scribe(self) -> Scribe:
        """Return what writes histories and questions."""
        if self._scribe is None:
            budget = HistoryBudget(self.history_tokens, self.response_tokens, self.keep)
            self._scribe = Scribe(self.world.items, self.model.count, budget)
        return self._scribe

    def adapt(self, users: Sequence[int], history: Sequence[Comparisons], budget: Budget) -> list[UserState]:
        """Return what is told of each person, as UTF-8 bytes; who said nothing has the empty text."""
        told = self.told([self.scribe.history(said) for said in Histories.of(history)])
        return [UserState({"told": np.frombuffer(text.encode(), np.uint8)}) for text in told]

    def told(self, histories: list[str]) -> list[str]:
        """Return what stands before the questions about each person, of the written histories."""
        return histories

    @property
    def n_trained(self) -> int:
        """Return 0: nothing is trained."""
        return 0

    @property
    def truncated(self) -> int:
        """Return how many texts were cut: histories, answers in histories, and questions beyond the model's window."""
        return (len(self._scribe.shortened) if self._scribe else 0) + (self._model.truncated if self._model else 0)

    def likelihoods(self, states: Sequence[UserState], users: Array, items: Array) -> Float64:
        """Return log P(answer | told, question) of items, in nats, float64 [n]."""
        told = [text_of(state) for state in states]
        return self.model.loglikelihoods(
            [
                Asked(told[u] + self.scribe.question(i), f" {self.world.items.response[i].strip()}", told[u])
                for u, i in zip(users.tolist(), items.tolist(), strict=True)
            ]
        )

    def judged(self, states: Sequence[UserState], queries: Comparisons) -> Float32:
        """Return log P("A") - log P("B") with `first` shown as A, averaged with its negative as B, float32 [n]."""
        told = [text_of(state) for state in states]

        def asked(first: Array, second: Array) -> list[Asked]:
            out: list[Asked] = []
            for u, a, b in zip(queries.user.tolist(), first.tolist(), second.tolist(), strict=True):
                context = told[u] + self.scribe.pair(a, b)
                out += [Asked(context, A, told[u]), Asked(context, B, told[u])]
            return out

        both = asked(queries.first, queries.second) + asked(queries.second, queries.first)
        found = self.model.loglikelihoods(both).reshape(2, len(queries), 2)  # order, query, letter
        ahead = found[..., 0] - found[..., 1]
        return ((ahead[0] - ahead[1]) / 2).astype(np.float32)


def text_of(state: UserState) -> str:
    """Return the text that a state holds."""
    return bytes(state.arrays["told"]).decode()
