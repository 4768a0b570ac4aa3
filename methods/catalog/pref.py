"""PReF, personalisation by reward factorisation (Shenfeld et al., arXiv 2503.06358): few base rewards, found by an SVD.

    r_u(x) = <V^T phi(x), a_u>,   V [d, K] shared, a_u [K] per person;   P(first > second | u) = sigmoid(<V^T x, a_u>)

V starts from the imputed SVD of the matrix of pairs x people; then V and everybody's a_u are fitted jointly, with the
loss NLL + norm_penalty |V^T x|. To adapt is logistic regression on the K frozen rewards. Somebody who may be asked is
asked what tells most (an optional track: `PReF.interview`), v = V^T x of a pair and s the sigmoid:

    next = argmax_v s'(<v, a_u>)^2 v^T Sigma^-1 v,   Sigma = 1e-3 I + sum over what was asked of s'(<v, a_u>) v v^T
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from datasets_registry.errors import RequestError
from datasets_registry.protocol import generator
from datasets_registry.records import Comparisons, Float64
from methods.bradley_terry import Logistic, sigmoid
from methods.interface import Array, MethodSpec
from methods.joint_factors import JointFactors, regressed
from methods.registry import register

_PRIOR_INFORMATION = 1e-3


@register
class PReF(JointFactors):
    """theta_u = V a_u from the SVD's V; `ridge` None is chosen on validation."""

    spec = MethodSpec(
        name="pref",
        title="PReF (reward factorisation)",
        level="feature",
        adaptation="closed-form",
        citation="Language Model Personalization via Reward Factorization, arXiv 2503.06358",
        equation="r_u(x) = <V^T phi(x), a_u>; V [d, K] shared, a_u [K] per user",
        shared_parameters="d K + K",
        per_user_parameters="K",
        cold_start="c, the prior mean that is learned with V: the average person (published: a random a_u)",
        deviations=(
            "frozen features, standardised, so that phi is its linear head (published: a language model of 0.5B, fully "
            "trained); pairs hardly recur between people here, and a row of the matrix that one person fills says "
            "nothing of others, so the SVD is taken within the span of the features, which makes the fit of the head "
            "part of it; labels count from 1/2 there, so that a pair's orientation is irrelevant, and what is imputed "
            "is not clipped to [0, 1], so that it stays of low rank; L-BFGS over (V, c) with every a_u solved inside, "
            "instead of SGD for 500 iterations, after which the start matters less; a Gaussian prior on a_u around a "
            "learned mean c and a penalty on V (published: none), their strength chosen on macro validation NLL (not "
            "accuracy) at the best of six temperatures; adaptation by Newton's method with that prior instead of SGD "
            "without one from a random a_u; labelled ties are trained on as 1/2 (published: left out)"
        ),
    )
    search: ClassVar[Mapping[str, Sequence[Any]]] = {"rank": (2, 5, 10), "norm_penalty": (0.0, 0.02, 0.1)}
    chooses = "ridge among 6, by validation NLL"

    def __init__(
        self,
        *,
        rank: int = 5,
        start: str = "svd",
        ridge: float | None = None,
        norm_penalty: float = 0.02,
        iterations: int = 60,
    ) -> None:
        self.rank = rank
        self.start = start
        self.ridge = ridge
        self.norm_penalty = norm_penalty
        self.iterations = iterations

    def interview(
        self,
        pool: Comparisons,
        people: int,
        answer: Callable[[Array], Array],
        rounds: int,
        *,
        active: bool = True,
        seed: int = 0,
    ) -> Interview:
        """Ask new people one pair of `pool` after the other, and return what is known of them after each answer.

        answer: given the rows of `pool` that the people are asked, int64 [people], returns their labels [people]; it is
        the only source of labels. active: by the rule of `next_query`; else in an order drawn by `seed`. Nobody is
        asked the same twice: raises RequestError if `rounds` exceeds the pool.
        """
        if not 0 <= rounds <= len(pool):
            raise RequestError(f"rounds={rounds}: allowed are 0 to {len(pool)}, as many as the pool has pairs")
        design = ((self.world.differences(pool) * self.scale_) @ self.basis_).astype(np.float32)  # (m, K)
        order = generator("interview", seed).random((people, len(pool)))
        asked = np.zeros((people, 0), np.int64)
        labels = np.zeros((people, 0))
        codes = [np.tile(self.empty_.astype(np.float64), (people, 1))]
        for count in range(1, rounds + 1):
            value = _values(design, design[asked], codes[-1]) if active else order.copy()
            np.put_along_axis(value, asked, -np.inf, axis=1)
            chosen = value.argmax(1)
            asked = np.column_stack([asked, chosen])
            told = np.asarray(answer(chosen), np.float64)
            if told.shape != (people,) or not ((told >= 0) & (told <= 1)).all():
                raise RequestError(f"answer gave {told!r:.80}; allowed are {people} labels from 0 to 1, one per person")
            labels = np.column_stack([labels, told])
            ones, bounds = np.ones(labels.size), count * np.arange(people + 1)
            problem = Logistic(design[asked].reshape(labels.size, -1), 0 * ones, labels.ravel(), ones, bounds)
            codes.append(regressed(problem, self.empty_, self.ridge_))
        return Interview(asked, np.stack(codes))


@dataclass(frozen=True, slots=True, eq=False)
class Interview:
    """asked: int64 [people, rounds], rows of the pool; codes: float64 [rounds + 1, people, K], a_u after every answer.

    codes[t] is what `PReF.adapt` finds from the first t answers.
    """

    asked: Array
    codes: Float64


def next_query(candidates: Array, asked: Array, a: Array) -> int:
    """Return the row of `candidates` [m, K] to ask next of somebody with estimate `a` [K] who was asked `asked` [t, K].

    All are differences of the K rewards, V^T x. D-optimal design, with one more factor s' (arXiv 2503.06358).
    """
    return int(_values(candidates, asked[None], a[None])[0].argmax())


def _values(candidates: Array, asked: Array, a: Array) -> Float64:
    """Return s'(v.a)^2 v^T Sigma^-1 v, float64 [people, m]; candidates [m, K], asked [people, t, K], a [people, K]."""
    v, told = candidates.astype(np.float64), asked.astype(np.float64)
    p = sigmoid(np.einsum("utk,uk->ut", told, a))
    sigma = _PRIOR_INFORMATION * np.eye(v.shape[1]) + np.einsum("ut,utk,utl->ukl", p * (1 - p), told, told)
    q = sigmoid(a @ v.T)
    return (q * (1 - q)) ** 2 * np.einsum("mk,ukl,ml->um", v, np.linalg.inv(sigma), v, optimize=True)
