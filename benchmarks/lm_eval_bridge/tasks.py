"""What an exported task calls: documents of a split, how they are told, and how answers are scored.

lm-eval resolves `!function benchmarks.lm_eval_bridge.tasks.documents` to this module of the installed package, so that
an export holds no data. It is a second implementation of the primary metric on purpose: it uses nothing of the
leaderboard's.

A document is one labelled comparison of a new person (or a seen one) with what they said before. Label ties are left
out, as in the protocol; the two answers stand in the order of the dataset, which is seeded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets_registry.errors import DataError
from datasets_registry.protocol import PROTOCOL, Count, Regime, Repetition, mix
from datasets_registry.records import PreferenceData
from datasets_registry.splits import Split
from methods.interface import Histories
from methods.prompt.rendering import HistoryBudget, Scribe, quarter_bytes

# (person, unit, sign of the margin, whether `first` is preferred)
Scored = tuple[int, int, float, bool]


def documents(
    *,
    dataset: str,
    regime: Regime,
    seed: int,
    n_train: Count,
    n_support: int,
    history_tokens: int,
    response_tokens: int,
    protocol: str,
    dataset_sha256: str,
    split_sha256: str,
    **_: Any,
) -> dict[str, Any]:
    """Return {"test": a `datasets.Dataset`} of the labelled queries of a regime, one row each.

    Raises DataError when the installed package would not give the documents that were exported.
    """
    from datasets_registry import load
    from datasets_registry.splits import split

    if protocol != PROTOCOL:
        raise DataError(f"these tasks are of protocol {protocol}, this hetpref is of {PROTOCOL}; export them again")
    data = load(dataset)
    at = Repetition(seed)
    cut = split(data, fold=at.fold, draw=at.draw)
    for what, told, found in (("dataset", dataset_sha256, data.digest), ("split", split_sha256, cut.digest)):
        if told != found:
            raise DataError(
                f"the {what} of {dataset} is {found[:12]}… here and was {told[:12]}… when exported; export it again"
            )
    from datasets import Dataset  # pyright: ignore[reportMissingImports]

    budget = HistoryBudget(history_tokens, response_tokens)
    return {"test": Dataset.from_list(rows(data, cut, regime, n_train, n_support, budget))}


def rows(
    data: PreferenceData, cut: Split, regime: Regime, n_train: Count, n_support: int, budget: HistoryBudget
) -> list[dict[str, Any]]:
    """Return the labelled queries as documents, in the order of the dataset."""
    asked = cut.query(regime)
    asked = asked[data.comparisons.label[asked] != 0.5]
    said = cut.train(n_train) if regime == "seen" else cut.support(n_support, regime)
    table = data.comparisons.take(asked)
    people = np.unique(table.user)
    scribe = Scribe(data.items, quarter_bytes, budget)
    histories = Histories.group(data.comparisons.take(said), people)
    told = {int(person): scribe.history(history) for person, history in zip(people, histories, strict=True)}
    found: list[dict[str, Any]] = []
    for k, row in enumerate(asked.tolist()):
        user, first, second = int(table.user[k]), int(table.first[k]), int(table.second[k])
        found.append(
            {
                "row": row,
                "user": data.users.ids[user],
                "user_row": user,
                "unit": int(table.unit[k]),
                "prompt": data.items.prompt[first],
                "first": data.items.response[first].strip(),
                "second": data.items.response[second].strip(),
                "first_item": first,
                "second_item": second,
                "label": float(table.label[k]),
                "history": told[user],
                "question": scribe.question(first),
            }
        )
    return found


def text(doc: Mapping[str, Any]) -> str:
    """Return what stands before the answers: what the person said, and the question."""
    return doc["history"] + doc["question"]


def choices(doc: Mapping[str, Any]) -> list[str]:
    """Return the two answers; the first one is index 0."""
    return [doc["first"], doc["second"]]


def target(doc: Mapping[str, Any]) -> int:
    """Return the index of the preferred answer."""
    return 0 if doc["label"] > 0.5 else 1


def results(doc: Mapping[str, Any], answers: Sequence[tuple[float, bool]]) -> dict[str, Scored]:
    """Return what the aggregations need of one document, by metric.

    `per_byte` divides each log-likelihood by the length of the answer, which otherwise is part of what is preferred.
    """
    (one, _), (other, _) = answers
    sizes = [max(len(answer.encode()), 1) for answer in choices(doc)]
    whose = int(doc["user_row"]), int(doc["unit"])
    first = doc["label"] > 0.5
    plain = (*whose, float(np.sign(one - other)), first)
    scaled = (*whose, float(np.sign(one / sizes[0] - other / sizes[1])), first)
    return {"acc_macro": plain, "worst10": plain, "acc_macro_per_byte": scaled}


def macro(scored: Sequence[Scored]) -> float:
    """Return the mean over people of the mean over their units; predicted ties count one half.

    >>> macro([(0, 0, 1.0, True), (0, 1, 1.0, False), (1, 0, 0.0, False)])
    0.5
    """
    return float(np.mean([np.mean(list(units.values())) for units in _by_person(scored).values()]))


def worst_tenth(scored: Sequence[Scored]) -> float:
    """Return the mean accuracy of the lowest tenth of people, cross-fitted over two halves of their units.

    NaN where nobody has two units. The halves are cut as on the leaderboard, by a hash of (person, unit); units whose
    labels all tie are no documents, so that where there are some the halves differ.
    """
    halves: list[tuple[float, float]] = []
    for person, units in _by_person(scored).items():
        keys = mix(np.full(len(units), person, np.uint64), np.array(list(units), np.uint64))
        values = np.array(list(units.values()))[np.argsort(keys, kind="stable")]
        if len(values) > 1:
            halves.append((float(values[::2].mean()), float(values[1::2].mean())))
    if not halves:
        return float("nan")
    one, other = np.array(halves).T
    return float((other @ _lowest(one) + one @ _lowest(other)) / 2)


def _lowest(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of each person in the lowest tenth; those who tie at its border share what is left."""
    places = max(1.0, len(values) / 10)
    border = np.sort(values)[int(np.ceil(places)) - 1]
    share = (values < border).astype(np.float64)
    share[values == border] = (places - share.sum()) / (values == border).sum()
    return share / places


def _by_person(scored: Sequence[Scored]) -> dict[int, dict[int, float]]:
    """Return accuracies by person and unit: comparisons of a unit are averaged.

    Who prefers `first` (or `second`, or neither) in every document says nothing about anybody, and gets one half.
    """
    signs = {sign for _, _, sign, _ in scored}
    labels = {first for *_, first in scored}
    constant = len(signs) == 1 and len(labels) == 2
    values: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for person, unit, sign, first in scored:
        values[person][unit].append(0.5 if constant else 0.5 + 0.5 * (sign if first else -sign))
    return {
        person: {unit: float(np.mean(each)) for unit, each in sorted(units.items())}
        for person, units in sorted(values.items())
    }
