"""Prompt clusters for datasets whose situations hardly repeat: blocks that a whole dataset agrees on.

A split hands whole clusters to train, validation, support and query. Where each person met situations of their own, the
clusters are `n` blocks over which every person's situations are spread evenly, so that people have some in every part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from datasets_registry.protocol import hash_keys, mix
from datasets_registry.records import Int32

_ARTICLE = re.compile(r"^(the|a|an)\s+|,\s*(the|a|an|la|le|les|il|el|das|der|die)\b")


def spread_blocks(name: str, user: NDArray[np.int64], situation: NDArray[np.int64], n: int) -> Int32:
    """Return the block (0..n-1) of every situation, int32 [n_situations].

    user, situation: [n_choices] indices. A person's situations, in a seeded order, take the blocks in turn from a
    seeded start; a situation that several people met keeps the block of the first of them, so that no situation is in
    two blocks.
    """
    people = hash_keys((str(u) for u in range(int(user.max()) + 1)), "block", name)
    key = mix(people[user], situation.astype(np.uint64))
    order = np.lexsort((key, user))
    starts = np.flatnonzero(np.r_[True, np.diff(user[order]) > 0])
    rank = np.empty(len(user), np.int64)
    rank[order] = np.arange(len(user)) - np.repeat(starts, np.diff(np.r_[starts, len(user)]))
    block = ((rank.astype(np.uint64) + people[user] % np.uint64(n)) % np.uint64(n)).astype(np.int32)
    _, first = np.unique(situation, return_index=True)
    return block[first]


def text_blocks(name: str, texts: Iterable[str], n: int) -> Int32:
    """Return the block (0..n-1) of every text by a seeded hash; near duplicates fall into one block.

    Case, punctuation, articles and bracketed remarks are ignored, so that "Postino, Il (1994)" meets "Il Postino".
    """
    keys = hash_keys((near_key(text) for text in texts), "block", name)
    return (keys % np.uint64(n)).astype(np.int32)


def near_key(text: str) -> str:
    """Return what near duplicates of a text have in common.

    >>> near_key("The Ice Storm"), near_key("Ice Storm, The (1997)")
    ('ice storm', 'ice storm')
    """
    plain = re.sub(r"\(.*?\)", " ", text.casefold()).strip()
    plain = _ARTICLE.sub(" ", plain)
    return " ".join(sorted(re.findall(r"\w+", plain))) or text.casefold()
