"""Distributional preference learning, categorical (Siththaranjan et al., ICLR 2024, arXiv 2312.08358).

    reward(x) in {a_1 .. a_m}, evenly on [0, 1],   p(x) = softmax(MLP(phi(x))) [m];   all shared
    P(first > second) = sum_ij p_i(first) p_j(second) (1(a_i > a_j) + 1/2 1(a_i = a_j))

Loss: -log P(chosen > rejected) - entropy * H(mean of p over the batch's items), which keeps every atom in use. Where
people disagree about an item, its p has more than one hump.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from methods.interface import MethodSpec
from methods.limits import Limits, number, whole
from methods.neural.distributional import DistributionalReward
from methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor, nn

    from methods.neural.training import Rows

_LEAST = 1e-7  # of a probability: a softmax of distant logits is 0 in float32


@register
@dataclass(kw_only=True, eq=False, repr=False)
class DPLCategorical(DistributionalReward):
    """A probability per atom; atoms: m. entropy: the weight of the mean distribution's entropy."""

    spec = MethodSpec(
        name="dpl-categorical",
        title="DPL, categorical",
        level="feature",
        adaptation="none",
        citation="Distributional preference learning, Siththaranjan et al. (ICLR 2024), arXiv 2312.08358",
        equation="P(first > second) = sum_ij p_i p'_j (1(i > j) + 1(i = j) / 2), p = softmax(MLP(phi)) [m] shared",
        shared_parameters="width (d + 1) + m (width + 1)",
        per_user_parameters="0",
        cold_start="itself",
        deviations=(
            "one hidden layer on frozen features, standardised, instead of LoRA on a language model; AdamW at .01 "
            "falling to zero for at most 400 steps (published .000003 on a language model, falling to a tenth); the "
            "step with the least validation NLL is kept; margins are log P(first > second) - log P(second > first); "
            "the last layer begins at 0, so that an untrained network holds no opinion"
        ),
    )
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "lr": (0.003, 0.01, 0.03),
        "width": (16, 64, 256),
        "entropy": (0.0, 0.1),
    }
    chooses = "the step of training that is kept, by validation NLL"

    atoms: int = 10
    entropy: float = 0.1

    def outputs(self) -> int:
        """Return m, a logit per atom."""
        return self.atoms

    def loss(self, net: nn.Module, rows: Rows) -> Tensor:
        """Return the negative log-likelihood of each comparison less the weighted entropy, [n]."""
        import torch

        first, second = net(rows.first), net(rows.second)
        mean = torch.cat([first, second]).softmax(1).mean(0)
        return self.label_loss(first, second, rows) - self.entropy * torch.special.entr(mean).sum()

    def moments(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the variance of the atoms, [n] each."""
        import torch

        p, atoms = numbers.softmax(1), torch.linspace(0.0, 1.0, self.atoms, device=numbers.device)
        mean = p @ atoms
        return mean, (p * (atoms - mean[:, None]).square()).sum(1)

    def log_odds(self, first: Tensor, second: Tensor) -> Tensor:
        """Return log P(first > second) - log P(second > first), a tie counting half for each, [n]."""
        p, other = first.softmax(1), second.softmax(1)
        return _exceeds(p, other).clamp(min=_LEAST).log() - _exceeds(other, p).clamp(min=_LEAST).log()

    def quantiles(self, numbers: Tensor, q: float) -> Tensor:
        """Return the q-quantile, [n], each atom's mass being spread evenly over its m-th of [0, 1], as published."""
        p = numbers.softmax(1)
        reached = p.cumsum(1)
        atom = (reached < q).sum(1, keepdim=True).clamp(max=self.atoms - 1)
        mass = p.gather(1, atom)
        inside = ((q - (reached.gather(1, atom) - mass)) / mass.clamp(min=_LEAST)).clamp(0.0, 1.0)
        return ((atom + inside) / self.atoms)[:, 0]

    def limits(self) -> Limits:
        """Return by option what is allowed."""
        return {**super().limits(), "atoms": whole(2), "entropy": number()}


def _exceeds(p: Tensor, other: Tensor) -> Tensor:
    """Return P(a draw of p > one of other) + P(equal) / 2, [n], for probabilities [n, m] of rising atoms."""
    return (p * (other.cumsum(1) - 0.5 * other)).sum(1)
