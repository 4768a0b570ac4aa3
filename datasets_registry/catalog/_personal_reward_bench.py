"""PersonalRewardBench: two datasets of pairs that SynthesizeMe filtered to what is worth personalising."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from datasets_registry.catalog import _dialogue
from datasets_registry.hub import HubSource, hub_table
from datasets_registry.registry import Pieces
from datasets_registry.text_pairs import TextPairs, Texts

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS = ("train", "validation", "test")
COLUMNS = ("user_id", "context.role", "context.content", "chosen.content", "rejected.content", "split")
CITATION = "Ryan et al. (2025), SynthesizeMe! Inducing Persona-Guided Prompts for Personalized Reward Models, arXiv "
CITATION += "2506.05598 (PersonalRewardBench)"
NOTES = (
    "The revision is the ref of the hub's own conversion to parquet: the full commit could not be learned, no sha256 "
    "of files is pinned, and sha256 is that of what is checked. The hub's splits are people, its column `split` is "
    "rows of a person; both are joined, and split anew by what a conversation was opened with, so that a later turn, "
    "whose context holds an earlier one, is never in another part than it. A unit is a context, the transcript so far. "
    "Repeated rows are kept once; rows without a context or with an empty, a missing or twice the same answer are "
    "dropped. Pairs were filtered by the authors with language models, towards disagreement: accuracies are low by "
    "selection."
)


def tables(source: HubSource) -> pa.Table:
    """Return the rows of all splits that belong to a part of somebody's data (train, val, test), in hub order."""
    import pyarrow as pa
    import pyarrow.compute as pc

    whole = pa.concat_tables([hub_table(source, split) for split in SPLITS], promote_options="default")
    parts = pa.array(["train", "val", "test"], pa.string())
    return whole.filter(pc.is_in(whole["split"].cast(pa.string()), value_set=parts))  # pyright: ignore


def pieces(source: HubSource, table: pa.Table) -> Pieces:
    """Return the dataset of the given rows."""
    context, first = _dialogue.transcripts(table["context"])
    pairs = TextPairs(
        person=Texts.of(table["user_id"], f"{source.repository} user_id"),
        prompt=Texts.of(context, f"{source.repository} context"),
        cluster=Texts.of(first, f"{source.repository} context.content").named_alike("opening"),
        chosen=Texts.of(_dialogue.only_message(table["chosen"]), f"{source.repository} chosen.content"),
        rejected=Texts.of(_dialogue.only_message(table["rejected"]), f"{source.repository} rejected.content"),
        label=np.ones(table.num_rows),
    )
    return pairs.told_apart().once().pieces()
