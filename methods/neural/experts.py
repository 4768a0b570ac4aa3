"""A reward model whose layers have adapters of several experts, of which a person's embedding chooses one (CoPL).

    y = W x + c + (alpha / r) (B_0 A_0 x + p_k B_k A_k x),   p = softmax(gate(e_u)) [E], k = argmax p
    A [1 + E, r, d_in], B [1 + E, d_out, r], the first of them shared;   gate: d_e -> d_g -> E

In training every p has noise in its logits, so that experts which nobody chose yet are tried.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Mixture:
    """experts E, rank r and alpha of each adapter, embedding d_e of a person, hidden d_g of the gate, noise's size."""

    experts: int = 8
    rank: int = 8
    alpha: float = 16.0
    embedding: int = 512
    hidden: int = 256
    noise: float = 0.1


class ExpertLinear(nn.Module):
    """A linear layer with a shared adapter and one adapter per expert; B begins at 0."""

    def __init__(self, d_in: int, d_out: int, mixture: Mixture) -> None:
        super().__init__()
        self.mixture = mixture
        self.base = nn.Linear(d_in, d_out)
        bound = 1.0 / math.sqrt(d_in)
        self.A = nn.Parameter(torch.empty(1 + mixture.experts, mixture.rank, d_in).uniform_(-bound, bound))
        self.B = nn.Parameter(torch.zeros(1 + mixture.experts, d_out, mixture.rank))
        self.gate = nn.Sequential(
            nn.Linear(mixture.embedding, mixture.hidden), nn.ReLU(), nn.Linear(mixture.hidden, mixture.experts)
        )

    def shares(self, codes: Tensor) -> Tensor:
        """Return each adapter's share, [n, 1 + E], under embeddings [n, d_e]: 1, and p of the chosen expert alone."""
        logits = self.gate(codes)
        if self.training:
            logits = logits + self.mixture.noise * torch.randn_like(logits)
        p = logits.softmax(1)
        chosen = torch.zeros_like(p).scatter(1, p.argmax(1, keepdim=True), 1.0)
        return torch.cat([torch.ones_like(p[:, :1]), p * chosen], 1)

    def forward(self, x: Tensor, shares: Tensor) -> Tensor:
        """Return the layer of x [n, d_in], [n, d_out]."""
        inner = torch.einsum("nd,erd->ner", x, self.A) * shares[:, :, None]
        return self.base(x) + self.mixture.alpha / self.mixture.rank * torch.einsum("ner,eor->no", inner, self.B)


class ExpertReward(nn.Module):
    """Two hidden layers with experts, and a linear head: d -> width -> width -> 1."""

    def __init__(self, d: int, width: int, mixture: Mixture) -> None:
        super().__init__()
        self.layers = nn.ModuleList([ExpertLinear(d, width, mixture), ExpertLinear(width, width, mixture)])
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)  # an untrained network holds no opinion
        nn.init.zeros_(self.head.bias)

    def shares(self, codes: Tensor) -> list[Tensor]:
        """Return every layer's shares of its adapters, [n, 1 + E] each."""
        return [layer.shares(codes) for layer in self._experts()]

    def forward(self, x: Tensor, shares: list[Tensor]) -> Tensor:
        """Return rewards [n] of inputs [n, d]."""
        for layer, share in zip(self._experts(), shares, strict=True):
            x = nn.functional.gelu(layer(x, share))
        return self.head(x)[:, 0]

    def _experts(self) -> list[ExpertLinear]:
        return [layer for layer in self.layers if isinstance(layer, ExpertLinear)]
