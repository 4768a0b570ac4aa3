"""The parts of SPL: a posterior that mirrors when a context's answers are swapped, a flow that keeps it so, a decoder.

Each response is read alone, f(x) [l / 2]. Of a context of chosen c and rejected r

    d = mean (f(c) - f(r)) / 2, which turns its sign when the answers are swapped;   s = mean (f(c) + f(r)) / 2, which
    does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from methods.neural.context import Contexts
from methods.neural.training import Rows
from methods.neural.variational import Attended, mean_of, mlp, silent_at_first

_SLOPE = 0.2
_SPREAD = 0.1  # the weight of the variance in the guidance, eta of the published code


@dataclass(frozen=True, slots=True)
class Read:
    """What contexts are read as: mu, logvar [n_contexts, l]; d, s [n_contexts, l / 2], see the module.

    real bool [n_contexts]: which contexts are not empty; the others are all 0.
    """

    mu: Tensor
    logvar: Tensor
    d: Tensor
    s: Tensor
    real: Tensor


class SwapPosterior(nn.Module):
    """q(z | context): an MLP of each response alone, [f(chosen), f(rejected)] of a pair, then attention and heads."""

    def __init__(self, d: int, width: int, latent: int) -> None:
        super().__init__()
        self.response = mlp(d, width, width, latent // 2)
        self.attended = Attended(latent)

    def forward(self, rows: Rows, contexts: Contexts) -> tuple[Read, Read]:
        """Return what contexts are read as, and what they would be with every answer swapped, without a gradient.

        A soft label reads both orders, weighted.
        """
        first, second = self.response(rows.first), self.response(rows.second)
        label = rows.label[:, None]
        chosen, rejected = label * first + (1 - label) * second, label * second + (1 - label) * first
        read = self._read(chosen, rejected, contexts)
        with torch.no_grad():
            swapped = self._read(rejected, chosen, contexts)
        return read, swapped

    def _read(self, chosen: Tensor, rejected: Tensor, contexts: Contexts) -> Read:
        mu, logvar = self.attended(torch.cat([chosen, rejected], 1), contexts)
        if len(chosen):
            d, s = (mean_of(half[contexts.row] / 2, contexts) for half in (chosen - rejected, chosen + rejected))
        else:
            d, s = (chosen.new_zeros((len(mu), chosen.shape[1])) for _ in range(2))
        return Read(mu, logvar, d, s, contexts.real.any(1))


class Triangular(nn.Module):
    """A linear map whose output i reads the inputs before i, and input i too if `itself`; no other weight exists."""

    index: Tensor

    def __init__(self, size: int, *, itself: bool, bias: bool) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("index", torch.tril_indices(size, size, 0 if itself else -1), persistent=False)
        self.weight = nn.Parameter(torch.empty(self.index.shape[1]).uniform_(-1, 1) / size**0.5)
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Return [n, size] of [n, size]."""
        full = x.new_zeros((self.size, self.size)).index_put((self.index[0], self.index[1]), self.weight)
        return nn.functional.linear(x, full, self.bias)


class SwapFlow(nn.Module):
    """One step of P-IAF, an inverse autoregressive flow that parts what a swap turns from what it leaves.

        z' = m(z, d) + exp(v(|z|, s) / 2) z,   m in [-1, 1], v in [-5, 5]

    m and v of coordinate i depend on the coordinates before i, so that log |det dz'/dz| = sum_i v_i / 2. m has no bias
    and an odd activation, and v reads what a swap leaves alone: the flow of (-z, -d, s) is minus that of (z, d, s).
    """

    def __init__(self, latent: int) -> None:
        super().__init__()
        for name, bias in (("shift", False), ("scale", True)):
            before = Triangular(latent, itself=False, bias=bias)
            given = nn.Linear(latent // 2, latent, bias=False)
            after = Triangular(latent, itself=True, bias=bias)
            self.add_module(name, nn.ModuleDict({"before": before, "given": given, "after": after}))

    def forward(self, z: Tensor, d: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return z' [n, latent] and log |det| [n]."""
        shift, scale = (self.get_submodule(name) for name in ("shift", "scale"))
        assert isinstance(shift, nn.ModuleDict)
        assert isinstance(scale, nn.ModuleDict)
        m = shift["after"](torch.tanh(shift["before"](z) + shift["given"](d))).clamp(-1, 1)
        v = scale["after"](leaky_relu(scale["before"](z.abs()) + scale["given"](s), _SLOPE)).clamp(-5, 5)
        return m + (v / 2).exp() * z, v.sum(1) / 2


class AdaptiveDecoder(nn.Module):
    """r(x, z): two layers on [x, z], whose output z scales and moves (FiLM), and a linear head.

    h' = act(gamma h + beta);   gamma = 1 + tanh(.) / 2, beta = tanh(.) / 2 of an MLP of z
    """

    def __init__(self, d: int, width: int, latent: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(mlp(d + latent, max(1, width // 2), width), nn.LeakyReLU(_SLOPE))
        self.film = mlp(latent, 2 * width, 2 * width)
        self.out = silent_at_first(nn.Linear(width, 1))

    def forward(self, inputs: Tensor, z: Tensor) -> Tensor:
        """Return rewards [n] of inputs [n, d] under z [n, latent]."""
        gamma, beta = (0.5 * torch.tanh(self.film(z))).chunk(2, 1)
        hidden = self.layers(torch.cat([inputs, z], 1))
        return self.out(leaky_relu((1 + gamma) * hidden + beta, _SLOPE))[:, 0]


class SwapGuided(nn.Module):
    """A posterior, no or some flows, and a decoder."""

    def __init__(self, d: int, width: int, latent: int, flows: int) -> None:
        super().__init__()
        self.posterior = SwapPosterior(d, width, latent)
        self.flows = nn.ModuleList([SwapFlow(latent) for _ in range(flows)])
        self.decoder = AdaptiveDecoder(d, width, latent)

    def transformed(self, z: Tensor, read: Read) -> tuple[Tensor, Tensor]:
        """Return z after the flows, coordinates reversed before each, and log |det| [n]; an empty context's z stays."""
        out, total = z, z.new_zeros(len(z))
        for flow in self.flows:
            out, log_det = flow(out.flip(1), read.d, read.s)
            total = total + log_det
        return torch.where(read.real[:, None], out, z), torch.where(read.real, total, torch.zeros_like(total))

    def reward(self, inputs: Tensor, z: Tensor) -> Tensor:
        """Return rewards [n] of inputs [n, d] under z [n, latent]."""
        return self.decoder(inputs, z)


def guidance(read: Read, swapped: Read) -> Tensor:
    """Return (1 + cos(mu, mu_swapped)) / 2 + .1 (1 - cos(logvar, logvar_swapped)) / 2, [n], 0 for empty contexts.

    It is 0 if a swap turns the mean round and leaves the variance. The swapped side is a target: it has no gradient.
    """
    mean, spread = _cosine(read.mu, swapped.mu), _cosine(read.logvar, swapped.logvar)
    each = (1 + mean) / 2 + _SPREAD * (1 - spread) / 2
    return torch.where(read.real, each, torch.zeros_like(each))


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return nn.functional.cosine_similarity(a, b.detach(), dim=1, eps=1e-6)
