"""Where labels come from: the registry's datasets and splits, and nothing a record says."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets_registry.errors import DataError, HetprefError
from datasets_registry.protocol import Count, Regime
from datasets_registry.records import PreferenceData

Index = NDArray[np.int64]
Reals = NDArray[np.float64]
# What a record may ask to have simulated: a dataset's name is hostile input, and its options decide the memory.
MAX_COMPARISONS = 4_000_000  # users x units x (choices - 1)
MAX_ITEMS = 200_000
MAX_WIDTH = 4096
MAX_VALUES = 100_000_000  # (users + items) x d


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """Labelled comparisons in the order (user, unit, row), with where units and people begin.

    `rows`: int64 [n] rows of the dataset, ascending; `order`: the position in `rows` of each of our comparisons;
    `starts`: int64 [n_units] first comparison of each unit (user x prompt); `person`: int64 [n_units] the dataset-wide
    user of each unit; `unit`: int64 [n_units] its prompt.
    """

    rows: Index
    order: Index
    user: Index
    first: Index
    second: Index
    label: Reals
    starts: Index
    person: Index
    unit: Index

    @classmethod
    def of(cls, data: PreferenceData, rows: NDArray[Any]) -> Query:
        """Take rows of a dataset's comparisons."""
        ascending = np.sort(np.asarray(rows, dtype=np.int64))
        table = data.comparisons.take(ascending)
        order = np.lexsort((ascending, table.unit, table.user)).astype(np.int64)
        table = table.take(order)
        user, unit = table.user.astype(np.int64), table.unit.astype(np.int64)
        new = np.ones(len(user), dtype=bool)
        new[1:] = (user[1:] != user[:-1]) | (unit[1:] != unit[:-1])
        starts = np.flatnonzero(new).astype(np.int64)
        return cls(
            rows=ascending,
            order=order,
            user=user,
            first=table.first.astype(np.int64),
            second=table.second.astype(np.int64),
            label=table.label.astype(np.float64),
            starts=starts,
            person=user[starts],
            unit=unit[starts],
        )

    def __len__(self) -> int:
        return len(self.rows)

    def align(self, row: NDArray[Any], margin: NDArray[Any]) -> NDArray[np.float32]:
        """Return margins, float32 [n], in our order; raises DataError unless every row stands there exactly once."""
        place = np.argsort(row, kind="stable")
        given = np.asarray(row, dtype=np.int64)[place]
        if len(given) != len(self.rows) or not np.array_equal(given, self.rows):
            raise DataError(f"margins are not those of the split's queries: {self.difference(given)}")
        if not np.isfinite(margin).all():
            raise DataError(f"{int((~np.isfinite(margin)).sum())} of {len(margin)} margins are not finite")
        return np.asarray(margin, dtype=np.float32)[place][self.order]

    def difference(self, given: NDArray[Any]) -> str:
        """Say in words how given rows differ from the split's."""
        there, counts = np.unique(given, return_counts=True)
        twice = int((counts > 1).sum())
        lacking = len(np.setdiff1d(self.rows, there))
        foreign = len(np.setdiff1d(there, self.rows))
        return f"{lacking} missing, {foreign} foreign, {twice} more than once, of {len(self.rows)}"


