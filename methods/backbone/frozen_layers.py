"""The layers below the first adapted one: run once per text, and replayed from their cached output ever after.

The trunk is any Hugging Face model with a list of layers. What comes out of the layer below the first adapted one does
not depend on what is trained, so it is computed once for every text and read again at each step. The model's own
forward still runs (it makes masks and positions); its lower layers are passed through and the cached values are put in
their place.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets_registry.errors import MethodError
from datasets_registry.records import Float32
from datasets_registry.text_models import TextModel, Tokenised


def layer_list(trunk: nn.Module) -> nn.ModuleList:
    """Return the trunk's list of transformer layers; raises MethodError where there is none to be found."""
    config: Any = trunk.config
    depth = getattr(config, "num_hidden_layers", None) or getattr(config, "n_layer", None)
    for module in trunk.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise MethodError(f"{type(trunk).__name__} has no list of {depth} layers; give adapt_layers=None, which adapts all")


class _Passed(nn.Module):
    """Stands for a layer that is skipped: gives back what it was given, in the form that the layer would."""

    def __init__(self, layer: nn.Module, as_tuple: bool) -> None:
        super().__init__()
        self._layer = [layer]  # not registered: its parameters are no part of what runs
        self.as_tuple = as_tuple

    def __getattr__(self, name: str) -> Any:
        if name in ("_layer", "as_tuple"):
            return super().__getattr__(name)
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._layer[0], name)

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        """Return the hidden states as they are."""
        return (hidden_states,) if self.as_tuple else hidden_states


class _Reached(Exception):
    """Ends a forward pass at the first adapted layer."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


def _hidden_of(arguments: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    return arguments[0] if arguments else named["hidden_states"]


class FrozenLayers:
    """The first `n_frozen` layers of a trunk, taken out of it; `entry` is the first layer that still runs."""

    def __init__(self, trunk: nn.Module, n_frozen: int) -> None:
        layers = layer_list(trunk)
        self.trunk, self.n_frozen = trunk, n_frozen
        self._lower = [layers[i] for i in range(n_frozen)]
        self._layers = layers
        self._as_tuple: bool | None = None
        self._replayed: Tensor | None = None
        layers[n_frozen].register_forward_pre_hook(self._replay, with_kwargs=True)

    def _replay(self, _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if self._replayed is None:
            return None
        if arguments:
            return (self._replayed, *arguments[1:]), named
        return arguments, {**named, "hidden_states": self._replayed}

    def capture(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Return what goes into the first adapted layer, [rows, tokens, d]."""

        def stop(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            raise _Reached(_hidden_of(arguments, named))

        def note(_: nn.Module, __: Any, result: Any) -> None:
            self._as_tuple = isinstance(result, tuple)

        self._restore()
        self._replayed = None
        hooks = [
            self._layers[self.n_frozen].register_forward_pre_hook(stop, with_kwargs=True, prepend=True),
            self._layers[0].register_forward_hook(note),
        ]
        try:
            with torch.no_grad():
                self.trunk(input_ids=input_ids, attention_mask=mask)
        except _Reached as reached:
            return reached.hidden
        finally:
            for hook in hooks:
                hook.remove()
        raise MethodError(f"{type(self.trunk).__name__} never ran its layer {self.n_frozen}")

    def run_above(self, hidden: Tensor, mask: Tensor) -> Any:
        """Return the trunk's output, its first adapted layer being given `hidden`, [rows, tokens, d]."""
        self._skip()
        # kept until the next call: some versions of transformers run hooks again where a backward pass recomputes
        self._replayed = hidden.detach()
        trunk: Any = self.trunk
        # only their shape is read, and embeddings may be narrower than layers (ELECTRA, OPT)
        blank = hidden.new_zeros((*hidden.shape[:2], trunk.get_input_embeddings().embedding_dim))
        return self.trunk(inputs_embeds=blank, attention_mask=mask)

    def _skip(self) -> None:
        if self._as_tuple is None:
            # no text has been captured: a cached file was read. One token tells the form of a layer's output.
            one = torch.ones((1, 1), dtype=torch.long, device=next(self.trunk.parameters()).device)
            self.capture(torch.zeros_like(one), one)
        for place in range(self.n_frozen):
            if not isinstance(self._layers[place], _Passed):
                self._layers[place] = _Passed(self._lower[place], bool(self._as_tuple))

    def _restore(self) -> None:
        for place, layer in enumerate(self._lower):
            self._layers[place] = layer


@dataclass(frozen=True, slots=True, eq=False)
class Activations:
    """What the frozen layers give for every text: float32 [tokens of all texts, d], bounded by the texts' offsets."""

    values: Float32

    @classmethod
    def cached(
        cls,
        text: TextModel,
        n_frozen: int,
        dtype: str,
        tokens: Tokenised,
        compute: Callable[[], Float32],
        folder: Path | None,
    ) -> Activations:
        """Return the activations from a file of `folder`, named by the content of all that they depend on.

        Made where it is not there or not whole; `folder` None keeps them in memory.
        """
        if folder is None:
            return cls(compute())
        key = hashlib.sha256(f"{text.id}\x1f{text.revision}\x1f{text.max_tokens}\x1f{n_frozen}\x1f{dtype}\x1e".encode())
        key.update(tokens.offsets.tobytes())
        key.update(tokens.ids.tobytes())
        path = folder / f"{key.hexdigest()}.npy"
        n_tokens = int(tokens.offsets[-1])
        if (found := _whole(path, n_tokens)) is not None:
            return cls(found)
        values = compute()
        folder.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.stem}.{os.getpid()}.npy")
        try:
            np.save(scratch, values, allow_pickle=False)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
        found = _whole(path, n_tokens)
        return cls(values if found is None else found)


def _whole(path: Path, n_tokens: int) -> Float32 | None:
    """Return the cached file, memory-mapped; None where it is not there or cut short."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.ndim == 2 and len(found) == n_tokens and found.dtype == np.float32 else None
