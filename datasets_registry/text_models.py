"""The tokenizer and the trunk of an encoder id: one registry entry each, and any model of the Hugging Face hub.

A frozen encoder reads `trunk` as it is; a backbone method trains in a trunk of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from datasets_registry import hub_models, tiny_models
from datasets_registry.architectures import Architecture, architecture
from datasets_registry.errors import RequestError, unknown
from datasets_registry.model_files import MINILM, SMOLLM2, Carrier, model_folder, open_model, require_transformers

if TYPE_CHECKING:
    import torch

__all__ = [
    "TEXT_MODELS",
    "Architecture",
    "TextModel",
    "TextModelSpec",
    "Tokenised",
    "architecture",
    "find_text_model",
    "has_text_model",
    "load_text_model",
    "open_text_model",
    "pooled",
    "tokenise",
]

DTYPES = ("float32", "bfloat16", "float16")
# Texts that are tokenised at once: enough for the tokenizer's own threads, and little memory.
CHUNK = 4096

Pooling = Literal["mean", "last"]


@dataclass(frozen=True, slots=True)
class TextModelSpec:
    """A text model before it is opened: which exact version it is, and how it is read.

    `revision` pins the weights; `cut` is the side at which a text loses what is beyond `max_tokens`; `targets` names
    the linear layers to adapt, None where they must be told. `open` returns (tokenizer, trunk) for a dtype and an
    attention implementation.
    """

    id: str
    title: str
    revision: str
    licence: str
    width: int
    pooling: Pooling
    max_tokens: int
    cut: Literal["left", "right"]
    targets: tuple[str, ...] | None
    open: Callable[[str, str | None], tuple[Any, Any]]


@dataclass(frozen=True, slots=True, eq=False)
class TextModel:
    """An opened text model.

    `tokenizer` is a fast one of transformers, with a padding token, set to cut at the model's side and to pad right.
    `trunk(input_ids=..., attention_mask=...)` gives `.last_hidden_state` [n, tokens, width]; it has no head and no
    pooler, is in eval mode, and none of its weights asks for a gradient. `pooling` says what stands for a text: the
    mean over its tokens, or its last token.
    """

    id: str
    revision: str
    tokenizer: Any
    trunk: torch.nn.Module
    pooling: Pooling
    max_tokens: int
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Tokenised:
    """Token ids of n texts: text i is ids[offsets[i] : offsets[i + 1]].

    ids: int32 [tokens of all texts]; offsets: int64 [n + 1]; `truncated` counts texts that lost tokens.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Return the number of tokens of each text, int64 [n]."""
        return np.diff(self.offsets)

    def padded(
        self, rows: Sequence[int] | NDArray[np.integer], pad: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (input_ids, attention_mask), int64 [len(rows), longest of them], padded on the right.

        >>> tokens = Tokenised(np.array([5, 6, 7], np.int32), np.array([0, 2, 3]))
        >>> [a.tolist() for a in tokens.padded([1, 0], pad=0)]
        [[[7, 0], [5, 6]], [[1, 0], [1, 1]]]
        """
        rows = np.asarray(rows, np.int64)
        starts, counts = self.offsets[rows], self.lengths[rows]
        place = np.arange(counts.max(initial=0))
        mask = place < counts[:, None]  # (rows, longest)
        ids = np.full(mask.shape, pad, np.int64)
        ids[mask] = self.ids[(starts[:, None] + place)[mask]]
        return ids, mask.astype(np.int64)


def has_text_model(encoder_id: str) -> bool:
    """Return whether an encoder id names a text model, known here or on the hub; nothing is read or downloaded.

    >>> has_text_model("minilm-l6@1"), has_text_model("tabular@1"), has_text_model("hub:owner/name")
    (True, False, True)
    """
    return encoder_id in TEXT_MODELS or hub_models.is_hub_id(encoder_id)


def find_text_model(encoder_id: str) -> TextModelSpec:
    """Return the entry of a text model; for a hub id its configuration is read.

    Raises RequestError with the nearest id, and for a hub id what `hub_models.hub_model` raises.
    """
    if encoder_id.startswith(hub_models.PREFIX):
        found = hub_models.hub_model(encoder_id)
        return TextModelSpec(
            id=encoder_id,
            title=f"{found.family} model of the hub",
            revision=found.revision,
            licence="see the hub",
            width=found.width,
            pooling=found.pooling,
            max_tokens=found.max_tokens,
            cut="left" if found.pooling == "last" else "right",
            targets=found.targets,
            open=found.open,
        )
    if encoder_id not in TEXT_MODELS:
        raise unknown("text model", encoder_id, TEXT_MODELS, then=f"Any hub model: {hub_models.FORM}")
    return TEXT_MODELS[encoder_id]


def load_text_model(
    encoder_id: str, *, dtype: str = "float32", attention: str | None = None, targets: Sequence[str] | None = None
) -> TextModel:
    """Return the tokenizer and a fresh trunk of an encoder id: what a caller changes in it stays the caller's.

    dtype: "float32", "bfloat16" or "float16". `attention` is transformers' name of an implementation ("eager",
    "sdpa"), None the fastest that the model has. `targets` replaces the default names of layers to adapt; it is needed
    for a family whose layers are not known here. Raises RequestError for a wrong argument, DataError for broken files.
    """
    return open_text_model(find_text_model(encoder_id), dtype=dtype, attention=attention, targets=targets)


