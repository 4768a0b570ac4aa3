"""A distribution of the reward instead of a number (distributional preference learning): what both dpl methods share.

Everybody is served the same model, but one that knows that people differ: who judged is hidden context, and how an
item's reward spreads over it is learned together with its mean. A preset gives the distribution: its moments, the
log-odds that a draw of one item exceeds a draw of another, and its quantiles.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datasets_registry.errors import RequestError
from datasets_registry.records import Comparisons, Float32
from methods.interface import Budget, UserState
from methods.limits import Limits, whole
from methods.neural.method import NeuralMethod

if TYPE_CHECKING:
    from torch import Tensor, nn

    from methods.neural.training import Rows

Array = NDArray[Any]
_CHUNK = 8192


@dataclass(kw_only=True, eq=False, repr=False)
class DistributionalReward(NeuralMethod):
    """A network from features to the m numbers of a reward distribution; width: of its one hidden layer."""

    lr: float = 1e-2
    weight_decay: float = 0.001
    width: int = 64

    @abstractmethod
    def outputs(self) -> int:
        """Return m, how many numbers describe a distribution."""

    @abstractmethod
    def moments(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and variances, [n] each, of distributions [n, m]."""

    @abstractmethod
    def log_odds(self, first: Tensor, second: Tensor) -> Tensor:
        """Return logit P(a draw of first > a draw of second), [n], of distributions [n, m] each."""

    @abstractmethod
    def quantiles(self, numbers: Tensor, q: float) -> Tensor:
        """Return the q-quantile of each distribution, [n]."""

    def network(self, d: int, n_people: int) -> nn.Module:
        """Return d -> width -> m; every item's distribution is the same at first."""
        from torch import nn

        last = nn.Linear(self.width, self.outputs())
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return nn.Sequential(nn.Linear(d, self.width), nn.GELU(), last)

    def loss(self, net: nn.Module, rows: Rows) -> Tensor:
        """Return the negative log-likelihood of each comparison's soft label, [n]."""
        return self.label_loss(net(rows.first), net(rows.second), rows)

    def label_loss(self, first: Tensor, second: Tensor, rows: Rows) -> Tensor:
        """Return the negative log-likelihood of soft labels under the distributions of first and second, [n]."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        return binary_cross_entropy_with_logits(self.log_odds(first, second), rows.label, reduction="none")

    def reward(self, net: nn.Module, codes: Tensor, inputs: Tensor) -> Tensor:
        """Return the means of the distributions, [n]; margins are not made of them."""
        return self.moments(net(inputs))[0]

    def rewards(self, states: Sequence[UserState], users: Array, items: Array) -> Float32 | None:
        """Return None: the log-odds of two distributions are no difference of a number each. See `expected`."""
        return None

    def adapt(self, users: Sequence[int], history: Sequence[Comparisons], budget: Budget) -> list[UserState]:
        """Return empty states: nobody is told apart."""
        return [UserState() for _ in users]

    def margins(self, states: Sequence[UserState], queries: Comparisons) -> Float32:
        """Return logit P(first > second), float32 [n]."""
        return self._asked(self.log_odds, queries.first, queries.second)

    def expected(self, items: Array) -> Float32:
        """Return the mean reward of item rows, float32 [n]."""
        return self._asked(lambda numbers: self.moments(numbers)[0], items)

    def quantile(self, items: Array, q: float) -> Float32:
        """Return the q-quantile of the reward of item rows, float32 [n]: what a risk-averse choice ranks them by."""
        if not 0 < q < 1:
            raise RequestError(f"{self.spec.name}: q={q}; allowed: numbers between 0 and 1, for instance 0.01")
        return self._asked(lambda numbers: self.quantiles(numbers, q), items)

    def explained_variance(self, items: Array) -> float:
        """Return r^2 = var(mean) / (var(mean) + mean of variances) over item rows: it falls where people disagree.

        1 - r^2 is the share of the reward's variance that the items do not account for, the paper's sign of hidden
        context; noise in the answers is in it as well. Raises RequestError for no items.
        """
        if not len(items):
            raise RequestError(f"{self.spec.name}: explained_variance of no items; give at least two item rows")
        means = self.expected(items).astype(np.float64)
        variances = self._asked(lambda numbers: self.moments(numbers)[1], items).astype(np.float64)
        total = float(means.var() + variances.mean())
        return float(means.var()) / total if total > 0 else 0.0

    def _asked(self, question: Callable[..., Tensor], *items: Array) -> Float32:
        """Return what is asked about the distributions of one or two columns of item rows, float32 [n]."""
        import torch

        net = self.ready()
        out = np.empty(len(items[0]), np.float32)
        with torch.no_grad():
            for lo in range(0, len(out), _CHUNK):
                at = slice(lo, lo + _CHUNK)
                out[at] = question(*(net(self.inputs(np.asarray(each)[at])) for each in items)).float().cpu().numpy()
        return out

    def limits(self) -> Limits:
        """Return by option what is allowed."""
        return {**super().limits(), "width": whole()}
