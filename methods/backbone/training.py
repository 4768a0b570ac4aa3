"""Joint training on mixed batches: one forward pass for all people of a batch, AdamW on what is shared and theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets_registry.records import Comparisons, Float32
from methods.backbone.layout import HEAD, Layout, unpacked
from methods.backbone.reward_model import RewardModel
from methods.backbone.row_adamw import RowAdamW
from methods.backbone.sequences import Sequences
from methods.batches import Batches
from methods.progress import Teller

Array = NDArray[Any]


@dataclass(slots=True, eq=False)
class Factors:
    """Everything besides the trunk: shared tensors by name, and `table` [n_people, P], a flat row for each person.

    `trunk` are parameters of the trunk that are trained themselves, by name; empty for methods with adapters.
    """

    layout: Layout
    shared: dict[str, Tensor]
    table: Tensor
    scale: float
    trunk: dict[str, torch.nn.Parameter] = field(default_factory=dict[str, torch.nn.Parameter])

    def bound(self, own: Tensor | None) -> dict[str, Tensor]:
        """Return what a model binds, by name: persons' factors from their rows [n, P], nobody's where `own` is None."""
        found = self.shared if own is None else {**self.shared, **unpacked(own, self.layout.own)}
        return dict(found) if self.layout.soft is None else self.layout.soft.bound(found)

    def snapshot(self) -> list[Tensor]:
        """Return copies of all that is trained."""
        return [t.detach().clone() for t in (*self.shared.values(), self.table, *self.trunk.values())]

    @torch.no_grad()
    def restore(self, kept: Sequence[Tensor]) -> None:
        """Put a snapshot back."""
        for tensor, value in zip((*self.shared.values(), self.table, *self.trunk.values()), kept, strict=True):
            tensor.copy_(value)


@dataclass(frozen=True, slots=True)
class Schedule:
    """How one stage is trained: passes over the data (a fraction cuts the steps), batch, rates, linear decay to 0.

    lr_own and lr_head are those of persons' rows and of the head; None is `lr`. `trained` names shared factors that
    move (None: all, the empty set: none). Passes go on until `min_steps` are taken. `micro_batch` comparisons are run
    at once, their gradients added. `own_share` is how much of the loss is under people's own soft prompts; the rest is
    under the generic one.
    """

    epochs: float
    batch: int
    lr: float
    lr_own: float | None = None
    lr_head: float | None = None
    weight_decay: float = 0.0
    micro_batch: int | None = None
    balanced: bool = False
    trained: frozenset[str] | None = None
    min_steps: int = 0
    own_share: float = 1.0

    @property
    def own_rate(self) -> float:
        """Return the rate of persons' rows."""
        return self.lr if self.lr_own is None else self.lr_own

    @property
    def head_rate(self) -> float:
        """Return the rate of a shared head."""
        return self.lr if self.lr_head is None else self.lr_head

    def part(self, share: float) -> Schedule:
        """Return a schedule of a share of the steps."""
        return replace(self, epochs=share * self.epochs, min_steps=round(share * self.min_steps))

    def steps(self, per_pass: int) -> int:
        """Return how many steps there are, given how many batches a pass has."""
        return max(round(self.epochs * per_pass), self.min_steps) if per_pass else 0


def train(
    model: RewardModel,
    factors: Factors,
    batches: Batches,
    schedule: Schedule,
    *,
    title: str,
    score: Callable[[], float] | None = None,
) -> int:
    """Train one stage in place and return how many comparisons were learned from.

    `score` is asked after every pass, and at the end the factors with the least are put back; None keeps the last.
    """
    total = schedule.steps(len(batches.epoch(0)))
    optimiser, rows_optimiser = optimisers(factors, schedule)
    teller, learned = Teller(title, total), 0
    best, best_score = factors.snapshot(), score() if score is not None else float("inf")
    for done, (rows, ends_a_pass) in enumerate(batches.steps(total), start=1):
        decay = 1.0 - (done - 1) / total
        for group in optimiser.param_groups if optimiser else []:
            group["lr"] = decay * group["peak"]
        loss = train_step(model, factors, batches.table.take(rows), schedule, optimiser, rows_optimiser, decay)
        learned += len(rows)
        teller.step(done, lambda loss=loss: loss)
        if score is not None and (ends_a_pass or done == total):
            now = score()
            if now < best_score:
                best, best_score = factors.snapshot(), now
    if score is not None:
        factors.restore(best)
    for tensor in factors.shared.values():
        tensor.requires_grad_(False)
    return learned


def optimisers(factors: Factors, schedule: Schedule) -> tuple[torch.optim.AdamW | None, RowAdamW | None]:
    """Return the optimisers of what is shared and of the table's rows; None where nothing of it is trained."""
    names = [n for n in factors.shared if schedule.trained is None or n in schedule.trained]
    for name, tensor in factors.shared.items():
        tensor.requires_grad_(name in names)
    groups: list[dict[str, Any]] = []
    for rate, tensors in (
        (schedule.lr, [factors.shared[n] for n in names if n != HEAD] + list(factors.trunk.values())),
        (schedule.head_rate, [factors.shared[n] for n in names if n == HEAD]),
    ):
        if tensors and rate:
            groups.append({"params": tensors, "lr": rate, "peak": rate, "weight_decay": schedule.weight_decay})
    own = RowAdamW(factors.table, weight_decay=schedule.weight_decay) if factors.layout.personal else None
    return torch.optim.AdamW(groups) if groups else None, own


