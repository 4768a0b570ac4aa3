"""The transformer neural process of GPO: targets attend to a context and to themselves, never to each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ProcessLayer(nn.Module):
    """A transformer layer (normalised after each part) over contexts [people, C, width], targets [people, T, width].

    A context's keys and values are computed once, however many targets attend to them.
    """

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.inner = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width))
        self.after_attention = nn.LayerNorm(width)
        self.after_inner = nn.LayerNorm(width)

    def forward(self, context: Tensor, real: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return contexts and targets one layer on; real bool [people, C] says which places of a context are filled."""
        q, k, v = self._split(context)  # (people, heads, C, h)
        tq, tk, tv = self._split(target)  # (people, heads, T, h)
        scale = q.shape[-1] ** -0.5
        absent = ~real[:, None, None, :]
        score = (q @ k.transpose(-1, -2) * scale).masked_fill(absent, float("-inf"))
        # a person who said nothing has rows of minus infinities, whose outcome nobody reads
        seen = torch.nan_to_num(score.softmax(-1)) @ v
        at = (tq @ k.transpose(-1, -2) * scale).masked_fill(absent, float("-inf"))
        own = (tq * tk).sum(-1, keepdim=True) * scale  # (people, heads, T, 1)
        share = torch.cat([at, own], -1).softmax(-1)
        heard = share[..., :-1] @ v + share[..., -1:] * tv
        return self._rest(context, seen), self._rest(target, heard)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (part.transpose(1, 2) for part in self.project(x).unflatten(-1, (3, self.heads, -1)).unbind(-3))
        return q, k, v

    def _rest(self, x: Tensor, attended: Tensor) -> Tensor:
        x = self.after_attention(x + self.out(attended.transpose(1, 2).flatten(-2)))
        return self.after_inner(x + self.inner(x))


class NeuralProcess(nn.Module):
    """Tokens [phi(item), y] through an MLP of four layers, `layers` of attention, and a head for mean and spread."""

    def __init__(self, d: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        inside = [part for _ in range(3) for part in (nn.ReLU(), nn.Linear(width, width))]
        self.embed = nn.Sequential(nn.Linear(d + 1, width), *inside)
        self.layers = nn.ModuleList([ProcessLayer(width, heads, width) for _ in range(layers)])
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, inputs: Tensor, answers: Tensor, real: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, [people, T], of targets [people, T, d] under their person's context.

        inputs [people, C, d] and answers [people, C] are the contexts' points, real bool [people, C].
        """
        context = self.embed(torch.cat([inputs, answers[..., None]], -1))
        asked = self.embed(torch.cat([target, target.new_zeros((*target.shape[:2], 1))], -1))
        for layer in self.layers:
            context, asked = layer(context, real, asked)
        mean, spread = self.head(asked).unbind(-1)
        return mean, 0.1 + 0.9 * nn.functional.softplus(spread)
