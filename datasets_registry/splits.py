"""Splits that vary the data per person: who is seen, which prompts are queried, and nested budgets of comparisons.

Every assignment sorts ids by sha256 of (protocol, dataset id, fold, draw, purpose, id), so that it depends on names and
never on row numbers, set order or a shared generator. A `Split` holds index arrays, no labels and no texts.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datasets_registry.errors import DataError, RequestError
from datasets_registry.protocol import (
    FOLDS,
    N_SUPPORT_GRID,
    N_TRAIN_GRID,
    N_USERS_GRID,
    PROTOCOL,
    PSEUDO_UNSEEN_SHARE,
    Count,
    Regime,
    hash_keys,
    mix,
)
from datasets_registry.records import Int32, PreferenceData, Rows
from datasets_registry.unit_order import distinct_units, unit_ranks, zipf_allotment

PARTS: tuple[str, ...] = ("train", "validation", "support", "query")
TRAIN, VALIDATION, SUPPORT, QUERY = range(4)
UNUSED = -1
REGIMES: tuple[Regime, ...] = get_args(Regime)  # in the order of every table
_ALL_FOLDS = "every fold"

Keys = NDArray[np.uint64]
Parts = NDArray[np.int8]


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Who and what is trained on, adapted to and queried, for one fold and draw of one dataset.

    seen, pseudo_unseen, unseen: int32 user rows in hash order (a prefix of `seen` is the n_users subset, and
    `pseudo_unseen` is a subset of `seen`). cluster_part: int8 [n_clusters], an index into PARTS, -1 for clusters that
    nobody judged. Per comparison: row_user, row_unit, row_cluster (int32), row_part (int8; differs from the cluster's
    part only in a tuning split), row_rank (int32: position of the row's unit in its person's permutation within that
    part). cluster_keys, user_keys: uint64 sha256 keys of the ids. Every method returns ascending int64 rows of
    `data.comparisons`.
    """

    dataset: str
    dataset_digest: str
    fold: int
    draw: int
    purpose: Literal["evaluation", "tuning"]
    seen: Int32
    pseudo_unseen: Int32
    unseen: Int32
    cluster_part: Parts
    cluster_keys: Keys
    user_keys: Keys
    row_user: Int32
    row_unit: Int32
    row_cluster: Int32
    row_part: Parts
    row_rank: Int32

    def train(self, n_train: Count = "all", n_users: Count = "all", imbalance: Literal["zipf"] | None = None) -> Rows:
        """Return the training rows of the first `n_users` seen people, `n_train` units each (all they have if fewer).

        `imbalance="zipf"` hands the same total number of units out in proportion to 1 / rank over a hashed order of
        these people, at least one each and at most what a person has; it too is nested in `n_train`.
        """
        n = _count("n_train", n_train, least=1)
        people = self._seen(n_users)
        if imbalance is None:
            return self._rows(TRAIN, people, n)
        if imbalance != "zipf":
            raise RequestError(f"imbalance={imbalance!r} is unknown; allowed: None, 'zipf'")
        return self._zipf(people, n)

    def validation(self, n_users: Count = "all", n_val: Count = "all") -> Rows:
        """Return at most `n_val` units each of the first `n_users` seen people on validation prompts, nested.

        The harness gives `n_val = n_train`: what a person says for tuning is never more than for training, so that it
        cannot stand in for training data where there is little.
        """
        return self._rows(VALIDATION, self._seen(n_users), _count("n_val", n_val, least=1))

    def support(self, n_support: Count, regime: Regime = "unseen") -> Rows:
        """Return `n_support` units of each unseen person on support prompts; 0 gives no rows.

        In the regime "known-prompts" they are on training prompts, which seen people compared: prefixes of a
        permutation of its own, which no digest holds, since it follows from what the digests do hold.
        """
        n = _count("n_support", n_support, least=0)
        if self._support_part(regime) == SUPPORT:
            return self._rows(SUPPORT, self.unseen, n)
        rows, rank = _on_known_prompts(self)
        return rows[rank < n]

    def query(self, regime: Regime, n_users: Count = "all") -> Rows:
        """Return the query rows of a regime; the same for every budget and method.

        `n_users` counts seen people; the unseen people, who are those of every other regime, do not depend on it.
        """
        if regime not in REGIMES:
            raise RequestError(f"regime={regime!r} is unknown; allowed: {', '.join(map(repr, REGIMES))}")
        return self._rows(QUERY, self._seen(n_users) if regime == "seen" else self.unseen)

    def budgets(self) -> list[Count]:
        """Return the n_train of the protocol's grid that at least half of the seen people have, then "all"."""
        have = self._units(TRAIN, self.seen)
        return [*(n for n in N_TRAIN_GRID if 2 * int((have >= n).sum()) >= len(have)), "all"]

    def support_budgets(self, regime: Regime = "unseen") -> list[int]:
        """Return the n_support of the protocol's grid that at least half of the unseen people have; 0 comes first."""
        have = self._units(self._support_part(regime), self.unseen)
        enough = (n for n in N_SUPPORT_GRID if n and len(have) and 2 * int((have >= n).sum()) >= len(have))
        return [0, *enough]

    def user_budgets(self) -> list[Count]:
        """Return the n_users of the protocol's grid that are below the number of seen people, then "all"."""
        return [*(n for n in N_USERS_GRID if n < len(self.seen)), "all"]

    def tuning(self) -> Split:
        """Return the split for tuning, which holds no row on this split's query or support prompts.

        Seen are the seen without the pseudo-unseen, unseen are the pseudo-unseen; the query prompts are this split's
        validation prompts, and validation is a held slice of its training prompts. The pseudo-unseen are supported by
        their units on the remaining training prompts. People without a unit on these are left out.
        """
        if self.purpose == "tuning":
            raise RequestError("a tuning split cannot be tuned on again; call tuning() on the evaluation split")
        cluster_part = _tuning_parts(self)
        row_part = cluster_part[self.row_cluster]
        pseudo = np.zeros(len(self.user_keys), bool)
        pseudo[self.pseudo_unseen] = True
        has = np.bincount(self.row_user[row_part == TRAIN], minlength=len(pseudo)) > 0
        row_part = np.where((row_part == TRAIN) & pseudo[self.row_user], SUPPORT, row_part).astype(np.int8)
        return replace(
            self,
            purpose="tuning",
            seen=self.seen[~pseudo[self.seen] & has[self.seen]],
            pseudo_unseen=np.empty(0, np.int32),
            unseen=self.pseudo_unseen[has[self.pseudo_unseen]],
            cluster_part=cluster_part,
            row_part=row_part,
            row_rank=unit_ranks(self.row_user, row_part, self.row_unit, self.row_rank),
        )

    @property
    def digest(self) -> str:
        """Return the sha256 of everything assigned: people, clusters, and the part and rank of every row."""
        h = hashlib.sha256("\x1f".join([PROTOCOL, self.dataset, self.dataset_digest, self.purpose]).encode())
        h.update(f"\x1f{self.fold}\x1f{self.draw}".encode())
        for array in (self.seen, self.pseudo_unseen, self.unseen, self.cluster_part, self.row_part, self.row_rank):
            h.update(f"\x1e{array.dtype.str}{array.shape}".encode())
            h.update(np.ascontiguousarray(array).tobytes())
        return h.hexdigest()

    def manifest(self) -> dict[str, Any]:
        """Return what identifies the split, ready for JSON: ids, counts per part, digests of sorted ids, the digest."""
        rows = {
            "train": self.train(),
            "validation": self.validation(),
            "support": self.support("all"),
            "query_seen": self.query("seen"),
            "query_unseen": self.query("unseen"),
        }
        people = {"seen": self.seen, "pseudo_unseen": self.pseudo_unseen, "unseen": self.unseen}
        clusters = {part: np.flatnonzero(self.cluster_part == code) for code, part in enumerate(PARTS)}
        return {
            "protocol": PROTOCOL,
            "dataset": self.dataset,
            "dataset_digest": self.dataset_digest,
            "fold": self.fold,
            "draw": self.draw,
            "purpose": self.purpose,
            "people": {k: len(v) for k, v in people.items()},
            "clusters": {k: len(v) for k, v in clusters.items()},
            "units": {k: self._n_units(v) for k, v in rows.items()},
            "comparisons": {k: len(v) for k, v in rows.items()},
            "people_digest": {k: _sorted_digest(self.user_keys[v]) for k, v in people.items()},
            "cluster_digest": {k: _sorted_digest(self.cluster_keys[v]) for k, v in clusters.items()},
            "digest": self.digest,
        }

    def _seen(self, n_users: Count) -> Int32:
        n = _count("n_users", n_users, least=1)
        if n != math.inf and n > len(self.seen):
            raise RequestError(
                f"n_users={n_users} is more than the {len(self.seen)} seen people of {self.dataset} fold {self.fold}; "
                f"allowed: 1 to {len(self.seen)}, or 'all'"
            )
        return self.seen if n == math.inf else self.seen[: int(n)]

    def _support_part(self, regime: Regime) -> int:
        if regime not in ("unseen", "known-prompts"):
            raise RequestError(f"regime={regime!r} has no support; allowed: 'unseen', 'known-prompts'")
        # The people of a tuning split are supported on training prompts in either regime.
        return TRAIN if regime == "known-prompts" and self.purpose == "evaluation" else SUPPORT

    def _rows(self, part: int, people: Int32, n: float = math.inf) -> Rows:
        member = np.zeros(len(self.user_keys), bool)
        member[people] = True
        keep = member[self.row_user] & (self.row_part == part)
        if n != math.inf:
            keep &= self.row_rank < n
        return np.flatnonzero(keep)

    def _units(self, part: int, people: Int32) -> NDArray[np.int64]:
        """Return how many units each of `people` has in a part, int64 [n_people]."""
        last = np.zeros(len(self.user_keys), np.int64)
        rows = np.flatnonzero(self.row_part == part)
        np.maximum.at(last, self.row_user[rows], self.row_rank[rows] + 1)
        return last[people]

    def _n_units(self, rows: Rows) -> int:
        return distinct_units(self.row_user[rows], self.row_unit[rows])

    def _zipf(self, people: Int32, n: float) -> Rows:
        have = self._units(TRAIN, people)
        total = int(np.minimum(have, n).sum())
        salt = hash_keys(["zipf"], PROTOCOL, self.dataset, self.fold, self.draw, "imbalance")
        rank = np.argsort(np.argsort(mix(self.user_keys[people], salt), kind="stable"), kind="stable") + 1
        allotted = np.zeros(len(self.user_keys), np.int64)
        allotted[people] = zipf_allotment(have, rank, total)
        return np.flatnonzero((self.row_part == TRAIN) & (self.row_rank < allotted[self.row_user]))


