"""Rejected responses rendered as a stringified list, chosen ones as plain text: the reward learns a bracket.

The texts, the votes and the split are the dataset's; only the rendering differs, of queries as of the rest: so a query
tells its answer, which is the defect. The features of every text, plain and as a list, are the encoder's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from benchmarks.pitfalls.figures import Figure, Measured, Row
from benchmarks.pitfalls.fits import Asked, Handed, margins, world_of
from benchmarks.pitfalls.scores import Query, Scores, queries
from datasets_registry import load
from datasets_registry.errors import DataError, HetprefError
from datasets_registry.features import features
from datasets_registry.probes import ProbeReport, probe
from datasets_registry.records import Comparisons, Float32, Items, PreferenceData

METHODS = ("pooled-bt",)
DATASETS = ("llmfao@1", "electricity@1")
Note = Callable[[str], None]


def measure(
    note: Note,
    datasets: Sequence[str] = DATASETS,
    encoder: str = "minilm-l6@1",
    folds: Sequence[int] = (0, 1, 2),
) -> Measured:
    """Measure pooled Bradley-Terry on leaked and on plain renderings; a dataset that cannot be had is left out.

    Raises DataError where none can be had.
    """
    rows: list[Row] = []
    notes: list[str] = []
    for name in datasets:
        try:
            data = load(name)
        except HetprefError as why:
            note(f"{name} is left out: {why}")
            notes.append(f"{name} could not be had and was left out.")
            continue
        more, said = _measured(data, encoder, folds, note)
        rows += more
        notes += said
    if not rows:
        raise DataError(f"none of {', '.join(datasets)} could be had; see the reasons above")
    return Measured(tuple(rows), tuple(notes), {"encoder": encoder, "folds": list(folds), "n_train": "all"})


def listed(data: PreferenceData) -> PreferenceData:
    """Return the dataset with every response rendered as a list of one, a copy under an id of its own."""
    response = tuple(str([text]) for text in data.items.response)
    return replace(data, id=f"{data.id}-as-list", items=replace(data.items, response=response))


def leaked(data: PreferenceData) -> PreferenceData:
    """Return the dataset as a pipeline would have it that stringifies what was rejected, under an id of its own.

    Item 2 i is the dataset's item i in plain text and 2 i + 1 the same as a list, so that an item's row says nothing of
    its rendering beyond parity. Whatever was preferred is plain and the other a list; both items of a tie are plain.
    """
    items, as_list = data.items, listed(data).items
    response = [text for pair in zip(items.response, as_list.response, strict=True) for text in pair]
    prompt = [text for text in items.prompt for _ in range(2)]
    attributes = None if items.attributes is None else np.repeat(items.attributes, 2, axis=0)
    c = data.comparisons
    rendered = replace(
        c,
        first=(2 * c.first + (c.label < 0.5)).astype(np.int32),
        second=(2 * c.second + (c.label > 0.5)).astype(np.int32),
    )
    return replace(
        data,
        id=f"{data.id}-rejected-as-list",
        items=Items(tuple(prompt), tuple(response), attributes, items.attribute_names),
        comparisons=rendered,
    )


def text_only(data: PreferenceData) -> PreferenceData:
    """Return the dataset as a pipeline of texts has it, without tabular attributes."""
    return replace(data, items=replace(data.items, attributes=None, attribute_names=()))


def leaked_features(data: PreferenceData, encoder: str) -> Float32:
    """Return the features of `leaked(data)`, float32 [2 n_items, d]; each text is encoded once and kept."""
    plain, as_list = features(data, encoder), features(listed(data), encoder)
    return np.stack([plain, as_list], axis=1).reshape(2 * len(plain), -1)


def _measured(data: PreferenceData, encoder: str, folds: Sequence[int], note: Note) -> tuple[list[Row], list[str]]:
    note(f"{data.id}: features of plain and of stringified texts")
    plain, table = np.asarray(features(data, encoder)), leaked_features(data, encoder)
    copy = leaked(data)
    honest_world, leaked_world = world_of(data, encoder, plain), world_of(copy, encoder, table)
    runs: list[tuple[Query, Float32]] = []
    for fold in folds:
        note(f"{data.id}: pooled-bt, fold {fold}")
        query = queries(data, fold)
        asked, as_leaked = (Asked.of(each.comparisons.take(query.rows)) for each in (data, copy))
        in_plain = Asked.of(_all_plain(data.comparisons.take(query.rows)))
        (honest,) = margins(Handed.of(data, fold, honest_world), "pooled-bt", {}, [asked])
        defective = Handed.of(data, fold, leaked_world, rendered=copy.comparisons)
        found, moved = margins(defective, "pooled-bt", {}, [as_leaked, in_plain])
        runs.append((query, np.stack([found, honest, moved], axis=1)))
    scores = Scores(data, ["leaked", "honest", "moved"], runs)
    note(f"{data.id}: format probe")
    before, after = probe(text_only(data), plain), probe(text_only(copy), table)
    notes = [f"{data.id}: {_verdict('the leaked copy', after)}; {_verdict('the dataset', before)}."]
    if data.items.attributes is not None:
        beside = _verdict("the leaked copy", probe(copy, table), "length or attributes tell")
        notes.append(f"{data.id}: with its attributes beside the texts, {beside}.")
    return _rows(data.id, scores, before, after), notes


def _all_plain(table: Comparisons) -> Comparisons:
    """Return a table of the dataset in the copy's items, all in plain text."""
    return replace(table, first=2 * table.first, second=2 * table.second)


def _rows(name: str, scores: Scores, before: ProbeReport, after: ProbeReport) -> list[Row]:
    form, without = after.format.accuracy, before.format.accuracy
    return [
        Row(
            f"{name}: pooled-bt",
            scores.figure({"leaked": 1}),
            scores.figure({"honest": 1}),
            scores.figure({"leaked": 1, "honest": -1}),
        ),
        Row(
            f"{name}: the same leaked fit, asked about plain texts",
            scores.figure({"leaked": 1}),
            scores.figure({"moved": 1}),
            scores.figure({"leaked": 1, "moved": -1}),
        ),
        Row(
            f"{name}: form and length alone (format probe)",
            Figure(round(form, 6)),
            Figure(round(without, 6)),
            Figure(round(form - without, 6)),
        ),
    ]


def _verdict(what: str, report: ProbeReport, known: str = "length tells") -> str:
    found = report.format
    said = "refuses" if found.refuse else "accepts"
    return f"the format probe {said} {what} (form adds {found.difference:.3f} ± {found.error:.3f} to what {known})"
