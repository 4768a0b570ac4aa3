"""LoRe's population on PersonalLLM: mixtures of raw reward models, the best answer against the worst."""

from __future__ import annotations

import numpy as np

from datasets_registry.catalog import _personalllm as personalllm
from datasets_registry.protocol import generator
from datasets_registry.records import Card
from datasets_registry.registry import Pieces, dataset

CONCENTRATION = 0.1
CARD = Card(
    name="personalllm-raw-a0.1-bestworst@1",
    title="PersonalLLM, LoRe's people",
    population="1,000 simulated people, each a Dirichlet(0.1) mixture of 10 raw reward models, who say which of 8 "
    "answers is the best and which the worst",
    licence=personalllm.LICENCE,
    consent=personalllm.CONSENT,
    source=f"huggingface.co/datasets/{personalllm.SOURCE.repository}",
    revision=personalllm.SOURCE.revision,
    sha256=personalllm.SOURCE.pin,
    citation=f"{personalllm.CITATION}; the population: Bose et al. (2025), LoRe, arXiv 2504.14439",
    encoder="minilm-l6@1",
    simulated=True,
    notes="The revision is the ref of the hub's own conversion to parquet: the full commit could not be learned, no "
    "sha256 of files is pinned, but columns and row counts (9,402 and 1,000) are checked, and sha256 is that of what "
    "is checked. LoRe's code draws its people without a seed, so that these are others from the same distribution. "
    "Scores are raw: the models with the widest scales rule most mixtures, and people agree more than their mixtures "
    "do. The best answer against the worst is the easiest pair of all: numbers must not stand beside those of "
    "personalllm-z10-a0.01-rand2. There is no noise; utilities are known, but regret is over the two answers only. The "
    "hub's splits are joined and split anew by prompt. Options: people; units, prompts per person (LoRe's 0.5 % of the "
    "training prompts are 47); seed. With the attributes as features (tabular@1) ten weights solve it.",
    people=0,
)


@dataset(CARD)
def load(*, people: int = 1000, units: int = 48, seed: int = 0) -> Pieces:
    """Simulate; attributes float32 [items, 10] are raw scores, truth.theta float32 [people, 10] mixtures."""
    personalllm.checked(CARD.name, people, units)
    told = personalllm.answers(normalised=False)
    alpha = [CONCENTRATION] * len(personalllm.MODELS)
    theta = generator(CARD.name, seed, "people").dirichlet(alpha, people)
    prompt = personalllm.drawn(generator(CARD.name, seed, "prompts"), people, units, told, CARD.name)
    shown = np.empty((people, units, 2), np.int64)
    for row in range(people):  # all utilities at once would be gigabytes
        utility = told.score[prompt[row]] @ theta[row]  # (units, 8)
        shown[row] = np.stack([utility.argmax(axis=1), utility.argmin(axis=1)], axis=1)
    return personalllm.simulated(told, theta, prompt, shown)
