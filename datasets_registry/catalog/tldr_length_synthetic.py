"""TL;DR with simulated people who like long, or short, summaries: what several papers call "TL;DR"."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from datasets_registry.catalog import _tldr
from datasets_registry.errors import DataError, RequestError
from datasets_registry.protocol import generator
from datasets_registry.records import Card, Truth
from datasets_registry.registry import Pieces, dataset
from datasets_registry.text_pairs import TextPairs, Texts

CARD = Card(
    name="tldr-length-synthetic@1",
    title="TL;DR summaries, simulated taste in length",
    population="simulated people: a majority that prefers the longer, and a minority that prefers the shorter of two "
    "summaries of a Reddit post",
    licence=_tldr.LICENCE,
    consent="nobody was asked: simulated. The posts are public ones of Reddit, whose authors were not asked",
    source=f"huggingface.co/datasets/{_tldr.SOURCE.repository}, config {_tldr.SOURCE.config}, texts only",
    revision=_tldr.SOURCE.revision,
    sha256=_tldr.SOURCE.pin,
    citation=f"{_tldr.CITATION}; the simulation after Li et al. (2024), P-RLHF, arXiv 2402.05133, and Chen et al. "
    "(2024), PAL, arXiv 2406.08469",
    encoder="minilm-l6@1",
    simulated=True,
    notes=f"{_tldr.REVISION_NOTE} What P-RLHF, PAL and CoPL call TL;DR; no worker's judgement is read, and numbers "
    "must not stand beside those of tldr-top5 or tldr-workers. People, sizes and the share of the minority are ours, "
    "as the papers differ. Options: people; units, posts per person; short, the share of people who like short "
    "summaries; seed. There is no noise: length, in characters, is the only attribute, the truth is +1 or -1 on it, "
    "and one feature solves the dataset. Pairs of equal length are left out, as a tie would be a coin. A unit is a "
    "post, and so is a cluster.",
)
LONGEST = 100_000


@dataset(CARD)
def load(*, people: int = 100, units: int = 48, short: float = 0.3, seed: int = 0) -> Pieces:
    """Simulate over the posts of the training split; attributes float32 [items, 1], the characters of the summary."""
    if not (2 <= people <= LONGEST and units >= 1 and 0 <= short <= 1):
        raise RequestError(
            f"people={people}, units={units}, short={short:g} of {CARD.name}; allowed: people 2 to {LONGEST:,}, units "
            "from 1, short from 0 to 1"
        )
    offered = _one_pair_a_post(_tldr.pairs(_tldr.judgements("train").table), seed)
    if len(offered) < units:
        raise DataError(f"units={units} of {CARD.name}, and there are {len(offered)} posts; ask for fewer")
    likes_short = generator(CARD.name, seed, "taste").permutation(people) < round(short * people)
    draw = generator(CARD.name, seed, "posts")
    drawn = np.concatenate([np.sort(draw.choice(len(offered), units, replace=False)) for _ in range(people)])
    said = offered.take(drawn)
    who = np.repeat(np.arange(people), units)
    flip = likes_short[who]
    import pyarrow as pa

    names = pa.array([f"reader-{n:05d}" for n in range(people)], pa.large_string())
    pairs = replace(
        said,
        person=Texts(names, who),
        chosen=replace(said.chosen, codes=np.where(flip, said.rejected.codes, said.chosen.codes)),
        rejected=replace(said.rejected, codes=np.where(flip, said.chosen.codes, said.rejected.codes)),
    )
    pieces = pairs.pieces()
    length = np.array([[len(text)] for text in pieces.items.response], np.float32)
    theta = np.where(likes_short, -1, 1).astype(np.float32)[:, None]
    truth = Truth(theta, np.ones((1, 1), np.float32), theta.mean(axis=0), temperature=1.0, flip=0.0)
    items = replace(pieces.items, attributes=length, attribute_names=("characters",))
    return replace(pieces, items=items, truth=truth)


def _one_pair_a_post(pairs: TextPairs, seed: int) -> TextPairs:
    """Return a pair of unequal length per post, drawn by the seed, the longer summary as the chosen one."""
    length = np.array([len(text) for text in pairs.chosen.values.to_pylist()], np.int64)
    first, second = length[pairs.chosen.codes], length[pairs.rejected.codes]
    longer = replace(
        pairs,
        chosen=replace(pairs.chosen, codes=np.where(first > second, pairs.chosen.codes, pairs.rejected.codes)),
        rejected=replace(pairs.rejected, codes=np.where(first > second, pairs.rejected.codes, pairs.chosen.codes)),
    ).take(np.flatnonzero(first != second))
    order = generator(CARD.name, seed, "pairs").permutation(len(longer))
    # Of the pairs of a cluster the first in a random order: equal posts would be judged twice.
    names = np.array(longer.cluster.values.to_pylist(), np.str_)[longer.cluster.codes]
    _, first_of = np.unique(names[order], return_index=True)
    return longer.take(np.sort(order[first_of]))