class Labels:
    """The registry as the leaderboard sees it; `load` and `split` can be replaced by a made dataset's.

    Datasets, splits and queries are kept, so that a thousand records of one split read it once.
    """

    def __init__(
        self, load: Callable[[str], PreferenceData] | None = None, split: Callable[..., Any] | None = None
    ) -> None:
        self._load = load
        self._split = split
        self._datasets: dict[str, PreferenceData] = {}
        self._failed: dict[str, HetprefError] = {}
        self._digests: dict[str, str] = {}
        self._splits: dict[tuple[str, int, int], Any] = {}
        self._queries: dict[tuple[str, int, int, str, Count, Count], Query] = {}
        self._units: dict[tuple[str, int, int, Regime], Index] = {}

    def data(self, dataset: str) -> PreferenceData:
        """Return a dataset by id; raises HetprefError when the registry cannot give it, or should not.

        A failure is kept too: a dataset that cannot be had is tried once, however many records name it.
        """
        if dataset in self._failed:
            raise self._failed[dataset].with_traceback(None)
        if dataset not in self._datasets:
            try:
                self._datasets[dataset] = self._loaded(dataset)
            except HetprefError as why:
                self._failed[dataset] = why
                raise
        return self._datasets[dataset]

    def unavailable(self, dataset: str) -> str | None:
        """Return why a dataset cannot be had, None when it can."""
        try:
            self.data(dataset)
        except HetprefError as why:
            return str(why)
        return None

    def _loaded(self, dataset: str) -> PreferenceData:
        if self._load:
            return self._load(dataset)
        registry = importlib.import_module("datasets_registry.registry")
        check_size(dataset, registry.find_dataset(dataset).options)
        return importlib.import_module("datasets_registry").load(dataset)

    def digest(self, dataset: str) -> str:
        """Return the sha256 of a dataset's content."""
        if dataset not in self._digests:
            self._digests[dataset] = self.data(dataset).digest
        return self._digests[dataset]

    def split(self, dataset: str, fold: int, draw: int) -> Any:
        """Return the registry's split."""
        key = (dataset, fold, draw)
        if key not in self._splits:
            split = self._split or importlib.import_module("datasets_registry.splits").split
            self._splits[key] = split(self.data(dataset), fold=fold, draw=draw)
        return self._splits[key]

    def people(self, dataset: str, fold: int, draw: int, n_users: int) -> Count:
        """Return the number of seen people, "all" when it is everybody: folds differ by one person at most."""
        return "all" if n_users >= len(self.split(dataset, fold, draw).seen) else n_users

    def units(self, dataset: str, fold: int, draw: int, regime: Regime) -> Index:
        """Return how many units the seen people have to train on, or new ones as support, int64 [n_people]."""
        key = (dataset, fold, draw, regime)
        if key not in self._units:
            split, data = self.split(dataset, fold, draw), self.data(dataset)
            rows = split.train() if regime == "seen" else split.support("all", regime)
            people = split.seen if regime == "seen" else split.unseen
            has = np.bincount(Query.of(data, rows).person, minlength=len(data.users))
            self._units[key] = has[people].astype(np.int64)
        return self._units[key]

    def query(self, dataset: str, fold: int, draw: int, regime: Regime, n_users: Count) -> Query:
        """Return the labelled queries of a regime; new people are asked the same after any support."""
        who: Regime = "seen" if regime == "seen" else "unseen"
        key = (dataset, fold, draw, who, n_users if who == "seen" else "all", "all")
        if key not in self._queries:
            rows = self.split(dataset, fold, draw).query(who, key[4])
            self._queries[key] = Query.of(self.data(dataset), rows)
        return self._queries[key]

    def validation(self, dataset: str, fold: int, draw: int, n_users: Count, n_train: Count) -> Query:
        """Return the labelled validation comparisons that a fit had: of seen people, at most `n_train` units each."""
        key = (dataset, fold, draw, "validation", n_users, n_train)
        if key not in self._queries:
            rows = self.split(dataset, fold, draw).validation(n_users, n_train)
            self._queries[key] = Query.of(self.data(dataset), rows)
        return self._queries[key]


def affordable(n: Count | None, grid: Sequence[int], units: Callable[[], Index]) -> bool:
    """Say whether a budget is none, "all", of the protocol's grid, or what at least half of the people have."""
    return n is None or n == "all" or n in grid or (n > 0 and 2 * int((units() >= n).sum()) >= len(units()))


def check_size(dataset: str, defaults: Mapping[str, int | float | str]) -> None:
    """Raise DataError when the options of a simulated dataset ask for more than a machine should be made to hold.

    `defaults` are the options of the dataset with their default values; options of other names are not looked at.
    """
    parts = (setting.partition("=") for setting in dataset.split("+")[1:])
    given = {key: value for key, _, value in parts}
    size = {k: int(given.get(k, v)) for k, v in defaults.items() if isinstance(v, int)}
    users, items, width = size.get("users", 0), size.get("items", 0), size.get("d", 1)
    told = {
        "users x units x (choices - 1)": (users * size.get("units", 1) * (size.get("choices", 2) - 1), MAX_COMPARISONS),
        "items": (items, MAX_ITEMS),
        "d": (width, MAX_WIDTH),
        "(users + items) x d": ((users + items) * width, MAX_VALUES),
    }
    for what, (found, most) in told.items():
        if found > most:
            raise DataError(f"dataset {dataset} is too large for a leaderboard: {what} is {found:,}, at most {most:,}")
