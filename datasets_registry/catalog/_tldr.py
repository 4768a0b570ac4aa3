"""Comparisons of summaries of Reddit posts, the table that all TL;DR datasets here share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datasets_registry.errors import DataError
from datasets_registry.hub import PARQUET, HubSource, hub_table
from datasets_registry.records import Comparisons, Items, Users
from datasets_registry.registry import Pieces

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


@dataclass(frozen=True, slots=True, eq=False)
class Judgements:
    """The rows of one split that judge Reddit posts, in hub order, and who judged: worker, str [n_rows]."""

    table: pa.Table
    worker: NDArray[np.str_]


@dataclass(frozen=True, slots=True)
class _Judgement:
    worker: str
    prompt: str
    cluster: str
    chosen: str
    rejected: str


def judgements(split: str) -> Judgements:
    """Return the comparisons of a split of the hub, without those of news articles (CNN/DM), which have no post."""
    table = hub_table(SOURCE, split)
    table = table.filter(table.flatten()["info.post"].is_valid())
    if table["worker"].null_count:
        raise DataError(f"{SOURCE.repository} {split} has rows without a worker; the loader needs to know who judged")
    return Judgements(table, np.array(table["worker"].to_pylist(), np.str_))


def pieces(tables: Sequence[pa.Table]) -> Pieces:
    """Return the dataset of the given rows; people in the order in which they first come.

    A unit is a post (with its title and subreddit); equal posts, whatever their case and blanks, are one cluster. Pairs
    are left out in which a summary is empty or missing, or both are the same text.
    """
    told = [j for table in tables for row in table.to_pylist() if (j := _judgement(row)) is not None]
    people = {worker: n for n, worker in enumerate(dict.fromkeys(j.worker for j in told))}
    # Numbered by their texts, so that the row of an item tells nothing about who preferred it.
    texts = sorted({(j.prompt, response) for j in told for response in (j.chosen, j.rejected)})
    place = {text: n for n, text in enumerate(texts)}
    cluster_of = {j.prompt: j.cluster for j in told}
    units = {prompt: n for n, prompt in enumerate(sorted(cluster_of))}
    clusters = {name: n for n, name in enumerate(sorted(set(cluster_of.values())))}
    return Pieces(
        users=Users(tuple(f"worker-{name}" for name in people)),
        items=Items(tuple(prompt for prompt, _ in texts), tuple(response for _, response in texts)),
        comparisons=Comparisons.of(
            user=[people[j.worker] for j in told],
            unit=[units[j.prompt] for j in told],
            first=[place[j.prompt, j.chosen] for j in told],
            second=[place[j.prompt, j.rejected] for j in told],
            label=np.ones(len(told)),
        ),
        unit_cluster=np.array([clusters[cluster_of[prompt]] for prompt in units], np.int32),
        clusters=tuple(clusters),
    )


def _judgement(row: dict[str, Any]) -> _Judgement | None:
    """Return a row of the hub, read; None where the pair cannot be told apart."""
    info, summaries, choice = row["info"], row["summaries"], row["choice"]
    if len(summaries) != 2 or choice not in (0, 1):
        raise DataError(
            f"{SOURCE.repository} has a row with {len(summaries)} summaries and choice {choice!r} (worker "
            f"{row['worker']!r}); expected are 2 summaries, and choice 0 or 1"
        )
    chosen, rejected = summaries[choice]["text"] or "", summaries[1 - choice]["text"] or ""
    if not chosen.strip() or not rejected.strip() or chosen.strip() == rejected.strip():
        return None
    post = " ".join(info["post"].casefold().split())
    return _Judgement(
        worker=row["worker"],
        prompt=PROMPT.format(info["subreddit"] or "", info["title"] or "", info["post"]),
        cluster=f"post-{hashlib.sha256(post.encode()).hexdigest()[:16]}",
        chosen=RESPONSE.format(chosen),
        rejected=RESPONSE.format(rejected),
    )
