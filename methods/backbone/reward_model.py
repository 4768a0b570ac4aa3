"""A transformer with a scalar head: rewards of items for people, one forward pass for a batch of many people.

r_u(x) = <w, pool(trunk(x; adapters of u))>. The trunk is loaded once and never copied per person: what is a person's
own comes in as rows of factors, and the batched low-rank kernels add each token's own part. A soft prompt stands after
the special tokens that the tokenizer puts before every text (BOS or CLS), takes positions like any token and is
attended to by all; what is pooled is the last token or the mean of the text's own tokens, soft ones left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from datasets_registry.errors import MethodError, RequestError
from datasets_registry.hub_models import usable_positions
from datasets_registry.records import Float32, Items
from datasets_registry.text_models import TextModel, load_text_model, pooled, tokenise
from methods.backbone.adapted_linear import AdaptedLinear, Binding, linear_widths
from methods.backbone.frozen_layers import Activations, FrozenLayers, layer_list
from methods.backbone.last_token import run_last_only
from methods.backbone.layout import HEAD, LayerShape
from methods.backbone.sequences import buckets
from methods.backbone.soft_prompt import PROMPT
from methods.lowrank import plan_batch

Array = NDArray[Any]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# A CPU computes no faster on more tokens than its caches hold, and padding costs as much as text; a GPU wants many.
_CPU_TOKENS, _GPU_TOKENS = 2_048, 16_384


@dataclass(frozen=True, slots=True)
class Shape:
    """How a trunk is adapted: which linear layers (None: the model's own), in how many of its last layers (None: all).

    `dtype` is the trunk's; factors and the head are float32. `max_tokens` is where texts are cut (None: the model's).
    `soft_tokens` are the positions to leave free for a soft prompt.
    """

    targets: tuple[str, ...] | None = None
    adapt_layers: int | None = None
    max_tokens: int | None = None
    dtype: str = "float32"
    checkpointing: bool = False
    device: str = "cpu"
    soft_tokens: int = 0


@dataclass(frozen=True, slots=True)
class _Given:
    """What one call is made with: factors of the layers and soft prompts [n, soft tokens, embedding], by row."""

    factors: dict[str, Tensor]
    prompts: Tensor | None
    people: int | None = None
    scale: float = 1.0

    @property
    def soft_tokens(self) -> int:
        return 0 if self.prompts is None else self.prompts.shape[1]


class RewardModel:
    """A trunk made ready for a set of items; `layers` are the adapted ones, in the trunk's order.

    Raises RequestError for targets that name no linear layer, layers that are not there and unknown dtypes.
    """

    def __init__(self, text: TextModel, items: Items, shape: Shape, *, adapters: bool, cache: Path | None) -> None:
        self.text, self.shape = text, shape
        self.device = torch.device(shape.device)
        self.trunk = text.trunk.to(self.device)
        self.binding = Binding()
        self.frozen = self._frozen_layers()
        self.layers = self._adapt(text.targets) if adapters else ()
        if text.pooling == "last":
            run_last_only(self.trunk, self.binding)
        self.width = int(_config(self.trunk, "hidden_size", "n_embd"))
        if shape.checkpointing:
            _checkpoint(self.trunk)
        self.tokens = tokenise(text, [items.text(row) for row in range(len(items))])
        self.lengths = self.tokens.lengths  # (n_items,)
        self._lead = _special_before(text.tokenizer) if shape.soft_tokens else 0
        self._activations = self._lower(cache) if self.frozen else None

    @classmethod
    def load(
        cls, encoder: str, items: Items, shape: Shape, *, adapters: bool = True, cache: Path | None
    ) -> RewardModel:
        """Return the model of an encoder id on fresh weights."""
        if shape.dtype not in DTYPES:
            raise RequestError(f"dtype={shape.dtype!r}; allowed: {', '.join(DTYPES)}")
        text = load_text_model(encoder, dtype=shape.dtype, targets=shape.targets)
        return cls(_cut(text, shape), items, shape, adapters=adapters, cache=cache)

    def trained_above(self) -> dict[str, nn.Parameter]:
        """Return the trunk's own parameters from the first adapted layer on, by name."""
        lower = {id(p) for layer in self._lower_layers() for p in layer.parameters()}
        if self.frozen is not None:
            chain = {id(p) for layer in layer_list(self.trunk) for p in layer.parameters()}
            lower |= {id(p) for p in self.trunk.parameters() if id(p) not in chain}
        return {name: p for name, p in self.trunk.named_parameters() if id(p) not in lower}

    def rewards(
        self, item: Array, row: Array, factors: Mapping[str, Tensor], *, people: int | None, scale: float
    ) -> Tensor:
        """Return float32 [m] rewards of items int64 [m].

        `factors` holds shared tensors and, where `people` is a number, persons' own ones with a leading axis of that
        length, which `row` int64 [m] counts. Soft prompts [n, soft tokens, embedding] are under `PROMPT`, for row 0 to
        n - 1.
        """
        dtype = DTYPES[self.shape.dtype]
        bound = {name: value.to(dtype) for name, value in factors.items() if name != HEAD}
        prompts = bound.pop(PROMPT, None)
        given = _Given(bound, prompts, people, scale)
        parts = list(self._parts(self.lengths[item] + given.soft_tokens))
        if not parts:
            return torch.zeros(0, device=self.device)
        found = [self._pooled(item[part], row[part], given) for part in parts]
        order = np.concatenate(parts)
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        seen = torch.cat(found)[torch.from_numpy(back).to(self.device)]  # (m, width)
        head = factors[HEAD]
        if head.dim() == 2:
            head = head[torch.from_numpy(row).to(self.device)]
        return (seen * head).sum(-1)

    def pooled_features(self, item: Array, prompt: Tensor | None = None) -> Float32:
        """Return what the head sees of items without any adapter, float32 [m, width], `prompt` before each."""
        given = _Given({}, None if prompt is None else prompt[None].to(DTYPES[self.shape.dtype]))
        out = np.empty((len(item), self.width), np.float32)
        with torch.no_grad():
            for part in self._parts(self.lengths[item] + given.soft_tokens):
                found = self._pooled(item[part], np.zeros(len(part), np.int64), given)
                out[part] = found.cpu().numpy()
        return out

    @property
    def embedding_width(self) -> int:
        """Return the width of the trunk's input embeddings."""
        return int(self._vocabulary().shape[1])

    def vocabulary_vectors(self, n: int, draw: torch.Generator) -> Tensor:
        """Return the input embeddings of n tokens drawn from the vocabulary, float32 [n, embedding], on the CPU."""
        vectors = self._vocabulary()
        drawn = torch.randint(len(vectors), (n,), generator=draw)
        return vectors[drawn.to(vectors.device)].float().cpu()

    def _vocabulary(self) -> Tensor:
        trunk: Any = self.trunk
        return trunk.get_input_embeddings().weight.detach()

    def _parts(self, lengths: Array) -> Iterator[Array]:
        """Yield buckets of sequences; one for all where the backward pass runs the layers again, on what is bound."""
        if self.shape.checkpointing and torch.is_grad_enabled():
            return iter([np.arange(len(lengths))] if len(lengths) else [])
        return buckets(lengths, self._at_once)

    def _pooled(self, item: Array, row: Array, given: _Given) -> Tensor:
        """Return the pooled last hidden state of items, float32 [m, width]."""
        soft, rows = given.soft_tokens, torch.from_numpy(row).to(self.device)
        lengths = torch.from_numpy(self.lengths[item] + soft).to(self.device)
        longest = int(self.lengths[item].max()) + soft
        mask = torch.arange(longest, device=self.device)[None] < lengths[:, None]  # (m, tokens)
        plan = None
        if given.people is not None and given.factors:
            whose = rows[:, None].expand_as(mask)
            # padding belongs to nobody, and costs nothing
            plan = plan_batch(torch.where(mask, whose, -1), given.people, check=False)
        self.binding.factors, self.binding.plan, self.binding.scale = given.factors, plan, given.scale
        self.binding.last = lengths - 1
        hidden = self._last_hidden(item, mask, None if given.prompts is None else given.prompts[rows]).float()
        if self.text.pooling == "last":
            return pooled(hidden, mask, "last")
        mask[:, self._lead : self._lead + soft] = False
        return nn.functional.normalize(pooled(hidden, mask, "mean"), dim=1)

    def _last_hidden(self, item: Array, mask: Tensor, prompts: Tensor | None) -> Tensor:
        if self.frozen is not None and self._activations is not None:
            hidden = torch.zeros((*mask.shape, self.width), dtype=torch.float32)
            hidden[mask.cpu()] = torch.from_numpy(self._activations.values[self._places(item)])
            hidden = hidden.to(self.device, DTYPES[self.shape.dtype])
            return self.frozen.run_above(hidden, mask.long()).last_hidden_state
        ids, attended = self._padded(item)
        if prompts is None:
            return self.trunk(input_ids=ids, attention_mask=attended).last_hidden_state
        trunk: Any = self.trunk
        words = trunk.get_input_embeddings()(ids)  # (m, tokens of the text, embedding)
        read = torch.cat([words[:, : self._lead], prompts, words[:, self._lead :]], 1)
        return self.trunk(inputs_embeds=read, attention_mask=mask.long()).last_hidden_state

    def _padded(self, item: Array) -> tuple[Tensor, Tensor]:
        """Return the token ids of items and their mask, int64 [m, tokens], on the device."""
        ids, mask = self.tokens.padded(item, int(self.text.tokenizer.pad_token_id))
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)

    def _places(self, item: Array) -> Array:
        """Return where the tokens of items lie among those of all texts, one item after the other."""
        lengths = self.lengths[item]
        ends = np.cumsum(lengths)
        return np.repeat(self.tokens.offsets[item] - ends + lengths, lengths) + np.arange(int(ends[-1]))

    @property
    def _at_once(self) -> int:
        return _CPU_TOKENS if self.device.type == "cpu" else _GPU_TOKENS

    def _frozen_layers(self) -> FrozenLayers | None:
        chosen = self.shape.adapt_layers
        if chosen is None:
            return None
        if self.shape.soft_tokens:
            raise RequestError(
                f"adapt_layers={chosen!r}: allowed with a soft prompt is None alone; the prompt changes what every "
                "layer reads, so that no layer's output can be cached"
            )
        depth = len(layer_list(self.trunk))
        if not isinstance(chosen, int) or not 1 <= chosen <= depth:
            raise RequestError(
                f"adapt_layers={chosen!r}: allowed are 1 to {depth}, the layers of {self.text.id}, or None for all"
            )
        return FrozenLayers(self.trunk, depth - chosen) if chosen < depth else None

    def _lower_layers(self) -> list[nn.Module]:
        return [] if self.frozen is None else list(layer_list(self.trunk))[: self.frozen.n_frozen]

    def _adapt(self, targets: tuple[str, ...]) -> tuple[LayerShape, ...]:
        """Put an adapted layer in the place of every target, and return their shapes."""
        lower = {id(m) for layer in self._lower_layers() for m in layer.modules()}
        found: list[LayerShape] = []
        for name, parent in list(self.trunk.named_modules()):
            for child, module in list(parent.named_children()):
                widths = linear_widths(module)
                if child in targets and widths is not None and id(module) not in lower:
                    full = f"{name}.{child}" if name else child
                    setattr(parent, child, AdaptedLinear(module, full, self.binding))
                    found.append(LayerShape(full, *widths))
        if lacking := set(targets) - {f.name.rpartition(".")[2] for f in found}:
            linear = {n.rpartition(".")[2] for n, m in self.trunk.named_modules() if linear_widths(m)} - {"base"}
            raise RequestError(
                f"targets {sorted(lacking)} name no linear layer of {self.text.id}; it has {sorted(linear)}"
            )
        return tuple(found)

    def _lower(self, cache: Path | None) -> Activations:
        """Return the cached input of the first adapted layer, for all items."""
        frozen = self.frozen
        assert frozen is not None

        def compute() -> Float32:
            out = np.empty((int(self.tokens.offsets[-1]), self.width), np.float32)
            for part in buckets(self.lengths, self._at_once):
                ids, mask = self._padded(part)
                hidden = frozen.capture(ids, mask)[mask.bool()]  # (tokens of the part, width)
                out[self._places(part)] = hidden.float().cpu().numpy()
            return out

        return Activations.cached(self.text, frozen.n_frozen, self.shape.dtype, self.tokens, compute, cache)