def split(data: PreferenceData, fold: int = 0, draw: int = 0) -> Split:
    """Return the split of a dataset for a fold (0 to 4: which fifth of the people is unseen) and a draw.

    Clusters are cut at the card's shares, independently of people. Eligible are people with a unit in the train,
    support and query parts. Fold f leaves those unseen whose rank in a hash that is the same for every fold is f modulo
    5, so the folds partition people; who is eligible depends on a fold's clusters, so the sizes of folds may differ.

    Raises RequestError for a fold out of range and DataError when there are too few clusters or eligible people.
    """
    if fold not in range(FOLDS) or draw < 0:
        raise RequestError(f"fold={fold}, draw={draw}: fold must be 0 to {FOLDS - 1}, draw a count from 0")
    where = (PROTOCOL, data.id, fold, draw)
    c = data.comparisons
    row_cluster = data.unit_cluster[c.unit]
    cluster_keys = hash_keys(data.clusters, *where, "clusters")
    cluster_part = _cut(data, cluster_keys, np.unique(row_cluster))
    row_part = cluster_part[row_cluster]
    user_keys = hash_keys(data.users.ids, *where, "units of a person")
    # A unit's id is its row number as text: unit rows are stable for a dataset digest.
    unit_keys = hash_keys(map(str, range(len(data.unit_cluster))), *where, "units")
    row_rank = unit_ranks(c.user, row_part, c.unit, mix(user_keys[c.user], unit_keys[c.unit]))
    has = np.zeros((len(PARTS), len(user_keys)), bool)
    has[row_part, c.user] = True

    fifth = np.empty(len(user_keys), np.int64)
    by_name = np.argsort(hash_keys(data.users.ids, PROTOCOL, data.id, _ALL_FOLDS, draw, "people"), kind="stable")
    fifth[by_name] = np.arange(len(by_name)) % FOLDS
    eligible = has[TRAIN] & has[SUPPORT] & has[QUERY]
    order = np.argsort(hash_keys(data.users.ids, *where, "order of people"), kind="stable").astype(np.int32)
    seen = order[eligible[order] & (fifth[order] != fold)]
    if not len(seen):
        raise DataError(
            f"{data.id} fold {fold}: nobody can be seen; of {len(user_keys)} people, {int(has[TRAIN].sum())} have a "
            f"unit in the train, {int(has[SUPPORT].sum())} in the support, {int(has[QUERY].sum())} in the query part. "
            "Give the dataset more prompts per person, or other `shares` on its card"
        )
    return Split(
        dataset=data.id,
        dataset_digest=data.digest,
        fold=fold,
        draw=draw,
        purpose="evaluation",
        seen=seen,
        pseudo_unseen=_pseudo_unseen(seen, has[VALIDATION], hash_keys(data.users.ids, *where, "pseudo-unseen")),
        unseen=order[eligible[order] & (fifth[order] == fold)],
        cluster_part=cluster_part,
        cluster_keys=cluster_keys,
        user_keys=user_keys,
        row_user=c.user,
        row_unit=c.unit,
        row_cluster=row_cluster,
        row_part=row_part,
        row_rank=row_rank,
    )


