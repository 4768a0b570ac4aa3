"""Persona: the language model first sums a person up in a line, which then stands before the questions about them.

    m_u = greedy(h_u, "In short, this person likes"),   s_u as the judge's or the likelihood's, with m_u for h_u

In the style of SynthesizeMe (arXiv 2506.05598): a persona and the person's newest comparisons as examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from datasets_registry.records import Comparisons, Float32
from methods.interface import Budget, Histories, MethodSpec, UserState
from methods.limits import Limits, one_of, whole
from methods.prompt.method import PromptMethod
from methods.prompt.rendering import OPENING
from methods.registry import register

CUE = "In short, this person likes"


@register
@dataclass(kw_only=True, eq=False, repr=False)
class InContextPersona(PromptMethod):
    """Options: `ask` a judge or for likelihoods; `persona_tokens` of the summary; `examples`: newest comparisons."""

    ask: Literal["judge", "likelihood"] = "judge"
    persona_tokens: int = 48
    examples: int = 2

    spec = MethodSpec(
        name="in-context-persona",
        title="Persona summary, then a judge",
        level="prompt",
        adaptation="in-context",
        citation="in the style of SynthesizeMe, Ryan et al. 2025, arXiv 2506.05598",
        equation="m_u = greedy(h_u, cue); s_u(x, x') as of a judge (or log-likelihoods) with m_u and examples for h_u",
        shared_parameters="0 trained",
        per_user_parameters="a line of text and the newest comparisons",
        cold_start="the model without a persona",
        deviations=(
            "one persona, written greedily in one step: SynthesizeMe reasons about each comparison, keeps what "
            "predicts the person's own held-out ones, and chooses its examples; here they are the newest"
        ),
        needs=frozenset(),
        scoring="pairwise",
    )

    def limits(self) -> Limits:
        """Return by option what is allowed."""
        own = {"ask": one_of("judge", "likelihood"), "persona_tokens": whole(), "examples": whole(0)}
        return {**super().limits(), **own}

    def adapt(self, users: Sequence[int], history: Sequence[Comparisons], budget: Budget) -> list[UserState]:
        """Return each person's persona and newest comparisons, as UTF-8 bytes; who said nothing has the empty text."""
        histories = Histories.of(history)
        whole = [self.scribe.history(said) for said in histories]
        some = [self.scribe.history(said).removeprefix(OPENING) for said in histories.newest(self.examples)]
        spoken = [text for text in whole if text]
        lines = dict(zip(spoken, self.model.written([text + CUE for text in spoken], self.persona_tokens), strict=True))
        told = [f"{CUE} {lines[text]}\n\n{shown}" if text else "" for text, shown in zip(whole, some, strict=True)]
        return [UserState({"told": np.frombuffer(text.encode(), np.uint8)}) for text in told]

    def margins(self, states: Sequence[UserState], queries: Comparisons) -> Float32:
        """Return the margins that the persona's judge, or the likelihoods after it, give, float32 [n]."""
        if self.ask == "judge":
            return self.judged(states, queries)
        first = self.likelihoods(states, queries.user, queries.first)
        return (first - self.likelihoods(states, queries.user, queries.second)).astype(np.float32)
