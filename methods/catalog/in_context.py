"""In-context likelihood: a language model reads what a person said, and then how likely each answer is.

    r_u(x) = log p(x | h_u, q) [- log p(x | q)] [/ number of tokens of x]

h_u is the person's history as text, q the question. Without options it is the model's own preference among answers,
moved by the history; `reference` subtracts what the model says without the history, so that only what the history moved
is left; `per_token` divides by the answer's tokens, since longer answers are less likely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datasets_registry.records import Comparisons, Float32, Float64
from methods.interface import MethodSpec, UserState
from methods.limits import FLAG, Limits
from methods.prompt.method import Array, PromptMethod
from methods.registry import register

NOBODY = UserState({"told": np.zeros(0, np.uint8)})


@register
@dataclass(kw_only=True, eq=False, repr=False)
class InContext(PromptMethod):
    """Options: `reference` subtracts the likelihood without history, `per_token` divides by the answer's tokens."""

    reference: bool = False
    per_token: bool = False

    spec = MethodSpec(
        name="in-context",
        title="In-context likelihood",
        level="prompt",
        adaptation="in-context",
        citation="few-shot prompting: Brown et al. 2020, arXiv 2005.14165; the ratio as in DPO, arXiv 2305.18290",
        equation="r_u(x) = log p(x | h_u, q) [- log p(x | q)] [/ tokens of x]",
        shared_parameters="0 trained",
        per_user_parameters="the history's text",
        cold_start="the language model's own likelihood; with reference=true, 0",
        deviations="nothing is trained; a history beyond history_tokens loses its oldest comparisons, and is counted",
        needs=frozenset(),
    )

    def limits(self) -> Limits:
        """Return by option what is allowed."""
        return {**super().limits(), "reference": FLAG, "per_token": FLAG}

    def margins(self, states: Sequence[UserState], queries: Comparisons) -> Float32:
        """Return r_u(first) - r_u(second), float32 [n]."""
        both = np.concatenate([queries.first, queries.second])
        values = self.utilities(states, np.concatenate([queries.user, queries.user]), both)
        return (values[: len(queries)] - values[len(queries) :]).astype(np.float32)

    def rewards(self, states: Sequence[UserState], users: Array, items: Array) -> Float32 | None:
        """Return r_u(item), float32 [n]."""
        return self.utilities(states, np.asarray(users), np.asarray(items)).astype(np.float32)

    def utilities(self, states: Sequence[UserState], users: Array, items: Array) -> Float64:
        """Return r_u(item), float64 [n]."""
        values = self.likelihoods(states, users, items)
        if self.reference:
            values = values - self.likelihoods([NOBODY], np.zeros_like(users), items)
        if self.per_token:
            lengths = {i: self.model.count(self.world.items.response[i].strip()) for i in set(items.tolist())}
            values = values / np.array([max(lengths[i], 1) for i in items.tolist()])
        return values
