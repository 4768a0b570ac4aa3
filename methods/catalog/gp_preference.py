"""Gaussian process preference learning (Chu and Ghahramani 2005), for many people (Houlsby et al. 2012).

    r_u = g + h_u,   g ~ GP(0, (1 - s) a k),   h_u ~ GP(0, s a k) per person
    P(x > x' | u) = sigmoid(r_u(x) - r_u(x'))

So margins are a Gaussian process over (person, pair), with the preference kernel
kappa((x, x'), (z, z')) = k(x, z) - k(x, z') - k(x', z) + k(x', z'), times a ((1 - s) + s [same person]).
k(x, z) = <phi(x), phi(z)>, phi [m] from m landmarks (Nystroem), is exact on as many items. Then g = <phi, v> and
h_u = <phi, v_u>, and Laplace's mode is the minimum over v [m] and all v_u [m] at once of

    sum_n w_n NLL(<dphi_n, v + v_u>; y_n) + |v|^2 / (2 a (1 - s)) + sum_u |v_u|^2 / (2 a s)

A new person's h_u is the mode given g.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from datasets_registry.records import Comparisons, Float32, Float64
from methods.bradley_terry import Logistic, calibrated_nll, feature_scale, held_out, nll, some_people
from methods.interface import Array, Budget, Histories, Method, MethodSpec, UserState, World, stack, unstack
from methods.limits import ABOVE, INSIDE, Limits, must_hold, one_of, or_none, whole
from methods.registry import register

GRID: dict[str, tuple[float, ...]] = {
    "length": (1.0, 0.5, 2.0, 4.0),
    "share": (0.5, 0.2, 0.8, 0.05),
    "amplitude": (10.0, 3.0, 30.0, 100.0),
}
KERNELS = ("rbf", "laplacian")
_TUNING_PEOPLE = 200
_CHUNK = 8192


@register
class GPPreference(Method):
    """A population's Gaussian process, and one of everybody's own around it.

    length: of the kernel, in units of the typical distance between compared items. amplitude: the prior variance a of a
    typical margin. share: the part s of it that is personal. None is chosen on validation, one after the other.
    """

    spec = MethodSpec(
        name="gp-preference",
        title="Gaussian process preference learning",
        level="feature",
        adaptation="closed-form",
        citation="Chu and Ghahramani 2005 (ICML); many users: Houlsby et al. 2012 (NeurIPS)",
        equation="r_u = g + h_u; g ~ GP(0, (1 - s) a k) shared, h_u ~ GP(0, s a k) per user, k of rank m",
        shared_parameters="m",
        per_user_parameters="m",
        cold_start="g, what people have in common",
        deviations=(
            "logistic instead of probit likelihood; k from landmarks (Nystroem, scikit-learn's), so that thousands of "
            "comparisons are no matrix of their square, which rules out its GaussianProcessClassifier (hard labels of "
            "one person only: the reference in a test); people share a mean process, where Houlsby et al. mix a few "
            "latent ones; length, share and amplitude are chosen on macro validation NLL (not accuracy) among four "
            "values each, on at most 200 people, not by evidence; g is learned from at most `people` people, drawn by "
            "what they compared"
        ),
        version="2",
    )
    search: ClassVar[Mapping[str, Sequence[Any]]] = {"kernel": KERNELS, "landmarks": (32, 64, 128)}
    chooses = "length, share and amplitude one after the other, in 10 fits, by validation NLL"

    def __init__(
        self,
        *,
        kernel: str = "rbf",
        landmarks: int = 64,
        length: float | None = None,
        share: float | None = None,
        amplitude: float | None = None,
        people: int = 2000,
    ) -> None:
        self.kernel = kernel
        self.landmarks = landmarks
        self.length = length
        self.share = share
        self.amplitude = amplitude
        self.people = people

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Choose the kernel's numbers, and learn g."""
        must_hold(self, self.limits())
        self.world = world
        self.scale_ = feature_scale(world, train)
        users = np.unique(train.user).astype(np.int64)
        told: dict[str, float | None] = {name: getattr(self, name) for name in GRID}
        seen = Histories.group(train, users)
        few = users[some_people(seen, _TUNING_PEOPLE, "gp-preference", budget.seed)]
        point = self._chosen(told, Histories.group(train, few), held_out(val, few), budget)
        self.length_, self.share_, self.amplitude_ = point["length"], point["share"], point["amplitude"]
        some = Histories.group(train, users[some_people(seen, self.people, "gp-preference", budget.seed)])
        self._embed(some.table, self.length_, budget.seed)
        self.v_ = joint_mode(self.problem(some), *penalties(self.share_, self.amplitude_))[0].astype(np.float32)

    def adapt(self, users: Sequence[int], history: Sequence[Comparisons], budget: Budget) -> list[UserState]:
        """Return v_u, the mode given g, from the history alone."""
        problem = self.problem(Histories.of(history))
        _, personal = penalties(self.share_, self.amplitude_)
        own = replace(problem, base=problem.design @ self.v_).modes(personal)
        return unstack(v=own.astype(np.float32))

    def margins(self, states: Sequence[UserState], queries: Comparisons) -> Float32:
        """Return r_u(first) - r_u(second), float32 [n]."""
        return self._scored(states, queries.user, self._differences(queries))

    def rewards(self, states: Sequence[UserState], users: Array, items: Array) -> Float32 | None:
        """Return g(x) + h_u(x), float32 [n]."""
        return self._scored(states, users, self.embedded(items))

    def embedded(self, items: Array) -> Float64:
        """Return phi of item rows, float64 [n, m]: k(x, z) = <phi(x), phi(z)>, a typical |phi(x) - phi(z)| being 1."""
        from sklearn.metrics.pairwise import pairwise_kernels

        assert self.world.features is not None
        rows, at = np.unique(items, return_inverse=True)
        out = np.empty((len(rows), len(self.root_)))
        for lo in range(0, len(rows), _CHUNK):
            # in float64: directions of k that hardly exist are scaled up
            x = self.world.features[rows[lo : lo + _CHUNK]].astype(np.float64) * self.scale_
            out[lo : lo + _CHUNK] = pairwise_kernels(x, self.points_, self.kernel, gamma=self.gamma_) @ self.root_
        return out[at]

    @property
    def n_trained(self) -> int:
        """Return m: of what is kept, only v is trained."""
        return self.v_.size

    def _embed(self, table: Comparisons, length: float, seed: int) -> None:
        """Set what `embedded` needs: the kernel's gamma, landmarks [m, d] among the items compared, and a root [m, m].

        A typical |phi(x) - phi(z)| is the root mean square over `table`; a typical distance likewise.
        """
        from sklearn.kernel_approximation import Nystroem

        assert self.world.features is not None
        apart = self.world.differences(table) * self.scale_
        each = np.abs(apart).sum(1) if self.kernel == "laplacian" else np.sqrt((apart * apart).sum(1))
        reach = length * (float(np.sqrt((each.astype(np.float64) ** 2).mean())) or 1.0)
        self.gamma_ = 1.0 / reach if self.kernel == "laplacian" else 0.5 / reach**2
        used = np.unique(np.concatenate([table.first, table.second]))
        x = self.world.features[used].astype(np.float64) * self.scale_
        m = min(self.landmarks, len(used))
        drawn = Nystroem(self.kernel, gamma=self.gamma_, n_components=m, random_state=seed % 2**32).fit(x)
        self.points_ = np.asarray(drawn.components_, np.float64)
        self.root_ = np.asarray(drawn.normalization_, np.float64).T
        size = float(np.sqrt((self._differences(table) ** 2).sum(1).mean()))
        self.root_ = self.root_ / (size or 1.0)

    def problem(self, histories: Histories) -> Logistic:
        """Return everybody's problem in phi's differences, with base 0."""
        table = histories.table
        label, weight = table.label.astype(np.float64), table.weight.astype(np.float64)
        design = self._differences(table).astype(np.float32)
        return Logistic(design, np.zeros(len(table)), label, weight, histories.offsets)

    def _differences(self, table: Comparisons) -> Float64:
        return self.embedded(table.first) - self.embedded(table.second)

    def _scored(self, states: Sequence[UserState], users: Array, phi: Array) -> Float32:
        own = stack(states, "v") if states else np.zeros((0, len(self.v_)), np.float32)
        return (phi @ self.v_ + np.einsum("nm,nm->n", phi, own[users])).astype(np.float32)

    def _chosen(
        self, told: Mapping[str, float | None], histories: Histories, val: Comparisons, budget: Budget
    ) -> dict[str, float]:
        """Return the numbers that serve validation best, one after the other, in at most `budget.trials` fits."""
        best = {name: GRID[name][0] if value is None else value for name, value in told.items()}
        if not len(val) or None not in told.values():
            return best
        posed: dict[float, tuple[Logistic, Float64]] = {}

        def score(point: Mapping[str, float]) -> float:
            if point["length"] not in posed:
                self._embed(histories.table, point["length"], budget.seed)
                posed[point["length"]] = self.problem(histories), self._differences(val)
            problem, asked = posed[point["length"]]
            v, own = joint_mode(problem, *penalties(point["share"], point["amplitude"]))
            return calibrated_nll(asked @ v + np.einsum("nm,nm->n", asked, own[val.user]), val)

        least, left = score(best), budget.trials - 1
        for name in (name for name, value in told.items() if value is None):
            for value in GRID[name][1 : 1 + left]:
                left -= 1
                if (now := score(best | {name: value})) < least:
                    least, best = now, best | {name: value}
        return best

    def limits(self) -> Limits:
        """Return by option what is allowed."""
        instead = ", to choose it on validation"
        return {
            "kernel": one_of(*KERNELS),
            "landmarks": whole(),
            "length": or_none(ABOVE, instead),
            "share": or_none(INSIDE, instead),
            "amplitude": or_none(ABOVE, instead),
            "people": whole(),
        }


