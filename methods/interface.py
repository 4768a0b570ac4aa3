"""The common interface: what every method is given, and what it must give back.

A method is handed labels of training and validation comparisons and of a person's own history, and nothing else. Query
tables carry NaN labels. `World` carries items, features and (on request) users' metadata: never a label.
"""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast, overload

import numpy as np
from numpy.typing import NDArray

from datasets_registry.errors import MethodError, RequestError
from datasets_registry.records import Comparisons, Float32, Items, Truth

if TYPE_CHECKING:
    from methods.limits import Limits

Array = NDArray[Any]
Level = Literal["feature", "backbone", "prompt"]
Adaptation = Literal["none", "lookup", "closed-form", "in-context", "gradient"]
Need = Literal["features", "backbone", "user-metadata", "truth"]


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """What a method is, for listings, cards and the harness.

    `needs`: "features" (an encoder's output), "backbone" (an encoder's own model, to train in), "user-metadata",
    "truth" (granted to built-in controls on simulated data only). `scoring`: pairwise judges have their margins
    averaged over both orders by the harness. A `control` stands in every table and is never ranked.
    `expected_failures` maps a conformance check to the reason why it cannot hold.
    """

    name: str
    title: str
    level: Level
    adaptation: Adaptation
    citation: str
    equation: str
    shared_parameters: str
    per_user_parameters: str
    cold_start: str
    deviations: str
    needs: frozenset[Need] = frozenset({"features"})
    scoring: Literal["pointwise", "pairwise"] = "pointwise"
    role: Literal["method", "control"] = "method"
    transductive: bool = False
    version: str = "1"
    expected_failures: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Budget:
    """What a call may spend: seed, device, wall seconds, tuning trials, threads."""

    seed: int = 0
    device: str = "cpu"
    seconds: float = float("inf")
    trials: int = 20
    threads: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """Everything a method may look at besides the comparisons it is handed; no label is in it.

    features: float32 [n_items, d], memory-mapped and read-only, or None when the method does not need them. `encoder`
    is the id of the encoder that features come from, and whose model a backbone method trains in.
    """

    dataset: str
    items: Items
    n_users: int
    features: Float32 | None = None
    encoder: str | None = None
    user_metadata: Mapping[str, tuple[str, ...]] | None = None
    truth: Truth | None = None

    def differences(self, comparisons: Comparisons) -> Float32:
        """Return phi(first) - phi(second), float32 [n, d]."""
        if self.features is None:
            raise MethodError("this World carries no features; put 'features' in the method's spec.needs")
        return self.features[comparisons.first] - self.features[comparisons.second]


