"""Distributional preference learning, normal (Siththaranjan et al., ICLR 2024, arXiv 2312.08358).

    reward(x) ~ Normal(mu(x), sigma(x)^2),   (mu, s) = MLP(phi(x)),   sigma = softplus(s);   all shared
    P(first > second) = sigmoid( sqrt(2 pi) (mu_1 - mu_2) / sqrt(sigma_1^2 + sigma_2^2) )

Loss: -log P(chosen > rejected). Of two independent normals the first is larger with probability Phi(z), z the quotient
above without its factor. The logistic with sqrt(2 pi), as published, is steeper than that (sqrt(8 / pi) would have its
slope), so that a variance comes out pi^2 / 4 times as large, and r^2 too small. Only mu / sigma matters, so that
rewards have no unit. Where people disagree about an item, sigma is large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from methods.interface import MethodSpec
from methods.neural.distributional import DistributionalReward
from methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(kw_only=True, eq=False, repr=False)
class DPLMeanVariance(DistributionalReward):
    """A mean and a standard deviation per item."""

    spec = MethodSpec(
        name="dpl-mean-variance",
        title="DPL, mean and variance",
        level="feature",
        adaptation="none",
        citation="Distributional preference learning, Siththaranjan et al. (ICLR 2024), arXiv 2312.08358",
        equation="P(first > second) = sigmoid(sqrt(2 pi) (mu_1 - mu_2) / sqrt(sigma_1^2 + sigma_2^2)); all shared",
        shared_parameters="width (d + 1) + 2 (width + 1)",
        per_user_parameters="0",
        cold_start="itself",
        deviations=(
            "one hidden layer on frozen features, standardised, instead of LoRA on a language model; AdamW at .01 "
            "falling to zero for at most 400 steps (published .000003 on a language model, falling to a tenth); the "
            "step with the least validation NLL is kept; the factor sqrt(2 pi) is kept as published, which "
            "exaggerates variances (see the module); the "
            "last layer begins at 0, so that an untrained network holds no opinion"
        ),
    )
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "lr": (0.003, 0.01, 0.03),
        "width": (16, 64, 256),
        "weight_decay": (0.001, 0.1, 1.0),
    }
    chooses = "the step of training that is kept, by validation NLL"

    def outputs(self) -> int:
        """Return 2: mu and s."""
        return 2

    def moments(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return mu and sigma^2, [n] each."""
        from torch.nn.functional import softplus

        return numbers[:, 0], softplus(numbers[:, 1]).square()

    def log_odds(self, first: Tensor, second: Tensor) -> Tensor:
        """Return sqrt(2 pi) (mu_1 - mu_2) / sqrt(sigma_1^2 + sigma_2^2), [n]."""
        (mean, variance), (other_mean, other_variance) = self.moments(first), self.moments(second)
        return math.sqrt(2 * math.pi) * (mean - other_mean) / (variance + other_variance).clamp(min=1e-12).sqrt()

    def quantiles(self, numbers: Tensor, q: float) -> Tensor:
        """Return mu + sigma Phi^-1(q), [n]."""
        from statistics import NormalDist

        mean, variance = self.moments(numbers)
        return mean + NormalDist().inv_cdf(q) * variance.sqrt()
