"""Made tables in the exact schemas of the hub's datasets, with the traps that the real ones have planted in them.

Every answer names one of three things and every person likes one of them best, so that preferences can be learned from
the text, and only in part by pooling. Traps are listed in each maker.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tldr_fixtures import SCHEMA as TLDR
from tldr_fixtures import made_rows as tldr_rows

from datasets_registry.catalog import (
    _personalllm,
    _tldr,
    _ultrafeedback,
    arena_personalized,
    community_alignment,
    helpsteer2_attributes,
    prism,
    prism_personalized,
)
from datasets_registry.hub import HubSource

LIKES = ("budget", "holiday", "kitten")
WORDS = (
    *("rent", "boss", "friend", "party", "train", "phone", "lease", "coffee"),
    *("manager", "sister", "ticket", "garden", "window", "doctor", "letter", "music"),
)
TEXT, WHOLE, NUMBER = pa.string(), pa.int64(), pa.float64()
MESSAGE = pa.struct([("content", TEXT), ("role", TEXT)])
Row = dict[str, Any]


@dataclass(frozen=True)
class Made:
    """A made hub dataset: its source, rows per split, and their schema."""

    source: HubSource
    rows: dict[str, list[Row]]
    schema: pa.Schema

    def tables(self) -> dict[str, pa.Table]:
        return {split: pa.Table.from_pylist(rows, schema=self.schema) for split, rows in self.rows.items()}


def write_mirror(folder: Path, made: Made) -> None:
    """Write every split as parquet into a folder laid out for HETPREF_MIRROR."""
    place = folder / made.source.repository / made.source.revision / made.source.config
    place.mkdir(parents=True, exist_ok=True)
    for split, table in made.tables().items():
        pq.write_table(table, place / f"{split}.parquet")


def hub_files(made: Made) -> dict[str, bytes]:
    """Return the files of the repository at the pinned revision, as they are laid out on the hub."""
    files: dict[str, bytes] = {"README.md": b"# Made\n"}
    for split, table in made.tables().items():
        named = made.source.files.get(split)
        if named is None:
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink)
            files[f"{made.source.config}/{split}/0000.parquet"] = sink.getvalue().to_pybytes()
            continue
        rows = made.rows[split]
        for n, name in enumerate(named):
            part = rows[n * len(rows) // len(named) : (n + 1) * len(rows) // len(named)]
            raw = "".join(json.dumps(row) + "\n" for row in part).encode()
            files[name] = gzip.compress(raw, mtime=0) if name.endswith(".gz") else raw
    return files


def answer(rng: np.random.Generator, likes: int) -> str:
    words = [*rng.choice(WORDS, rng.integers(4, 9)), LIKES[likes % 3]]
    return " ".join(words[k] for k in rng.permutation(len(words))).capitalize() + "."


def question(rng: np.random.Generator, number: int) -> str:
    return f"What of {' '.join(rng.choice(WORDS, 5))}, number {number}?"


def tldr() -> Made:
    """Traps: see tldr_fixtures (news, empty, missing and equal summaries, a post twice)."""
    return Made(_tldr.SOURCE, tldr_rows(posts=100), TLDR)


def rank(person: int, text: str) -> int:
    """Return how much a person likes what a text names, 0 to 2."""
    likes = [LIKES[(person + k) % 3] for k in range(3)]
    return next(2 - n for n, word in enumerate(likes) if word in text.lower())


PRISM = pa.schema(
    [
        *((name, TEXT) for name in ("utterance_id", "interaction_id", "conversation_id", "user_id")),
        *(("turn", WHOLE), ("within_turn_id", WHOLE), ("included_in_balanced_subset", pa.bool_())),
        *((name, TEXT) for name in ("conversation_type", "user_prompt", "model_response", "model_name")),
        *(("model_provider", TEXT), ("score", WHOLE), ("if_chosen", pa.bool_())),
    ]
)


def prism_rows(people: int = 20, conversations: int = 14, seed: int = 0) -> list[Row]:
    """Traps: ties with a random `if_chosen`, a point's difference, equal answers, an empty one, shared openings."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for person in range(people):
        for c in range(conversations):
            # The first conversation of everybody begins alike, but for case and blanks.
            opening = ("Hello  there", "hello there ")[person % 2] if c == 0 else question(rng, person * 100 + c)
            for turn in range(2 + c % 2):
                texts = [answer(rng, k + c) for k in range(4 if turn == 0 else 2)]
                scores = [20 + 30 * rank(person, text) + int(rng.integers(-8, 9)) for text in texts]
                if c % 5 == 1:
                    scores[1] = scores[0]
                if c % 5 == 2:
                    scores[1] = scores[0] + 1
                if c % 7 == 3:
                    texts[1] = f"{texts[0]} "
                if c % 7 == 4:
                    texts[1] = ""
                best = max(range(len(texts)), key=lambda k: (scores[k], rng.random()))
                asked = opening if turn == 0 else f"And then {turn}?"
                for k, text in enumerate(texts):
                    rows.append(
                        {
                            "utterance_id": f"ut{len(rows)}",
                            "interaction_id": f"int{person}-{c}-{turn}",
                            "conversation_id": f"c{person}-{c}",
                            "user_id": f"user{person}",
                            "turn": turn,
                            "within_turn_id": k,
                            "included_in_balanced_subset": True,
                            "conversation_type": "unguided",
                            "user_prompt": asked,
                            "model_response": text,
                            "model_name": "m",
                            "model_provider": "p",
                            "score": scores[k],
                            "if_chosen": k == best,
                        }
                    )
    return rows


