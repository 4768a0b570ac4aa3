"""The parts of VPL and SPL: an encoder of labelled pairs into a Gaussian over a latent, a flow, and a decoder."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from methods.neural.context import Contexts
from methods.neural.training import Rows

_SLOPE = 0.2


def mlp(*widths: int) -> nn.Sequential:
    """Return linear layers of these widths with leaky rectifiers between them."""
    parts: list[nn.Module] = []
    for given, made in pairwise(widths):
        parts += [nn.Linear(given, made), nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*parts[:-1])


class Posterior(nn.Module):
    """q(z | context) = Normal(mu, diag exp(logvar)): MLP of [chosen, rejected], self-attention, mean, two heads."""

    def __init__(self, d: int, width: int, latent: int) -> None:
        super().__init__()
        self.pair = mlp(2 * d, width, width)
        self.attention = nn.MultiheadAttention(width, 1, batch_first=True)
        self.mean = nn.Linear(width, latent)
        self.spread = nn.Linear(width, latent)

    def forward(self, rows: Rows, contexts: Contexts) -> tuple[Tensor, Tensor, Tensor]:
        """Return mu and logvar [n_contexts, latent] and the pooled reading [n_contexts, width].

        A soft label reads both orders, weighted: as chosen over rejected, and the other way round. An empty context
        has the prior's mu and logvar, which are 0.
        """
        label = rows.label[:, None]
        read = label * self.pair(torch.cat([rows.first, rows.second], 1))
        read = read + (1 - label) * self.pair(torch.cat([rows.second, rows.first], 1))  # (n, width)
        some = contexts.real.any(1)
        if not len(read):
            pooled = read.new_zeros((len(some), self.mean.in_features))
        else:
            inside = read[contexts.row]  # (n_contexts, C, width)
            hidden = ~contexts.real
            hidden = hidden & some[:, None]  # attention over nothing is no number; what it gives is dropped below
            seen, _ = self.attention(inside, inside, inside, key_padding_mask=hidden, need_weights=False)
            real = contexts.real[..., None].to(seen.dtype)
            pooled = (seen * real).sum(1) / real.sum(1).clamp(min=1)
        keep = some[:, None].to(pooled.dtype)
        return self.mean(pooled) * keep, self.spread(pooled).clamp(-1, 1) * keep, pooled * keep


class Flow(nn.Module):
    """One step of an inverse autoregressive flow (Kingma et al. 2016): z' = s z + (1 - s) m, s = sigmoid(.).

    m and s of coordinate i depend on the coordinates before i and on the context's reading, through masked linear
    layers, so that log |det dz'/dz| = sum_i log s_i.
    """

    before: Tensor
    upto: Tensor

    def __init__(self, latent: int, reading: int) -> None:
        super().__init__()
        self.inner = nn.Linear(latent, latent)
        self.given = nn.Linear(reading, latent)
        self.shift = nn.Linear(latent, latent)
        self.gate = nn.Linear(latent, latent)
        self.register_buffer("before", torch.tril(torch.ones(latent, latent), -1), persistent=False)
        self.register_buffer("upto", torch.tril(torch.ones(latent, latent)), persistent=False)
        nn.init.constant_(self.gate.bias, 2.0)  # near the identity at first

    def forward(self, z: Tensor, reading: Tensor) -> tuple[Tensor, Tensor]:
        """Return z' [n, latent] and log |det| [n]."""
        hidden = nn.functional.linear(z, self.inner.weight * self.before, self.inner.bias) + self.given(reading)
        hidden = nn.functional.leaky_relu(hidden, _SLOPE)
        gate = nn.functional.linear(hidden, self.gate.weight * self.upto, self.gate.bias)
        shift = nn.functional.linear(hidden, self.shift.weight * self.upto, self.shift.bias)
        s = torch.sigmoid(gate)
        return s * z + (1 - s) * shift, nn.functional.logsigmoid(gate).sum(1)


class Variational(nn.Module):
    """A posterior, no or some flows, and a decoder r(x, z) = MLP([x, z])."""

    def __init__(self, d: int, width: int, latent: int, flows: int = 0) -> None:
        super().__init__()
        self.posterior = Posterior(d, width, latent)
        self.flows = nn.ModuleList([Flow(latent, width) for _ in range(flows)])
        self.decoder = mlp(d + latent, width, width, 1)

    def transformed(self, z: Tensor, reading: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Return z after the flows, coordinates reversed between them, and log |det| [n].

        Where `real` bool [n] is false, the context is empty and z stays the prior's.
        """
        out, total = z, z.new_zeros(len(z))
        for flow in self.flows:
            moved, log_det = flow(out.flip(1), reading)
            out, total = moved, total + log_det
        keep = real[:, None]
        return torch.where(keep, out, z), torch.where(real, total, torch.zeros_like(total))

    def reward(self, inputs: Tensor, z: Tensor) -> Tensor:
        """Return rewards [n] of inputs [n, d] under z [n, latent]."""
        return self.decoder(torch.cat([inputs, z], 1))[:, 0]


def guidance(mu: Tensor, swapped: Tensor) -> Tensor:
    """Return how far the mean of a swapped context is from the mirrored one, [n]: the mean of (mu + swapped)^2."""
    return ((mu + swapped) ** 2).mean(1)
