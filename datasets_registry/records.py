"""What people said, as frozen records over numpy columns: never one Python object per comparison."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datasets_registry.errors import DataError

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Rows = NDArray[np.int64]

_COLUMNS: dict[str, type] = {
    "user": np.int32,
    "unit": np.int32,
    "first": np.int32,
    "second": np.int32,
    "label": np.float32,
    "weight": np.float32,
    "order": np.int32,
}


@dataclass(frozen=True, slots=True, eq=False)
class Comparisons:
    """Pairwise preferences; every column has length n.

    `user` is the person, `unit` the prompt or choice situation (the statistical unit is user x unit), `first` and
    `second` are item rows, `label` is P(first preferred): 1, 0, .5 for a tie, any soft value in [0, 1], NaN = hidden;
    `order` is the position in the user's history.

    Raises DataError when lengths differ, an index is negative, or a label is outside [0, 1].

    >>> c = Comparisons.of(user=[0, 0], unit=[0, 1], first=[0, 2], second=[1, 3], label=[1.0, 0.5])
    >>> len(c), c.take([1]).label.tolist(), c.swapped().label.tolist()
    (2, [0.5], [0.0, 0.5])
    """

    user: Int32
    unit: Int32
    first: Int32
    second: Int32
    label: Float32
    weight: Float32
    order: Int32

    def __post_init__(self) -> None:
        n = len(self.user)
        for name, dtype in _COLUMNS.items():
            column = getattr(self, name)
            if column.dtype != dtype or column.ndim != 1:
                raise DataError(
                    f"Comparisons.{name} must be a 1-d {np.dtype(dtype)} column, got {column.dtype} of shape "
                    f"{column.shape}; build tables with Comparisons.of(...)"
                )
            if len(column) != n:
                raise DataError(f"Comparisons.{name} has {len(column)} rows, user has {n}; all columns must agree")
        for name in ("user", "unit", "first", "second"):
            bad = np.flatnonzero(getattr(self, name) < 0)
            if len(bad):
                raise DataError(f"Comparisons.{name} row {bad[0]} is negative ({getattr(self, name)[bad[0]]})")
        bad = np.flatnonzero((self.label < 0) | (self.label > 1))
        if len(bad):
            raise DataError(
                f"Comparisons.label row {bad[0]} is {self.label[bad[0]]:g}; allowed: P(first preferred) in [0, 1], "
                "or NaN for hidden"
            )

    @classmethod
    def of(
        cls,
        *,
        user: ArrayLike,
        unit: ArrayLike,
        first: ArrayLike,
        second: ArrayLike,
        label: ArrayLike,
        weight: ArrayLike | None = None,
        order: ArrayLike | None = None,
    ) -> Self:
        """Build a table from anything array-like; weight defaults to 1 and order to the row number."""
        n = len(np.asarray(user))
        given: dict[str, ArrayLike] = {
            "user": user,
            "unit": unit,
            "first": first,
            "second": second,
            "label": label,
            "weight": np.ones(n) if weight is None else weight,
            "order": np.arange(n) if order is None else order,
        }
        columns: dict[str, NDArray[Any]] = {}
        try:
            for name, values in given.items():
                columns[name] = np.ascontiguousarray(values, dtype=_COLUMNS[name])
        except (TypeError, ValueError) as why:
            raise DataError(f"a comparison column is not numeric: {why}") from why
        return cls(**columns)

    @classmethod
    def empty(cls) -> Self:
        """Return a table of no comparisons."""
        return cls.of(user=[], unit=[], first=[], second=[], label=[])

    @classmethod
    def concatenate(cls, tables: Sequence[Comparisons]) -> Self:
        """Stack tables in the order given."""
        if not tables:
            return cls.empty()
        return cls(**{k: np.concatenate([getattr(t, k) for t in tables]) for k in _COLUMNS})

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: ArrayLike | slice) -> Self:
        """Return the rows chosen by an index array, a boolean mask or a slice."""
        at = rows if isinstance(rows, slice) else np.asarray(rows)
        if not isinstance(at, slice) and at.size == 0:
            at = at.astype(np.int64)
        return type(self)(**{k: getattr(self, k)[at] for k in _COLUMNS})

    def swapped(self) -> Self:
        """Return the same preferences with first and second exchanged."""
        return replace(self, first=self.second, second=self.first, label=(1 - self.label).astype(np.float32))

    def hidden(self) -> Self:
        """Return the table with every label NaN: what a method sees of a query."""
        return replace(self, label=np.full(len(self), np.nan, np.float32))

    def for_users(self, user: ArrayLike) -> Self:
        """Return the table with another user column."""
        return replace(self, user=np.ascontiguousarray(user, np.int32))

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the columns by name."""
        return {k: getattr(self, k) for k in _COLUMNS}


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """What was compared: `prompt` and `response` text per item, and optional tabular attributes.

    attributes: float32 [n_items, n_attributes] or None. Raises DataError on anything that is not a `str`, with the row:
    a list rendered as text once separated chosen from rejected in a public pipeline.
    """

    prompt: tuple[str, ...]
    response: tuple[str, ...]
    attributes: Float32 | None = None
    attribute_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.prompt) != len(self.response):
            raise DataError(f"Items has {len(self.prompt)} prompts and {len(self.response)} responses")
        for name in ("prompt", "response"):
            for row, text in enumerate(getattr(self, name)):
                if type(text) is not str:
                    raise DataError(
                        f"Items.{name} row {row} is {type(text).__name__} ({text!r:.60}); only str is allowed: render "
                        "the text in the loader, do not pass lists, numbers or None"
                    )
        if self.attributes is not None and self.attributes.shape != (len(self.prompt), len(self.attribute_names)):
            raise DataError(
                f"Items.attributes has shape {self.attributes.shape}, expected "
                f"({len(self.prompt)}, {len(self.attribute_names)}): one row per item, one column per attribute name"
            )

    def __len__(self) -> int:
        return len(self.prompt)

    def text(self, row: int) -> str:
        """Return one item as the text that encoders and language models read."""
        prompt = self.prompt[row]
        return f"{prompt}\n{self.response[row]}" if prompt else self.response[row]


