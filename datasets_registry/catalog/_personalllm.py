"""PersonalLLM: 10,402 prompts with 8 answers, each scored by 10 reward models; a person is a mixture of the models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datasets_registry.errors import DataError, RequestError
from datasets_registry.hub import PARQUET, HubSource, hub_table
from datasets_registry.records import Float64, Truth
from datasets_registry.registry import Pieces
from datasets_registry.text_pairs import TextPairs, Texts, ranked

if TYPE_CHECKING:
    import pyarrow as pa

RESPONSES = 8
# Sorted: the published code draws its mixtures over the sorted names.
MODELS = (
    *("beaver_7b", "gemma_2b", "gemma_7b", "llama3_sfairx", "mistral_raft", "mistral_ray", "mistral_weqweasdas"),
    *("oasst_deberta_v3", "oasst_pythia_1b", "oasst_pythia_7b"),
)
SPLITS = ("train", "test")
SOURCE = HubSource(
    repository="namkoong-lab/PersonalLLM",
    config="default",
    revision=PARQUET,
    columns=(
        "prompt",
        *(f"response_{n}" for n in range(1, RESPONSES + 1)),
        *(f"response_{n}_{model}" for n in range(1, RESPONSES + 1) for model in MODELS),
    ),
    rows={"train": 9_402, "test": 1_000},
)
LICENCE = "CC BY 4.0 (the hub's card); answers are subject to their models' terms"
CONSENT = "nobody was asked: people are simulated. Prompts are those of public datasets"
CITATION = "Zollo et al. (2024), PersonalLLM: Tailoring LLMs to Individual Preferences, ICLR 2025, arXiv 2409.20296"
# Labels are the sign of a utility: this temperature makes the truth's own probabilities as good as certain.
TEMPERATURE = 100.0
MOST_PEOPLE = 20_000


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """n prompts with their 8 answers: texts with codes [n * 8], prompt by prompt, and scores, float64 [n, 8, 10]."""

    prompt: Texts
    response: Texts
    score: Float64

    def __len__(self) -> int:
        return len(self.prompt)


def answers(*, normalised: bool) -> Answers:
    """Return the prompts of both splits of which every answer has a score by every model.

    `normalised`: scores with mean 0 and standard deviation 1 per model, over all answers of the training split.
    """
    import pyarrow as pa

    tables = [hub_table(SOURCE, split) for split in SPLITS]
    parts = [_scores(table) for table in tables]
    if normalised:
        mean, spread = np.nanmean(parts[0], axis=(0, 1)), np.nanstd(parts[0], axis=(0, 1))
        if not (spread > 0).all():
            raise DataError(f"{SOURCE.repository}: a reward model gives every answer the same score: {spread.tolist()}")
        parts = [(part - mean) / spread for part in parts]
    table, score = pa.concat_tables(tables), np.concatenate(parts)
    prompt = Texts.of(table["prompt"], f"{SOURCE.repository} prompt")
    texts = [Texts.of(table[f"response_{n}"], f"{SOURCE.repository} response_{n}") for n in range(1, RESPONSES + 1)]
    every = Texts.concatenate(texts)
    codes = every.codes.reshape(RESPONSES, -1).T  # (prompts, 8)
    whole = np.isfinite(score).all(axis=(1, 2)) & (prompt.codes >= 0) & (codes >= 0).all(axis=1)
    return _as_items(Answers(prompt.take(whole), replace(every, codes=codes[whole].ravel()), score[whole]))


def _as_items(told: Answers) -> Answers:
    """Return the answers with equal scores for equal texts of equal prompts, which are one item: those of the first."""
    _, (prompt,) = ranked(told.prompt)
    _, (response,) = ranked(told.response)
    key = np.repeat(prompt, RESPONSES) * (int(response.max(initial=0)) + 1) + response
    _, first, item = np.unique(key, return_index=True, return_inverse=True)
    return replace(told, score=told.score.reshape(-1, len(MODELS))[first[item]].reshape(told.score.shape))


def simulated(told: Answers, theta: Float64, prompt: NDArray[np.int64], shown: NDArray[np.int64]) -> Pieces:
    """Return what people say who compare all pairs of the answers they are shown.

    theta: float64 [people, 10]; prompt: int64 [people, units]; shown: int64 [people, units, k], answers 0 to 7 of the
    prompt. Of two answers the one with the greater utility <theta, scores> is preferred, an equal one is a tie.
    """
    people, units, k = shown.shape
    utility = np.einsum("pukm,pm->puk", told.score[prompt[..., None], shown], theta)
    one, other = np.triu_indices(k, 1)
    rows = (prompt[..., None] * RESPONSES + shown).astype(np.int64)  # (people, units, k), rows of answers
    first, second = rows[..., one].ravel(), rows[..., other].ravel()
    ahead = np.sign(utility[..., one] - utility[..., other]).ravel()
    better, worse = np.where(ahead < 0, second, first), np.where(ahead < 0, first, second)
    asked = np.repeat(prompt.ravel(), len(one))
    pairs = TextPairs(
        person=Texts(_names(people), np.repeat(np.arange(people), units * len(one))),
        prompt=told.prompt.take(asked),
        cluster=told.prompt.named_alike("prompt").take(asked),
        chosen=told.response.take(better),
        rejected=told.response.take(worse),
        label=np.where(ahead == 0, 0.5, 1.0),
    )
    return _with_truth(pairs, told.score.reshape(-1, len(MODELS)), better, worse, theta)


def checked(name: str, people: int, units: int) -> None:
    """Raise RequestError for a number of people or of units that cannot be."""
    if not (2 <= people <= MOST_PEOPLE and units >= 4):
        raise RequestError(
            f"people={people}, units={units} of {name}; allowed: people 2 to {MOST_PEOPLE:,}, units from 4"
        )


def drawn(random: np.random.Generator, people: int, units: int, told: Answers, name: str) -> NDArray[np.int64]:
    """Return the prompts of every person, int64 [people, units], none twice for one person."""
    if units > len(told):
        raise DataError(f"units={units} of {name}, and there are {len(told):,} prompts at hand; ask for fewer")
    return np.stack([random.choice(len(told), units, replace=False) for _ in range(people)])


def _with_truth(
    pairs: TextPairs, score: Float64, better: NDArray[np.int64], worse: NDArray[np.int64], theta: Float64
) -> Pieces:
    """Return the dataset with scores as attributes and the mixtures as truth."""
    numbered = np.flatnonzero(_kept(pairs))
    kept = pairs.take(numbered)
    pieces = kept.pieces()
    attributes = np.zeros((len(pieces.items), len(MODELS)), np.float32)
    attributes[pieces.comparisons.second] = score[worse[numbered]]
    attributes[pieces.comparisons.first] = score[better[numbered]]
    who = np.array([int(name.rpartition("-")[2]) for name in pieces.users.ids], np.int64)
    mine = theta[who].astype(np.float32)
    truth = Truth(mine, np.eye(len(MODELS), dtype=np.float32), mean=mine.mean(0), temperature=TEMPERATURE, flip=0.0)
    items = replace(pieces.items, attributes=attributes, attribute_names=MODELS)
    return replace(pieces, items=items, truth=truth)


def _kept(pairs: TextPairs) -> NDArray[np.bool_]:
    """Return which pairs can be told apart, bool [n]."""
    numbered = replace(pairs, label=np.arange(len(pairs), dtype=np.float64))
    keep = np.zeros(len(pairs), bool)
    keep[numbered.told_apart().label.astype(np.int64)] = True
    return keep


def _scores(table: pa.Table) -> Float64:
    """Return the scores of a split, float64 [n, 8, 10], NaN where one is missing."""
    import pyarrow as pa

    columns = [
        table[f"response_{n}_{model}"].cast(pa.float64()).to_numpy()
        for n in range(1, RESPONSES + 1)
        for model in MODELS
    ]
    return np.stack(columns, axis=1).reshape(-1, RESPONSES, len(MODELS))


def _names(people: int) -> pa.Array:
    import pyarrow as pa

    return pa.array([f"persona-{n:05d}" for n in range(people)], pa.large_string())