def train_step(
    model: RewardModel,
    factors: Factors,
    table: Comparisons,
    schedule: Schedule,
    optimiser: torch.optim.AdamW | None,
    own: RowAdamW | None,
    decay: float,
) -> float:
    """Take one step on a batch; its comparisons' mean loss, weighted, is returned."""
    people = np.unique(table.user)
    rows = torch.from_numpy(people.astype(np.int64)).to(factors.table.device)
    leaf = factors.table[rows].requires_grad_() if own is not None else None
    at = table.for_users(np.searchsorted(people, table.user))
    total, size = float(table.weight.sum()), schedule.micro_batch or len(table)
    loss = 0.0
    for start in range(0, len(at), size):
        part = at.take(slice(start, start + size))
        weight = part.weight / max(total, 1e-12)
        if schedule.own_share > 0:
            loss += _backward(model, factors, part, leaf, len(people), schedule.own_share * weight)
        if schedule.own_share < 1:
            loss += _backward(model, factors, part, None, 0, (1 - schedule.own_share) * weight)
    if optimiser is not None:
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    if own is not None and leaf is not None and leaf.grad is not None:
        own.step(rows, leaf.grad, decay * schedule.own_rate)
    return loss


def _backward(
    model: RewardModel, factors: Factors, table: Comparisons, leaf: Tensor | None, people: int, weight: Float32
) -> float:
    """Add the gradient of sum_n weight_n NLL_n, and return that sum."""
    margin = _margins(model, factors, table, leaf, people)
    label = torch.from_numpy(table.label).to(margin.device)
    each = torch.nn.functional.binary_cross_entropy_with_logits(margin, label, reduction="none")
    loss = (each * torch.from_numpy(weight).to(margin.device)).sum()
    if loss.requires_grad:
        loss.backward()
    return float(loss.detach())


def _margins(model: RewardModel, factors: Factors, table: Comparisons, own: Tensor | None, people: int) -> Tensor:
    """Return reward(first) - reward(second), [n]; `table.user` is a row of `own`."""
    said = Sequences.of(table, personal=own is not None)
    whose = people if own is not None and factors.layout.layers_differ else None
    reward = model.rewards(said.item, said.user, factors.bound(own), people=whose, scale=factors.scale)
    return (
        reward[torch.from_numpy(said.first).to(reward.device)] - reward[torch.from_numpy(said.second).to(reward.device)]
    )


@torch.no_grad()
def scored(
    model: RewardModel, factors: Factors, own: Tensor | None, user: Array, item: Array, *, at_once: int = 512
) -> Float32:
    """Return float32 [m] rewards of items for the people `user` int64 [m], rows of `own` [n, P]."""
    out = np.empty(len(item), np.float32)
    order = np.lexsort((user, model.lengths[item]))
    for start in range(0, len(order), at_once):
        part = order[start : start + at_once]
        if own is None:
            bound, rows, people = factors.bound(None), np.zeros(len(part), np.int64), None
        else:
            who, rows = np.unique(user[part], return_inverse=True)
            bound = factors.bound(own[torch.from_numpy(who.astype(np.int64)).to(own.device)])
            rows, people = rows.reshape(-1), len(who) if factors.layout.layers_differ else None
        out[part] = model.rewards(item[part], rows, bound, people=people, scale=factors.scale).cpu().numpy()
    return out


def margins_of(model: RewardModel, factors: Factors, own: Tensor | None, table: Comparisons) -> Float32:
    """Return float32 [n] margins of comparisons; `table.user` is a row of `own`; a text is run once per person."""
    said = Sequences.of(table, personal=own is not None)
    reward = scored(model, factors, own, said.user, said.item)
    return reward[said.first] - reward[said.second]


def fit_rows(
    model: RewardModel,
    factors: Factors,
    start: Tensor,
    histories: Comparisons,
    n_people: int,
    *,
    steps: int,
    lr: float,
    micro_batch: int | None = None,
    at_once: int = 512,
) -> Tensor:
    """Return rows [n_people, P] fitted to what each person said, all that is shared being frozen.

    Every step is on a person's whole history, its mean loss, so that nobody's path depends on who else is fitted;
    people are taken together as far as their texts are fewer than `at_once`. Who said nothing keeps `start` [P].
    """
    own = start.expand(n_people, -1).clone()
    for people in _together(histories, n_people, at_once):
        table = histories.take(np.isin(histories.user, people))
        at = table.for_users(np.searchsorted(people, table.user))
        total = np.bincount(at.user, at.weight, minlength=len(people))
        weight = (at.weight / np.maximum(total[at.user], 1e-12)).astype(np.float32)
        part = own[torch.from_numpy(people).to(own.device)]
        optimiser, everybody = RowAdamW(part), torch.arange(len(people), device=own.device)
        for step in range(steps):
            leaf = part.clone().requires_grad_()
            for lo in range(0, len(at), micro_batch or len(at)):
                part_of = slice(lo, lo + (micro_batch or len(at)))
                _backward(model, factors, at.take(part_of), leaf, len(people), weight[part_of])
            if leaf.grad is not None:
                optimiser.step(everybody, leaf.grad, lr * (1.0 - step / steps))
        own[torch.from_numpy(people).to(own.device)] = part
    return own


def _together(histories: Comparisons, n_people: int, at_once: int) -> Iterable[Array]:
    """Yield people, int64, whose histories are fitted together."""
    counts = 2 * np.bincount(histories.user, minlength=n_people)
    said = np.flatnonzero(counts)
    if not len(said):
        return
    chunk = (np.cumsum(counts[said]) - counts[said]) // at_once
    yield from np.split(said.astype(np.int64), np.flatnonzero(np.diff(chunk)) + 1)
