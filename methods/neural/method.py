"""What neural methods on frozen features share: inputs, training, validation, scores, saving.

A preset in the catalogue gives the `network`, the `loss` of a batch, how a state is made (`adapt`) and the `reward` of
an item under one; nothing else differs. A parameter of the network called `own` [n_seen, k] holds seen people's own
numbers and is not counted as shared.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datasets_registry.errors import MethodError
from datasets_registry.records import Comparisons, Float32
from methods.bradley_terry import calibrated_nll, feature_scale, held_out, person_keys
from methods.interface import Budget, Histories, Method, UserState, World, stack
from methods.limits import ABOVE, Limits, must_hold, number, whole

if TYPE_CHECKING:
    from torch import Tensor, nn

    from methods.neural.training import Rows

Array = NDArray[Any]
_CHUNK = 8192


@dataclass(kw_only=True, eq=False, repr=False)
class NeuralMethod(Method):
    """A network on frozen features, trained by AdamW on everybody's comparisons.

    lr, weight_decay: AdamW's, the rate falling to zero by a cosine over `steps`, the most steps that are taken. batch:
    about so many comparisons at once, those of one person and unit together. Validation is asked every `every` steps,
    and at a few of the first; the parameters with the least macro NLL are kept, and after `patience`, a share of
    `steps`, without a better one training ends.
    """

    lr: float = 1e-3
    weight_decay: float = 0.0
    steps: int = 400
    batch: int = 1024
    every: int = 20
    patience: float = 0.25

    _device: str = field(init=False, default="cpu")
    _net: nn.Module | None = field(init=False, default=None)

    @abstractmethod
    def network(self, d: int, n_people: int) -> nn.Module:
        """Return the network for d features and so many seen people; it is drawn from torch's seeded generator."""

    @abstractmethod
    def loss(self, net: nn.Module, rows: Rows) -> Tensor:
        """Return the loss of each comparison of a batch, [n]; weights are applied outside."""

    def reward(self, net: nn.Module, codes: Tensor, inputs: Tensor) -> Tensor:
        """Return rewards [n] of inputs [n, d] under codes [n, k].

        A preset whose margins are no differences of rewards overrides `margins` and `rewards` instead.
        """
        raise NotImplementedError(f"{type(self).__name__} gives neither `reward` nor `margins` and `rewards`")

    def begin(self, net: nn.Module, histories: Histories, budget: Budget) -> None:
        """Set the network's start where it depends on the seen people; called once before training."""

    def seen_states(self, net: nn.Module, histories: Histories, budget: Budget) -> list[UserState]:
        """Return the states that seen people are validated with; by default what `adapt` gives them."""
        return self.adapt(self.users_.tolist(), histories, budget)

    def batched(self, table: Comparisons) -> Comparisons:
        """Return the table whose (person, unit) groups are kept together in a batch; by default as it is."""
        return table

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Train the network on seen people."""
        from methods.batches import Batches
        from methods.neural.training import Schedule, seeded, train_network

        self.check()
        self.world, self._device = world, budget.device
        if world.features is None:
            raise MethodError(f"{self.spec.name} works on frozen features, and this World carries none")
        users = np.unique(train.user).astype(np.int64)
        histories = Histories.group(train, users)
        used = np.unique(np.concatenate([train.first, train.second]))
        self.users_ = users
        self.scale_ = feature_scale(world, train)
        self.centre_ = (world.features[used].mean(0) if len(used) else np.zeros(len(self.scale_))).astype(np.float32)
        with seeded(self.spec.name, budget.seed):
            net = self._net = self.network(len(self.scale_), len(users)).to(self._device)
            self.begin(net, histories, budget)
            held = held_out(val, users)

            def score() -> float:
                net.eval()
                states = self.seen_states(net, histories, budget)
                return calibrated_nll(self.margins(states, held), held)

            batches = Batches(self.batched(histories.table), person_keys(histories), self.batch, budget.seed)
            schedule = Schedule(self.lr, self.weight_decay, self.steps, self.every, self.patience)
            self.comparisons_trained_ = train_network(
                net,
                lambda rows: self.loss(net, self.rows(histories.table.take(rows))),
                batches,
                schedule,
                title=self.spec.name,
                score=score if len(held) else None,
            )
        self.weights_ = _flat(net)

    def inputs(self, items: Array) -> Tensor:
        """Return standardised features of item rows, float32 [n, d]: centred, with differences of unit size."""
        import torch

        assert self.world.features is not None
        x = (self.world.features[np.asarray(items)] - self.centre_) * self.scale_
        return torch.from_numpy(np.ascontiguousarray(x, np.float32)).to(self._device)

    def rows(self, table: Comparisons) -> Rows:
        """Return comparisons as tensors; `person` is `table.user`."""
        from methods.neural.training import Rows

        return Rows.of(table, self.inputs, self._device)

    def margins(self, states: Sequence[UserState], queries: Comparisons) -> Float32:
        """Return reward(first) - reward(second), float32 [n]."""
        return self._scored(states, queries.user, queries.first) - self._scored(states, queries.user, queries.second)

    def rewards(self, states: Sequence[UserState], users: Array, items: Array) -> Float32 | None:
        """Return float32 [n] rewards of items."""
        return self._scored(states, np.asarray(users), np.asarray(items))

    def codes(self, states: Sequence[UserState]) -> Tensor:
        """Return what `reward` needs of each state, [n_states, k]: the array called "code", if there is one."""
        import torch

        some = bool(states) and "code" in states[0].arrays
        code = stack(states, "code") if some else np.zeros((len(states), 0), np.float32)
        return torch.from_numpy(np.ascontiguousarray(code, np.float32)).to(self._device)

    def ready(self) -> nn.Module:
        """Return the trained network, built anew after `load`."""
        if self._net is None:
            from methods.neural.training import seeded

            with seeded(self.spec.name, 0):
                self._net = self.network(len(self.scale_), len(self.users_)).to(self._device)
            _fill(self._net, self.weights_)
        return self._net.eval()

    @property
    def n_trained(self) -> int:
        """Return the number of shared parameters that are trained, without seen people's own."""
        return sum(p.numel() for name, p in self.ready().named_parameters() if name != "own")

    @property
    def comparisons_trained(self) -> int | None:
        """Return how many comparisons were learned from, each counted once per pass."""
        return getattr(self, "comparisons_trained_", None)

    def check(self) -> None:
        """Raise RequestError for an option out of range; a preset adds its own to `limits`."""
        must_hold(self, self.limits())

    def limits(self) -> Limits:
        """Return by option what is allowed."""
        counts = {name: whole() for name in ("batch", "every")}
        return {"lr": ABOVE, "weight_decay": number(), "patience": ABOVE, "steps": whole(0), **counts}

    def _scored(self, states: Sequence[UserState], users: Array, items: Array) -> Float32:
        import torch

        net, codes = self.ready(), self.codes(states)
        out = np.empty(len(items), np.float32)
        with torch.no_grad():
            for lo in range(0, len(items), _CHUNK):
                at = slice(lo, lo + _CHUNK)
                who = torch.from_numpy(np.asarray(users[at], np.int64)).to(self._device)
                out[at] = self.reward(net, codes[who], self.inputs(items[at])).float().cpu().numpy()
        return out


def _flat(net: nn.Module) -> Float32:
    """Return all parameters and buffers one after the other, float32 [n]."""
    parts = [t.detach().float().cpu().numpy().ravel() for t in net.state_dict().values()]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _fill(net: nn.Module, flat: Float32) -> None:
    """Put back what `_flat` gave."""
    import torch

    at = 0
    with torch.no_grad():
        for tensor in net.state_dict().values():
            part = torch.from_numpy(np.array(flat[at : at + tensor.numel()]))
            tensor.copy_(part.reshape(tensor.shape))
            at += tensor.numel()