def _special_before(tokenizer: Any) -> int:
    """Return how many special tokens the tokenizer puts before every text."""
    special = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    return special.index(0)


def _cut(text: TextModel, shape: Shape) -> TextModel:
    """Return the model with texts cut as `shape` says, and where a soft prompt needs the place."""
    config = text.trunk.config
    told = getattr(config, "max_position_embeddings", None)
    positions = usable_positions(config) if told else text.max_tokens
    least = text.tokenizer.num_special_tokens_to_add() + 1
    most = positions - shape.soft_tokens
    less = f" less {shape.soft_tokens} soft tokens" if shape.soft_tokens else ""
    if most < 1:
        raise RequestError(
            f"{shape.soft_tokens} soft tokens leave no room for a text; {text.id} has {positions} positions, allowed "
            f"are 1 to {positions - 1} soft tokens"
        )
    if shape.max_tokens is None:
        return replace(text, max_tokens=most) if shape.soft_tokens and text.max_tokens > most else text
    if not isinstance(shape.max_tokens, int) or not least <= shape.max_tokens <= most:
        raise RequestError(
            f"max_tokens={shape.max_tokens!r}; allowed: whole numbers from {least} (special tokens and one of the "
            f"text) to {most}, the positions of {text.id}{less}, or None for its usual {text.max_tokens}"
        )
    return replace(text, max_tokens=shape.max_tokens)


def _checkpoint(trunk: Any) -> None:
    """Keep only layers' inputs for the backward pass, with every dropout rate at 0."""
    # transformers 5 renamed it
    enable = getattr(trunk, "activation_checkpointing_enable", None) or trunk.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    trunk.train()  # nothing is recomputed in eval mode
    for module in trunk.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout_prob", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _config(trunk: nn.Module, *names: str) -> Any:
    for name in names:
        if (value := getattr(trunk.config, name, None)) is not None:
            return value
    raise MethodError(f"the configuration of {type(trunk).__name__} has none of {', '.join(names)}")