def prism_made() -> Made:
    return Made(prism.SOURCE, {"train": prism_rows()}, PRISM)


def prism_with_lists() -> Made:
    """Return PRISM with the published leak: rejected answers are lists rendered as text, chosen ones are texts."""
    rows = [r if r["if_chosen"] else r | {"model_response": str([r["model_response"]])} for r in prism_rows()]
    return Made(prism.SOURCE, {"train": rows}, PRISM)


def _bench_rows(*, chosen_as_list: bool, people: int = 15, seed: int = 1) -> dict[str, list[Row]]:
    """Traps: a context in two splits, a repeated row, equal scores, None as an answer, no context, equal answers."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}

    def said(content: str | None) -> Row:
        return {"content": content, "role": "model"}

    for person in range(people):
        rows: list[Row] = []
        for c in range(14):
            context: list[Row] = [{"content": question(rng, person * 100 + c), "role": "user"}]
            for turn in range(1 + c % 2):
                texts = [answer(rng, k) for k in rng.permutation(3)[:2]]
                texts.sort(key=lambda text: -rank(person, text))
                for part in ("train", "val") if turn else ("train", "val", "test")[c % 3 : c % 3 + 1]:
                    chosen = [said(texts[0])] if chosen_as_list else said(texts[0])
                    row = {"user_id": f"u{person}", "context": list(context), "chosen": chosen, "split": part}
                    rows.append(row | {"rejected": said(texts[1]), "chosen_score": 80.0, "rejected_score": 40.0})
                context += [said(texts[0]), {"content": "And then?", "role": "user"}]
        rows.append(rows[0])
        last = rows[1]
        rows += [last | {"rejected": said(None)}, last | {"context": []}, last | {"split": "unused"}]
        rows += [last | {"rejected": last["chosen"][0] if chosen_as_list else last["chosen"]}]
        rows += [last | {"rejected": said("Never kitten."), "chosen_score": 40.0}]
        found["train" if person < 5 else "validation" if person < 8 else "test"] += rows
    return found


def _bench_schema(chosen: pa.DataType) -> pa.Schema:
    return pa.schema(
        [
            *(("user_id", TEXT), ("dataset", TEXT), ("context", pa.list_(MESSAGE)), ("chosen", chosen)),
            *(("rejected", MESSAGE), ("chosen_score", NUMBER), ("rejected_score", NUMBER), ("split", TEXT)),
        ]
    )


def prism_personalized_made() -> Made:
    rows = _bench_rows(chosen_as_list=False)
    return Made(prism_personalized.SOURCE, rows, _bench_schema(MESSAGE))


def arena_made() -> Made:
    """Trap: the preferred answer is a list of one message, the other one a message."""
    rows = _bench_rows(chosen_as_list=True)
    return Made(arena_personalized.SOURCE, rows, _bench_schema(pa.list_(MESSAGE)))


def personalllm_made(prompts: int = 120, seed: int = 2) -> Made:
    """Traps: equal answers, an empty one, a prompt twice (in other case), a score that is missing."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for p in range(prompts):
        texts = [answer(rng, k) for k in range(8)]
        if p % 10 == 1:
            texts[3] = texts[2]
        if p % 10 == 2:
            texts[4] = " "
        row: Row = {"prompt": question(rng, p), "prompt_id": p, "subset": "made"}
        for n, text in enumerate(texts, start=1):
            row |= {f"response_{n}": text, f"response_{n}_model": "m"}
            for m, model in enumerate(_personalllm.MODELS):
                score = (rank(m, text) if text.strip() else 0) + rng.normal() * 0.3
                row[f"response_{n}_{model}"] = float(score * (1 + m) + 5 * m)
        rows.append(row)
    rows[7][f"response_1_{_personalllm.MODELS[0]}"] = None
    rows.append(rows[5] | {"prompt": rows[5]["prompt"].upper()})
    schema = pa.schema(
        [
            *(("prompt", TEXT), ("prompt_id", WHOLE), ("subset", TEXT)),
            *((f"response_{n}{tail}", TEXT) for n in range(1, 9) for tail in ("", "_model")),
            *((f"response_{n}_{model}", NUMBER) for n in range(1, 9) for model in _personalllm.MODELS),
        ]
    )
    return Made(_personalllm.SOURCE, {"train": rows[:100], "test": rows[100:]}, schema)


