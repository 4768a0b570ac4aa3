"""Polis in Bowling Green (2018): residents agree or disagree with statements; agreed-with against disagreed-with."""

from __future__ import annotations

import csv

import numpy as np

from datasets_registry.blocks import text_blocks
from datasets_registry.errors import DataError
from datasets_registry.rating_pairs import disjoint_pairs
from datasets_registry.records import Card, Items, Users
from datasets_registry.registry import Pieces, dataset
from datasets_registry.sources import mirror_file

REPOSITORY = "compdemocracy/openData"
COMMIT = "0bc2ce0f32c673f68da20b57bce15c457aa787b5"
SHA256 = {
    "comments.csv": "b5d72fbb1b15d66c624da51849aef3d5691358b6ec646035b9ca41c6b9f936f0",
    "participants-votes.csv": "63c6e30c36d9f5338516f3a0c77b08e3518c20b707b321e26c54cd6218a2ab4d",
}
BLOCKS = 10
CARD = Card(
    name="polis-bowling-green@1",
    title="Polis, Bowling Green: statements on the town",
    population="residents of Bowling Green and Warren County, Kentucky, 2018: 2,031 took part, those who agreed with "
    "one and disagreed with another statement are kept",
    licence="CC BY 4.0",
    consent="public conversation run for The American Assembly; released by the organisers without names",
    source=f"github.com/{REPOSITORY}, american-assembly.bowling-green/",
    revision=COMMIT,
    sha256=", ".join(SHA256.values()),
    citation="The Computational Democracy Project, openData, american-assembly.bowling-green; Small et al. (2021), "
    "Polis: Scaling deliberation by mapping high dimensional opinion spaces, Recerca 26",
    encoder="minilm-l6@1",
    notes="148,399 votes agree or disagree (77,125 passes are left out, and the votes of people on their own "
    "statements, which the site casts for them). Statements are hashed by text into ten blocks, which are the "
    "clusters; within a person and block, disjoint pairs of an agreed-with and a disagreed-with statement are drawn "
    "by a seeded permutation; no vote is used twice, each pair is a unit. Statements that moderators hid later are "
    "kept where people voted on them. The only tabular attributes are lengths.",
)

PROMPT = "What should change in Bowling Green and Warren County to make it a better place to live, work and spend time?"
VOTES = {"1": 1, "-1": -1, "0": 0, "": 0}


@dataset(CARD)
def load() -> Pieces:
    """Read statements and votes; attributes float32 [n_statements, 2]: characters, words."""
    statements = list(csv.DictReader(_text("comments.csv").splitlines(keepends=True)))
    table = csv.reader(_text("participants-votes.csv").splitlines())
    head = next(table)
    facts = head.index("n-disagree") + 1
    ids, rows = [], []
    for row in table:
        ids.append(row[0])
        rows.append([VOTES[v] for v in row[facts:]])
    votes = np.array(rows, np.int8)  # (n_people, n_statements)
    column = {name: n for n, name in enumerate(head[facts:])}
    missing = [s["comment-id"] for s in statements if s["comment-id"] not in column]
    if missing:
        raise DataError(f"participants-votes.csv has no column for the statements {missing[:5]}")
    statements.sort(key=lambda s: int(s["comment-id"]))
    votes = votes[:, [column[s["comment-id"]] for s in statements]]
    person = {name: n for n, name in enumerate(ids)}
    for n, statement in enumerate(statements):
        if statement["author-id"] in person:
            votes[person[statement["author-id"]], n] = 0

    user, item = np.nonzero(votes)
    texts = tuple(" ".join(s["comment-body"].split()) for s in statements)
    blocks = text_blocks(CARD.name, texts, BLOCKS)
    pairs = disjoint_pairs(CARD.name, ids, user, item, votes[user, item].astype(np.int64), blocks)
    judged, user = np.unique(pairs.comparisons.user, return_inverse=True)
    lengths = np.array([(len(t), len(t.split())) for t in texts], np.float32)
    return Pieces(
        users=Users(tuple(f"participant-{ids[n]}" for n in judged)),
        items=Items((PROMPT,) * len(texts), texts, lengths, ("characters", "words")),
        comparisons=pairs.comparisons.for_users(user),
        unit_cluster=pairs.unit_block,
        clusters=tuple(f"block-{b}" for b in range(BLOCKS)),
    )


def _text(file: str) -> str:
    return mirror_file(REPOSITORY, COMMIT, f"american-assembly.bowling-green/{file}", SHA256[file]).decode()
