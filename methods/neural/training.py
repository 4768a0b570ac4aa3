"""Training a small network: batches as tensors, AdamW with a cosine, the best parameters on validation kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from datasets_registry.protocol import seed_of
from datasets_registry.records import Comparisons
from methods.batches import Batches
from methods.progress import Teller

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Comparisons as tensors: first, second float32 [n, d]; label, weight float32 [n]; person, unit int64 [n]."""

    first: Tensor
    second: Tensor
    label: Tensor
    weight: Tensor
    person: Tensor
    unit: Tensor

    @classmethod
    def of(cls, table: Comparisons, inputs: Callable[[Array], Tensor], device: str) -> Rows:
        """Gather a table."""
        columns = (
            np.asarray(table.label, np.float32),
            np.asarray(table.weight, np.float32),
            np.asarray(table.user, np.int64),
            np.asarray(table.unit, np.int64),
        )
        return cls(inputs(table.first), inputs(table.second), *(torch.from_numpy(c).to(device) for c in columns))

    def __len__(self) -> int:
        return len(self.label)


# a few hundred features and a few thousand pairs are learned, and then overfitted, within the first steps
_EARLY = (1, 2, 3, 5, 8, 12, 16)


@dataclass(frozen=True, slots=True)
class Schedule:
    """AdamW's rate (falling to zero by a cosine over `steps`) and decay, and when validation is asked.

    That is every `every` steps, at the end, and at a few of the first steps. patience: after so large a share of
    `steps` without a better score training ends; 1 and more never end it.
    """

    lr: float
    weight_decay: float
    steps: int
    every: int
    patience: float

    def asks(self, step: int) -> bool:
        """Return whether validation is asked after a step, the first being 1."""
        return step in _EARLY or step % self.every == 0 or step == self.steps

    def ends(self, step: int, best: int) -> bool:
        """Return whether a step is the last one, the best having been `best`."""
        return step - best >= self.patience * self.steps


def train_network(
    net: nn.Module,
    loss: Callable[[Array], Tensor],
    batches: Batches,
    schedule: Schedule,
    *,
    title: str,
    score: Callable[[], float] | None = None,
) -> int:
    """Train in place and return how many comparisons were learned from.

    `loss(rows)` gives the loss of each of these rows of the table, [n]. `score` is asked at the start and when
    `schedule` asks; the parameters with the least are put back. None keeps the last. An empty table teaches nothing.
    """
    moved = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(moved, lr=schedule.lr, weight_decay=schedule.weight_decay)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, schedule.steps))
    teller = Teller(title, schedule.steps)
    best = None if score is None else Best(net, score)
    if best is not None:
        best.ask()
    learned = latest = 0
    for step, (rows, _) in enumerate(batches.steps(schedule.steps), start=1):
        net.train()
        weight = torch.from_numpy(batches.table.weight[rows].astype(np.float32))
        each = loss(rows)
        total = (each * weight.to(each.device)).sum() / weight.sum().clamp(min=1e-12)
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        optimiser.step()
        falling.step()
        learned += len(rows)
        teller.step(step, lambda total=total: float(total.detach()))
        if best is not None and schedule.asks(step):
            latest = step if best.ask() else latest
            if schedule.ends(step, latest):
                break
    if best is not None:
        best.put_back()
    net.eval()
    return learned


class Best:
    """The parameters of a network with the least score so far; where it began, until one was asked."""

    def __init__(self, net: nn.Module, score: Callable[[], float]) -> None:
        self._net, self._score = net, score
        self._kept, self._least = self._copied(), float("inf")

    def ask(self) -> bool:
        """Score the network as it is, and return whether it is the best one so far."""
        now = self._score()
        if now < self._least:
            self._kept, self._least = self._copied(), now
            return True
        return False

    def put_back(self) -> None:
        """Give the network the best parameters."""
        self._net.load_state_dict(self._kept)

    def _copied(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self._net.state_dict().items()}


@contextmanager
def seeded(*what: object) -> Iterator[None]:
    """Seed torch's generator by a context for a while, and put it back."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_of("neural", *what))
        yield
