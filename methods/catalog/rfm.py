"""RFM, the reward-feature model (Barreto et al., NeurIPS 2025, arXiv 2503.17338): features of reward, people's weights.

    r_u(x) = <V^T phi(x), a_u>,   V [d, K] shared, a_u [K] per person;   P(first > second | u) = sigmoid(<V^T x, a_u>)

V and everybody's a_u are learned jointly by maximum likelihood from a random start. To adapt to somebody is logistic
regression on the K frozen features V^T phi. The model is PReF's; that one starts from an SVD and penalises |V^T x|.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from methods.interface import MethodSpec
from methods.joint_factors import JointFactors
from methods.registry import register


@register
class RFM(JointFactors):
    """theta_u = V a_u from a random V; `ridge` None is chosen on validation."""

    spec = MethodSpec(
        name="rfm",
        title="RFM (reward-feature model)",
        level="feature",
        adaptation="closed-form",
        citation="Capturing Individual Human Preferences with Reward Features (NeurIPS 2025), arXiv 2503.17338",
        equation="r_u(x) = <V^T phi(x), a_u>; V [d, K] shared, a_u [K] per user",
        shared_parameters="d K + K",
        per_user_parameters="K",
        cold_start="c, the prior mean that is learned with V: the average person (undefined in the paper)",
        deviations=(
            "frozen features, standardised, so that what is learned of phi is its linear head (the paper trains the "
            "language model too); a Gaussian prior on a_u around a learned mean c, and a penalty on V, whose strength "
            "is chosen on macro validation NLL (not accuracy) at the best of six temperatures; L-BFGS over (V, c) with "
            "every a_u solved inside, instead of stochastic gradients on both; a_u is solved by Newton's method; K = 8 "
            "is the smallest published; it is cut to the number of features; no code was published"
        ),
    )

    search: ClassVar[Mapping[str, Sequence[Any]]] = {"rank": (2, 4, 8, 16, 32)}
    chooses = "ridge among 6, by validation NLL"
    start = "random"

    def __init__(
        self, *, rank: int = 8, ridge: float | None = None, norm_penalty: float = 0.0, iterations: int = 60
    ) -> None:
        self.rank = rank
        self.ridge = ridge
        self.norm_penalty = norm_penalty
        self.iterations = iterations
