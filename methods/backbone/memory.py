"""How many bytes a fit will take, told from the shape of the trunk: no weights are loaded, nothing is measured."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

from datasets_registry.text_models import TEXT_MODELS, Architecture, architecture

if TYPE_CHECKING:
    from methods.backbone.method import BackboneMethod

_BYTES = {"float32": 4, "bfloat16": 2}
_QUERY_VALUE = ("q_proj", "v_proj")
# Korthikanti et al. 2022 (arXiv 2205.05198), equation 1 without the attention matrix, has 17 numbers a token and unit
# of width. Measured with saved tensors: 18 in Llama's layers in bfloat16, 23 to 26 in GPT-J's, whose activation is made
# of several operations.
_UNITS_PER_LAYER = 24
# What a text of a hub model is cut to where the method does not say; built-in models tell their own.
_USUAL_TOKENS = 1024


def estimate(method: BackboneMethod, encoder: str, n_users: int) -> Mapping[str, int] | None:
    """Return bytes by part for `n_users` seen people at the longest texts; None for a trunk of unknown shape."""
    method.check()
    shape = architecture(encoder)
    if shape is None:
        return None
    number = _BYTES.get(method.dtype, 4)
    depth = shape.layers if method.adapt_layers is None else min(method.adapt_layers, shape.layers)
    shared, own = _factor_counts(method, shape, depth)
    rows = 2 * min(method.batch, method.micro_batch or method.batch)
    usual = TEXT_MODELS[encoder].max_tokens if encoder in TEXT_MODELS else _USUAL_TOKENS
    soft = 0 if method.soft is None else method.soft.tokens
    tokens = rows * ((method.max_tokens or usual) + soft)
    present = min(n_users, method.batch)
    if not method.adapters:
        shared += shape.parameters * depth // shape.layers
    return {
        "weights": shape.parameters * number,
        "adapters": 4 * ((shared if method.adapters else 0) + n_users * own),
        "gradients and optimiser": 4 * (3 * shared + 2 * n_users * own + 2 * present * own),
        "best so far": 4 * (shared + n_users * own),
        "activations": _activations(method, shape, depth, tokens, number),
    }


def _activations(method: BackboneMethod, shape: Architecture, depth: int, tokens: int, number: int) -> int:
    whole = _UNITS_PER_LAYER * shape.width * number * tokens
    if method.checkpointing:
        return shape.width * number * tokens * depth + whole
    return whole * depth


def _factor_counts(method: BackboneMethod, shape: Architecture, depth: int) -> tuple[int, int]:
    """Return the number of shared factors, head included, and of one person's own."""
    if not method.adapters:
        return shape.width, 0
    a = b = 0
    for target in method.targets or _QUERY_VALUE:
        d_in, d_out = _widths(target, shape)
        a += depth * method.rank * d_in
        b += depth * method.rank * d_out
    shared, own = method.counted(a, b, shape.width, depth * len(method.targets or _QUERY_VALUE))
    if method.soft is not None:
        shared += sum(map(prod, method.soft.shared_shapes(shape.width).values()))
        own += sum(map(prod, method.soft.own_shapes(shape.width).values()))
    return shared, own


def _widths(target: str, shape: Architecture) -> tuple[int, int]:
    """Return (d_in, d_out) of a linear layer by its usual names."""
    name = target.lower()
    if name in ("gate_proj", "up_proj", "fc_in", "c_fc", "intermediate"):
        return shape.width, shape.ffn
    if name in ("down_proj", "fc_out"):
        return shape.ffn, shape.width
    if name in ("k_proj", "v_proj", "key", "value"):
        return shape.width, shape.kv_width
    return shape.width, 3 * shape.width if name == "c_attn" else shape.width
