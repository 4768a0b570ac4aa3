"""MovieLens 100K: 943 people rated films; a comparison is two films that one person rated differently."""

from __future__ import annotations

import re

import numpy as np

from datasets_registry.blocks import text_blocks
from datasets_registry.errors import DataError, RequestError
from datasets_registry.protocol import hash_keys
from datasets_registry.rating_pairs import disjoint_pairs
from datasets_registry.records import Card, Float32, Items, Users
from datasets_registry.registry import Pieces, dataset
from datasets_registry.sources import wheel_file

PEOPLE = 943
BLOCKS = 10
CARD = Card(
    name="movielens100k@1",
    title="MovieLens 100K, pairs of films",
    population="943 visitors of the MovieLens site, 1997-1998, with at least 20 ratings each (100,000 ratings)",
    licence="GroupLens terms: research use, no redistribution, no commercial use without permission",
    consent="ratings by registered visitors of a research site; released by GroupLens without names",
    source="wheel recbole, recbole/dataset_example/ml-100k/",
    revision="1.2.1",
    sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    citation="Harper and Konstan (2015), The MovieLens Datasets: History and Context, ACM TiiS 5(4)",
    notes="Never vendored: downloaded with the project's own pip and read from the wheel. Films are hashed by title "
    "into ten blocks, which are the clusters (versions of one title share a block), so that no film is in two parts "
    "of a split. Within a person and block, disjoint pairs of differently rated films are drawn by a seeded "
    "permutation; no rating is used twice, each pair is a unit. Which films are much liked by everyone explains most "
    "of it. Option people: only the first people in a seeded order.",
)

GENRES = (
    *("Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
ATTRIBUTES = ("release_year", "year_unknown", *(f"genre_{g.lower()}" for g in GENRES))
PROMPT = "Which film do you rate higher?"
Row = list[str]


@dataset(CARD)
def load(*, people: int = PEOPLE) -> Pieces:
    """Read ratings and films; attributes float32 [n_films, 20]: year (the mean if unknown), a flag, 18 genres.

    Raises RequestError unless 2 <= people <= 943.
    """
    if not 2 <= people <= PEOPLE:
        raise RequestError(f"option people={people} of {CARD.name} is out of range; allowed: 2 to {PEOPLE}")
    films = sorted(_table("item", ("item_id", "movie_title", "release_year", "class")), key=lambda r: int(r[0]))
    visitors = _table("user", ("user_id", "age", "gender", "occupation", "zip_code"))
    ratings = np.array([r[:3] for r in _table("inter", ("user_id", "item_id", "rating", "timestamp"))]).astype(float)
    about = {row[0]: row for row in visitors}
    ids = sorted(about, key=int)
    chosen = np.sort(np.argsort(hash_keys(ids, "people", CARD.name), kind="stable")[:people])
    person = np.full(int(max(map(int, ids))) + 1, -1, np.int64)
    person[[int(ids[k]) for k in chosen]] = np.arange(people)
    film = np.full(int(films[-1][0]) + 1, -1, np.int64)
    film[[int(row[0]) for row in films]] = np.arange(len(films))

    user, item, rating = person[ratings[:, 0].astype(int)], film[ratings[:, 1].astype(int)], ratings[:, 2].astype(int)
    order = np.flatnonzero((user >= 0) & (item >= 0))
    order = order[np.lexsort((item[order], user[order]))]
    blocks = text_blocks(CARD.name, (row[1] for row in films), BLOCKS)
    names = [ids[k] for k in chosen]
    pairs = disjoint_pairs(CARD.name, names, user[order], item[order], rating[order], blocks)
    items = Items(
        prompt=(PROMPT,) * len(films),
        response=tuple(_sentence(row) for row in films),
        attributes=_attributes(films),
        attribute_names=ATTRIBUTES,
    )
    return Pieces(
        users=Users(
            tuple(f"visitor-{name}" for name in names),
            {key: tuple(about[n][k] for n in names) for k, key in ((1, "age"), (2, "gender"), (3, "occupation"))},
        ),
        items=items,
        comparisons=pairs.comparisons,
        unit_cluster=pairs.unit_block,
        clusters=tuple(f"block-{b}" for b in range(BLOCKS)),
    )


def _table(kind: str, columns: tuple[str, ...]) -> list[Row]:
    """Return the rows of one of the tab-separated files, whose header is `name:type` per column."""
    member = f"recbole/dataset_example/ml-100k/ml-100k.{kind}"
    text = wheel_file("recbole", CARD.revision, CARD.sha256, member).decode()
    head, *lines = text.splitlines()
    found = tuple(name.partition(":")[0] for name in head.split("\t"))
    if found != columns:
        raise DataError(f"{member} has the columns {found}, expected {columns}")
    return [line.split("\t") for line in lines]


def _year(row: Row) -> int | None:
    """Return the release year; one title carries it in brackets, because the carrier's parser missed it."""
    if row[2].isdigit():
        return int(row[2])
    told = re.search(r"\((\d{4})\)", row[1])
    return int(told[1]) if told else None


def _attributes(films: list[Row]) -> Float32:
    years = [_year(row) for row in films]
    mean = np.mean([y for y in years if y is not None])
    table = np.zeros((len(films), len(ATTRIBUTES)), np.float32)
    table[:, 0] = [mean if y is None else y for y in years]
    table[:, 1] = [y is None for y in years]
    for n, row in enumerate(films):
        for genre in set(row[3].split()) & set(GENRES):
            table[n, 2 + GENRES.index(genre)] = 1
    return table


def _sentence(row: Row) -> str:
    title = re.sub(r"\s*\(\d{4}\)$", "", row[1])
    title = re.sub(r"^(.*), (The|An?|Las?|Les?|Il|El|Das|Der|Die)\b", r"\2 \1", title)
    title = "Unknown film" if row[3] == "unknown" and _year(row) is None else title
    year = _year(row)
    genres = ", ".join(g for g in row[3].split() if g in GENRES) or "genre unknown"
    return f"{title} ({year or 'year unknown'}): {genres}."
