"""Comparisons of summaries of Reddit posts, the table that all TL;DR datasets here share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datasets_registry.errors import DataError
from datasets_registry.hub import PARQUET, HubSource, hub_table
from datasets_registry.registry import Pieces
from datasets_registry.text_pairs import TextPairs, Texts, joined

if TYPE_CHECKING:
    import pyarrow as pa

SOURCE = HubSource(
    repository="openai/summarize_from_feedback",
    config="comparisons",
    # The dataset is a script, which current clients do not run: its rows are in the hub's own conversion.
    revision=PARQUET,
    columns=("info.post", "info.title", "info.subreddit", "summaries.text", "choice", "worker"),
    rows={"train": 92_858, "validation": 86_086},
)
LICENCE = (
    "feedback: modified MIT (OpenAI's repository; the hub names none); Reddit posts: CC BY 4.0 (TL;DR corpus, Zenodo "
    "1168855)"
)
CONSENT = (
    "contractors paid by OpenAI, known by random ids; nothing else about them is released. The posts are public ones "
    "of Reddit, whose authors were not asked"
)
CITATION = (
    "Stiennon et al. (2020), Learning to summarize from human feedback, NeurIPS; Völske et al. (2017), TL;DR: Mining "
    "Reddit to learn automatic summarization"
)
PROMPT = "SUBREDDIT: r/{}\nTITLE: {}\nPOST: {}"
RESPONSE = "TL;DR: {}"
REVISION_NOTE = (
    "The revision is the ref of the hub's own conversion to parquet, not a commit: no sha256 of files is pinned, but "
    "columns and row counts (92,858 and 86,086) are checked, and sha256 is that of what is checked. Rows without a "
    "post (news articles, CNN/DM) are left out."
)


@dataclass(frozen=True, slots=True, eq=False)
class Judgements:
    """The rows of one split that judge Reddit posts, in hub order, and who judged: worker, str [n_rows]."""

    table: pa.Table
    worker: NDArray[np.str_]


def judgements(split: str) -> Judgements:
    """Return the comparisons of a split of the hub, without those of news articles (CNN/DM), which have no post."""
    table = hub_table(SOURCE, split)
    table = table.filter(table.flatten()["info.post"].is_valid())
    if table["worker"].null_count:
        raise DataError(f"{SOURCE.repository} {split} has rows without a worker; the loader needs to know who judged")
    return Judgements(table, np.array(table["worker"].to_pylist(), np.str_))


def pieces(table: pa.Table) -> Pieces:
    """Return the dataset of the given rows; people in the order in which they first come.

    A unit is a post (with its title and subreddit); equal posts, whatever their case and blanks, are one cluster. Pairs
    are left out in which a summary is empty or missing, or both are the same text.
    """
    return pairs(table).pieces("worker-")


def pairs(table: pa.Table) -> TextPairs:
    """Return the rows as pairs that can be told apart, the summary that was chosen first, all in the template."""
    texts = summaries(table)
    chosen = _choices(table)
    raw = TextPairs(
        person=Texts.of(table["worker"], f"{SOURCE.repository} worker"),
        prompt=Texts.of(_prompts(table), "prompt"),
        cluster=Texts.of(table.flatten()["info.post"], f"{SOURCE.repository} info.post").named_alike("post"),
        chosen=Texts(texts.values, texts.codes[np.arange(len(chosen)), chosen]),
        rejected=Texts(texts.values, texts.codes[np.arange(len(chosen)), 1 - chosen]),
        label=np.ones(len(chosen)),
    )
    told = raw.told_apart()
    written = texts.each(RESPONSE.format)
    return replace(
        told,
        chosen=replace(written, codes=told.chosen.codes),
        rejected=replace(written, codes=told.rejected.codes),
    )


def summaries(table: pa.Table) -> Texts:
    """Return the two summaries of every row; codes: int64 [n_rows, 2]. Raises DataError where there are not two."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table["summaries"]
    sizes = pc.list_value_length(column).fill_null(0).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
    choice = table["choice"].cast(pa.int64()).fill_null(-1).to_numpy()
    bad = np.flatnonzero((sizes != 2) | (choice < 0) | (choice > 1))
    if len(bad):
        row = table.slice(int(bad[0]), 1).to_pylist()[0]
        raise DataError(
            f"{SOURCE.repository} has a row with {sizes[bad[0]]} summaries and choice {row['choice']!r} (worker "
            f"{row['worker']!r}); expected are 2 summaries, and choice 0 or 1"
        )
    flat = pc.list_flatten(column)  # pyright: ignore[reportAttributeAccessIssue]
    texts = Texts.of(pc.struct_field(flat, "text"), f"{SOURCE.repository} summaries.text")  # pyright: ignore
    return Texts(texts.values, texts.codes.reshape(-1, 2))


def _choices(table: pa.Table) -> NDArray[np.int64]:
    return table["choice"].to_numpy().astype(np.int64)


def _prompts(table: pa.Table) -> pa.Array:
    info = table.flatten()
    subreddit, title = (info[f"info.{name}"].fill_null("") for name in ("subreddit", "title"))
    before = PROMPT.split("{}")
    return joined(before[0], subreddit, before[1], title, before[2], info["info.post"])
