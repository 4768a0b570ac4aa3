"""SPL, swap-guided preference learning: VPL with a posterior that flips when the context's answers are flipped.

    z = IAF(mu + noise exp(logvar / 2) eps; context), q as in VPL;   r(x, z) = MLP([phi(x), z])
    loss: -log sigmoid(r(chosen, z) - r(rejected, z)) + beta [log q(z) - log p(z)]
          + guide |mu + mu_swapped|^2 / (|mu|^2 + |mu_swapped|^2)

mu_swapped is read from the context with chosen and rejected swapped: whoever answers everything the other way round has
the mirrored latent, so the encoder cannot ignore what was answered. IAF: an inverse autoregressive flow (Kingma et al.
2016).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from methods.catalog.vpl import VPL
from methods.interface import MethodSpec
from methods.limits import Limits, number, whole
from methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor, nn

    from methods.neural.context import Contexts
    from methods.neural.training import Rows
    from methods.neural.variational import Variational


@register
@dataclass(kw_only=True, eq=False, repr=False)
class SPL(VPL):
    """Options besides those of VPL: `flows` of the posterior and the weight `guide` of the mirrored latent."""

    flows: int = 2
    guide: float = 1.0

    spec = MethodSpec(
        name="spl",
        title="Swap-guided preference learning (SPL)",
        level="feature",
        adaptation="in-context",
        citation="SPL, swap-guided preference learning: VPL + swap guidance + inverse autoregressive flow",
        equation="z = IAF(mu + noise exp(logvar/2) eps); r(x, z) = MLP([phi(x), z]); swapped context: mu -> -mu",
        shared_parameters="those of vpl + flows (5 l^2 + 7 l) / 2, l = latent",
        per_user_parameters="latent, read from the context and not trained",
        cold_start="the prior mean, z = 0",
        deviations=(
            "written from the description (VPL, swap guidance, IAF posterior) and the literature on flows; the "
            "authors' code was not read, so the form of the guidance (squared sum of the two posterior means, relative "
            "to their sizes), its weight and the flow's layers are ours; otherwise as vpl: frozen features, no target "
            "in its own context, scaled noise, constant beta; the divergence is that of one sample; a person is served "
            "with the flow of mu, an empty context with z = 0"
        ),
    )
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "lr": (1e-3, 3e-3),
        "guide": (0.1, 1.0),
        "context": (8, 32),
        "weight_decay": (0.0, 0.1),
    }

    def network(self, d: int, n_people: int) -> nn.Module:
        """Return encoder, flows and decoder."""
        from methods.neural.variational import Variational

        return Variational(d, self.width, self.latent, self.flows)

    def answered(self, net: nn.Module, rows: Rows, contexts: Contexts, asked: Tensor) -> Tensor:
        """Return -log P(label | z) + beta (log q - log p) + guidance of each comparison, [n]."""
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits as nll

        from methods.neural.variational import guidance

        model = cast("Variational", net)
        mu, logvar, reading = model.posterior(rows, contexts)
        mirrored, _, _ = model.posterior(replace(rows, label=1 - rows.label), contexts)
        noise = torch.randn_like(mu)
        drawn = mu + self.noise * noise * (0.5 * logvar).exp()
        z, log_det = model.transformed(drawn, reading, contexts.real.any(1))
        # log q(z) - log p(z) but for a constant: that of two Gaussians cancels, that of the scaled noise moves nothing
        divergence = 0.5 * (z**2 - noise**2 - logvar).sum(1) - log_det
        margin = model.reward(rows.first, z[asked]) - model.reward(rows.second, z[asked])
        extra = self.beta * divergence + self.guide * guidance(mu, mirrored)
        return nll(margin, rows.label, reduction="none") + extra[asked]

    def read(self, net: nn.Module, rows: Rows, contexts: Contexts) -> Tensor:
        """Return the flow of mu, [n_contexts, latent]."""
        model = cast("Variational", net)
        mu, _, reading = model.posterior(rows, contexts)
        return model.transformed(mu, reading, contexts.real.any(1))[0]

    def limits(self) -> Limits:
        """Return by option what is allowed."""
        return {**super().limits(), "flows": whole(0), "guide": number()}