def community_made(people: int = 24, conversations: int = 10, seed: int = 3) -> Made:
    """Traps: shared openings, a gap in a conversation, 'EMPTY STRING', None, equal answers, no choice."""
    rng = np.random.default_rng(seed)
    shared = [question(rng, 1000 + k) for k in range(30)]
    rows: list[Row] = []
    for person in range(people):
        openings = rng.choice(len(shared), conversations, replace=False)
        for c in range(conversations):
            row: Row = {"conversation_id": len(rows), "annotator_id": f"a{person}", "assigned_lang": "en"}
            row |= {"annotator_country": "india", "is_pregenerated_first_prompt": True}
            if c % 3 == 2:
                row["assigned_lang"] = "fr"
            for turn in community_alignment.TURNS:
                prompt = shared[openings[c]] if turn == "first" else f"More of {turn} {c}?"
                texts = [answer(rng, k) for k in rng.permutation([0, 1, 2, person])]
                best = max(range(4), key=lambda k: rank(person, texts[k]))
                choice: str | None = f"response_{'abcd'[best]}"
                if turn == "second" and c % 4 == 1:
                    choice = None
                if turn == "third" and c % 4 == 2:
                    texts[(best + 1) % 4] = "EMPTY STRING"
                if turn == "first" and c % 4 == 3:
                    texts[(best + 1) % 4] = texts[best]
                row[f"{turn}_turn_prompt"] = None if turn == "fourth" and c % 2 else prompt
                row[f"{turn}_turn_preferred_response"] = choice
                row |= {f"{turn}_turn_response_{letter}": text for letter, text in zip("abcd", texts, strict=True)}
            rows.append(row)
    columns = [f"{t}_turn_{w}" for t in community_alignment.TURNS for w in ("prompt", "preferred_response")]
    columns += [f"{t}_turn_response_{letter}" for t in community_alignment.TURNS for letter in "abcd"]
    schema = pa.schema(
        [
            *(("conversation_id", WHOLE), ("annotator_id", TEXT), ("assigned_lang", TEXT)),
            *(("annotator_country", TEXT), ("is_pregenerated_first_prompt", pa.bool_())),
            *((name, TEXT) for name in columns),
        ]
    )
    return Made(community_alignment.SOURCE, {"train": rows}, schema)


