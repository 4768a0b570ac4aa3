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
from methods.bradley_terry import Logistic, Pairs, held_out, person_draws, pooled, pooled_chosen
from methods.interface import Budget, MethodSpec, World
from methods.limits import ABOVE, Limits, must_hold, number, one_of, or_none, whole
from methods.linear_factors import (
    Factors,
    LinearFactors,
    Shrinkage,
    Training,
    begin_factors,
    tuned_factors,
    warmed_up,
)
from methods.registry import register

INITS = ("independent", "copied", "warmup")


@register
class PShareLoRALinear(LinearFactors):
    """theta_i = theta_0 + (alpha/r) B a_i, joint MAP; `shrinkage` and `base_ridge` None are chosen on validation."""

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
            "paper's score head is) from the pooled weights, whose ridge, chosen as pooled-bt's is, stays its penalty; "
            "the penalty acts on (alpha/r) B, so alpha rescales the stored B and changes no prediction; one "
            "initialisation scale for every variant; codes are drawn from what a person compared, so that renaming "
            "people changes nothing; init='warmup' is 15 % of the iterations on everybody as one person, from "
            "theta_0 = 0; init='copied' and 'warmup' jitter the copies by 1 %, as exactly equal vectors keep B at "
            "rank one; training goes on to convergence, so that the three differ less than in the paper"
        ),
        version="2",
    )
    search: ClassVar[Mapping[str, Sequence[Any]]] = {"rank": (2, 4, 8, 16)}
    chooses = (
        "the ridge of theta_0 among 8, then B's and the codes' shrinkage among up to 7, each with and without "
        "refinement, by validation NLL"
    )

    def __init__(
        self,
        *,
        rank: int = 8,
        alpha: float = 4.0,
        init: str = "independent",
        init_scale: float = 1.0,
        shrinkage: float | None = None,
        base_ridge: float | None = None,
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
        if self.base_ridge is None:
            theta, ridge = pooled_chosen(pairs, held_out(val, users))
        else:
            theta, ridge = pooled(pairs, self.base_ridge), self.base_ridge
        start = self.started(pairs, theta, ridge, budget.seed)
        training = Training(1.0 if self.shrinkage is None else self.shrinkage, 0, self.iterations, ridge)
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

    def started(self, pairs: Pairs, theta: Float64, ridge: float, seed: int) -> Factors:
        """Return where training starts, in the paper's three ways; `theta` [d] are the pooled weights at `ridge`.

        Every code is drawn, or all are copies of one; or copies of one that a short global run has already used.
        """
        own = self.init_scale * person_draws(pairs.histories, self.rank_, seed)
        one = self.init_scale * generator("p-share-lora-linear", seed).normal(size=self.rank_)
        short, penalties = max(1, round(0.15 * self.iterations)), Shrinkage(0.25, ridge)
        point = Factors(theta, np.zeros((len(theta), self.rank_)), one[None])
        if self.init == "warmup":
            point = warmed_up(pairs, one, penalties, short)
        point.codes = own if self.init == "independent" else one + 0.01 * own
        return begin_factors(pairs, point, penalties, short)

    @property
    def n_trained(self) -> int:
        """Return the number of shared parameters: theta_0 and B."""
        return self.base_.size + self.basis_.size

    def limits(self) -> Limits:
        """Return by option what is allowed; rank 0 is pooled-bt."""
        return {
            "rank": whole(),
            "alpha": ABOVE,
            "init": one_of(*INITS),
            "init_scale": ABOVE,
            "shrinkage": or_none(ABOVE, ", to choose it on validation"),
            "base_ridge": or_none(number(), ", to choose it on validation"),
            "iterations": whole(0),
            "share": one_of("B"),
        }

    def _check(self) -> None:
        if self.share == "A":
            raise RequestError(
                f"share={self.share!r}: allowed here is 'B'. On a linear reward a shared A with B_i per user leaves "
                "theta_i free in d dimensions, which is per-user-bt; the backbone method p-share-lora takes share='A'"
            )
        must_hold(self, self.limits())
