"""In-context judge: a language model is shown what a person said and two answers, and names the one they prefer.

    s_u(x, x') = (d(x, x') - d(x', x)) / 2,   d(a, b) = log p("A" | h_u, q, a, b) - log p("B" | h_u, q, a, b)

a is shown as answer A, b as answer B. Both orders are asked, always: a judge that prefers a letter or a place prefers
no answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datasets_registry.records import Comparisons, Float32
from methods.interface import MethodSpec, UserState
from methods.prompt.method import PromptMethod
from methods.registry import register


@register
@dataclass(kw_only=True, eq=False, repr=False)
class InContextJudge(PromptMethod):
    """A judge with the person's history in its prompt."""

    spec = MethodSpec(
        name="in-context-judge",
        title="In-context judge, both orders",
        level="prompt",
        adaptation="in-context",
        citation="LLM as a judge: Zheng et al. 2023, arXiv 2306.05685; Dong et al. 2024, arXiv 2406.11657",
        equation='s_u(x, x\') = (d(x, x\') - d(x\', x)) / 2, d(a, b) = log p("A" | h_u, a, b) - log p("B" | h_u, a, b)',
        shared_parameters="0 trained",
        per_user_parameters="the history's text",
        cold_start="the judge without a history",
        deviations="the judge's margin is read from the probabilities of the two letters, not from a sampled verdict",
        needs=frozenset(),
        scoring="pairwise",
    )

    def margins(self, states: Sequence[UserState], queries: Comparisons) -> Float32:
        """Return the judge's margin averaged over both orders, float32 [n]."""
        return self.judged(states, queries)