def penalties(share: float, amplitude: float) -> tuple[float, float]:
    """Return what |v|^2 / 2 and |v_u|^2 / 2 are multiplied by: the inverse prior variances."""
    return 1.0 / (amplitude * (1.0 - share)), 1.0 / (amplitude * share)


def joint_mode(problem: Logistic, common: float, personal: float, rounds: int = 20) -> tuple[Float64, Float64]:
    """Return v [m] and all v_u [n_users, m] at the mode, by Newton's method in v with the v_u solved inside.

    `problem` has base 0. With C_u the inverse Hessian of person u's own problem, the Hessian in v alone is
    common I + personal sum_u (I - personal C_u), and the gradient common v - personal sum_u v_u. A step that does not
    lower the objective is halved.
    """
    v, step = np.zeros(problem.design.shape[1]), np.zeros(problem.design.shape[1])
    user = np.repeat(np.arange(len(problem.offsets) - 1), np.diff(problem.offsets))
    before, own = float("inf"), None
    for _ in range(rounds):
        base = problem.design @ v
        own, spread = replace(problem, base=base).posteriors(personal, start=own, tolerance=1e-4)
        margin = base + np.einsum("nm,nm->n", problem.design, own[user])
        value = float(problem.weight @ nll(margin, problem.label))
        value += 0.5 * common * float(v @ v) + 0.5 * personal * float((own * own).sum())
        if value > before + 1e-9 * abs(before):
            step = 0.5 * step
            v = v + step
            continue
        before = value
        hessian = (common + personal * len(own)) * np.eye(len(v)) - personal**2 * spread.sum(0)
        step = np.linalg.solve(hessian, common * v - personal * own.sum(0))
        v = v - step
        if np.abs(step).max(initial=0.0) < 1e-4 * (1.0 + np.abs(v).max(initial=0.0)):
            break
    return v, replace(problem, base=problem.design @ v).modes(personal, start=own)
