"""PRISM as PersonalRewardBench filtered it: pairs of people who talked with language models and rated the answers."""

from __future__ import annotations

from datasets_registry.catalog import _personal_reward_bench as bench
from datasets_registry.hub import PARQUET, HubSource
from datasets_registry.records import Card
from datasets_registry.registry import Pieces, dataset

SOURCE = HubSource(
    repository="MichaelR207/prism_personalized_0125",
    config="default",
    revision=PARQUET,
    columns=(*bench.COLUMNS, "chosen_score", "rejected_score"),
)
CARD = Card(
    name="prism-personalized@1",
    title="PRISM, PersonalRewardBench",
    population="723 participants of PRISM (2023), with the pairs that are worth personalising by the authors' filter",
    licence="as PRISM: human texts CC BY 4.0, model texts CC BY-NC 4.0 and their providers' terms; this selection "
    "itself names no licence",
    consent="paid participants who agreed to research use of their conversations; Oxford ethics approval",
    source=f"huggingface.co/datasets/{SOURCE.repository}",
    revision=SOURCE.revision,
    sha256=SOURCE.pin,
    citation=f"Kirk et al. (2024), The PRISM Alignment Dataset, NeurIPS, arXiv 2404.16019; {bench.CITATION}",
    shares=(0.40, 0.10, 0.20, 0.30),
    encoder="minilm-l6@1",
    notes=f"{bench.NOTES} Row counts are not known, and not checked. Pairs of equal scores are dropped: which of the "
    "two was called the chosen one is chance there.",
    people=723,
)


@dataset(CARD)
def load() -> Pieces:
    """Read the pairs; no tabular attributes."""
    import pyarrow.compute as pc

    table = bench.tables(SOURCE)
    differ = pc.greater(table["chosen_score"], table["rejected_score"]).fill_null(False)  # pyright: ignore
    return bench.pieces(SOURCE, table.filter(differ))
