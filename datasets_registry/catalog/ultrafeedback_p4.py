"""UltraFeedback-P-4: four aspects of GPT-4's ratings as people, on pairs on which they disagree."""

from __future__ import annotations

from datasets_registry.catalog import _ultrafeedback
from datasets_registry.registry import Pieces, dataset

PEOPLE = _ultrafeedback.ASPECTS
CARD = _ultrafeedback.card(
    name="ultrafeedback-p4@1",
    title="UltraFeedback, four aspects as people",
    population="4 simulated people, each an aspect of GPT-4's ratings: helpfulness, honesty, instruction "
    "following and truthfulness",
    aspects=PEOPLE,
)


@dataset(CARD)
def load() -> Pieces:
    """Read the pairs on which the aspects disagree; no tabular attributes."""
    return _ultrafeedback.pieces(PEOPLE)
