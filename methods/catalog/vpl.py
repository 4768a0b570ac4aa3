"""VPL, variational preference learning (Poddar et al., NeurIPS 2024, arXiv 2408.10075): a latent read from a context.

    q(z | context) = Normal(mu, diag exp(logvar)), z [latent];   r(x, z) = MLP([phi(x), z])

The pairs of a context go through MLP([chosen, rejected]), self-attention and a mean into mu and logvar, both clamped to
[-1, 1]. Loss: -log sigmoid(r(chosen, z) - r(rejected, z)) + beta KL(q || Normal(0, I)), z = mu + noise exp(logvar / 2)
eps; a person is served with z = mu. With w = l = 512 and d = 768: 3,544,577 parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from datasets_registry.records import Comparisons
from methods.interface import Array, Budget, Histories, MethodSpec, UserState
from methods.limits import Limits, number, whole
from methods.neural.context import ContextMethod, Contexts
from methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor, nn

    from methods.neural.training import Rows
    from methods.neural.variational import Variational

_PEOPLE_AT_ONCE = 1024


@register
@dataclass(kw_only=True, eq=False, repr=False)
class VPL(ContextMethod):
    """Options: `width` of the layers, `latent` numbers per person, `beta` of the divergence, `noise` of z's draw."""

    width: int = 512
    latent: int = 512
    beta: float = 1e-4
    noise: float = 1e-3

    spec = MethodSpec(
        name="vpl",
        title="Variational preference learning (VPL)",
        level="feature",
        adaptation="in-context",
        citation="VPL: Poddar et al. (NeurIPS 2024), arXiv 2408.10075",
        equation="q(z|context) = N(mu, diag exp(logvar)); r(x, z) = MLP([phi(x), z]); a person is z = mu [latent]",
        shared_parameters="3 d w + 2 w^2 + 2 w l + 5 l^2 + 5 w + 6 l + 1, w = width, l = latent",
        per_user_parameters="latent, read from the context and not trained",
        cold_start="the prior mean, z = 0",
        deviations=(
            "frozen features instead of a LoRA head on a language model; z = mu is served as it was trained, where the "
            "published code normalises z in training only; a target is never in its own context, and contexts are of "
            "any size up to `context` (published: 2 to 8, drawn with the targets among them); an empty one, undefined "
            "there, is z = 0; eps is scaled by `noise`, as in a published version of the code (1e-3) and not in the "
            "paper's equation (1), since unit noise drowns a mean within [-1, 1]; the divergence is that of the "
            "unscaled Gaussian; beta is constant instead of cyclic; ties and soft labels read both orders, weighted; "
            "the decoder's last layer begins at 0, so that an untrained network holds no opinion; the step with the "
            "least validation NLL is kept, asked more often at first, and nothing ends training early; where no "
            "seen person has two units, contexts cannot be trained and are not read"
        ),
    )
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "lr": (3e-4, 1e-3, 3e-3),
        "beta": (1e-4, 1e-2),
        "context": (8, 32),
        "weight_decay": (0.0, 0.1, 10.0),
    }

    def network(self, d: int, n_people: int) -> nn.Module:
        """Return encoder and decoder."""
        from methods.neural.variational import Variational

        return Variational(d, self.width, self.latent)

    def answered(self, net: nn.Module, rows: Rows, contexts: Contexts, asked: Tensor) -> Tensor:
        """Return -log P(label | z) + beta KL of each comparison, [n], z being drawn once per context."""
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits as nll

        model = cast("Variational", net)
        mu, logvar = model.posterior(rows, contexts)
        z = (mu + self.noise * torch.randn_like(mu) * (0.5 * logvar).exp())[asked]
        divergence = 0.5 * (mu**2 + logvar.exp() - logvar - 1).sum(1)
        margin = model.reward(rows.first, z) - model.reward(rows.second, z)
        return nll(margin, rows.label, reduction="none") + self.beta * divergence[asked]

    def read(self, net: nn.Module, rows: Rows, contexts: Contexts) -> Tensor:
        """Return mu, [n_contexts, latent]."""
        return cast("Variational", net).posterior(rows, contexts)[0]

    def adapt(self, users: Sequence[int], history: Sequence[Comparisons], budget: Budget) -> list[UserState]:
        """Return what each history is read as; nothing is fitted, and seen people are read like new ones."""
        import torch

        histories, net = self.heard(history), self.ready()
        codes: list[Array] = []
        with torch.no_grad():
            for lo in range(0, len(histories), _PEOPLE_AT_ONCE):
                many = np.arange(lo, min(lo + _PEOPLE_AT_ONCE, len(histories)))
                some = Histories.group(histories.table, many)
                rows = self.rows(some.table)
                contexts = Contexts.of(rows.person, len(many), self.context)
                codes.append(self.read(net, rows, contexts).float().cpu().numpy())
        return [UserState({"code": code}) for part in codes for code in part]

    def reward(self, net: nn.Module, codes: Tensor, inputs: Tensor) -> Tensor:
        """Return r(x, z), [n]."""
        return cast("Variational", net).reward(inputs, codes)

    def limits(self) -> Limits:
        """Return by option what is allowed."""
        return {**super().limits(), "width": whole(), "latent": whole(), "beta": number(), "noise": number()}
