"""A made dataset in the exact schema of `openai/summarize_from_feedback`, with the traps that the real one has.

Five workers judge every post twice, two more judge few. Every summary names one of three things, and every worker likes
one of them best, so that what a worker prefers can be learned from the text, and pooled over workers only in part.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets_registry import registry
from datasets_registry.catalog._tldr import SOURCE

LIKES = ("budget", "holiday", "kitten")
WORKERS = ("qZ1", "aM2", "xB3", "kT4", "cW5", "eR6", "zD7")
TOP = WORKERS[:5]
NOISE = 0.05
WORDS = (
    *("rent", "boss", "friend", "party", "train", "phone", "lease", "coffee"),
    *("manager", "sister", "ticket", "garden", "window", "doctor", "letter", "music"),
)
SUBREDDITS = ("legaladvice", "relationships", "AskReddit")
POLICIES = ("ref", "sup1", "sup4_ppo_rm3_kl10")
TEXT = pa.string()
SCHEMA = pa.schema(
    [
        ("info", pa.struct([(k, TEXT) for k in ("id", "post", "title", "subreddit", "site", "article")])),
        ("summaries", pa.list_(pa.struct([(k, TEXT) for k in ("text", "policy", "note")]))),
        ("choice", pa.int32()),
        ("worker", TEXT),
        ("batch", TEXT),
        ("split", TEXT),
        ("extra", pa.struct([("confidence", pa.int32())])),
    ]
)
Row = dict[str, Any]


def made_spec(posts: int = 120) -> str:
    """Return the spec that takes all that every one of the five has said of the training posts."""
    return f"tldr-top5@1+pairs={2 * (posts * 3 // 4)}"


def use_made_tldr(folder: Path, patch: pytest.MonkeyPatch, *, posts: int = 120, seed: int = 0) -> str:
    """Write the made dataset as a mirror, look there for everything, and return its spec; loaded data are forgotten."""
    write_tldr(folder, posts=posts, seed=seed)
    patch.setenv("HETPREF_MIRROR", str(folder))
    registry._loaded.cache_clear()
    return made_spec(posts)


def split_path(folder: Path, split: str, suffix: str = "parquet") -> Path:
    """Return where a mirror folder holds a split."""
    return folder / SOURCE.repository / SOURCE.revision / SOURCE.config / f"{split}.{suffix}"


def write_tldr(folder: Path, *, posts: int = 120, seed: int = 0) -> None:
    """Write both splits as parquet into a folder laid out for HETPREF_MIRROR: three quarters of the posts train."""
    for split, rows in made_rows(posts=posts, seed=seed).items():
        path = split_path(folder, split)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)


def made_rows(*, posts: int = 120, seed: int = 0) -> dict[str, list[Row]]:
    """Return the rows of both splits, in a shuffled order as on the hub."""
    rng = np.random.default_rng(seed)
    train = posts * 3 // 4
    told: dict[str, list[Row]] = {"train": [], "validation": []}
    infos = [_post(number, rng) for number in range(posts)]
    for number, info in enumerate(infos):
        split, mark = ("train", "train") if number < train else ("validation", f"valid{1 + number % 2}")
        texts = [_summary(LIKES[k % 3], rng) for k in range(6)]
        for w, worker in enumerate(WORKERS):
            if w >= len(TOP) and number % 3:
                continue
            for first, second in ((0, 1 + w % 2), (4, 5) if w % 2 else (3, 5)):
                told[split].append(_row(info, texts[first], texts[second], worker, mark, rng))
    told["train"] += _traps(infos[0], rng)
    # News articles, most of all by a worker who judged few posts.
    for worker, n in zip(WORKERS, (3, 3, 3, 3, 3, 0, 4 * posts), strict=True):
        for split, mark in (("train", "train"), ("validation", "valid2")):
            news = [(_article(rng), _summary(LIKES[0], rng), _summary(LIKES[1], rng)) for _ in range(n)]
            told[split] += [_row(*each, worker, mark, rng) for each in news]
    return {split: [rows[k] for k in rng.permutation(len(rows))] for split, rows in told.items()}


def _traps(info: Row, rng: np.random.Generator) -> list[Row]:
    """Return pairs that tell nothing, and the post once more, in other case and blanks and under another title."""
    same = _summary(LIKES[0], rng)
    pairs = ((same, same), (same, f"{same} "), (same, " "), (same, None))
    rows = [_row(info, *pair, WORKERS[0], "train", rng) for pair in pairs]
    again = info | {"id": "t3_again", "title": "Again", "post": info["post"].upper().replace(" ", "  ")}
    for worker in TOP:
        rows.append(_row(again, _summary(LIKES[0], rng), _summary(LIKES[2], rng), worker, "train", rng))
    return rows


def _row(info: Row, first: str | None, second: str | None, worker: str, mark: str, rng: np.random.Generator) -> Row:
    likes = [LIKES[(WORKERS.index(worker) + k) % 3] for k in range(3)]
    rank = [next((n for n, word in enumerate(likes) if word in (text or "")), 3) for text in (first, second)]
    choice = int(rank[1] < rank[0]) if rank[0] != rank[1] and rng.random() > NOISE else int(rng.integers(2))
    summaries = [
        {"text": text, "policy": POLICIES[int(rng.integers(3))], "note": None if rng.random() < 0.5 else "Read it."}
        for text in (first, second)
    ]
    confidence = int(rng.integers(1, 10)) if rng.random() < 0.8 else None
    row = {"info": info, "summaries": summaries, "choice": choice, "worker": worker, "batch": "batch3", "split": mark}
    return row | {"extra": {"confidence": confidence}}


def _post(number: int, rng: np.random.Generator) -> Row:
    words = rng.choice(WORDS, 12)
    # The number is in the text, so that no two posts are alike; an id is missing where the hub's is.
    text = f"{' '.join(words[:6])}.\n\nAsked {number} times: {' '.join(words[6:])}?"
    return {
        "id": None if number % 7 == 3 else f"t3_{number:05d}",
        "post": text,
        "title": f"{words[0]} and {words[1]}",
        "subreddit": SUBREDDITS[number % 3],
        "site": None,
        "article": None,
    }


def _article(rng: np.random.Generator) -> Row:
    text = " ".join(rng.choice(WORDS, 20))
    return {"id": "167f80cc", "post": None, "title": "News", "subreddit": None, "site": "dailymail", "article": text}


def _summary(likes: str, rng: np.random.Generator) -> str:
    words = [*rng.choice(WORDS, rng.integers(4, 9)), likes]
    return " " + " ".join(words[k] for k in rng.permutation(len(words))) + "."
