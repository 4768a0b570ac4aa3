"""Ideal points that are mixtures of prototypes (PAL): what pal-a and pal-b share.

A person is w_u [K] and nothing else: softmax(w_u) says how much of each prototype there is in them. Seen people's w_u
are trained with the network and looked up; a new person's is fitted on their own comparisons with the network frozen.
A preset gives the network, what the reward reads of a person and of an item, and the loss of a margin.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datasets_registry.records import Comparisons
from methods.interface import Budget, Histories, UserState, places, stack, unstack
from methods.limits import ABOVE, Limits, whole
from methods.neural.method import NeuralMethod

if TYPE_CHECKING:
    from torch import Tensor, nn

    from methods.neural.training import Rows

Array = NDArray[Any]


@dataclass(kw_only=True, eq=False, repr=False)
class IdealPoints(NeuralMethod):
    """r_u(x) says how close an item is to what a person, a mixture of prototypes, holds ideal.

    width: of the projectors. prototypes: K. own_gain: how many times faster than the network seen people's w_u learn.
    new_lr, new_steps: AdamW's rate for a new person's w_u, and its steps, each over all their comparisons.
    """

    lr: float = 3e-3
    weight_decay: float = 0.3
    width: int = 512
    prototypes: int = 2
    own_gain: float = 50.0
    new_lr: float = 0.1
    new_steps: int = 40

    @abstractmethod
    def of_person(self, net: nn.Module, logits: Tensor) -> Tensor:
        """Return what the reward reads of people, [m, .], from their w_u [m, K]."""

    @abstractmethod
    def of_item(self, net: nn.Module, inputs: Tensor) -> Tensor:
        """Return what the reward reads of items, [n, .], from their inputs [n, .]."""

    @abstractmethod
    def closeness(self, person: Tensor, item: Tensor) -> Tensor:
        """Return rewards [n] from what is read of people and of items, [n, .] each."""

    @abstractmethod
    def loss_of(self, margin: Tensor) -> Tensor:
        """Return the loss of reward(chosen) - reward(rejected), [n]."""

    def reward(self, net: nn.Module, codes: Tensor, inputs: Tensor) -> Tensor:
        """Return rewards [n] of inputs under `codes`, what is read of each row's person."""
        return self.closeness(codes, self.of_item(net, inputs))

    def loss(self, net: nn.Module, rows: Rows) -> Tensor:
        """Return the loss of each comparison, [n]; seen people's w_u are trained with the network."""
        import torch

        people, at = torch.unique(rows.person, return_inverse=True)
        person = self.of_person(net, self.seen_logits(net)[people])[at]
        return self._loss(person, self.of_item(net, rows.first), self.of_item(net, rows.second), rows)

    def codes(self, states: Sequence[UserState]) -> Tensor:
        """Return what the reward reads of each state, [n_states, .]."""
        import torch

        logits = stack(states, "w") if states else np.zeros((0, self.prototypes), np.float32)
        with torch.no_grad():
            return self.of_person(self.ready(), torch.from_numpy(logits).to(self._device))

    def adapt(self, users: Sequence[int], history: Sequence[Comparisons], budget: Budget) -> list[UserState]:
        """Return w_u: seen people's as trained, new people's fitted; the mean seen mixture for an empty history."""
        net, histories, rows = self.ready(), Histories.of(history), np.asarray(users, np.int64)
        own = self.seen_logits(net).detach()
        mean = own.softmax(1).mean(0) if len(own) else own.new_full((own.shape[1],), 1 / own.shape[1])
        empty = mean.log().cpu().numpy()
        w = np.tile(empty, (len(rows), 1))
        place = places(self.users_, rows)
        seen = place >= 0
        w[seen] = own.cpu().numpy()[place[seen]]
        new = np.flatnonzero(~seen & (histories.lengths > 0))
        if len(new):
            w[new] = self._fitted(net, Histories.group(histories.table, new), empty)
        return unstack(w=w.astype(np.float32))

    def seen_logits(self, net: nn.Module) -> Tensor:
        """Return seen people's w_u, [n_seen, K]: a step of AdamW moves them by `own_gain` times its rate."""
        return self.own_gain * net.get_parameter("own")

    def _fitted(self, net: nn.Module, histories: Histories, empty: Array) -> Array:
        """Return everybody's w_u [n, K], each fitted on their own mean loss.

        The sum over people is minimised at once: AdamW keeps moments per number, so nobody moves anybody else.
        """
        import torch

        rows = self.rows(histories.table)
        total = torch.zeros(len(histories), device=self._device).index_add_(0, rows.person, rows.weight)
        share = rows.weight / total.clamp(min=1e-12)[rows.person]
        with torch.no_grad():
            first, second = self.of_item(net, rows.first), self.of_item(net, rows.second)
        w = torch.from_numpy(np.tile(empty, (len(histories), 1))).to(self._device).requires_grad_()
        optimiser = torch.optim.AdamW([w], lr=self.new_lr, weight_decay=0.0)
        for _ in range(self.new_steps):
            person = self.of_person(net, w)[rows.person]
            (w.grad,) = torch.autograd.grad((share * self._loss(person, first, second, rows)).sum(), [w])
            optimiser.step()
        return w.detach().cpu().numpy()

    def _loss(self, person: Tensor, first: Tensor, second: Tensor, rows: Rows) -> Tensor:
        """Return the loss of both orientations, weighed by the label, [n]: a tie pulls both ways."""
        margin = self.closeness(person, first) - self.closeness(person, second)
        return rows.label * self.loss_of(margin) + (1 - rows.label) * self.loss_of(-margin)

    def limits(self) -> Limits:
        """Return by option what is allowed."""
        counts = {"width": whole(), "prototypes": whole(), "new_steps": whole(0)}
        return {**super().limits(), **counts, "own_gain": ABOVE, "new_lr": ABOVE}


def projector(d: int, width: int, out: int) -> nn.Sequential:
    """Return PAL's mlp2: three linear layers, d -> width -> width -> out, with GELU between."""
    from torch import nn

    return nn.Sequential(nn.Linear(d, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, out))
