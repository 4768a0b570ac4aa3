"""P-ShareLoRA on frozen features (arXiv 2503.19201): one low-rank factor shared by all people, the other one theirs.

    r_i(x) = <theta_i, phi(x)>,   theta_i = theta_0 + (alpha / r) B a_i
    theta_0 [d] and B [d, r] shared;  a_i [r] per person;  P(first > second) = sigmoid(r_i(first) - r_i(second))

The aggregated parameter [theta_1 - theta_0 ... theta_N - theta_0] = (alpha/r) B [a_1 ... a_N] has rank r: the paper's
low-rank adaptation of all people's parameters at once, on the last linear layer. Trained jointly on everybody's
Bradley-Terry loss as a MAP; a new person's a_i is the same MAP with theta_0 and B frozen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from datasets_registry.errors import RequestError
from datasets_registry.protocol import generator
from datasets_registry.records import Comparisons, Float64
from methods.bradley_terry import Logistic, Pairs, person_draws
from methods.interface import Budget, MethodSpec, World
from methods.linear_factors import LinearFactors, Shrinkage, Training, begin_factors, global_run, tuned_factors
from methods.registry import register

INITS = ("independent", "copied", "warmup")


@register
class PShareLoRALinear(LinearFactors):
    """theta_i = theta_0 + (alpha/r) B a_i, joint MAP; `shrinkage` None is chosen on validation."""

    spec = MethodSpec(
        name="p-share-lora-linear",
        title="P-ShareLoRA on frozen features",
        level="feature",
        adaptation="closed-form",
        citation="P-ShareLoRA, arXiv 2503.19201 (AISTATS 2025)",
        equation="r_i(x) = <theta_0 + (alpha/r) B a_i, phi(x)>; theta_0 [d], B [d, r] shared, a_i [r] per user",
        shared_parameters="d + d r",
        per_user_parameters="r",
        cold_start="a_i = 0, the prior mean: theta_0, the average person",
        deviations=(
            "the adapted layer is the linear reward on frozen features, so A_i is a vector; MAP with Gaussian "
            "penalties chosen on macro validation NLL (not accuracy) and L-BFGS instead of AdamW for 3 epochs, "
            "followed by two rounds of empirical-Bayes EM where validation prefers it; theta_0 is trained (the "
            "paper's score head is); the penalty acts on (alpha/r) B, so alpha rescales the stored B and changes no "
            "prediction; one initialisation scale for every variant; codes are drawn from what a person compared, so "
            "that renaming people changes nothing; init='copied' and 'warmup' jitter the copies by 1 %, as exactly "
            "equal vectors keep B at rank one"
        ),
    )
    search: ClassVar[Mapping[str, Sequence[Any]]] = {"rank": (2, 4, 8, 16), "base_ridge": (0.3, 1.0, 10.0)}

    def __init__(
        self,
        *,
        rank: int = 8,
        alpha: float = 4.0,
        init: str = "independent",
        init_scale: float = 1.0,
        shrinkage: float | None = None,
        base_ridge: float = 1.0,
        iterations: int = 40,
        share: str = "B",
    ) -> None:
        self.rank = rank
        self.alpha = alpha
        self.init = init
        self.init_scale = init_scale
        self.shrinkage = shrinkage
        self.base_ridge = base_ridge
        self.iterations = iterations
        self.share = share

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Learn theta_0 and B; a rank above d is cut to d, where it already is any linear reward."""
        self._check()
        self.world = world
        pairs, users = Pairs.of_seen(world, train)
        self.scale_ = pairs.scale
        self.rank_ = min(self.rank, len(pairs.scale))
        theta = global_run(pairs)
        codes = self._drawn(pairs, budget.seed)
        short = max(1, round(0.15 * self.iterations))
        if self.init == "warmup":
            theta = 0.15 * theta
        start = begin_factors(pairs, codes, Shrinkage(0.25, self.base_ridge), theta, short)
        training = Training(self.shrinkage or 1.0, 0, self.iterations, self.base_ridge)
        if self.shrinkage is None:
            found, training = tuned_factors(pairs, users, val, start, budget, training)
        else:
            found = training.run(pairs, start)
        self.code_ridge_ = training.code_ridge
        self.base_ = found.base.astype(np.float32)
        self.gain_ = self.alpha / self.rank_
        self.basis_ = (found.basis / self.gain_).astype(np.float32)
        self.empty_ = np.zeros(self.rank_, np.float32)

    def infer(self, problem: Logistic, budget: Budget) -> Float64:
        """Return the MAP a_i given B, float64 [n_users, r]: the same problem that training solves for a seen person."""
        return problem.modes(self.code_ridge_)

    def _drawn(self, pairs: Pairs, seed: int) -> Float64:
        """Return the codes before training, float64 [n_users, r], in the paper's three ways."""
        own = person_draws(pairs.histories, self.rank_, seed)
        if self.init != "independent":
            own = generator("p-share-lora-linear", seed).normal(size=self.rank_) + 0.01 * own
        return self.init_scale * own

    def _check(self) -> None:
        if self.share != "B":
            raise RequestError(
                f"share={self.share!r}: allowed here is 'B'. On a linear reward a shared A with B_i per user leaves "
                "theta_i free in d dimensions, which is per-user-bt; the backbone method p-share-lora takes share='A'"
            )
        if self.init not in INITS:
            raise RequestError(f"init={self.init!r}: allowed are {', '.join(INITS)}")
        if self.rank < 1:
            raise RequestError(f"rank={self.rank}: allowed are integers from 1; rank 0 is pooled-bt")
