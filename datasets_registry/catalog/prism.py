"""PRISM: people all over the world talked with language models and rated every answer from 1 to 100."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datasets_registry.catalog import _dialogue
from datasets_registry.errors import DataError, RequestError
from datasets_registry.hub import HubSource, hub_table
from datasets_registry.records import Card
from datasets_registry.registry import Pieces, dataset
from datasets_registry.text_pairs import TextPairs, Texts, pairs_within

if TYPE_CHECKING:
    import pyarrow as pa

SOURCE = HubSource(
    repository="HannahRoseKirk/prism-alignment",
    config="utterances",
    revision="18ab5cfb37456f4ec8cbc00212ce54cf7b1239f6",
    columns=("user_id", "conversation_id", "turn", "user_prompt", "model_response", "score", "if_chosen"),
    rows={"train": 68_371},
    files={"train": ("utterances.jsonl",)},
)
CARD = Card(
    name="prism@1",
    title="PRISM: rated conversations",
    population="1,396 paid participants born in 75 countries, who had 8,011 conversations with 21 language models "
    "(2023) and rated 68,371 answers; those with two answers rated differently enough",
    licence="human texts CC BY 4.0; model texts CC BY-NC 4.0, and their providers' terms. Nobody may be re-identified",
    consent="paid participants who agreed to research use of their conversations; Oxford ethics approval",
    source=f"huggingface.co/datasets/{SOURCE.repository}, config {SOURCE.config}",
    revision=SOURCE.revision,
    sha256=SOURCE.pin,
    citation="Kirk et al. (2024), The PRISM Alignment Dataset, NeurIPS, arXiv 2404.16019",
    # People have about six conversations: of the usual tenth for support, half of them would have none.
    shares=(0.40, 0.10, 0.20, 0.30),
    encoder="minilm-l6@1",
    notes="A unit is a turn, with the transcript so far as its prompt: up to four models answer the first message, the "
    "model that was rated best answers the later ones twice. All pairs of a turn are taken whose scores differ by "
    "delta or more (an option, 5 by default): on equal scores the hub's `if_chosen` is random, and a point of a slider "
    "is no preference. `if_chosen` is read for what the conversation went on with only. A cluster is what a "
    "conversation was opened with, whatever its case and blanks, so that all its turns, and every conversation that "
    "begins with 'Hi', are in one part. A conversation ends here where the answer it went on with is missing. Answers "
    "are texts on both sides: a public pipeline has lists of rejected ones, and their brackets give the label away. "
    "The survey (demographics, stated preferences) is not read.",
)
MOST = 99


@dataset(CARD)
def load(*, delta: int = 5) -> Pieces:
    """Read the rated answers; no tabular attributes. `delta`: the least difference of scores that is a preference."""
    if not 1 <= delta <= MOST:
        raise RequestError(f"delta={delta} of {CARD.name}; allowed: 1 to {MOST}, a difference of scores from 1 to 100")
    table = hub_table(SOURCE, "train")
    score = _numbers(table, "score")
    conversation = Texts.of(table["conversation_id"], f"{SOURCE.repository} conversation_id").codes
    turn = _numbers(table, "turn").astype(np.int64)
    prompts, first = _prompts(table, conversation, turn)
    one, other = pairs_within(conversation * (int(turn.max(initial=0)) + 1) + turn)
    apart = np.abs(score[one] - score[other]) >= delta
    one, other = one[apart], other[apart]
    best, worst = np.where(score[one] > score[other], one, other), np.where(score[one] > score[other], other, one)
    answer = Texts.of(table["model_response"], f"{SOURCE.repository} model_response")
    pairs = TextPairs(
        person=Texts.of(table["user_id"], f"{SOURCE.repository} user_id").take(best),
        prompt=prompts.take(best),
        cluster=first.named_alike("opening").take(best),
        chosen=answer.take(best),
        rejected=answer.take(worst),
        label=np.ones(len(best)),
    )
    return pairs.told_apart().once().pieces()


def _prompts(table: pa.Table, conversation: NDArray[np.int64], turn: NDArray[np.int64]) -> tuple[Texts, Texts]:
    """Return for every row the transcript up to its message, missing behind a gap, and the conversation's opening."""
    import pyarrow as pa
    import pyarrow.compute as pc

    said = Texts.of(table["user_prompt"], f"{SOURCE.repository} user_prompt")
    went_on = table["if_chosen"].fill_null(False).to_numpy().astype(bool)
    message, answer = said.arrow(), Texts.of(table["model_response"], "model_response").arrow()
    n = int(conversation.max(initial=-1)) + 1
    before: pa.Array = pa.nulls(n, pa.large_string())
    taken: pa.Array = pa.nulls(n, pa.large_string())
    parts: list[Texts] = []
    rows_of: list[NDArray[np.int64]] = []
    openings = np.full(n, -1, np.int64)
    for number in range(int(turn.max(initial=-1)) + 1):
        rows = np.flatnonzero(turn == number)
        asked = message.take(_row_of(conversation[rows], rows, n))
        if number == 0:
            now = _dialogue.opening(asked)
            openings[conversation[rows]] = said.codes[rows]
        else:
            now = _dialogue.continued(before, taken, asked)
        parts.append(Texts(pc.fill_null(now, ""), np.where(now.is_null(), -1, np.arange(n))[conversation[rows]]))
        rows_of.append(rows)
        chosen = rows[went_on[rows]]
        before, taken = now, answer.take(_row_of(conversation[chosen], chosen, n))
    order = np.argsort(np.concatenate([np.empty(0, np.int64), *rows_of]), kind="stable")
    whole = Texts.concatenate(parts) if parts else Texts.of(pa.nulls(0), "prompt")
    return whole.take(order), Texts(said.values, openings[conversation])


def _row_of(conversation: NDArray[np.int64], rows: NDArray[np.int64], n: int) -> pa.Array:
    """Return for every conversation the first of the rows that are its own, null where there is none."""
    import pyarrow as pa

    found = np.full(n, -1, np.int64)
    found[conversation[::-1]] = rows[::-1]
    return pa.array(np.maximum(found, 0), mask=found < 0)


def _numbers(table: pa.Table, name: str) -> NDArray[np.float64]:
    import pyarrow as pa

    if table[name].null_count:
        raise DataError(f"{SOURCE.repository} has {table[name].null_count} rows without {name}; the loader needs all")
    return table[name].cast(pa.float64()).to_numpy()
