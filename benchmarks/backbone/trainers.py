"""Who trains: our methods, PEFT adapter by adapter and with one adapter, and the layer that the authors released.

All of them train on the same texts in the same trunk, pooled and padded alike, from the same factors; whoever computes
the same has the same losses, step by step. PEFT runs all layers at each step, as it keeps nothing of frozen ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.backbone.costs import BY_PERSON, GATHERED, GLOBAL, LOCAL, ONE, P_SHARE
from benchmarks.backbone.workloads import Workload, drawn
from benchmarks.kernels.contenders import Role
from datasets_registry.records import Comparisons
from methods.backbone.adapted_linear import AdaptedLinear, Binding
from methods.backbone.frozen_layers import layer_list
from methods.backbone.layout import HEAD, Layout, sizes
from methods.backbone.reward_model import RewardModel
from methods.backbone.training import Factors, Schedule, optimisers, train_step

RATE = 1e-3
Computes = Literal["own A", "own A, B and head", "shared"]


@dataclass(frozen=True, slots=True)
class Step:
    """A training step made ready: `run` takes it and returns its loss. `own_values`: of one person's own factors."""

    run: Callable[[], float]
    own_values: int = 0


@dataclass(frozen=True, slots=True)
class Trainer:
    """One way to train; `computes` is the same for those that train the same model. `make` takes a cache folder."""

    name: str
    role: Role
    computes: Computes
    make: Callable[[Workload, Path | None], Step]


def _ours(work: Workload, cache: Path | None, **owners: Any) -> Step:
    model, batch = work.model(cache=cache), work.batch()
    layout = Layout(model.layers, model.width, work.rank, **owners)
    shared = {name: drawn(name, *shape) for name, shape in layout.shared.items()}
    own = [drawn(name, work.people, *shape).flatten(1) for name, shape in layout.own.items()]
    factors = Factors(layout, shared, torch.cat(own, 1) if own else torch.zeros(work.people, 0), work.scale)
    schedule = Schedule(epochs=1, batch=len(batch), lr=RATE)
    optimiser, rows = optimisers(factors, schedule)
    return Step(
        lambda: train_step(model, factors, batch, schedule, optimiser, rows, 1.0),
        sum(sizes(layout.own)),
    )


def _backward(
    model: RewardModel, batch: Comparisons, factors: Mapping[str, Tensor], people: int | None, total: int
) -> float:
    """Add the gradient of a batch's share of the mean NLL over `total` comparisons, and return that share."""
    item, user = np.concatenate([batch.first, batch.second]), np.concatenate([batch.user, batch.user])
    rewards = model.rewards(item.astype(np.int64), user.astype(np.int64), factors, people=people, scale=1.0)
    margin = rewards[: len(batch)] - rewards[len(batch) :]
    label = torch.from_numpy(batch.label)
    loss = nn.functional.binary_cross_entropy_with_logits(margin, label, reduction="sum") / total
    loss.backward()
    return float(loss.detach())


def _optimiser(parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    """Return a rival's AdamW, in the fastest form that torch has."""
    return torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)


class GatheredLinear(nn.Module):
    """W0 x + scale B (A_u x) as the authors' layer does it: everybody's A in one tensor, gathered for each text, bmm.

    `a` is [people, d_in, rank] and `b` [rank, d_out], both parameters, so that every step's optimiser goes over all of
    `a`. Source: what arXiv 2503.19201 describes.
    """

    def __init__(self, base: nn.Module, binding: Binding, a: Tensor, b: Tensor, scale: float) -> None:
        super().__init__()
        self.base, self.binding, self.scale = base, binding, scale
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(self, x: Tensor) -> Tensor:
        """Return [texts, tokens, d_out] for x [texts, tokens, d_in]."""
        assert self.binding.plan is not None
        whose = self.binding.plan.ids.view(x.shape[:2])[:, 0]  # (texts,)
        return self.base(x) + self.scale * (torch.bmm(x, self.a[whose]) @ self.b)


