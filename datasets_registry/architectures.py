"""How large a text model is, known without its weights: what estimates of memory and time need."""

from __future__ import annotations

from dataclasses import dataclass

from datasets_registry import tiny_models


@dataclass(frozen=True, slots=True)
class Architecture:
    """The sizes of a trunk: a model without its language-model head and without a pooler.

    `ffn` is the hidden width of a layer's feed-forward part; `kv_width` that of its keys (and of its values), which is
    smaller than `width` where heads share them. `parameters` counts every weight of the trunk, embeddings included.
    """

    parameters: int
    layers: int
    width: int
    ffn: int
    heads: int
    kv_width: int
    vocabulary: int


def llama(*, layers: int, width: int, ffn: int, heads: int, kv_width: int, vocabulary: int) -> Architecture:
    """Return the sizes of a Llama: no biases, a gated feed-forward part (three matrices), two norms a layer.

    >>> llama(layers=1, width=2, ffn=3, heads=1, kv_width=1, vocabulary=5).parameters
    46
    """
    attention = 2 * width * width + 2 * width * kv_width
    layer = attention + 3 * width * ffn + 2 * width
    parameters = vocabulary * width + layers * layer + width
    return Architecture(parameters, layers, width, ffn, heads, kv_width, vocabulary)


def gptj(*, layers: int, width: int, ffn: int, heads: int, vocabulary: int) -> Architecture:
    """Return the sizes of a GPT-J: attention without biases, a feed-forward part with them, one norm a layer.

    >>> gptj(layers=1, width=2, ffn=3, heads=1, vocabulary=5).parameters
    51
    """
    layer = 4 * width * width + 2 * width * ffn + ffn + width + 2 * width
    parameters = vocabulary * width + layers * layer + 2 * width
    return Architecture(parameters, layers, width, ffn, heads, width, vocabulary)


def bert(*, layers: int, width: int, ffn: int, heads: int, vocabulary: int, positions: int) -> Architecture:
    """Return the sizes of a BERT with two token types: biases everywhere, learned positions, no pooler.

    >>> bert(layers=1, width=2, ffn=3, heads=1, vocabulary=5, positions=7).parameters
    81
    """
    embeddings = (vocabulary + positions + 2) * width + 2 * width
    layer = 4 * (width * width + width) + 2 * width * ffn + ffn + width + 4 * width
    return Architecture(embeddings + layers * layer, layers, width, ffn, heads, width, vocabulary)


def architecture(encoder_id: str) -> Architecture | None:
    """Return the sizes of an encoder's text model, without its weights and without network; None where not known.

    A revision of a hub id plays no part.

    >>> architecture("minilm-l6@1").layers
    6
    >>> architecture("hub:EleutherAI/gpt-j-6b@main").width
    4096
    >>> architecture("tabular@1") is None
    True
    """
    # The hub's names are the same in capitals and small letters.
    name = encoder_id.partition("@")[0].casefold() if encoder_id.startswith("hub:") else encoder_id
    return _KNOWN.get(name)


_KNOWN: dict[str, Architecture] = {
    "minilm-l6@1": bert(layers=6, width=384, ffn=1536, heads=12, vocabulary=30522, positions=512),
    "smollm2-135m@1": llama(layers=30, width=576, ffn=1536, heads=9, kv_width=192, vocabulary=49152),
    "tiny-llama@1": llama(
        layers=tiny_models.LAYERS,
        width=tiny_models.WIDTH,
        ffn=tiny_models.FFN,
        heads=tiny_models.HEADS,
        kv_width=tiny_models.KV_WIDTH,
        vocabulary=tiny_models.VOCABULARY,
    ),
    "tiny-bert@1": bert(
        layers=tiny_models.LAYERS,
        width=tiny_models.WIDTH,
        ffn=tiny_models.FFN,
        heads=tiny_models.HEADS,
        vocabulary=tiny_models.VOCABULARY,
        positions=tiny_models.POSITIONS,
    ),
    "hub:eleutherai/gpt-j-6b": gptj(layers=28, width=4096, ffn=16384, heads=16, vocabulary=50400),
    "hub:meta-llama/meta-llama-3-8b": llama(
        layers=32, width=4096, ffn=14336, heads=32, kv_width=1024, vocabulary=128256
    ),
}
