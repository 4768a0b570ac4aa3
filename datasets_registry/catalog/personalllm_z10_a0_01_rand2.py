"""PersonalLLM's own population: sharp mixtures of normalised reward models, two random answers at a time."""

from __future__ import annotations

import numpy as np

from datasets_registry.catalog import _personalllm as personalllm
from datasets_registry.errors import RequestError
from datasets_registry.protocol import generator
from datasets_registry.records import Card
from datasets_registry.registry import Pieces, dataset

CONCENTRATION = 0.01
PERSONA_SEED = 100
CARD = Card(
    name="personalllm-z10-a0.01-rand2@1",
    title="PersonalLLM, the paper's people",
    population="1,000 simulated people, each a Dirichlet(0.01) mixture of 10 normalised reward models, who compare "
    "random pairs of 8 answers",
    licence=personalllm.LICENCE,
    consent=personalllm.CONSENT,
    source=f"huggingface.co/datasets/{personalllm.SOURCE.repository}",
    revision=personalllm.SOURCE.revision,
    sha256=personalllm.SOURCE.pin,
    citation=personalllm.CITATION,
    encoder="minilm-l6@1",
    simulated=True,
    notes="The revision is the ref of the hub's own conversion to parquet: the full commit could not be learned, no "
    "sha256 of files is pinned, but columns and row counts (9,402 and 1,000) are checked, and sha256 is that of what "
    "is checked. Mixtures are those of the published code (RandomState 100, Dirichlet(0.01) over the sorted names of "
    "the models), nearly always one model. Scores are normalised per model over the training split, as its constants "
    "are not published with the data. There is no noise; utilities are known (scores are the items' attributes, "
    "mixtures the truth). Not to be confused with personalllm-raw-a0.1-bestworst, whose pairs are much easier. The "
    "hub's splits are joined and split anew by prompt. Options: people; units, prompts per person; responses, answers "
    "per prompt, all pairs of which are compared: 2 is the paper's, 8 gives best-of-8 regret; seed, of prompts and "
    "answers. With the attributes as features (tabular@1) ten weights solve it: the scores are what people are made "
    "of.",
    people=0,
)


@dataset(CARD)
def load(*, people: int = 1000, units: int = 48, responses: int = 2, seed: int = 0) -> Pieces:
    """Simulate; attributes float32 [items, 10] are normalised scores, truth.theta float32 [people, 10] mixtures."""
    personalllm.checked(CARD.name, people, units)
    if not 2 <= responses <= personalllm.RESPONSES:
        raise RequestError(f"responses={responses} of {CARD.name}; allowed: 2 to {personalllm.RESPONSES}")
    told = personalllm.answers(normalised=True)
    # The legacy generator, whose stream is frozen: the published code draws from it.
    theta = np.random.RandomState(PERSONA_SEED).dirichlet([CONCENTRATION] * len(personalllm.MODELS), people)
    prompt = personalllm.drawn(generator(CARD.name, seed, "prompts"), people, units, told, CARD.name)
    shown = np.tile(np.arange(personalllm.RESPONSES), (people, units, 1))
    shown = generator(CARD.name, seed, "answers").permuted(shown, axis=2)[..., :responses]
    return personalllm.simulated(told, theta, prompt, np.sort(shown, axis=2))
