"""Community Alignment: annotators of five countries chose the best of four answers, turn by turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from datasets_registry.catalog import _dialogue
from datasets_registry.errors import DataError, RequestError
from datasets_registry.hub import HubSource, hub_table
from datasets_registry.records import Card
from datasets_registry.registry import Pieces, dataset
from datasets_registry.text_pairs import TextPairs, Texts

if TYPE_CHECKING:
    import pyarrow as pa

TURNS = ("first", "second", "third", "fourth")
LETTERS = ("a", "b", "c", "d")
LANGUAGES = ("all", "en", "fr", "hi", "it", "pt")
SOURCE = HubSource(
    repository="facebook/community-alignment-dataset",
    config="default",
    revision="4d21f8db61c857e7d3aab33cbc3c6caf14a12df6",
    columns=(
        *("annotator_id", "assigned_lang"),
        *(f"{turn}_turn_{what}" for turn in TURNS for what in ("prompt", "preferred_response")),
        *(f"{turn}_turn_response_{letter}" for turn in TURNS for letter in LETTERS),
    ),
)
CARD = Card(
    name="community-alignment@1",
    title="Community Alignment: the best of four answers",
    population="more than 3,500 paid annotators in the United States, France, Italy, Brazil and India (2024-2025), "
    "more than 200,000 choices of one of four answers, in five languages",
    licence="CC BY 4.0; a model's answers also under its own terms",
    consent="paid annotators, known by ids; opening prompts are their own in about a third of the conversations",
    source=f"huggingface.co/datasets/{SOURCE.repository}",
    revision=SOURCE.revision,
    sha256=SOURCE.pin,
    citation="Zhang et al. (2025), Cultivating Pluralism In Algorithmic Monoculture: The Community Alignment Dataset, "
    "arXiv 2507.09650",
    encoder="minilm-l6@1",
    notes="The revision is the commit of the hub's conversion of its main at 97343c7f6399fcbea430ed0f37c1768281a78d56 "
    "(version 1.1), as another project pinned it; the number of rows is not known for sure, and not checked. A unit is "
    "a turn, with the transcript so far as its prompt; the preferred answer against each of the other three. A "
    "conversation ends here at its first gap (no prompt, no choice, or the chosen answer missing), as what follows "
    "would lack its context; the text 'EMPTY STRING' counts as missing. Equal answers are no pair. A cluster is what a "
    "conversation was opened with, whatever its case and blanks: opening prompts are shared by many annotators. "
    "Option: language (all, en, fr, hi, it or pt, as assigned); two thirds are not English, which the default encoder "
    "does not read well. Demographics are not read.",
)
EMPTY = "EMPTY STRING"


@dataset(CARD)
def load(*, language: str = "all") -> Pieces:
    """Read the choices; no tabular attributes."""
    if language not in LANGUAGES:
        raise RequestError(f"language={language} of {CARD.name}; allowed: {', '.join(LANGUAGES)}")
    table = hub_table(SOURCE, "train")
    if language != "all":
        import pyarrow.compute as pc

        table = table.filter(pc.equal(table["assigned_lang"], language))  # pyright: ignore
    parts = _turns(table)
    pairs = TextPairs(
        **{
            name: Texts.concatenate([getattr(part, name) for part in parts])
            for name in ("person", "prompt", "cluster", "chosen", "rejected")
        },
        label=np.ones(sum(len(part) for part in parts)),
    )
    return pairs.told_apart().once().pieces()


def _turns(table: pa.Table) -> list[TextPairs]:
    """Return the pairs of each turn: the preferred answer against each other one, three rows a conversation."""
    import pyarrow as pa

    person = Texts.of(_ids(table), f"{SOURCE.repository} annotator_id")
    opening = _texts(table, "first_turn_prompt")
    cluster = opening.named_alike("opening")
    before: pa.Array = pa.nulls(table.num_rows, pa.large_string())
    taken = before
    found: list[TextPairs] = []
    for number, turn in enumerate(TURNS):
        asked = _texts(table, f"{turn}_turn_prompt").arrow()
        now = _dialogue.opening(asked) if number == 0 else _dialogue.continued(before, taken, asked)
        answers = Texts.concatenate([_texts(table, f"{turn}_turn_response_{letter}") for letter in LETTERS])
        codes = answers.codes.reshape(len(LETTERS), -1).T  # (rows, 4)
        choice = _choice(table, turn)
        rows = np.arange(table.num_rows)
        chosen = np.where(choice < 0, -1, codes[rows, choice])
        others = np.array([[k for k in range(4) if k != letter] for letter in range(4)])[choice]  # (rows, 3)
        three = np.repeat(rows, 3)
        found.append(
            TextPairs(
                person=person.take(three),
                prompt=Texts.of(now, "prompt").take(three),
                cluster=cluster.take(three),
                chosen=Texts(answers.values, chosen[three]),
                rejected=Texts(answers.values, codes[three, others.ravel()]),
                label=np.ones(len(three)),
            ).told_apart()
        )
        before, taken = now, Texts(answers.values, chosen).arrow()
    return found


def _texts(table: pa.Table, name: str) -> Texts:
    """Return a column of texts; blank ones and the placeholder are missing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = Texts.of(table[name], f"{SOURCE.repository} {name}")
    plain = pc.utf8_upper(pc.utf8_trim_whitespace(texts.values))  # pyright: ignore[reportAttributeAccessIssue]
    blank = pc.is_in(plain, value_set=pa.array(["", EMPTY], pa.large_string()))  # pyright: ignore
    gone = np.append(blank.to_numpy(zero_copy_only=False), True)[texts.codes]
    return Texts(texts.values, np.where(gone, -1, texts.codes))


def _choice(table: pa.Table, turn: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the letter that was chosen in a turn, 0 to 3, -1 for none; raises DataError for anything else."""
    texts = _texts(table, f"{turn}_turn_preferred_response")
    known = {f"response_{letter}": k for k, letter in enumerate(LETTERS)}
    values = [text.strip().lower() for text in texts.values.to_pylist()]
    here = {values[code] for code in np.unique(texts.codes[texts.codes >= 0])}
    if strange := sorted(here - set(known)):
        raise DataError(
            f"{SOURCE.repository} {turn}_turn_preferred_response holds {strange[0]!r:.60}; expected are "
            f"{', '.join(known)}, or nothing"
        )
    numbers = np.array([known.get(value, -1) for value in values] + [-1], np.int64)
    return numbers[texts.codes]


def _ids(table: pa.Table) -> pa.ChunkedArray:
    import pyarrow as pa

    return table["annotator_id"].cast(pa.string())
