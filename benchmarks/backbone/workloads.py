"""What is trained on: a trunk, texts of given lengths, and a batch in which so many people compare them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.kernels.shapes import seeded
from datasets_registry import tiny_models
from datasets_registry.architectures import architecture
from datasets_registry.errors import RequestError
from datasets_registry.model_files import require_transformers
from datasets_registry.records import Comparisons, Items
from datasets_registry.text_models import TextModel, load_text_model
from methods.backbone.layout import HEAD
from methods.backbone.reward_model import RewardModel, Shape

SHAPED = "minilm-l6@1"
RANDOM = f"random weights in the shape of {SHAPED}"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Workload:
    """One step's work: `comparisons` pairs of texts, every text another one, by `present` people of `people`.

    Texts have `shortest` to `longest` tokens, every length as likely. `trunk` is an encoder id, or None for random
    weights in the shape of MiniLM, whose arithmetic costs the same and which needs no download. `adapt_layers` is how
    many of the last layers are adapted, None all of them.
    """

    people: int = 64
    present: int = 64
    comparisons: int = 128
    shortest: int = 32
    longest: int = 64
    rank: int = 8
    adapt_layers: int | None = None
    trunk: str | None = None

    @property
    def sequences(self) -> int:
        """Return how many texts a step runs."""
        return 2 * self.comparisons

    @property
    def scale(self) -> float:
        """Return what an adapter's output is multiplied by: alpha / rank with alpha 16."""
        return 16 / self.rank

    def lengths(self) -> list[int]:
        """Return the tokens of every text."""
        rng = np.random.default_rng(seeded("backbone lengths", self.sequences))
        return rng.integers(self.shortest, self.longest + 1, self.sequences).tolist()

    def batch(self) -> Comparisons:
        """Return the step's comparisons: as many of each person, mixed, the people present anywhere in the table."""
        rng = np.random.default_rng(seeded("backbone batch", self.people, self.present, self.comparisons))
        who = rng.permutation(self.people)[: self.present]
        rows = np.arange(self.comparisons)
        return Comparisons.of(
            user=rng.permutation(who[rows * self.present // self.comparisons]),
            unit=rows,
            first=rows,
            second=rows + self.comparisons,
            label=rng.integers(0, 2, self.comparisons),
        )

    def model(self, *, adapters: bool = True, whole: bool = False, cache: Path | None = None) -> RewardModel:
        """Return a fresh model of the texts; `whole` runs all layers at each step whatever is adapted."""
        text = text_model(self.trunk)
        letters = np.random.default_rng(seeded("backbone texts"))
        items = Items(("",) * self.sequences, tuple(_text(text.tokenizer, n, letters) for n in self.lengths()))
        shape = Shape(adapt_layers=None if whole else self.adapt_layers)
        return RewardModel(text, items, shape, adapters=adapters, cache=cache)


def smaller(work: Workload) -> Workload:
    """Return the same in a size that takes milliseconds, on a model of random weights that is made on the spot."""
    few = replace(work, comparisons=8, shortest=6, longest=12, rank=2, trunk="tiny-bert@1")
    return replace(
        few,
        people=min(work.people, 32),
        present=min(work.present, 4),
        adapt_layers=None if work.adapt_layers is None else 1,
    )


def text_model(trunk: str | None) -> TextModel:
    """Return a fresh text model: of an encoder id, or with None of random weights in the shape of MiniLM."""
    if trunk is not None:
        return load_text_model(trunk)
    require_transformers()
    from transformers import AutoModel, BertConfig

    sizes = architecture(SHAPED)
    assert sizes is not None
    config = BertConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        intermediate_size=sizes.ffn,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: Any = AutoModel.from_config(config)
    made.pooler = None
    return TextModel(
        id=RANDOM,
        revision="0",
        tokenizer=tiny_models.tiny_tokenizer("bert"),
        trunk=made.requires_grad_(False).eval(),
        pooling="mean",
        max_tokens=256,
        targets=("query", "value"),
    )


def drawn(name: str, *shape: int) -> Tensor:
    """Return the start of a factor by its name: the same for everybody who trains it. B is not zero, so A moves."""
    spread = 0.02 if name == HEAD or name.endswith("/b") else shape[-1] ** -0.5
    draw = torch.Generator().manual_seed(seeded("backbone factor", name))
    return torch.empty(shape).uniform_(-spread, spread, generator=draw)


def _text(tokenizer: Any, tokens: int, letters: np.random.Generator) -> str:
    """Return a text of so many tokens, those that the tokenizer adds included."""
    for between in ("", " "):
        made = between.join(letters.choice(list(_LETTERS), max(0, tokens - len(tokenizer("").input_ids))))
        if len(tokenizer(made).input_ids) == tokens:
            return made
    raise RequestError(
        "the tokenizer of this trunk does not make one token of a letter, so texts of given lengths cannot be made; "
        f"give another encoder id, or none for {RANDOM}"
    )
