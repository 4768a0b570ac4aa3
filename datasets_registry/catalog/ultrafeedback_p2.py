"""UltraFeedback-P-2: two aspects of GPT-4's ratings as people, on pairs on which they disagree."""

from __future__ import annotations

from datasets_registry.catalog import _ultrafeedback
from datasets_registry.registry import Pieces, dataset

PEOPLE = ("helpfulness", "honesty")
CARD = _ultrafeedback.card(
    name="ultrafeedback-p2@1",
    title="UltraFeedback, two aspects as people",
    population="2 simulated people, each an aspect of GPT-4's ratings: helpfulness and honesty",
    aspects=PEOPLE,
)


@dataset(CARD)
def load() -> Pieces:
    """Read the pairs on which the aspects disagree; no tabular attributes."""
    return _ultrafeedback.pieces(PEOPLE)
