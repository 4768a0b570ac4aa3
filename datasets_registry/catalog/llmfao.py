"""LLMFAO: crowd workers compared answers of 59 language models to 13 prompts."""

from __future__ import annotations

import csv
import json
from typing import Any

import numpy as np

from datasets_registry.errors import DataError
from datasets_registry.records import Card, Comparisons, Items, Users
from datasets_registry.registry import Pieces, dataset
from datasets_registry.sources import mirror_file

REPOSITORY = "dustalov/llmfao"
COMMIT = "9e224e94a40129fd6e1e1529b962307e84af40da"
SHA256 = {
    "crowd-comparisons.csv": "106564a4bf06f047a4662979384313c22d9b4ca901e780f9e8419f8e5581adb1",
    "prompts.jsonl": "917d233b18976244edf967be9d252ff344c024d9d4ed07780f12190becc3e9fc",
    "results.jsonl": "a0336dfc740d2e513bf111911681f5eb214f41b1e6426cec76791f576df42df2",
}
CARD = Card(
    name="llmfao@1",
    title="LLMFAO: answers of language models",
    population="124 paid crowd workers, 8,931 votes on answers of 59 language models to 13 prompts (2023)",
    licence="CC BY 4.0 (votes: Dmitry Ustalov; prompts and answers: llmonitor.com)",
    consent="paid crowdsourcing; workers are numbered, nothing else about them is released",
    source=f"github.com/{REPOSITORY}",
    revision=COMMIT,
    sha256=", ".join(SHA256.values()),
    citation="Ustalov (2023), Large Language Model Feedback Analysis and Optimization (LLMFAO)",
    shares=(7 / 13, 2 / 13, 2 / 13, 2 / 13),
    encoder="minilm-l6@1",
    notes="A vote is left, right or tie (39 %); ties are kept as .5. 1,208 of the 8,931 votes are dropped because one "
    "of the two answers is empty; none is on two equal answers. A unit is a prompt, and so is a cluster: 7 prompts for "
    "training, 2 each for validation, support and query. Half of the workers cast 7 to 21 votes.",
)

LABEL = {"left": 1.0, "right": 0.0, "tie": 0.5}


@dataset(CARD)
def load() -> Pieces:
    """Read votes joined to answers on (prompt, model); model_x is the left answer. No tabular attributes."""
    prompts = {row["id"]: str(row["text"]) for row in _lines("prompts.jsonl")}
    answers = sorted(_lines("results.jsonl"), key=lambda row: (row["prompt"], row["model"]))
    votes = list(csv.DictReader(_text("crowd-comparisons.csv").splitlines()))
    place = {(row["prompt"], row["model"]): n for n, row in enumerate(answers)}
    topics = sorted({int(v["prompt"]) for v in votes})
    number = {topic: n for n, topic in enumerate(topics)}
    ids = sorted({v["worker"] for v in votes}, key=int)
    person = {name: n for n, name in enumerate(ids)}
    try:
        pairs = [[place[int(v["prompt"]), int(v[m])] for m in ("model_x", "model_y")] for v in votes]
    except KeyError as why:
        raise DataError(f"results.jsonl has no answer for (prompt, model) {why}, which was voted on") from why
    first, second = np.array(pairs).T
    return Pieces(
        users=Users(tuple(f"worker-{name}" for name in ids)),
        items=Items(tuple(prompts[row["prompt"]] for row in answers), tuple(row["result"] for row in answers)),
        comparisons=Comparisons.of(
            user=[person[v["worker"]] for v in votes],
            unit=[number[int(v["prompt"])] for v in votes],
            first=first,
            second=second,
            label=[LABEL[v["winner"]] for v in votes],
        ),
        unit_cluster=np.arange(len(topics), dtype=np.int32),
        clusters=tuple(f"prompt-{topic}" for topic in topics),
    )


def _text(file: str) -> str:
    return mirror_file(REPOSITORY, COMMIT, file, SHA256[file]).decode()


def _lines(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _text(file).split("\n") if line]