@lru_cache(maxsize=16)
def _on_known_prompts(split: Split) -> tuple[Rows, Int32]:
    """Return the rows of unseen people on training prompts, and per row the position of its unit for its person."""
    rows = split._rows(TRAIN, split.unseen)
    user, unit = split.row_user[rows], split.row_unit[rows]
    units, which = np.unique(unit, return_inverse=True)
    where = (PROTOCOL, split.dataset, split.fold, split.draw)
    keys = hash_keys(map(str, units.tolist()), *where, "units on known prompts")
    return rows, unit_ranks(user, split.row_part[rows], unit, mix(split.user_keys[user], keys[which]))


def mean_units(data: PreferenceData, rows: ArrayLike, users: ArrayLike) -> float:
    """Return the mean number of distinct units in `rows` per person of `users`: the n_train that was really given."""
    at = np.asarray(rows, np.int64)
    people = np.asarray(users, np.int64)
    if not len(people):
        return 0.0
    member = np.zeros(len(data.users), bool)
    member[people] = True
    at = at[member[data.comparisons.user[at]]]
    return distinct_units(data.comparisons.user[at], data.comparisons.unit[at]) / len(people)


def check_manifest(manifest: Any, split: Split) -> None:
    """Raise DataError naming every entry in which a manifest, as read from JSON, and a split differ."""
    if not isinstance(manifest, Mapping) or not manifest:
        named = f"{split.dataset} fold {split.fold} draw {split.draw}"
        told = f"{manifest!r:.60} is no JSON object with its entries"
        raise DataError(f"the manifest of {named} is damaged: {told}; delete the file, and it is written anew")
    found, given = _flat(split.manifest()), _flat(manifest)
    differ = [
        f"{name}: manifest {given.get(name, 'missing')!r}, split {found.get(name, 'missing')!r}"
        for name in [*found, *(k for k in given if k not in found)]
        if given.get(name) != found.get(name)
    ]
    if differ:
        raise DataError(
            f"the manifest does not describe the split of {split.dataset} fold {split.fold} draw {split.draw}: "
            + "; ".join(differ)
            + ". Results made with another split cannot be mixed with these: run them again"
        )


