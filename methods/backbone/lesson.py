"""What a preset's `learn` works with: the model, the seen people's comparisons, starts, and stages of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets_registry.errors import RequestError
from datasets_registry.protocol import mix, seed_of
from datasets_registry.records import Comparisons
from methods.backbone.layout import HEAD, Layout, sizes
from methods.backbone.reward_model import RewardModel
from methods.backbone.soft_prompt import OWN, PROMPT, TOKENS
from methods.backbone.training import Factors, Schedule, margins_of, train
from methods.batches import Batches
from methods.bradley_terry import Pairs, calibrated_nll, held_out, person_keys, pooled_chosen
from methods.interface import Budget, Histories

if TYPE_CHECKING:
    from methods.backbone.method import BackboneMethod

Array = NDArray[Any]
Draw = Literal["independent", "copied"]


class Lesson:
    """One fit. `shared_start` begins a shared adapter, `personal` gives people their own, `train` moves them."""

    def __init__(
        self,
        method: BackboneMethod,
        model: RewardModel,
        histories: Histories,
        val: Comparisons,
        users: Array,
        budget: Budget,
    ) -> None:
        self.method, self.model, self.budget = method, model, budget
        self.histories, self.users, self.val = histories, users, val
        self.keys = person_keys(histories)  # (n_seen,)
        self.held = held_out(val, users)
        self.learned_from = 0
        self.stages = 0

    @property
    def n_people(self) -> int:
        """Return the number of seen people."""
        return len(self.histories)

    def shared_start(self) -> Factors:
        """Return the factors of a shared adapter before training: A drawn, B zero, the head as `head_init` says.

        Soft prompts begin at the vectors of words drawn from the vocabulary, all clusters with the same weight.
        From a PEFT folder where the method was given one; with the trunk's own parameters where it has no adapters.
        """
        layout, scale = layout_of(self.method, self.model), self.method.alpha / self.method.rank
        shared: dict[str, Tensor] = {}
        for name, shape in layout.shared.items():
            value = torch.zeros(shape)
            if name.endswith("/a"):
                value.uniform_(-1, 1, generator=self._generator("a", name)).mul_(
                    self.method.init_scale / shape[1] ** 0.5
                )
            elif name == TOKENS:
                n = value[..., 0].numel()
                value = self.model.vocabulary_vectors(n, self._generator(name)).reshape(shape)
            elif name == HEAD:
                value = self._head(None if layout.soft is None else layout.soft.bound(shared)[PROMPT][0])
            shared[name] = value.to(self.model.device)
        trunk = {} if self.method.adapters else self.model.trained_above()
        for parameter in trunk.values():
            parameter.requires_grad_(True)
        if self.method.start is not None:
            from methods.backbone.peft_files import read_adapter

            shared.update(read_adapter(self.method.start, layout, self.model, scale=scale))
        return Factors(layout, shared, self._empty_table(), scale, trunk)

    def rows(self, layout: Layout, shared: Mapping[str, Tensor], draw: Draw) -> Tensor:
        """Return everybody's own factors before training, [n_seen, P].

        "copied" hands each person the shared factor; "independent" draws each person's A within the same bound, and
        perturbs a core's identity by the same scale. B starts as the shared one (zero before any training). A prompt
        starts as the generic one, to which "independent" adds normal draws.
        """
        out = torch.empty((self.n_people, sum(sizes(layout.own))))
        column = 0
        for (name, shape), size in zip(layout.own.items(), sizes(layout.own), strict=True):
            part = out[:, column : column + size]
            if name.endswith("/core"):
                part.copy_((torch.eye(shape[0]) if len(shape) == 2 else torch.ones(shape)).reshape(1, -1))
                if draw == "independent":
                    part += self._draws(name, size) * (self.method.init_scale / shape[0] ** 0.5)
            elif name.endswith("/a") and draw == "independent":
                part.copy_(self._draws(name, size) * (self.method.init_scale / shape[1] ** 0.5))
            elif name == OWN and layout.soft is not None:
                part.copy_(layout.soft.generic_row(shared).cpu())
                if draw == "independent":
                    part += self._draws(name, size, normal=True)
            else:
                part.copy_(shared[name].detach().cpu().reshape(1, -1))
            column += size
        return out.to(self.model.device)

    def personal(self, start: Factors, draw: Draw) -> Factors:
        """Return factors that are people's own where the method says so, begun from shared ones.

        Raises RequestError where "independent" draws would undo a start that was given.
        """
        drawn_anew = {"a", "core"} & set(self.method.whose())
        if draw == "independent" and self.method.start is not None and drawn_anew:
            raise RequestError(
                f"{self.method.spec.name}: an independent start draws anew what start={self.method.start!r} brings; "
                "give init='copied' or init='warmup'"
            )
        layout = layout_of(self.method, self.model, **self.method.whose())
        shared = {name: start.shared[name] for name in layout.shared}
        return replace(start, layout=layout, shared=shared, table=self.rows(layout, start.shared, draw))

    def train(self, factors: Factors, schedule: Schedule, stage: str = "") -> Factors:
        """Train the factors in place and return them."""
        # by number, not by name: what is trained first sees the same batches in every method
        seed = seed_of("stage", self.budget.seed, self.stages)
        batches = Batches(self.histories.table, self.keys, schedule.batch, seed, schedule.balanced)
        self.stages += 1
        title = f"{self.method.spec.name}{': ' + stage if stage else ''}"
        ask = self.method.select == "validation" and len(self.held) > 0
        score = (lambda: self.validation_nll(factors)) if ask else None
        self.learned_from += train(self.model, factors, batches, schedule, title=title, score=score)
        return factors

    def validation_nll(self, factors: Factors) -> float:
        """Return the macro validation NLL of seen people at the best of a few temperatures."""
        own = factors.table if factors.layout.personal else None
        return calibrated_nll(margins_of(self.model, factors, own, self.held), self.held)

    def _head(self, prompt: Tensor | None) -> Tensor:
        kind, width = self.method.head_init, self.model.width
        if kind == "zero":
            return torch.zeros(width)
        if kind == "random":
            return torch.empty(width).normal_(0.0, 0.02, generator=self._generator("head"))
        return torch.from_numpy(self._probe(prompt))

    def _probe(self, prompt: Tensor | None) -> Array:
        """Return pooled Bradley-Terry on what the frozen model's head sees, float32 [width]."""
        table = self.histories.table
        used = np.unique(np.concatenate([table.first, table.second, self.val.first, self.val.second]))
        features = np.zeros((len(self.method.world.items), self.model.width), np.float32)
        features[used] = self.model.pooled_features(used.astype(np.int64), prompt)
        world = replace(self.method.world, features=features)
        pairs, _ = Pairs.of_seen(world, table.for_users(self.users[table.user]))
        theta, *_ = pooled_chosen(pairs, self.val)
        return (theta * pairs.scale).astype(np.float32)

    def _generator(self, *what: object) -> torch.Generator:
        return torch.Generator().manual_seed(seed_of("backbone", self.budget.seed, *what))

    def _draws(self, name: str, size: int, *, normal: bool = False) -> Tensor:
        """Return draws of U(-1, 1) or N(0, 1), [n_seen, size], that belong to what a person compared, not to a row."""
        salt = np.full(self.n_people, seed_of("person", self.budget.seed, name), np.uint64)
        out = torch.empty((self.n_people, size))
        draw = torch.Generator()
        for row, key in zip(out, mix(self.keys, salt) >> np.uint64(1), strict=True):
            draw.manual_seed(int(key))
            row.normal_(generator=draw) if normal else row.uniform_(-1, 1, generator=draw)
        return out

    def _empty_table(self) -> Tensor:
        return torch.zeros((self.n_people, 0), device=self.model.device)


def layout_of(method: BackboneMethod, model: RewardModel, **owners: Any) -> Layout:
    """Return a layout of the model's adapted layers with these owners; what is not named is shared."""
    embedding = 0 if method.soft is None else model.embedding_width
    return Layout(model.layers, model.width, method.rank, soft=method.soft, embedding=embedding, **owners)


def factors_of(method: BackboneMethod, model: RewardModel, flat: Array) -> Factors:
    """Return the trained shared factors of a loaded method; everybody's rows come in as states."""
    layout = layout_of(method, model, **method.whose())
    values = torch.from_numpy(np.ascontiguousarray(flat)).to(model.device)
    trunk = {} if method.adapters else model.trained_above()
    counts = [*sizes(layout.shared), *(p.numel() for p in trunk.values())]
    parts = list(values.split(counts))
    shared = {n: p.reshape(s) for (n, s), p in zip(layout.shared.items(), parts, strict=False)}
    with torch.no_grad():
        for parameter, part in zip(trunk.values(), parts[len(shared) :], strict=True):
            parameter.copy_(part.reshape(parameter.shape))
    return Factors(layout, shared, values.new_zeros((0, sum(sizes(layout.own)))), method.alpha / method.rank, trunk)
