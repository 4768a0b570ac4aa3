"""Soft prompts: vectors in the place of words that stand before a text, everybody's and a person's own.

    individual:  e_u = e_0 + o_u                e_u, e_0 and o_u [tokens, width]
    cluster:     e_u = softmax(w_u)^T E,        E [clusters, tokens, width], w_u [clusters];  e_0 = softmax(w_0)^T E

e_0 is the prompt of somebody of whom nothing is known. Source: the user models of P-RLHF (arXiv 2402.05133).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PROMPT = "prompt"
# The prompts' parts: e_0 or E, w_0, and a person's o_u or w_u.
TOKENS, GENERIC, OWN = f"{PROMPT}/tokens", f"{PROMPT}/generic", f"{PROMPT}/own"


@dataclass(frozen=True, slots=True)
class SoftPrompt:
    """How many soft tokens a prompt has, and of how many prompts it is a mixture; `clusters` None: of none."""

    tokens: int
    clusters: int | None = None

    def shared_shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of e_0, or of E and w_0, for embeddings of this width."""
        if self.clusters is None:
            return {TOKENS: (self.tokens, width)}
        return {TOKENS: (self.clusters, self.tokens, width), GENERIC: (self.clusters,)}

    def own_shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of o_u, or of w_u."""
        return {OWN: (self.tokens, width) if self.clusters is None else (self.clusters,)}

    def generic_row(self, shared: Mapping[str, Tensor]) -> Tensor:
        """Return the own part of somebody of whom nothing is known, flat: zeros, or w_0."""
        if self.clusters is None:
            return shared[TOKENS].new_zeros(shared[TOKENS].numel())
        return shared[GENERIC].detach()

    def bound(self, factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the factors with the prompts [n, tokens, width] under `PROMPT` in the place of their parts.

        Each person has one, or without own parts there is e_0 alone.
        """
        tokens, own = factors[TOKENS], factors.get(OWN)
        if self.clusters is None:
            prompts = tokens[None] if own is None else tokens + own
        else:
            weights = factors[GENERIC][None] if own is None else own  # (n, clusters)
            prompts = (weights.softmax(-1) @ tokens.flatten(1)).unflatten(1, tokens.shape[1:])
        others = {name: value for name, value in factors.items() if name not in (TOKENS, GENERIC, OWN)}
        return {**others, PROMPT: prompts}