@dataclass(frozen=True, slots=True, eq=False)
class Users:
    """People: an id each, and optional metadata columns (a method sees them only if its spec asks)."""

    ids: tuple[str, ...]
    metadata: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    def __post_init__(self) -> None:
        if len(set(self.ids)) != len(self.ids):
            twice = next(i for n, i in enumerate(self.ids) if i in self.ids[:n])
            raise DataError(f"user id {twice!r} occurs twice; ids must be unique")
        for name, column in self.metadata.items():
            if len(column) != len(self.ids):
                raise DataError(f"Users.metadata[{name!r}] has {len(column)} rows for {len(self.ids)} users")

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Card:
    """What a dataset is: the population, its size, rights, source and measured heterogeneity.

    `shares` are the train, validation, support and query shares of the prompt clusters. `licence` and `source` are
    required; a card without them is refused by the registry. `people` is their number where it is known without
    loading the dataset (and does not depend on its options), 0 where it is not.
    """

    name: str
    title: str
    population: str
    licence: str
    consent: str
    source: str
    revision: str
    sha256: str
    citation: str
    shares: tuple[float, float, float, float] = (0.60, 0.10, 0.10, 0.20)
    encoder: str = "tabular@1"
    simulated: bool = False
    notes: str = ""
    people: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What is known of a simulated dataset.

    theta: float32 [n_users, d] user weights on the item features; basis: float32 [d, rank] the planted subspace;
    mean: float32 [d]; temperature scales the margin, flip is the label noise: P(first) = flip + (1 - 2 flip) sigma(m).
    """

    theta: Float32
    basis: Float32
    mean: Float32
    temperature: float
    flip: float


@dataclass(frozen=True, slots=True, eq=False)
class PreferenceData:
    """A dataset: users, items, comparisons, its card, and the cluster of every unit.

    `unit_cluster`: int32 [n_units] index into `clusters`, whose ids are the strings that splits hash.
    """

    id: str
    card: Card
    users: Users
    items: Items
    comparisons: Comparisons
    unit_cluster: Int32
    clusters: tuple[str, ...]
    truth: Truth | None = None

    def __post_init__(self) -> None:
        c = self.comparisons
        limits = (
            ("user", c.user, len(self.users)),
            ("unit", c.unit, len(self.unit_cluster)),
            ("first", c.first, len(self.items)),
            ("second", c.second, len(self.items)),
            ("unit_cluster", self.unit_cluster, len(self.clusters)),
        )
        for name, column, size in limits:
            if len(column) and int(column.max()) >= size:
                raise DataError(f"{self.id}: {name} index {int(column.max())} is out of range, there are {size}")
        said = np.bincount(c.user, minlength=len(self.users))
        if len(said) and said.min() == 0:
            who = self.users.ids[int(said.argmin())]
            raise DataError(f"{self.id}: user {who!r} has no comparisons; the loader must leave such people out")
        if np.isnan(c.label).any():
            raise DataError(f"{self.id}: row {int(np.isnan(c.label).argmax())} has no label")

    @property
    def digest(self) -> str:
        """Return the sha256 of the content: ids, texts, attributes, columns, clusters."""
        h = hashlib.sha256(self.id.encode())
        for texts in (self.users.ids, self.items.prompt, self.items.response, self.clusters):
            for chunk in _framed(texts):
                h.update(chunk)
        arrays: list[NDArray[Any]] = [*self.comparisons.columns().values(), self.unit_cluster]
        if self.items.attributes is not None:
            arrays.append(self.items.attributes)
        for array in arrays:
            h.update(f"{array.dtype.str}{array.shape}".encode())
            h.update(np.ascontiguousarray(array).tobytes())
        return h.hexdigest()


def _framed(texts: tuple[str, ...]) -> Iterator[bytes]:
    """Yield texts as length-prefixed bytes, so that no two lists share a digest."""
    for text in texts:
        raw = text.encode()
        yield f"{len(raw)}:".encode()
        yield raw


