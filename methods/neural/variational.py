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
    """q(z | context) = Normal(mu, diag exp(logvar)): MLP of [chosen, rejected], self-attention, mean, two heads.

    Layers and widths are those of the published code: the MLP's three layers end at the latent width, and the
    attention has one head, maps for queries, keys and values, and none for its output.
    """

    def __init__(self, d: int, width: int, latent: int) -> None:
        super().__init__()
        self.pair = mlp(2 * d, width, width, latent)
        self.query, self.key, self.value = (nn.Linear(latent, latent) for _ in range(3))
        self.mean = nn.Linear(latent, latent)
        self.spread = nn.Linear(latent, latent)

    def forward(self, rows: Rows, contexts: Contexts) -> tuple[Tensor, Tensor, Tensor]:
        """Return mu and logvar, both in [-1, 1], and the pooled reading, each [n_contexts, latent].

        A soft label reads both orders, weighted: as chosen over rejected, and the other way round. An empty context
        has the prior's mu and logvar, which are 0.
        """
        read = self._read(rows)  # (n, latent)
        some = contexts.real.any(1)
        if not len(read):
            pooled = read.new_zeros((len(some), self.mean.in_features))
        else:
            inside = read[contexts.row]  # (n_contexts, C, latent)
            # attention over nothing is no number, so an empty context reads its padding, which `keep` drops below
            open_to = (contexts.real | ~some[:, None])[:, None]
            seen = nn.functional.scaled_dot_product_attention(
                self.query(inside), self.key(inside), self.value(inside), attn_mask=open_to
            )
            real = contexts.real[..., None].to(seen.dtype)
            pooled = (seen * real).sum(1) / real.sum(1).clamp(min=1)
        keep = some[:, None].to(pooled.dtype)
        return self.mean(pooled).clamp(-1, 1) * keep, self.spread(pooled).clamp(-1, 1) * keep, pooled * keep

    def _read(self, rows: Rows) -> Tensor:
        """Return the reading of each pair, [n, latent]; the order with the lesser weight only where it has some."""
        swapped = rows.label[:, None] < 0.5
        chosen = torch.where(swapped, rows.second, rows.first)
        rejected = torch.where(swapped, rows.first, rows.second)
        read = self.pair(torch.cat([chosen, rejected], 1))
        doubt = torch.minimum(rows.label, 1 - rows.label)
        soft = doubt.nonzero()[:, 0]
        if not len(soft):
            return read
        other = self.pair(torch.cat([rejected[soft], chosen[soft]], 1))
        return read.index_add(0, soft, doubt[soft, None] * (other - read[soft]))


class Triangular(nn.Module):
    """A linear map whose output i reads the inputs before i, and input i too if `itself`; no other weight exists."""

    index: Tensor

    def __init__(self, size: int, *, itself: bool) -> None:
        super().__init__()
        self.register_buffer("index", torch.tril_indices(size, size, 0 if itself else -1), persistent=False)
        self.weight = nn.Parameter(torch.empty(self.index.shape[1]).uniform_(-1, 1) / size**0.5)
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        """Return [n, size] of [n, size]."""
        size = len(self.bias)
        full = x.new_zeros((size, size)).index_put((self.index[0], self.index[1]), self.weight)
        return nn.functional.linear(x, full, self.bias)


class Flow(nn.Module):
    """One step of an inverse autoregressive flow (Kingma et al. 2016): z' = s z + (1 - s) m, s = sigmoid(.).

    m and s of coordinate i depend on the coordinates before i and on the context's reading, through triangular
    layers, so that log |det dz'/dz| = sum_i log s_i.
    """

    def __init__(self, latent: int, reading: int) -> None:
        super().__init__()
        self.before = Triangular(latent, itself=False)
        self.given = nn.Linear(reading, latent, bias=False)
        self.shift = Triangular(latent, itself=True)
        self.gate = Triangular(latent, itself=True)
        nn.init.constant_(self.gate.bias, 2.0)  # near the identity at first

    def forward(self, z: Tensor, reading: Tensor) -> tuple[Tensor, Tensor]:
        """Return z' [n, latent] and log |det| [n]."""
        hidden = nn.functional.leaky_relu(self.before(z) + self.given(reading), _SLOPE)
        gate = self.gate(hidden)
        s = torch.sigmoid(gate)
        return s * z + (1 - s) * self.shift(hidden), nn.functional.logsigmoid(gate).sum(1)


class Variational(nn.Module):
    """A posterior, no or some flows, and a decoder r(x, z) = MLP([x, z])."""

    def __init__(self, d: int, width: int, latent: int, flows: int = 0) -> None:
        super().__init__()
        self.posterior = Posterior(d, width, latent)
        self.flows = nn.ModuleList([Flow(latent, latent) for _ in range(flows)])
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
    """Return |mu + swapped|^2 / (|mu|^2 + |swapped|^2), [n], in [0, 2]: 0 if the swapped mean is the mirrored one.

    It is relative, so that an encoder that ignores the answers (swapped = mu) pays 2 however small it makes mu. Where
    both are 0, as for an empty context, it is 0.
    """
    size = (mu**2).sum(1) + (swapped**2).sum(1)
    return ((mu + swapped) ** 2).sum(1) / size.clamp(min=1e-6)
