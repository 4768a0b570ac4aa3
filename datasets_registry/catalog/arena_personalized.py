"""Chatbot Arena as PersonalRewardBench filtered it: votes of people with at least five of them."""

from __future__ import annotations

from datasets_registry.catalog import _personal_reward_bench as bench
from datasets_registry.hub import PARQUET, HubSource
from datasets_registry.records import Card
from datasets_registry.registry import Pieces, dataset

SOURCE = HubSource(
    repository="MichaelR207/chatbot_arena_personalized_0125",
    config="default",
    revision=PARQUET,
    columns=bench.COLUMNS,
    rows={"train": 305, "validation": 235, "test": 798},
)
CARD = Card(
    name="arena-personalized@1",
    title="Chatbot Arena, PersonalRewardBench",
    population="131 visitors of Chatbot Arena (2023), with the votes that are worth personalising by the authors' "
    "filter",
    licence="as lmsys/chatbot_arena_conversations: prompts CC BY 4.0, model texts CC BY-NC 4.0; this selection itself "
    "names no licence",
    consent="visitors who accepted that their conversations are collected and released; known by hashed ids",
    source=f"huggingface.co/datasets/{SOURCE.repository}",
    revision=SOURCE.revision,
    sha256=SOURCE.pin,
    citation=f"Zheng et al. (2023), Judging LLM-as-a-judge with MT-Bench and Chatbot Arena, NeurIPS; {bench.CITATION}",
    shares=(0.40, 0.10, 0.20, 0.30),
    encoder="minilm-l6@1",
    notes=f"{bench.NOTES} Row counts (305, 235 and 798) are those of the hub's viewer, and checked. The preferred "
    "answer is a list of one message on the hub and the other one a message: rendered as they are, the brackets of the "
    "list give the label away, and a bracket counter is right every time. Only the texts are read.",
    people=131,
)


@dataset(CARD)
def load() -> Pieces:
    """Read the votes; no tabular attributes."""
    return bench.pieces(SOURCE, bench.tables(SOURCE))
