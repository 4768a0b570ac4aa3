"""Ratings by aspect as people: a "person" is one aspect, which prefers the answer that is rated higher on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from datasets_registry.records import Float64
from datasets_registry.text_pairs import TextPairs, Texts, pairs_within


def aspect_pairs(
    aspects: Sequence[str], prompt: Texts, response: Texts, rating: Float64, *, controversial: bool
) -> TextPairs:
    """Return the pairs of answers to one prompt on which an aspect has an opinion: its ratings differ.

    prompt, response: [n_answers]; rating: float64 [n_answers, n_aspects], NaN where there is none. Ties are left out
    before anything else, and never decided by a coin: with `controversial`, only pairs are kept on which two aspects
    *strictly* disagree, and of these aspects only those that have an opinion.
    """
    import pyarrow as pa

    rows = np.flatnonzero((prompt.codes >= 0) & (response.codes >= 0))
    one, other = pairs_within(prompt.codes[rows])
    one, other = rows[one], rows[other]
    ahead = np.nan_to_num(np.sign(rating[one] - rating[other]))  # (pairs, aspects)
    if controversial:
        apart = (ahead > 0).any(axis=1) & (ahead < 0).any(axis=1)
        one, other, ahead = one[apart], other[apart], ahead[apart]
    pair, aspect = np.nonzero(ahead)
    up: NDArray[np.bool_] = ahead[pair, aspect] > 0
    pairs = TextPairs(
        person=Texts(pa.array(list(aspects), pa.large_string()), aspect.astype(np.int64)),
        prompt=prompt.take(one[pair]),
        cluster=prompt.named_alike("prompt").take(one[pair]),
        chosen=response.take(np.where(up, one[pair], other[pair])),
        rejected=response.take(np.where(up, other[pair], one[pair])),
        label=np.ones(len(pair)),
    ).told_apart()
    order = np.argsort(pairs.person.codes, kind="stable")
    return replace(pairs.take(order)).once()
