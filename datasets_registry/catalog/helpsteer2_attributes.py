"""HelpSteer2 with its five attributes as people: each prefers the answer that is rated higher on it."""

from __future__ import annotations

import numpy as np

from datasets_registry.catalog._rated_aspects import aspect_pairs
from datasets_registry.hub import HubSource, hub_table
from datasets_registry.records import Card
from datasets_registry.registry import Pieces, dataset
from datasets_registry.text_pairs import Texts

PEOPLE = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
SPLITS = ("train", "validation")
SOURCE = HubSource(
    repository="nvidia/HelpSteer2",
    config="default",
    revision="990b2711a36180dd19d9c94b8627844866f8982a",
    columns=("prompt", "response", *PEOPLE),
    rows={"train": 20_324, "validation": 1_038},
    files={split: (f"{split}.jsonl.gz",) for split in SPLITS},
)
CARD = Card(
    name="helpsteer2-attributes@1",
    title="HelpSteer2, five attributes as people",
    population="5 simulated people, each an attribute of ratings by paid annotators: helpfulness, correctness, "
    "coherence, complexity and verbosity",
    licence="CC BY 4.0",
    consent="paid annotators (Scale AI), of whom nothing is released; ratings are means over at least three of them",
    source=f"huggingface.co/datasets/{SOURCE.repository}",
    revision=SOURCE.revision,
    sha256=SOURCE.pin,
    citation="Wang et al. (2024), HelpSteer2, NeurIPS, arXiv 2406.08673; attributes as people: Liu et al. (2025), "
    "P-ShareLoRA, arXiv 2503.19201",
    encoder="minilm-l6@1",
    notes="The two answers to a prompt are a pair for every attribute on which their ratings (0 to 4) differ; ties, "
    "which are frequent, are left out. Verbosity and complexity prefer more of it, and are mostly length. The hub's "
    "splits are joined and split anew by prompt, whatever its case and blanks. A unit is a prompt, and so is a "
    "cluster. With five people, one is unseen in every fold, and intervals over people mean little.",
    people=len(PEOPLE),
)


@dataset(CARD)
def load() -> Pieces:
    """Read the rated pairs; no tabular attributes."""
    import pyarrow as pa

    table = pa.concat_tables([hub_table(SOURCE, split) for split in SPLITS])
    rating = np.stack([table[name].cast(pa.float64()).to_numpy() for name in PEOPLE], axis=1)
    prompt, response = (Texts.of(table[name], f"{SOURCE.repository} {name}") for name in ("prompt", "response"))
    return aspect_pairs(PEOPLE, prompt, response, rating, controversial=False).pieces()
