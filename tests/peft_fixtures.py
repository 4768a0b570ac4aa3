"""What the tests of PEFT share: texts and people, our fitted methods, and the same models opened by PEFT alone."""

import numpy as np
import peft
import torch
import transformers
from safetensors.torch import load_file

from datasets_registry.records import Comparisons, Items
from datasets_registry.text_models import load_text_model
from methods.backbone.peft_files import HEAD_FILE
from methods.interface import Budget, World
from methods.registry import create

# PEFT asks transformers 5 for a property by its old name.
OLD_NAME = "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
TINY = ["tiny-bert@1", "tiny-llama@1"]
ITEMS = Items(
    prompt=("which one", "") * 5,
    response=tuple("word " * n + f"end {n}" for n in (0, 1, 2, 3, 5, 8, 13, 2, 1, 40)),
)
ALL = np.arange(len(ITEMS))
TEXTS = [ITEMS.text(i) for i in ALL]
PEOPLE = 4


def said(n=48, seed=0):
    draw = np.random.default_rng(seed)
    first = draw.integers(0, len(ITEMS), n)
    return Comparisons.of(
        user=draw.integers(0, PEOPLE, n),
        unit=draw.integers(0, 12, n),
        first=first,
        second=(first + draw.integers(1, len(ITEMS), n)) % len(ITEMS),
        label=draw.integers(0, 2, n),
        weight=draw.choice([0.5, 1.0], n),
    )


def world(encoder):
    return World("test@1", ITEMS, PEOPLE + 1, encoder=encoder)


def fitted(name, encoder, **config):
    """Return a method a few steps into training, every factor of it far from its start."""
    method = create(name, **{"rank": 3, "alpha": 5.0, "lr": 0.03, "epochs": 1, "batch": 6, "adapt_steps": 3, **config})
    method.fit(said(), Comparisons.empty(), world(encoder), Budget())
    return method


def state_of(method, person=1):
    table = said()
    return method.adapt([person], [table.take(table.user == person)], Budget())[0]


def scores(method, state):
    return method.rewards([state], np.zeros(len(ALL), np.int64), ALL)


def base_for(encoder):
    """Return (tokenizer, base) as PEFT wants them: a classifier of one output, or the plain model."""
    text = load_text_model(encoder)
    if text.pooling == "mean":
        return text.tokenizer, text.trunk
    text.trunk.config.num_labels, text.trunk.config.pad_token_id = 1, text.tokenizer.pad_token_id
    base = transformers.AutoModelForSequenceClassification.from_config(text.trunk.config)
    base.model = text.trunk
    return text.tokenizer, base


def peft_scores(model, tokenizer, head, texts):
    """Return rewards, [n]: the one output of a classifier, or `head` on the unit-length mean."""
    batch = tokenizer(texts, padding=True, truncation=True, return_token_type_ids=False, return_tensors="pt")
    if head is None:
        return model(**batch).logits[:, 0]
    hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][:, :, None]
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1) @ head


def loaded(encoder, folder, **options):
    """Return (model, tokenizer, head) of a written folder, by PEFT."""
    tokenizer, base = base_for(encoder)
    head = load_file(folder / HEAD_FILE)["head"] if (folder / HEAD_FILE).exists() else None
    return peft.PeftModel.from_pretrained(base, folder, **options).eval(), tokenizer, head
