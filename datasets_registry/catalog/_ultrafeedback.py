"""UltraFeedback: four answers to 63,967 instructions, rated by GPT-4 on four aspects, which stand for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from datasets_registry.catalog._rated_aspects import aspect_pairs
from datasets_registry.hub import HubSource, hub_table
from datasets_registry.records import Card, Float64
from datasets_registry.registry import Pieces
from datasets_registry.text_pairs import Texts

if TYPE_CHECKING:
    import pyarrow as pa

ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")
SOURCE = HubSource(
    repository="openbmb/UltraFeedback",
    config="default",
    revision="40b436560ca83a8dba36114c22ab3c66e43f6d5e",
    columns=(
        *("source", "instruction", "completions.response"),
        *(f"completions.annotations.{aspect}.Rating" for aspect in ASPECTS),
    ),
    rows={"train": 63_967},
    files={
        "train": tuple(
            f"{name}.jsonl" for name in ("evol_instruct", "false_qa", "flan", "sharegpt", "truthful_qa", "ultrachat")
        )
    },
)
LICENCE = "MIT (the hub's card); answers are subject to the terms of the models that gave them, ratings to OpenAI's"
CONSENT = "nobody was asked: ratings are GPT-4's. Instructions are those of public datasets"
CITATION = (
    "Cui et al. (2023), UltraFeedback: Boosting Language Models with Scaled AI Feedback, ICML 2024, arXiv 2310.01377; "
    "aspects as people: Poddar et al. (2024), VPL, NeurIPS, arXiv 2408.10075"
)
NOTES = (
    "Kept are pairs of answers on which two of these aspects strictly disagree, and of each aspect those on which its "
    "ratings differ: published code decides ties by a coin before it looks for disagreement, so that part of its "
    "controversial pairs, and of its labels, is noise. All pairs of an instruction's four answers are looked at. "
    "Ratings that are no number (N/A) are no opinion; `overall_score`, which is known to be wrong, is not read. A unit "
    "is an instruction, and so is a cluster, whatever its case and blanks, over all six sources. With so few people, "
    "nobody is unseen in most folds, and intervals over people mean little."
)


def card(name: str, title: str, population: str, aspects: Sequence[str]) -> Card:
    """Return the card of the dataset whose people are the given aspects."""
    return Card(
        name=name,
        title=title,
        population=population,
        licence=LICENCE,
        consent=CONSENT,
        source=f"huggingface.co/datasets/{SOURCE.repository}",
        revision=SOURCE.revision,
        sha256=SOURCE.pin,
        citation=CITATION,
        encoder="minilm-l6@1",
        notes=NOTES,
        people=len(aspects),
    )


def pieces(aspects: Sequence[str]) -> Pieces:
    """Return the dataset whose people are the given aspects."""
    table = hub_table(SOURCE, "train")
    row, response, rating = _completions(table, aspects)
    prompt = Texts.of(table["instruction"], f"{SOURCE.repository} instruction").take(row)
    return aspect_pairs(aspects, prompt, response, rating, controversial=True).pieces()


def _completions(table: pa.Table, aspects: Sequence[str]) -> tuple[np.ndarray, Texts, Float64]:
    """Return of every answer the row of its instruction, its text, and its ratings, float64 [n_answers, n_aspects]."""
    import pyarrow.compute as pc

    column = table["completions"]
    sizes = pc.list_value_length(column).fill_null(0).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
    flat = pc.list_flatten(column)  # pyright: ignore[reportAttributeAccessIssue]

    def leaf(*path: str) -> pa.ChunkedArray:
        return pc.struct_field(flat, list(path))  # pyright: ignore[reportAttributeAccessIssue]

    rating = np.stack([_ratings(leaf("annotations", aspect, "Rating")) for aspect in aspects], axis=1)
    response = Texts.of(leaf("response"), f"{SOURCE.repository} completions.response")
    return np.repeat(np.arange(table.num_rows), sizes), response, rating


def _ratings(column: pa.ChunkedArray) -> Float64:
    """Return ratings as numbers, float64 [n], NaN for what is none."""
    import pyarrow as pa

    texts = Texts.of(column.cast(pa.string()), "rating")
    numbers = [float(text) if text.strip().isdecimal() else np.nan for text in texts.values.to_pylist()]
    return np.array([*numbers, np.nan])[texts.codes]