def open_text_model(
    spec: TextModelSpec, *, dtype: str = "float32", attention: str | None = None, targets: Sequence[str] | None = None
) -> TextModel:
    """Return the opened model of an entry; arguments and errors are those of `load_text_model`."""
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    require_transformers()
    wanted = spec.targets if targets is None else tuple(targets)
    if wanted is None:
        layers = ", ".join(hub_models.hub_model(spec.id).linear_layers())
        raise RequestError(
            f"{spec.id} is a {spec.title}, and which of its layers to adapt is not known here; name them, for instance "
            f"targets=('q_proj', 'v_proj'). Its linear layers: {layers}"
        )
    tokenizer, trunk = spec.open(dtype, attention)
    if not getattr(tokenizer, "is_fast", False):
        raise RequestError(f"{spec.id} has no fast tokenizer (tokenizer.json), which is needed here")
    if tokenizer.pad_token_id is None:
        # What stands in a padded place is masked; models without a padding token are padded with their last one.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    tokenizer.truncation_side, tokenizer.padding_side = spec.cut, "right"
    if getattr(trunk, "pooler", None) is not None:
        trunk.pooler = None
    trunk.config.use_cache = False
    names = {name.rpartition(".")[2] for name, _ in trunk.named_modules()}
    strange = [name for name in wanted if name.rpartition(".")[2] not in names]
    if strange:
        raise unknown("target layer", strange[0], names - {""}, then=f"These are the last names of layers of {spec.id}")
    return TextModel(
        id=spec.id,
        revision=spec.revision,
        tokenizer=tokenizer,
        trunk=trunk.requires_grad_(False).eval(),
        pooling=spec.pooling,
        max_tokens=spec.max_tokens,
        targets=wanted,
    )


def tokenise(model: TextModel, texts: Sequence[str]) -> Tokenised:
    """Return the token ids of texts, each cut to `max_tokens` at the model's side, special tokens included.

    They are what the tokenizer's own call gives, but that a text without any token becomes one end (or padding) token:
    something must stand for it.
    """
    tokenizer = model.tokenizer
    nothing = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.pad_token_id
    kept: list[NDArray[np.int32]] = []
    truncated = 0
    for start in range(0, len(texts), CHUNK):
        batch = tokenizer(
            list(texts[start : start + CHUNK]), truncation=True, max_length=model.max_tokens, verbose=False
        )
        kept += [np.array(ids or [nothing], np.int32) for ids in batch["input_ids"]]
        truncated += sum(bool(encoding.overflowing) for encoding in batch.encodings)
    offsets = np.zeros(len(kept) + 1, np.int64)
    np.cumsum([len(ids) for ids in kept], out=offsets[1:])
    return Tokenised(np.concatenate(kept) if kept else np.zeros(0, np.int32), offsets, truncated)


def pooled(hidden: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Return what stands for each text, [n, width], of hidden states [n, tokens, width] and a mask [n, tokens].

    The mask is 1 for a text's tokens and 0 for padding, which is on the right.
    """
    if pooling == "last":
        last = mask.sum(1) - 1
        return hidden.take_along_dim(last[:, None, None].long(), 1).squeeze(1)
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def _carried(carrier: Carrier) -> Callable[[str, str | None], tuple[Any, Any]]:
    def opened(dtype: str, attention: str | None) -> tuple[Any, Any]:
        require_transformers()  # before megabytes are downloaded for nothing
        return open_model(model_folder(carrier), dtype=dtype, attention=attention)

    return opened


def _tiny(family: tiny_models.Family, dtype: str, attention: str | None) -> tuple[Any, Any]:
    import torch

    return tiny_models.tiny_tokenizer(family), tiny_models.tiny_trunk(family, attention).to(getattr(torch, dtype))


TEXT_MODELS: dict[str, TextModelSpec] = {
    each.id: each
    for each in (
        TextModelSpec(
            id="minilm-l6@1",
            title="all-MiniLM-L6-v2, 22.7 M parameters",
            revision=MINILM.sha256,
            licence="Apache-2.0",
            width=384,
            pooling="mean",
            max_tokens=256,
            cut="right",
            targets=("query", "value"),
            open=_carried(MINILM),
        ),
        TextModelSpec(
            id="smollm2-135m@1",
            title="SmolLM2-135M-Instruct (4-bit weights, dequantised), 134.5 M parameters",
            revision=SMOLLM2.sha256,
            licence="Apache-2.0",
            width=576,
            pooling="last",
            max_tokens=512,
            cut="left",
            targets=("q_proj", "v_proj"),
            open=_carried(SMOLLM2),
        ),
        *(
            TextModelSpec(
                id=f"tiny-{family}@1",
                title="random weights: for tests of code paths only, never for numbers",
                revision=tiny_models.formula_digest(family),
                licence="none",
                width=tiny_models.WIDTH,
                pooling="last" if family == "llama" else "mean",
                max_tokens=tiny_models.POSITIONS,
                cut="left" if family == "llama" else "right",
                targets=("q_proj", "v_proj") if family == "llama" else ("query", "value"),
                open=partial(_tiny, family),
            )
            for family in tiny_models.FAMILIES
        ),
    )
}
