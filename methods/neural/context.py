"""Context encoders: a network reads what a person said, and no number of a person is trained.

Everybody's comparisons are a batch of contexts, padded to one length with a mask; no loop runs over people. In training
each person's units are split in two at random, and each half is asked about with the other one as its context: no
target is in its own context, contexts of every size occur, the empty one too, and every comparison is learned from.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datasets_registry.records import Comparisons
from methods.interface import Budget, Histories, World
from methods.limits import Limits, whole
from methods.neural.method import NeuralMethod

if TYPE_CHECKING:
    from torch import Tensor, nn

    from methods.neural.training import Rows

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Contexts:
    """Padded contexts: row int64 [n_contexts, C], which comparison stands at each place; real bool [n_contexts, C]."""

    row: Tensor
    real: Tensor

    @classmethod
    def of(cls, context: Tensor, n_contexts: int, most: int) -> Contexts:
        """Gather rows by the context that each belongs to, int64 [n]; of more than `most` the last ones are kept."""
        import torch

        order = torch.argsort(context, stable=True)
        counts = torch.bincount(context, minlength=n_contexts)
        ends = counts.cumsum(0)
        kept = counts.clamp(max=most)
        width = max(1, int(kept.max())) if n_contexts else 1
        place = torch.arange(width, device=context.device)
        real = place < kept[:, None]
        if not len(order):
            return cls(torch.zeros_like(real, dtype=torch.long), real)
        at = (ends - kept)[:, None] + place
        return cls(order[at.clamp(max=len(order) - 1)], real)

    @classmethod
    def blocks(cls, context: Tensor, n_contexts: int, size: int) -> tuple[Contexts, Tensor]:
        """Gather every row, in blocks of at most `size` of one context, and say whose each block is, int64 [n_blocks].

        One person with thousands of targets then pads nobody else's.
        """
        import torch

        order = torch.argsort(context, stable=True)
        counts = torch.bincount(context, minlength=n_contexts)
        place = torch.empty_like(context)
        place[order] = torch.arange(len(order), device=context.device) - (counts.cumsum(0) - counts)[context[order]]
        n_blocks = (counts + size - 1) // size
        whose = torch.repeat_interleave(torch.arange(n_contexts, device=context.device), n_blocks)
        return cls.of((n_blocks.cumsum(0) - n_blocks)[context] + place // size, len(whose), size), whose


@dataclass(kw_only=True, eq=False, repr=False)
class ContextMethod(NeuralMethod):
    """`context`: the most comparisons that are read of a person, the newest ones.

    The population's reward is learned first and contexts long after, with nothing gained between, so nothing ends
    training early. Where no seen person has two units every context is empty in training; none is read then.
    A preset gives `answered` and `adapt`.
    """

    context: int = 8
    patience: float = 1.0

    @abstractmethod
    def answered(self, net: nn.Module, rows: Rows, contexts: Contexts, asked: Tensor) -> Tensor:
        """Return the loss of each comparison, [n], `asked` int64 [n] being the context that it is asked under."""

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Train the network on seen people."""
        units = np.unique(np.stack([train.user, train.unit]).astype(np.int64), axis=1)
        self.reads_ = len(np.unique(units[0])) < units.shape[1]
        super().fit(train, val, world, budget)

    def heard(self, history: Sequence[Comparisons]) -> Histories:
        """Return what is read of each history: the newest `context` comparisons, none if contexts were not trained."""
        return Histories.of(history).newest(self.context if self.reads_ else 0)

    def batched(self, table: Comparisons) -> Comparisons:
        """Return the table with everything that a person said as one group: batches are of whole people."""
        return Comparisons.of(**{**table.columns(), "unit": np.zeros(len(table), np.int32)})

    def loss(self, net: nn.Module, rows: Rows) -> Tensor:
        """Return each comparison's loss under the half of its person's units that it is not in, [n]."""
        import torch

        # people come one after the other in an order that names nobody, so what is drawn in it names nobody either
        _, person = torch.unique_consecutive(rows.person, return_inverse=True)
        n_people = int(person.max()) + 1
        share = torch.rand(n_people, device=person.device)
        place = _first_places(rows.person * (int(rows.unit.max()) + 1) + rows.unit)
        half = (torch.rand(len(rows), device=person.device)[place] < share[person]).long()
        shuffled = torch.randperm(len(rows), device=person.device)
        mine = (2 * person + half)[shuffled]
        contexts = Contexts.of(mine, 2 * n_people, self.context)
        contexts = Contexts(shuffled[contexts.row], contexts.real)
        return self.answered(net, rows, contexts, 2 * person + 1 - half)

    def limits(self) -> Limits:
        """Return by option what is allowed."""
        return {**super().limits(), "context": whole()}


def _first_places(group: Tensor) -> Tensor:
    """Return for each element the index of the first one of its group, int64 [n]."""
    import torch

    _, member = torch.unique(group, return_inverse=True)
    first = torch.full((int(member.max()) + 1,), len(group), dtype=torch.long, device=group.device)
    index = torch.arange(len(group), device=group.device)
    return first.scatter_reduce(0, member, index, reduce="amin")[member]