@dataclass(frozen=True, slots=True, eq=False)
class UserState:
    """What is stored to serve one person: named arrays, and nothing that names the person.

    >>> state = UserState({"a": np.zeros(3, np.float32)})
    >>> state.nbytes, UserState.from_bytes(state.to_bytes()).arrays["a"].tolist()
    (12, [0.0, 0.0, 0.0])
    """

    arrays: Mapping[str, Array] = field(default_factory=dict[str, Array])

    @property
    def nbytes(self) -> int:
        """Return the size of the payload in bytes, without the container."""
        return sum(a.nbytes for a in self.arrays.values())

    @property
    def n_parameters(self) -> int:
        """Return the number of stored values."""
        return sum(a.size for a in self.arrays.values())

    def to_bytes(self) -> bytes:
        """Return the state in safetensors format."""
        from safetensors.numpy import save

        return save({k: np.asarray(v, order="C") for k, v in self.arrays.items()})

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Read a state written by `to_bytes`."""
        from safetensors.numpy import load

        return cls(load(raw))


class Histories(Sequence[Comparisons]):
    """One history per person over a single table, so that methods can be vectorised over people.

    `table` holds all rows, sorted by person and then by `order`; `table.user` is the *position* of the person in the
    call (0..n-1), `offsets` int64 [n + 1] bounds each person's rows. Indexing gives one person's table.
    """

    def __init__(self, table: Comparisons, offsets: NDArray[np.int64]) -> None:
        self.table = table
        self.offsets = offsets

    @classmethod
    def group(cls, comparisons: Comparisons, users: Sequence[int] | Array) -> Self:
        """Group a table by its `user` column; people in `users` without rows get an empty history."""
        users = np.asarray(users, dtype=np.int64)
        size = int(max(users.max(initial=-1), comparisons.user.max(initial=-1))) + 1
        place = np.full(size, -1, np.int64)
        place[users] = np.arange(len(users))
        position = place[comparisons.user]
        keep = np.flatnonzero(position >= 0)
        keep = keep[np.lexsort((comparisons.order[keep], position[keep]))]
        table = comparisons.take(keep).for_users(position[keep])
        offsets = np.zeros(len(users) + 1, np.int64)
        np.cumsum(np.bincount(table.user, minlength=len(users)), out=offsets[1:])
        return cls(table, offsets)

    @classmethod
    def of(cls, history: Sequence[Comparisons]) -> Histories:
        """Return `history` itself if it is grouped already, else the grouped form of a plain sequence of tables."""
        if isinstance(history, Histories):
            return history
        lengths = np.array([len(h) for h in history], np.int64)
        table = Comparisons.concatenate(list(history)).for_users(np.repeat(np.arange(len(lengths)), lengths))
        return cls(table, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    def newest(self, most: int) -> Histories:
        """Return the last `most` comparisons of each person."""
        place = np.arange(len(self.table)) - self.offsets[self.table.user]
        kept = place >= self.lengths[self.table.user] - most
        counts = np.minimum(self.lengths, most)
        return Histories(self.table.take(kept), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Return the number of comparisons per person, int64 [n]."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> Comparisons: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Comparisons]: ...
    def __getitem__(self, index: int | slice) -> Comparisons | Sequence[Comparisons]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"history {index} of {len(self)}")
        at = index % len(self)
        return self.table.take(slice(int(self.offsets[at]), int(self.offsets[at + 1])))

    def __iter__(self) -> Iterator[Comparisons]:
        return (self[i] for i in range(len(self)))


class Method(ABC):
    """A method: `fit` on seen people, `adapt` to anyone from a history, `margins` on queries.

    `__init__` takes keyword-only hyper-parameters with the published defaults and stores them untouched under their own
    names; validation is in `fit`; what is learned ends in `_` (arrays, numbers, strings), which is all that the default
    `save` and `load` need. `fit` must keep the world as `self.world`. `search` gives, for hyper-parameters that `fit`
    does not choose itself, the values that tuning may try (`hetpref tune`); `chooses` says what `fit` does choose, anew
    in every trial and every cell. A method that cannot serve what it is asked by its own nature raises `UnableError`:
    that measurement is skipped, with the reason.
    """

    spec: ClassVar[MethodSpec]
    search: ClassVar[Mapping[str, Sequence[Any]]] = {}
    chooses: ClassVar[str] = ""
    world: World

    @abstractmethod
    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Learn from seen people; `train.user` and `val.user` are dataset-wide user rows."""

    @abstractmethod
    def adapt(self, users: Sequence[int], history: Sequence[Comparisons], budget: Budget) -> list[UserState]:
        """Return one state per entry of `users`, seen or new, from what each said so far (which may be empty).

        `history` is a `Histories` when the harness calls; `Histories.of(history)` accepts any sequence.
        """

    @abstractmethod
    def margins(self, states: Sequence[UserState], queries: Comparisons) -> Float32:
        """Return logit P(first > second | user), float32 [n]; `queries.user` is a position in `states`."""

    def rewards(self, states: Sequence[UserState], users: Array, items: Array) -> Float32 | None:
        """Return float32 [n] rewards of `items` (rows) for positions `users` in `states`; None if there are none."""
        return None

    @classmethod
    def hyperparameters(cls) -> dict[str, Any]:
        """Return the hyper-parameters and their defaults, read from `__init__`."""
        accepted = list(inspect.signature(cls).parameters.values())
        return {p.name: p.default for p in accepted if p.kind is p.KEYWORD_ONLY}

    def limits(self) -> Limits:
        """Return by option what is allowed; `fit` refuses the rest with `methods.limits.must_hold`."""
        return {}

    @property
    def config(self) -> dict[str, Any]:
        """Return the hyper-parameters as they were given."""
        return {name: getattr(self, name) for name in self.hyperparameters()}

    def learned(self) -> dict[str, Any]:
        """Return the learned state: attributes that end in `_`."""
        return {k: v for k, v in vars(self).items() if k.endswith("_") and not k.startswith("_")}

    @property
    def n_trained(self) -> int:
        """Return the number of trained shared parameters, by default of all learned arrays of floats.

        Override it where a feature scale, a constant or a table of users is among them: those are not trained.
        """
        return sum(a.size for a in self._learned_arrays().values() if a.dtype.kind == "f")

    @property
    def comparisons_trained(self) -> int | None:
        """Return how many comparisons `fit` learned from, each counted once per pass; None if not told."""
        return None

    @property
    def truncated(self) -> int:
        """Return how many texts of the items the method cut to what its model reads; what an encoder cut is not its."""
        return 0

    @property
    def reads(self) -> tuple[str, ...]:
        """Return files and folders that `fit` reads besides its World; where it changes, a cell is run again."""
        return ()

    def memory_estimate(self, encoder: str, n_users: int) -> Mapping[str, int] | None:
        """Return the bytes that a fit on `n_users` people will take on its device, by part; None if it is not told."""
        return None

    def _learned_arrays(self) -> dict[str, Array]:
        arrays = {k: cast(Array, v) for k, v in self.learned().items() if isinstance(v, np.ndarray)}
        return {k: np.asarray(v, order="C") for k, v in arrays.items()}

    def save(self, folder: Path) -> None:
        """Write the fitted method to `folder` as safetensors and JSON, never pickle."""
        from safetensors.numpy import save

        arrays = self._learned_arrays()
        values = {k: v for k, v in self.learned().items() if k not in arrays}
        try:
            text = json.dumps({"name": self.spec.name, "config": self.config, "values": values}, indent=1)
        except TypeError as why:
            raise MethodError(
                f"{self.spec.name} cannot be saved by the default `save` ({why}); keep learned state in arrays, "
                "numbers and strings, or override `save` and `load`"
            ) from why
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "learned.safetensors").write_bytes(save(arrays))
        (folder / "method.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, world: World) -> Self:
        """Read what `save` wrote."""
        from safetensors.numpy import load

        told = json.loads((folder / "method.json").read_text(encoding="utf-8"))
        if told["name"] != cls.spec.name:
            raise RequestError(f"{folder} holds the method {told['name']!r}, not {cls.spec.name!r}")
        method = cls(**told["config"])
        arrays: dict[str, Array] = load((folder / "learned.safetensors").read_bytes())
        for name, value in {**told["values"], **arrays}.items():
            setattr(method, name, value)
        method.world = world
        return method


class LinearMethod(Method):
    """A method whose reward is linear in frozen features: r_u(x) = <theta_u, phi(x)>.

    A subclass gives `weights(states)`, float32 [n_users, d]; margins and rewards follow.
    """

    @abstractmethod
    def weights(self, states: Sequence[UserState]) -> Float32:
        """Return theta_u for each state, float32 [n_states, d]."""

    def margins(self, states: Sequence[UserState], queries: Comparisons) -> Float32:
        """Return <theta_u, phi(first) - phi(second)>, float32 [n]."""
        theta = self.weights(states)
        return np.einsum("nd,nd->n", self.world.differences(queries), theta[queries.user]).astype(np.float32)

    def rewards(self, states: Sequence[UserState], users: Array, items: Array) -> Float32 | None:
        """Return <theta_u, phi(item)>, float32 [n]."""
        if self.world.features is None:
            return None
        theta = self.weights(states)
        return np.einsum("nd,nd->n", self.world.features[items], theta[users]).astype(np.float32)


def places(known: Array, asked: Array) -> NDArray[np.int64]:
    """Return where each of `asked` stands in `known` (sorted, each once), int64 [n]; -1 for what is not there.

    >>> places(np.array([2, 5, 9]), np.array([9, 3, 2])).tolist(), places(np.array([]), np.array([1])).tolist()
    ([2, -1, 0], [-1])
    """
    if not len(known):
        return np.full(len(asked), -1, np.int64)
    at = np.minimum(np.searchsorted(known, asked), len(known) - 1)
    return np.where(known[at] == asked, at, -1).astype(np.int64)


def stack(states: Sequence[UserState], name: str) -> Array:
    """Return one array of all states, stacked: [n_states, ...]."""
    return np.stack([s.arrays[name] for s in states])


def unstack(**arrays: Array) -> list[UserState]:
    """Return one state per row of the given arrays, each [n_states, ...]."""
    names = list(arrays)
    return [UserState(dict(zip(names, row, strict=True))) for row in zip(*arrays.values(), strict=True)]
