"""TL;DR, all workers: everybody who compared summaries of Reddit posts in the hub's training split."""

from __future__ import annotations

import numpy as np

from datasets_registry.catalog import _tldr
from datasets_registry.records import Card
from datasets_registry.registry import Pieces, dataset

CARD = Card(
    name="tldr-workers@1",
    title="TL;DR summaries, all workers",
    population="53 paid contractors of OpenAI who compared summaries of Reddit posts (2019-2020): those of the "
    "training split, with what they said in the validation split",
    licence=_tldr.LICENCE,
    consent=_tldr.CONSENT,
    source=f"huggingface.co/datasets/{_tldr.SOURCE.repository}, config {_tldr.SOURCE.config}",
    revision=_tldr.SOURCE.revision,
    sha256=_tldr.SOURCE.pin,
    citation=_tldr.CITATION,
    encoder="minilm-l6@1",
    notes=f"{_tldr.REVISION_NOTE} The hub's two splits are joined, and split anew by post as all datasets here are: "
    "about 4.5 pairs are judged per post, often by several workers, and a post in two splits would leak. Who judged in "
    "the validation split only is left out, so that people are those whom training data are published of. People "
    "differ in how much they said by a factor of a hundred and more. A unit is a post (with title and subreddit), and "
    "so is a cluster, whatever its case and blanks. Pairs with an empty summary, or of equal ones, are dropped. Not to "
    "be confused with tldr-top5 (five of these workers) and tldr-length-synthetic (nobody).",
    people=53,
)


@dataset(CARD)
def load() -> Pieces:
    """Read the comparisons of everybody in the training split; no tabular attributes."""
    import pyarrow as pa

    train, validation = _tldr.judgements("train"), _tldr.judgements("validation")
    known = np.isin(validation.worker, np.unique(train.worker))
    return _tldr.pieces(pa.concat_tables([train.table, validation.table.filter(pa.array(known))]))
