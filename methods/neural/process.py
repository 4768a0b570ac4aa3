"""The transformer neural process of GPO: targets attend to a context, never to each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ProcessLayer(nn.Module):
    """A transformer layer (normalised after each part) over contexts and over blocks of targets.

    Keys and values are those of the context alone, computed once however many targets attend to them.
    """

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.told = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.inner = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width))
        self.after_attention = nn.LayerNorm(width)
        self.after_inner = nn.LayerNorm(width)

    def forward(self, context: Tensor, real: Tensor, target: Tensor, whose: Tensor) -> tuple[Tensor, Tensor]:
        """Return contexts [contexts, C, width] and blocks of targets [blocks, T, width] one layer on.

        real bool [contexts, C] says which places are filled, whose int64 [blocks] the context of each block.
        """
        some = real.any(1)
        # attention over nothing is no number, so an empty context reads its padding, which is then heard as nothing
        open_to = (real | ~some[:, None])[:, None, None]
        heard_at_all = some[:, None, None].to(context.dtype)
        key, value = self._heads(self.told(context), 2 * self.heads).chunk(2, 1)  # (contexts, heads, C, h)
        asked = self._layer(target, key[whose], value[whose], open_to[whose], heard_at_all[whose])
        return self._layer(context, key, value, open_to, heard_at_all), asked

    def _layer(self, x: Tensor, key: Tensor, value: Tensor, open_to: Tensor, heard_at_all: Tensor) -> Tensor:
        query = self._heads(self.query(x), self.heads)
        heard = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=open_to)
        x = self.after_attention(x + self.out(heard.transpose(1, 2).flatten(2) * heard_at_all))
        return self.after_inner(x + self.inner(x))

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class NeuralProcess(nn.Module):
    """Tokens [phi(item), y] through an MLP of four layers, `layers` of attention, and a head for mean and spread."""

    def __init__(self, d: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        inside = [part for _ in range(3) for part in (nn.ReLU(), nn.Linear(width, width))]
        self.embed = nn.Sequential(nn.Linear(d + 1, width), *inside)
        self.layers = nn.ModuleList([ProcessLayer(width, heads, width) for _ in range(layers)])
        last = nn.Linear(width, 2)
        # no mean differs at first, so that an untrained process holds no opinion
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), last)

    def token(self, inputs: Tensor, answers: Tensor) -> Tensor:
        """Return the tokens [n, width] of inputs [n, d] and answers [n]; a target's answer is 0."""
        return self.embed(torch.cat([inputs, answers[:, None]], 1))

    def forward(self, context: Tensor, real: Tensor, target: Tensor, whose: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, [blocks, T], of blocks of targets [blocks, T, width].

        context [contexts, C, width] are the contexts' tokens, real bool [contexts, C] those that are there, and whose
        int64 [blocks] the context that a block is asked under.
        """
        for layer in self.layers:
            context, target = layer(context, real, target, whose)
        mean, spread = self.head(target).unbind(-1)
        return mean, 0.05 + 0.95 * nn.functional.softplus(spread)