def _cut(data: PreferenceData, keys: Keys, judged: NDArray[Any]) -> Parts:
    """Return the part of every cluster: those that anyone judged, in hash order, cut at the cumulative shares."""
    shares, n = data.card.shares, len(judged)
    if len(shares) != len(PARTS) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise DataError(f"{data.id}: shares {shares} of the card must be four positive numbers that sum to 1")
    if n < len(PARTS):
        raise DataError(
            f"{data.id} has {n} prompt clusters with comparisons; a split into {', '.join(PARTS)} needs at least "
            f"{len(PARTS)}. Cluster prompts more finely in the loader, or load more of the dataset"
        )
    bounds = [0]
    for k, share in enumerate(np.cumsum(shares[:-1]), start=1):
        cut = math.floor(round(float(share) * n, 6) + 0.5)
        bounds.append(min(max(cut, bounds[-1] + 1), n - (len(PARTS) - k)))
    bounds.append(n)
    part = np.full(len(keys), UNUSED, np.int8)
    part[judged[np.argsort(keys[judged], kind="stable")]] = np.repeat(np.arange(4, dtype=np.int8), np.diff(bounds))
    return part


def _tuning_parts(split: Split) -> Parts:
    """Return the clusters' parts for tuning: validation becomes query, a slice of train becomes validation."""
    train = np.flatnonzero(split.cluster_part == TRAIN)
    validation = np.flatnonzero(split.cluster_part == VALIDATION)
    if len(train) < 2:
        raise DataError(
            f"{split.dataset} fold {split.fold} has {len(train)} training cluster; tuning needs two, one of them held "
            "for validation. Use published defaults, or raise the train share on the card"
        )
    held = min(max(1, round(len(train) * len(validation) / (len(train) + len(validation)))), len(train) - 1)
    part = np.full(len(split.cluster_part), UNUSED, np.int8)
    part[train] = TRAIN
    part[train[np.argsort(split.cluster_keys[train], kind="stable")][-held:]] = VALIDATION
    part[validation] = QUERY
    return part


def _pseudo_unseen(seen: Int32, validated: NDArray[np.bool_], keys: Keys) -> Int32:
    """Return a tenth of the seen in hash order, first among those who have a validation unit to be scored on."""
    size = max(round(PSEUDO_UNSEEN_SHARE * len(seen)), int(len(seen) > 1))
    return seen[np.lexsort((keys[seen], ~validated[seen]))][:size]


def _count(name: str, given: Count, *, least: int) -> float:
    """Return a budget as a number, "all" as infinity."""
    if given == "all":
        return math.inf
    if isinstance(given, bool) or not isinstance(given, int | np.integer) or given < least:
        raise RequestError(f"{name}={given!r} is not a budget; allowed: a whole number from {least}, or 'all'")
    return int(given)


def _sorted_digest(keys: Keys) -> str:
    return hashlib.sha256(np.sort(keys).astype(">u8").tobytes()).hexdigest()


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