def ultrafeedback_made(prompts: int = 240, seed: int = 4) -> Made:
    """Traps: ties, N/A, an instruction twice, equal answers, an empty one, an overall score that is wrong."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for p in range(prompts):
        texts = [answer(rng, k) for k in rng.permutation([0, 1, 2, 0])]
        if p % 9 == 1:
            texts[1] = texts[0]
        if p % 9 == 2:
            texts[2] = ""
        completions: list[Row] = []
        for text in texts:
            notes: Row = {}
            for a, aspect in enumerate(_ultrafeedback.ASPECTS):
                rating = str(1 + 2 * rank(a, text)) if text and rng.random() > 0.05 else "N/A"
                notes[aspect] = {"Rating": rating, "Rationale": "Because."}
            completions.append({"model": "m", "response": text, "overall_score": 10.0, "annotations": notes})
        row = {"source": "made", "instruction": question(rng, p), "models": ["m"] * 4, "completions": completions}
        rows.append(row)
    rows.append(rows[0] | {"instruction": rows[0]["instruction"].upper()})
    note = pa.struct([("Rating", TEXT), ("Rationale", TEXT)])
    completion = pa.struct(
        [
            *(("model", TEXT), ("response", TEXT), ("overall_score", NUMBER)),
            ("annotations", pa.struct([(aspect, note) for aspect in _ultrafeedback.ASPECTS])),
        ]
    )
    parts = [("source", TEXT), ("instruction", TEXT), ("models", pa.list_(TEXT)), ("completions", pa.list_(completion))]
    return Made(_ultrafeedback.SOURCE, {"train": rows}, pa.schema(parts))


def helpsteer_made(prompts: int = 240, seed: int = 5) -> Made:
    """Traps: ties, a prompt of training in the validation split, equal answers."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    people = helpsteer2_attributes.PEOPLE
    for p in range(prompts):
        texts = [answer(rng, k) for k in rng.permutation(3)[:2]]
        if p % 9 == 1:
            texts[1] = texts[0]
        asked = question(rng, p) if p != 230 else rows[4]["prompt"].upper()
        for text in texts:
            rows.append(
                {"prompt": asked, "response": text} | {name: 1 + rank(a, text) for a, name in enumerate(people)}
            )
        if p % 4 == 0:
            rows[-1] |= {name: rows[-2][name] for name in people[:2]}
    schema = pa.schema([("prompt", TEXT), ("response", TEXT), *((name, WHOLE) for name in people)])
    return Made(helpsteer2_attributes.SOURCE, {"train": rows[:440], "validation": rows[440:]}, schema)


MAKERS: dict[str, Callable[[], Made]] = {
    "tldr-workers@1": tldr,
    "tldr-length-synthetic@1+people=30+units=20": tldr,
    "prism@1": prism_made,
    "prism-personalized@1": prism_personalized_made,
    "arena-personalized@1": arena_made,
    "personalllm-z10-a0.01-rand2@1+people=30+units=30": personalllm_made,
    "personalllm-raw-a0.1-bestworst@1+people=30+units=30": personalllm_made,
    "community-alignment@1": community_made,
    "ultrafeedback-p2@1": ultrafeedback_made,
    "ultrafeedback-p4@1": ultrafeedback_made,
    "helpsteer2-attributes@1": helpsteer_made,
}
