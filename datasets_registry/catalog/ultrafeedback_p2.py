"""UltraFeedback-P-2: two aspects of GPT-4's ratings as people, on pairs on which they disagree."""

from __future__ import annotations

from datasets_registry.catalog import _ultrafeedback
from datasets_registry.records import Card
from datasets_registry.registry import Pieces, dataset

PEOPLE = ("helpfulness", "honesty")
CARD = Card(
    name="ultrafeedback-p2@1",
    title="UltraFeedback, two aspects as people",
    population="2 simulated people, each an aspect of GPT-4's ratings: helpfulness and honesty",
    licence=_ultrafeedback.LICENCE,
    consent=_ultrafeedback.CONSENT,
    source=f"huggingface.co/datasets/{_ultrafeedback.SOURCE.repository}",
    revision=_ultrafeedback.SOURCE.revision,
    sha256=_ultrafeedback.SOURCE.pin,
    citation=_ultrafeedback.CITATION,
    encoder="minilm-l6@1",
    notes=_ultrafeedback.NOTES,
    people=2,
)


@dataset(CARD)
def load() -> Pieces:
    """Read the pairs on which the aspects disagree; no tabular attributes."""
    return _ultrafeedback.pieces(PEOPLE)