def _gathered(work: Workload, cache: Path | None) -> Step:
    model, batch = work.model(cache=cache), work.batch()
    for layer in model.layers:
        above, _, child = layer.name.rpartition(".")
        parent = model.trunk.get_submodule(above)
        adapted = getattr(parent, child)
        assert isinstance(adapted, AdaptedLinear)
        a = drawn(f"{layer.name}/a", work.people, work.rank, layer.d_in).transpose(1, 2).contiguous()
        b = drawn(f"{layer.name}/b", work.rank, layer.d_out)
        setattr(parent, child, GatheredLinear(adapted.base, model.binding, a, b, work.scale))
    head = nn.Parameter(drawn(HEAD, model.width))
    optimiser = _optimiser([*(p for p in model.trunk.parameters() if p.requires_grad), head])
    # anything besides the head makes the model tell its layers whose each token is
    factors = {HEAD: head, "whose": torch.zeros(1)}

    def run() -> float:
        loss = _backward(model, batch, factors, work.people, len(batch))
        optimiser.step()
        optimiser.zero_grad()
        return loss

    return Step(run)


def _adapted_by_peft(model: RewardModel, work: Workload, names: list[str], *, own: bool) -> Any:
    """Put PEFT's LoRA layers into a model's trunk, an adapter per name, and return PEFT's model."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import Linear as LoraLinear

    depth = len(layer_list(model.trunk))
    config = LoraConfig(
        r=work.rank,
        lora_alpha=16,
        target_modules=list(model.text.targets),
        lora_dropout=0.0,
        layers_to_transform=None if work.adapt_layers is None else list(range(depth - work.adapt_layers, depth)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, on what PEFT asks it
        trunk: Any = model.trunk
        made = get_peft_model(trunk, config, adapter_name=names[0])
        for name in names[1:]:
            made.add_adapter(name, config)
    with torch.no_grad():
        for full, layer in model.trunk.named_modules():
            if isinstance(layer, LoraLinear):
                factors: Any = layer
                count = (len(names),) if own else ()
                a = drawn(f"{full}/a", *count, work.rank, factors.in_features)
                b = drawn(f"{full}/b", *count, work.rank, factors.out_features)
                for row, name in enumerate(names):
                    factors.lora_A[name].weight.copy_(a[row] if own else a)
                    factors.lora_B[name].weight.copy_((b[row] if own else b).T)
    return made


def _one_peft_adapter(work: Workload, cache: Path | None) -> Step:
    del cache
    model, batch = work.model(adapters=False, whole=True), work.batch()
    _adapted_by_peft(model, work, ["everybody"], own=False)
    head = nn.Parameter(drawn(HEAD, model.width))
    optimiser = _optimiser([*(p for p in model.trunk.parameters() if p.requires_grad), head])

    def run() -> float:
        loss = _backward(model, batch, {HEAD: head}, None, len(batch))
        optimiser.step()
        optimiser.zero_grad()
        return loss

    return Step(run)


def _peft_by_person(work: Workload, cache: Path | None) -> Step:
    del cache
    model, batch = work.model(adapters=False, whole=True), work.batch()
    names = [str(user) for user in range(work.people)]
    made = _adapted_by_peft(model, work, names, own=True)
    heads = [nn.Parameter(row) for row in drawn(HEAD, work.people, model.width)]
    parts = [(user, batch.take(batch.user == user)) for user in np.unique(batch.user).tolist()]
    lora = [parameter for name, parameter in model.trunk.named_parameters() if "lora_" in name]
    optimiser = _optimiser([*lora, *heads])

    def run() -> float:
        loss = 0.0
        for user, part in parts:
            made.set_adapter(names[user])
            loss += _backward(model, part, {HEAD: heads[user]}, None, len(batch))
        optimiser.step()
        optimiser.zero_grad()
        return loss

    return Step(run)


TRAINERS = {
    each.name: each
    for each in (
        Trainer(P_SHARE, "ours", "own A", lambda work, cache: _ours(work, cache, a="user")),
        Trainer(
            LOCAL, "ours", "own A, B and head", lambda work, cache: _ours(work, cache, a="user", b="user", head="user")
        ),
        Trainer(GLOBAL, "ours", "shared", _ours),
        Trainer(GATHERED, "rival", "own A", _gathered),
        Trainer(BY_PERSON, "rival", "own A, B and head", _peft_by_person),
        Trainer(ONE, "rival", "shared", _one_peft_adapter),
    )
}
