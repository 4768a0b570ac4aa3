"""TL;DR, top five: the workers with most training comparisons of summaries, as personal reward models are tried on."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from datasets_registry.catalog import _tldr
from datasets_registry.errors import DataError, RequestError
from datasets_registry.records import Card
from datasets_registry.registry import Pieces, dataset

PEOPLE = 5
TRAIN_PAIRS, VALIDATION_PAIRS = 5_373, 1_238
CUT_SEED = 42
CARD = Card(
    name="tldr-top5@1",
    title="TL;DR summaries, five workers",
    population="the 5 paid contractors of OpenAI who compared most pairs of summaries of Reddit posts (2019-2020): "
    "5,373 training and up to 1,238 validation pairs each",
    licence=_tldr.LICENCE,
    consent=_tldr.CONSENT,
    source=f"huggingface.co/datasets/{_tldr.SOURCE.repository}, config {_tldr.SOURCE.config}",
    revision=_tldr.SOURCE.revision,
    sha256=_tldr.SOURCE.pin,
    citation=f"{_tldr.CITATION}; the cut: Park et al. (2024), arXiv 2405.00254, and Liu et al. (2025), P-ShareLoRA, "
    "arXiv 2503.19201",
    # A fifth is asked, as in the paper; the little that validation and support take is 190 pairs a person.
    shares=(0.75, 0.03, 0.03, 0.19),
    encoder="smollm2-135m@1",
    notes=f"{_tldr.REVISION_NOTE} The cut is a permutation of a worker's rows in hub order, seed 42, as "
    "in the P-ShareLoRA code, which publishes no ids: of the training rows it is theirs; of the validation rows it "
    "cannot be, as theirs have the news articles among them, under the post None. The hub's two splits are joined, and "
    "split anew by post as all datasets here are, so that a number is not the paper's. A unit is a post, and so is a "
    "cluster; workers share posts. Pairs with an empty summary, or of equal ones, are dropped. Prompt and response "
    "together are the paper's text. The summary ends it, and is lost where an encoder cuts posts at 256 tokens.",
    people=PEOPLE,
)


@dataset(CARD)
def load(*, pairs: int = 0) -> Pieces:
    """Read the comparisons of the five workers; no tabular attributes.

    `pairs`: training pairs per worker, validation pairs in proportion, for small machines; nested; 0 is the paper's.
    """
    import pyarrow as pa

    if not 0 <= pairs <= TRAIN_PAIRS:
        raise RequestError(f"pairs={pairs} of {CARD.name}; allowed: 1 to {TRAIN_PAIRS}, or 0 for {TRAIN_PAIRS}")
    n_train = pairs or TRAIN_PAIRS
    n_validation = max(1, round(n_train * VALIDATION_PAIRS / TRAIN_PAIRS))
    train, validation = _tldr.judgements("train"), _tldr.judgements("validation")
    # Of equal counts, the worker who comes first on the hub.
    most = Counter(train.worker.tolist()).most_common(PEOPLE)
    if len(most) < PEOPLE or most[-1][1] < n_train:
        told = ", ".join(f"{n:,}" for _, n in most)
        raise DataError(
            f"{PEOPLE} workers with {n_train:,} training pairs each are needed, and the {len(most)} with most have "
            f"{told or 'none'}: the table at hand is a part of the hub's. Use the whole table, or fewer pairs, for "
            f"example tldr-top5@1+pairs={most[-1][1] if most else 1}"
        )
    parts = [
        split.table.take(_cut(split.worker == worker, n))
        for worker, _ in most
        for split, n in ((train, n_train), (validation, n_validation))
    ]
    return _tldr.pieces(pa.concat_tables(parts))


def _cut(own: npt.NDArray[np.bool_], n: int) -> npt.NDArray[np.int64]:
    """Return at most `n` rows of one worker, drawn by the published code's permutation, in hub order."""
    rows = np.flatnonzero(own)
    return np.sort(rows[np.random.default_rng(CUT_SEED).permutation(len(rows))[:n]])
