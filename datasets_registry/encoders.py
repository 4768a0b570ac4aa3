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
from functools import partial

import numpy as np

from datasets_registry import hub_models
from datasets_registry.errors import DataError, RequestError, unknown
from datasets_registry.records import Float32, Items
from datasets_registry.text_models import (
    TEXT_MODELS,
    TextModelSpec,
    find_text_model,
    open_text_model,
    pooled,
    tokenise,
)

TEMPLATE = "{prompt}\n{response}"
THEN = "Tabular data: tabular@1; text: minilm-l6@1, or a model of the Hugging Face hub: hub:OWNER/NAME@REVISION"
BATCH = 64
BATCH_TOKENS = 64 * 256  # with padding: long texts go in smaller batches


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


def find_encoder(encoder_id: str) -> Encoder:
    """Return the encoder of an id; for a hub id (`hub:OWNER/NAME@REVISION`) the model's configuration is read.

    Raises RequestError with the nearest id, UnreachableError for a hub model that cannot be reached.
    """
    if encoder_id.startswith(hub_models.PREFIX):
        return text_encoder(find_text_model(encoder_id))
    if encoder_id not in ENCODERS:
        raise unknown("encoder", encoder_id, ENCODERS, then=THEN)
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
    return encode_texts(TEXT_MODELS["minilm-l6@1"], texts)


def encode_texts(spec: TextModelSpec, texts: Sequence[str]) -> Encoded:
    """Return what stands for each text in a text model as it is, float32 [n_texts, width].

    That is the last token's hidden state of a causal model, and the unit-length mean over tokens of any other.
    Built-in models run on the CPU, so that features are the same everywhere; a hub model on the graphics card, where
    there is one.
    """
    # "eager" is there for every model, and what a machine offers moves no feature.
    model = open_text_model(spec, attention="eager", targets=())
    import torch

    device = "cuda" if spec.id not in TEXT_MODELS and torch.cuda.is_available() else "cpu"
    trunk = model.trunk.to(device)
    tokens = tokenise(model, texts)
    order = np.argsort(tokens.lengths, kind="stable")[::-1]  # longest first, so that padding is little
    out = np.empty((len(texts), spec.width), np.float32)
    progress = _Progress(spec.id, len(texts))
    start = 0
    with torch.inference_mode():
        while start < len(order):
            size = max(1, min(BATCH, BATCH_TOKENS // int(tokens.lengths[order[start]])))
            rows = order[start : start + size]
            ids, mask = (torch.from_numpy(a).to(device) for a in tokens.padded(rows, model.tokenizer.pad_token_id))
            found = pooled(trunk(input_ids=ids, attention_mask=mask).last_hidden_state, mask, model.pooling)
            if model.pooling == "mean":
                found = torch.nn.functional.normalize(found, dim=1)
            out[rows] = found.float().cpu().numpy()
            start += len(rows)
            progress.done(start)
    if device == "cuda":  # the cells of the run need the room
        trunk.cpu()
        torch.cuda.empty_cache()
    if tokens.truncated:
        end = "start" if spec.cut == "left" else "end"
        told = f"{tokens.truncated} of {len(texts)} texts are longer than {spec.max_tokens} tokens"
        print(f"{spec.id}: {told} and were cut at the {end}", file=sys.stderr)
    return Encoded(out, tokens.truncated)


def text_encoder(spec: TextModelSpec) -> Encoder:
    """Return the frozen encoder of a text model."""
    what = "mean, unit length" if spec.pooling == "mean" else "last token"
    return Encoder(
        id=spec.id,
        title=spec.title,
        reads="text",
        revision=spec.revision,
        pooling=f"{what}, {spec.max_tokens} tokens",
        template=TEMPLATE,
        width=spec.width,
        licence=spec.licence,
        encode=distinct_first(partial(encode_texts, spec)),
    )


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
        *map(text_encoder, TEXT_MODELS.values()),
    )
}
