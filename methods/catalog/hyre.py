"""HyRe, hypothesis reweighting (Lee et al., arXiv 2412.08812): an ensemble of rewards, weighed by what one says.

    r_u(x) = sum_k w_uk <theta_k, phi(x)>,   w_uk = exp(-L_uk) / sum_j exp(-L_uj),   theta_k [d] shared, w_u [K]
    L_uk = NLL of all that u said under head k, summed: w_u is the posterior over heads under a uniform prior

Nothing is trained for a person. What heads disagree in is therefore all that HyRe can adapt to. Here each head hears a
few people, drawn for it alone, and is drawn to a random prior:

    theta_k = argmin sum_{n: u(n) in S_k} w_n NLL_n + ridge/2 |theta_k - prior_k|^2,   prior_k = theta_pooled + noise_k
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from datasets_registry.protocol import generator
from datasets_registry.records import Comparisons, Float64
from methods.bradley_terry import Logistic, Pairs, calibrated_nll, held_out, nll, person_draws, pooled_chosen, sigmoid
from methods.catalog.lore import softmax
from methods.interface import Array, Budget, MethodSpec, World
from methods.limits import ABOVE, Limits, must_hold, number, or_none, whole
from methods.linear_factors import LinearFactors, scattered
from methods.registry import register

PEOPLE: tuple[int, ...] = (10, 3, 30, 100)
"""How many people a head hears, on average, that validation chooses among; a small budget drops the last ones."""


@register
class HyRe(LinearFactors):
    """theta_u = sum_k w_uk theta_k; `people` None is chosen on validation."""

    spec = MethodSpec(
        name="hyre",
        title="HyRe (hypothesis reweighting)",
        level="feature",
        adaptation="closed-form",
        citation="Test-Time Alignment via Hypothesis Reweighting, arXiv 2412.08812",
        equation="r_u(x) = sum_k w_uk <theta_k, phi(x)>, w_uk ~ exp(-L_uk); theta_k [d] shared for k = 1..K, w_u [K]",
        shared_parameters="d K",
        per_user_parameters="K",
        cold_start="uniform weights: the ensemble's mean",
        deviations=(
            "linear heads on frozen features, instead of heads on a language model that is trained with them; heads "
            "differ by random priors and by whom they hear: each hears about `people` people, drawn independently, "
            "because heads that all hear everybody (published) agree where people differ, on features this small; "
            "`people` is chosen among four on macro validation NLL (not accuracy) at the best of six temperatures; all "
            "heads are fitted together by L-BFGS; who hears whom belongs to what a person compared; no active queries"
        ),
    )
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "heads": (100, 300),
        "prior_scale": (0.0, 1.0, 2.0),
        "ridge": (1.0, 3.0, 10.0),
    }
    chooses = "the ridge of the pooled start among 8, and how many people a head hears among 4, by validation NLL"

    def __init__(
        self,
        *,
        heads: int = 100,
        people: int | None = None,
        prior_scale: float = 1.0,
        ridge: float = 3.0,
        iterations: int = 40,
    ) -> None:
        self.heads = heads
        self.people = people
        self.prior_scale = prior_scale
        self.ridge = ridge
        self.iterations = iterations

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Train the ensemble."""
        must_hold(self, self.limits())
        pairs, users = self.begin(world, train)
        self.empty_ = np.full(self.heads, 1.0 / self.heads, np.float32)
        val = held_out(val, users)
        theta, _ = pooled_chosen(pairs, val)
        noise = generator("hyre", budget.seed).normal(size=(len(theta), self.heads))
        prior = scattered(theta, self.prior_scale, noise)
        places = person_draws(pairs.histories, self.heads, budget.seed)
        sizes = PEOPLE[: max(1, budget.trials)] if len(val) else PEOPLE[:1]
        self.basis_ = self._chosen(pairs, prior, places, (self.people,) if self.people else sizes, val)

    def infer(self, problem: Logistic, budget: Budget) -> Float64:
        """Return the weights of heads, float64 [n_users, K], in closed form."""
        return reweighted(problem)

    @property
    def n_trained(self) -> int:
        """Return the number of shared parameters: the heads."""
        return self.basis_.size

    def _chosen(self, pairs: Pairs, prior: Float64, places: Array, sizes: Sequence[int], val: Comparisons) -> Array:
        """Return the heads float32 [d, K] whose reweighted mixture serves seen people best on validation."""
        from scipy.special import ndtri

        x = self.world.differences(val) * pairs.scale
        found: list[tuple[float, Array]] = []
        for size in sizes:
            hears = places < ndtri(min(1.0, size / max(pairs.n_users, 1)))
            heads = trained_heads(pairs, prior, hears, self.ridge, self.iterations).astype(np.float32)
            if len(sizes) == 1:
                return heads
            weights = reweighted(Logistic.of(pairs, pairs.project(heads), np.zeros(len(pairs))))
            found.append((calibrated_nll(np.einsum("nk,nk->n", x @ heads, weights[val.user]), val), heads))
        return min(found, key=lambda each: each[0])[1]

    def limits(self) -> Limits:
        """Return by option what is allowed; one head is one reward for everybody."""
        return {
            "heads": whole(),
            "people": or_none(whole(), ", to choose it on validation"),
            "prior_scale": number(),
            "ridge": ABOVE,
            "iterations": whole(0),
        }


def reweighted(problem: Logistic) -> Float64:
    """Return softmax over heads of -sum of NLL per person, float64 [n_users, K]; `problem.design` is X theta [n, K]."""
    n = len(problem.offsets) - 1
    user = np.repeat(np.arange(n), np.diff(problem.offsets))
    loss = problem.weight[:, None] * nll(problem.design.astype(np.float64), problem.label[:, None])
    total = np.stack([np.bincount(user, column, minlength=n) for column in loss.T], axis=1)
    return softmax(-total.astype(np.float64))


def trained_heads(pairs: Pairs, prior: Float64, hears: Array, ridge: float, iterations: int) -> Float64:
    """Return all heads, float64 [d, K]: head k is fitted on the people u with hears[u, k], bool [n_users, K]."""
    from scipy.optimize import minimize

    # people whom no head hears need no pass over their rows
    heard = np.flatnonzero(hears.any(1))
    if len(heard) < pairs.n_users:
        pairs, hears = pairs.of_users(heard), hears[heard]
    d, k = prior.shape
    at = np.flatnonzero(hears[pairs.user])  # of the flat [n, K]
    label, weight = pairs.label[at // k], pairs.weight[at // k]
    total = max(float(weight.sum()), 1e-12)
    residual = np.zeros((len(pairs), k), np.float32)

    def objective(flat: Float64) -> tuple[float, Float64]:
        heads = flat.reshape(d, k)
        margin = pairs.project(heads).ravel()[at].astype(np.float64)
        residual.reshape(-1)[at] = weight * (sigmoid(margin) - label)
        away = heads - prior
        slope = pairs.back_project(lambda rows: residual[rows], k) + ridge * away
        value = float(weight @ nll(margin, label)) + 0.5 * ridge * float((away * away).sum())
        return value / total, slope.ravel() / total

    found = minimize(
        objective, prior.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": iterations, "ftol": 1e-7}
    )
    return found.x.reshape(d, k)
