"""What all backbone methods share: configuration, the model, states, scores, and fitting new people's own factors.

A preset in the catalogue says in `learn` which factors are whose and in which stages they are trained; nothing else
differs. `start` may be a PEFT LoRA folder, from which the shared adapter begins.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from datasets_registry.errors import MethodError
from datasets_registry.records import Comparisons, Float32
from methods.interface import Budget, Histories, Method, UserState, World, places, stack, unstack
from methods.limits import ABOVE, FLAG, Limit, Limits, must_hold, number, one_of, or_none, whole

if TYPE_CHECKING:
    from methods.backbone.lesson import Lesson
    from methods.backbone.reward_model import RewardModel
    from methods.backbone.soft_prompt import SoftPrompt
    from methods.backbone.training import Factors, Schedule

Array = NDArray[Any]


@dataclass(kw_only=True, eq=False, repr=False)
class BackboneMethod(Method):
    """A reward model inside a transformer; options not described in the papers are extensions.

    rank, alpha: of the adapters; their output is scaled by alpha / rank. targets: names of linear layers to adapt
    (None: query and value projections). adapt_layers: only so many of the last layers, the output of those below being
    cached. epochs, batch, lr: AdamW with linear decay on batches of about so many comparisons, people mixed, with
    passes going on until `min_steps` are taken. micro_batch: how many are run at once. lr_own and lr_head: rates of
    what is a person's own and of the head (None: lr). init_scale multiplies the bound 1/sqrt(d_in) that every A is
    drawn within. head_init: "random" (standard deviation .02), "zero", or "probe", pooled Bradley-Terry on the frozen
    model. user_balanced: people in turn. select: keep the pass with the least macro validation NLL, or the last.
    adapt_steps, adapt_lr: full-batch steps on a new person's history. max_tokens, dtype, checkpointing: of the trunk.
    start: a PEFT LoRA folder to begin from.
    """

    rank: int = 32
    alpha: float = 16.0
    lr: float = 5e-5
    epochs: float = 3
    min_steps: int = 0
    batch: int = 128
    micro_batch: int | None = None
    weight_decay: float = 0.0
    lr_own: float | None = None
    lr_head: float | None = None
    init_scale: float = 1.0
    head_init: Literal["random", "zero", "probe"] = "random"
    user_balanced: bool = False
    select: Literal["validation", "last"] = "validation"
    adapt_steps: int = 20
    adapt_lr: float | None = None
    targets: list[str] | None = None
    adapt_layers: int | None = None
    max_tokens: int | None = None
    dtype: str = "float32"
    checkpointing: bool = False
    start: str | None = None

    _device: str = field(init=False, default="cpu")
    _model: RewardModel | None = field(init=False, default=None)

    @abstractmethod
    def whose(self) -> Mapping[str, str]:
        """Return the owners of `layout.Layout` that are not "shared", once trained: for example {"a": "user"}."""

    @abstractmethod
    def learn(self, lesson: Lesson) -> Factors:
        """Train on the lesson and return the factors, a row per seen person among them."""

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Learn the shared factors and the own factors of seen people."""
        from methods.backbone.lesson import Lesson

        self.check()
        self.world = world
        self._device = budget.device
        users = np.unique(train.user).astype(np.int64)
        lesson = Lesson(self, self._fresh_model(), Histories.group(train, users), val, users, budget)
        factors = self.learn(lesson)
        self._model, self._factors = lesson.model, factors
        self.users_ = users
        self.shared_ = _flat([*factors.shared.values(), *factors.trunk.values()])  # (n_shared,)
        self.table_ = factors.table.cpu().numpy()  # (n_seen, P)
        self.new_ = self.new_person(factors)  # (P,)
        self.comparisons_trained_ = lesson.learned_from

    def adapt(self, users: Sequence[int], history: Sequence[Comparisons], budget: Budget) -> list[UserState]:
        """Return own factors: looked up for seen people, fitted from `new_person` for new ones."""
        import torch

        from methods.backbone.training import fit_rows

        asked = np.asarray(users, np.int64)
        if not self.table_.shape[1]:
            return [UserState() for _ in asked]
        at = places(self.users_, asked)
        seen = at >= 0
        own = np.tile(self.new_, (len(asked), 1))  # (n, P)
        own[seen] = self.table_[at[seen]]
        histories = Histories.of(history)
        new = np.flatnonzero(~seen & (histories.lengths > 0))
        if len(new) and self.fits_new_people:
            model, factors = self.ready()
            own[new] = (
                fit_rows(
                    model,
                    factors,
                    torch.from_numpy(self.new_).to(model.device),
                    Histories.group(histories.table, new).table,
                    len(new),
                    steps=self.adapt_steps,
                    micro_batch=self.micro_batch,
                    lr=self.schedule.own_rate if self.adapt_lr is None else self.adapt_lr,
                )
                .cpu()
                .numpy()
            )
        return unstack(factors=own)

    def new_person(self, factors: Factors) -> Float32:
        """Return what a new person begins with, float32 [P]: the mean of seen people's own factors."""
        table = factors.table.cpu().numpy()  # (n_seen, P)
        return table.mean(0) if len(table) else np.zeros(table.shape[1], np.float32)

    @property
    def fits_new_people(self) -> bool:
        """Return whether new people's own factors are fitted to what they said."""
        return self.adapt_steps > 0

    def margins(self, states: Sequence[UserState], queries: Comparisons) -> Float32:
        """Return reward(first) - reward(second), float32 [n]; a text shown to one person twice is run once."""
        from methods.backbone.training import margins_of

        model, factors = self.ready()
        return margins_of(model, factors, self._own(states), queries)

    def rewards(self, states: Sequence[UserState], users: Array, items: Array) -> Float32 | None:
        """Return float32 [n] rewards of items."""
        from methods.backbone.training import scored

        model, factors = self.ready()
        return scored(model, factors, self._own(states), np.asarray(users), np.asarray(items))

    @property
    def n_trained(self) -> int:
        """Return the number of shared parameters that are trained."""
        return int(self.shared_.size)

    @property
    def comparisons_trained(self) -> int | None:
        """Return how many comparisons were learned from, each counted once per pass."""
        return getattr(self, "comparisons_trained_", None)

    @property
    def truncated(self) -> int:
        """Return how many texts of the items were cut to the model's limit, or to `max_tokens`."""
        return self.ready()[0].tokens.truncated

    @property
    def reads(self) -> tuple[str, ...]:
        """Return the adapter to begin from, if there is one."""
        return () if self.start is None else (self.start,)

    def memory_estimate(self, encoder: str, n_users: int) -> Mapping[str, int] | None:
        """Return the bytes of weights, adapters, their gradients and moments, and activations."""
        from methods.backbone.memory import estimate

        return estimate(self, encoder, n_users)

    def counted(self, a: int, b: int, head: int, n_layers: int) -> tuple[int, int]:
        """Return the numbers of shared and of a person's own factors, given those of all A, all B and the head."""
        owners = self.whose()
        core = n_layers * {"none": 0, "kernel": self.rank**2, "diagonal": self.rank}[owners.get("core", "none")]
        parts = {"a": a, "b": b, "head": head}
        own = sum(size for name, size in parts.items() if owners.get(name) == "user")
        return sum(parts.values()) - own, own + core

    @property
    def schedule(self) -> Schedule:
        """Return the training of the main stage."""
        from methods.backbone.training import Schedule

        return Schedule(
            epochs=self.epochs,
            min_steps=self.min_steps,
            batch=self.batch,
            lr=self.lr,
            lr_own=self.lr_own,
            lr_head=self.lr_head,
            weight_decay=self.weight_decay,
            micro_batch=self.micro_batch,
            balanced=self.user_balanced,
        )

    def check(self) -> None:
        """Raise RequestError for an option out of range."""
        must_hold(self, self.limits())

    def limits(self) -> Limits:
        """Return by option what is allowed; a preset adds its own."""
        count, rate = or_none(whole()), or_none(number(), " for lr")
        names = 'a list of names of linear layers, for example ["q_proj", "v_proj"]'
        return {
            **{name: whole() for name in ("rank", "batch")},
            **{name: count for name in ("micro_batch", "adapt_layers", "max_tokens")},
            **{name: whole(0) for name in ("min_steps", "adapt_steps")},
            **{name: number() for name in ("epochs", "weight_decay")},
            **{name: ABOVE for name in ("alpha", "lr", "init_scale")},
            **{name: rate for name in ("lr_own", "lr_head", "adapt_lr")},
            "head_init": one_of("random", "zero", "probe"),
            "dtype": one_of("float32", "bfloat16"),
            "select": one_of("validation", "last"),
            **{name: FLAG for name in ("user_balanced", "checkpointing")},
            "targets": or_none(Limit(_are_names, names), " for the model's own"),
            "start": or_none(Limit(lambda v: isinstance(v, str), "the path of a PEFT folder")),
        }

    def _fresh_model(self) -> RewardModel:
        from datasets_registry.sources import home
        from methods.backbone.reward_model import RewardModel, Shape

        if self.world.encoder is None:
            raise MethodError(f"{self.spec.name} trains inside an encoder's model, and this World names none")
        shape = Shape(
            targets=None if self.targets is None else tuple(self.targets),
            adapt_layers=self.adapt_layers,
            max_tokens=self.max_tokens,
            dtype=self.dtype,
            checkpointing=self.checkpointing,
            device=self._device,
            soft_tokens=0 if self.soft is None else self.soft.tokens,
        )
        cache = home() / "activations" if self.adapt_layers is not None else None
        return RewardModel.load(self.world.encoder, self.world.items, shape, adapters=self.adapters, cache=cache)

    def work_on(self, device: str) -> None:
        """Choose the device of a loaded method, which does not say where it works, before it is first used."""
        self._device = device

    def ready(self) -> tuple[RewardModel, Factors]:
        """Return the model and its factors, built anew after `load`."""
        if self._model is None:
            from methods.backbone.lesson import factors_of

            self._model = self._fresh_model()
            self._factors = factors_of(self, self._model, self.shared_)
        return self._model, self._factors

    def _own(self, states: Sequence[UserState]) -> Any:
        import torch

        if not self.table_.shape[1]:
            return None
        own = stack(states, "factors") if len(states) else np.zeros((0, self.table_.shape[1]), np.float32)
        return torch.from_numpy(np.ascontiguousarray(own, np.float32)).to(self.ready()[0].device)

    @property
    def soft(self) -> SoftPrompt | None:
        """Return the soft prompt that stands before every text; None for none."""
        return None

    @property
    def adapters(self) -> bool:
        """Return whether the trunk gets adapters; without them it is trained itself."""
        return True


def _are_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(name, str) for name in value)


def _flat(tensors: Sequence[Any]) -> Float32:
    """Return tensors one after the other, float32 [n]."""
    parts = [t.detach().float().cpu().numpy().ravel() for t in tensors]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)
