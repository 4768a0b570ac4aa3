"""The parts of VPL, of which SPL takes some: an encoder of labelled pairs into a Gaussian, and a decoder."""

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


def silent_at_first(last: nn.Linear) -> nn.Linear:
    """Set a reward's last layer to zero, so that an untrained network holds no opinion, and return it."""
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return last


class Attended(nn.Module):
    """A Gaussian of what was read of a context's pairs: self-attention, mean, two heads.

    Layers are those of the published code: the attention has one head, maps for queries, keys and values, and none for
    its output.
    """

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(latent, latent) for _ in range(3))
        self.mean = nn.Linear(latent, latent)
        self.spread = nn.Linear(latent, latent)

    def forward(self, read: Tensor, contexts: Contexts) -> tuple[Tensor, Tensor]:
        """Return mu and logvar, both in [-1, 1], [n_contexts, latent], of pairs read as [n, latent].

        An empty context has the prior's mu and logvar, which are 0.
        """
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
            pooled = mean_of(seen, contexts)
        keep = some[:, None].to(pooled.dtype)
        return self.mean(pooled).clamp(-1, 1) * keep, self.spread(pooled).clamp(-1, 1) * keep


def mean_of(inside: Tensor, contexts: Contexts) -> Tensor:
    """Return the mean over each context's real places, [n_contexts, k], of [n_contexts, C, k]; 0 where it is empty."""
    real = contexts.real[..., None].to(inside.dtype)
    return (inside * real).sum(1) / real.sum(1).clamp(min=1)


class Posterior(nn.Module):
    """q(z | context) = Normal(mu, diag exp(logvar)): MLP of [chosen, rejected], then `Attended`.

    The MLP's three layers end at the latent width, as in the published code.
    """

    def __init__(self, d: int, width: int, latent: int) -> None:
        super().__init__()
        self.pair = mlp(2 * d, width, width, latent)
        self.attended = Attended(latent)

    def forward(self, rows: Rows, contexts: Contexts) -> tuple[Tensor, Tensor]:
        """Return mu and logvar, [n_contexts, latent] each.

        A soft label reads both orders, weighted: as chosen over rejected, and the other way round.
        """
        return self.attended(self._read(rows), contexts)

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


class Variational(nn.Module):
    """A posterior and a decoder r(x, z) = MLP([x, z])."""

    def __init__(self, d: int, width: int, latent: int) -> None:
        super().__init__()
        self.posterior = Posterior(d, width, latent)
        self.decoder = nn.Sequential(mlp(d + latent, width, width), nn.LeakyReLU(_SLOPE))
        self.out = silent_at_first(nn.Linear(width, 1))

    def reward(self, inputs: Tensor, z: Tensor) -> Tensor:
        """Return rewards [n] of inputs [n, d] under z [n, latent]."""
        return self.out(self.decoder(torch.cat([inputs, z], 1)))[:, 0]
