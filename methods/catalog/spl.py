"""SPL, swap-guided preference learning (Kim and Kim, ICLR 2026, arXiv 2603.12595): VPL that cannot ignore its context.

    z = P-IAF(mu + exp(logvar / 2) eps; d, s), z [latent];   r(x, z) = FiLM decoder of [phi(x), z]
    loss: -log sigmoid(r(chosen, z) - r(rejected, z)) + beta max(log q(z) - log p(z), 1)
          + guide [(1 + cos(mu, mu_swapped)) / 2 + .1 (1 - cos(logvar, logvar_swapped)) / 2]

Swapped is the context with chosen and rejected exchanged, and has no gradient: whoever answers everything the other
way round is to have the mirrored mean and the same variance. P-IAF is an inverse autoregressive flow whose shift reads
what a swap turns (d) and whose scale reads what a swap leaves (s), so a mirrored draw stays mirrored. The three parts
are in methods/neural/swap_guided. A person is served with the flow of mu.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from methods.catalog.vpl import VPL
from methods.interface import MethodSpec
from methods.limits import Limit, Limits, number, whole
from methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor, nn

    from methods.neural.context import Contexts
    from methods.neural.swap_guided import SwapGuided
    from methods.neural.training import Rows

_FREE_NATS = 1.0  # of the published code: a divergence below it has no gradient


@register
@dataclass(kw_only=True, eq=False, repr=False)
class SPL(VPL):
    """Options besides those of VPL: `flows` of the posterior and the weight `guide` of the mirrored mean."""

    noise: float = 1.0
    flows: int = 2
    guide: float = 0.1

    spec = MethodSpec(
        name="spl",
        title="Swap-guided preference learning (SPL)",
        level="feature",
        adaptation="in-context",
        citation="SPL: Kim and Kim (ICLR 2026), arXiv 2603.12595",
        equation="z = P-IAF(mu + exp(logvar/2) eps; d, s); r(x, z) = FiLM([phi(x), z]; z); swapped context: mu -> -mu",
        shared_parameters=(
            "encoder d w + w^2 + w l / 2 + 2 w + 5 l^2 + 11 l / 2; flows (3 l^2 + 2 l); decoder h (d + l + w + 1) + "
            "2 w l + 4 w^2 + 6 w + 1, h = w / 2, w = width, l = latent"
        ),
        per_user_parameters="latent, read from the context and not trained",
        cold_start="the prior mean, z = 0",
        deviations=(
            "as vpl: frozen features, no target in its own context, constant beta, ties and soft labels read both "
            "orders, validation is asked early and ends nothing, the decoder's last layer begins at 0, contexts that "
            "could not be trained are not read; an empty context, undefined in the published code, has no guidance and "
            "no flow; each net of P-IAF has one hidden layer of `latent` "
            "(published: three, of 2, 2 and 1 times that, with a drawn permutation, here reversed coordinates), its "
            "shift an odd activation and its scale |z|, so that the flow mirrors exactly (published: rectifiers and "
            "z, which do not); guide .1 and rates of our own for small networks (published .0005 and .000003 beside a "
            "language model, width and latent 1024); `noise` below 1 would scale eps, published 1"
        ),
    )
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "lr": (3e-4, 1e-3, 3e-3, 1e-2),
        "guide": (1e-3, 0.1),
        "context": (8, 32),
        "weight_decay": (0.0, 0.1, 10.0),
    }

    def network(self, d: int, n_people: int) -> nn.Module:
        """Return encoder, flows and decoder."""
        from methods.neural.swap_guided import SwapGuided

        return SwapGuided(d, self.width, self.latent, self.flows)

    def answered(self, net: nn.Module, rows: Rows, contexts: Contexts, asked: Tensor) -> Tensor:
        """Return -log P(label | z) + beta max(log q - log p, 1) + guidance of each comparison, [n]."""
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits as nll

        from methods.neural.swap_guided import guidance

        model = cast("SwapGuided", net)
        read, swapped = model.posterior(rows, contexts)
        eps = torch.randn_like(read.mu)
        z, log_det = model.transformed(read.mu + self.noise * eps * (0.5 * read.logvar).exp(), read)
        # log q(z) - log p(z): the constants of both Gaussians cancel
        divergence = 0.5 * (z**2 - eps**2 - read.logvar).sum(1) - log_det
        margin = model.reward(rows.first, z[asked]) - model.reward(rows.second, z[asked])
        extra = self.beta * divergence.clamp(min=_FREE_NATS) + self.guide * guidance(read, swapped)
        return nll(margin, rows.label, reduction="none") + extra[asked]

    def read(self, net: nn.Module, rows: Rows, contexts: Contexts) -> Tensor:
        """Return the flow of mu, [n_contexts, latent]."""
        model = cast("SwapGuided", net)
        read, _ = model.posterior(rows, contexts)
        return model.transformed(read.mu, read)[0]

    def limits(self) -> Limits:
        """Return by option what is allowed."""
        even = Limit(lambda v: whole(2).allows(v) and v % 2 == 0, "even numbers from 2")
        return {**super().limits(), "latent": even, "flows": whole(0), "guide": number()}
