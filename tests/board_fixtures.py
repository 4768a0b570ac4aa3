"""A made dataset with a known truth, scorers of it, and a real results folder of their margins."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datasets_registry.protocol import PROTOCOL, Repetition
from datasets_registry.records import Card, Comparisons, Items, PreferenceData, Truth, Users
from datasets_registry.splits import mean_units, split
from leaderboard.labels import Labels
from leaderboard.records import (
    Cost,
    Counts,
    DatasetPart,
    Environment,
    Margins,
    MethodPart,
    RunRecord,
    Source,
    SplitPart,
    canonical_sha256,
    record_key,
)
from leaderboard.store import ResultsFolder

CARD = Card(
    name="made@1",
    title="Made people",
    population="simulated",
    licence="none needed",
    consent="simulated",
    source="this file",
    revision="1",
    sha256="0" * 64,
    citation="none",
    shares=(0.4, 0.2, 0.2, 0.2),
    simulated=True,
)


def made(name="made@1", n_users=40, n_units=40, per_unit=2, d=4, ties=0.1, seed=0):
    """People with theta_u = mean + own part; every person judges every unit of `per_unit + 1` items."""
    rng = np.random.default_rng(seed)
    theta = (np.array([0.7] + [0.0] * (d - 1)) + rng.normal(size=(n_users, d)) * 0.8).astype(np.float32)
    x = rng.normal(size=(n_units * (per_unit + 1), d)).astype(np.float32)
    user, unit, pair = (a.ravel() for a in np.meshgrid(*map(np.arange, (n_users, n_units, per_unit)), indexing="ij"))
    first, second = unit * (per_unit + 1), unit * (per_unit + 1) + 1 + pair
    flip = rng.random(len(user)) < 0.5
    first, second = np.where(flip, second, first), np.where(flip, first, second)
    margin = 2 * np.einsum("nd,nd->n", theta[user], x[first] - x[second])
    label = (rng.random(len(user)) < 1 / (1 + np.exp(-margin))).astype(np.float32)
    label[rng.random(len(user)) < ties] = 0.5
    return PreferenceData(
        id=name,
        card=CARD,
        users=Users(tuple(f"u{i}" for i in range(n_users))),
        items=Items(("",) * len(x), tuple(f"item {i}" for i in range(len(x))), x, tuple(f"a{i}" for i in range(d))),
        comparisons=Comparisons.of(user=user, unit=unit, first=first, second=second, label=label),
        unit_cluster=np.arange(n_units, dtype=np.int32),
        clusters=tuple(f"cluster {i}" for i in range(n_units)),
        truth=Truth(theta, np.eye(d, dtype=np.float32), theta.mean(axis=0), 2.0, 0.0),
    )


def scores(data, rows, theta):
    """Return <theta_u, x_first - x_second> for rows of the dataset; theta: [n_users, d]."""
    c, x = data.comparisons.take(rows), data.items.attributes
    return 2 * np.einsum("nd,nd->n", theta[c.user], x[c.first] - x[c.second])


def oracle(data, rows, n):
    return scores(data, rows, data.truth.theta)


def pooled(data, rows, n):
    return scores(data, rows, np.broadcast_to(data.truth.mean, data.truth.theta.shape))


def shrunk(data, rows, n):
    """Between pooled and the truth, the nearer to it the more data: what a personalising method does."""
    share = n / (4 + n)
    return scores(data, rows, share * data.truth.theta + (1 - share) * data.truth.mean)


def scaled(data, rows, n):
    return 5 * shrunk(data, rows, n)


def coin(data, rows, n):
    return np.random.default_rng(1).normal(size=len(rows))


METHODS = {"pooled-bt": pooled, "oracle": oracle, "shrunk": shrunk, "scaled": scaled, "random": coin}
CONTROLS = {"pooled-bt", "oracle", "random"}


@dataclass
class Bench:
    """Writes records of scorers of made datasets, as a run would."""

    root: Path
    data: dict = field(default_factory=lambda: {"made@1": made()})
    n_train: tuple = (2, "all")
    n_support: tuple = (0, 4)
    seeds: int = 3
    kept: dict = field(default_factory=dict)

    def once(self, key, compute):
        """Return what `compute` gave the first time."""
        if key not in self.kept:
            self.kept[key] = compute()
        return self.kept[key]

    @property
    def labels(self):
        return Labels(load=self.data.__getitem__, split=split)

    def run(self, methods=None, **changes):
        """Write every cell of the methods; `changes` are passed to `write`."""
        for name, scorer in (methods or METHODS).items():
            for dataset, seed, n in itertools.product(self.data, range(self.seeds), self.n_train):
                self.write(name, scorer, dataset, seed, n, "seen", None, **changes)
                for support in self.n_support:
                    self.write(name, scorer, dataset, seed, n, "unseen", support, **changes)
        return self.root

    def write(self, name, scorer, dataset, seed, n_train, regime, n_support, *, status="ok", dirty=False, **parts):
        """Write one record with its margins; returns its path."""
        data, folder = self.data[dataset], ResultsFolder(self.root)
        at = Repetition(seed)
        parted = self.once((dataset, at.fold), lambda: split(data, fold=at.fold))
        digest = self.once((dataset, at.fold, "digest"), lambda: parted.digest)
        content = self.once(dataset, lambda: data.digest)
        rows = parted.query(regime)
        mean_train = mean_units(data, parted.train(n_train), parted.seen)
        had = mean_train if regime == "seen" else n_support
        told = [parts.get(key) for key in ("control", "config", "encoder")]
        fit_key = canonical_sha256([name, dataset, seed, n_train, *told])
        key = record_key(fit_key, regime, n_support)
        margins = None
        if status == "ok":
            columns = {"row": rows.astype(np.int32), "margin": np.asarray(scorer(data, rows, had), np.float32)}
            c = data.comparisons
            other = c.take(rows).for_users((c.user[rows] + 7) % len(data.users))
            stranger = np.asarray(scorer(_Reader(data, other), np.arange(len(rows)), had), np.float32)
            columns["wrong_user"] = columns["margin"] if name == "random" else stranger
            ref = folder.write_margins(folder.margins_name(dataset, name, key), columns)
            part = parted.validation("all", n_train)
            checked = {"row": part.astype(np.int32), "margin": np.asarray(scorer(data, part, had), np.float32)}
            validation = folder.write_margins(folder.margins_name(dataset, name, canonical_sha256([key])), checked)
            control = {"wrong_user": "wrong_user"}
            margins = Margins(path=ref.path, sha256=ref.sha256, control=control, validation=validation)
        config = parts.get("config", {})
        record = RunRecord(
            protocol=parts.get("protocol", PROTOCOL),
            key=key,
            fit_key=fit_key,
            method=MethodPart(
                name=name,
                dist="hetpref",
                version="1",
                level="feature",
                role="control" if name in CONTROLS else "method",
                config=config,
                config_sha256=canonical_sha256(config),
            ),
            dataset=DatasetPart(
                name=dataset, sha256=content, encoder=parts.get("encoder", "tabular@1"), licence="none"
            ),
            split=SplitPart(
                fold=at.fold,
                draw=0,
                regime=regime,
                n_train=n_train,
                n_support=n_support,
                n_users=len(parted.seen),
                n_train_mean=float(mean_train),
                n_support_mean=None if n_support is None else float(n_support),
                sha256=digest,
            ),
            seed=seed,
            control=parts.get("control"),
            status=status,
            reason=None if status == "ok" else "ValueError: made to fail",
            counts=Counts(users=1, units=1, comparisons=len(rows)),
            margins=margins,
            cost=Cost(
                fit_s=parts.get("fit_s", 1.0),
                params_per_user=4.0,
                train_comparisons_per_s=parts.get("train_comparisons_per_s"),
                peak_device_bytes=parts.get("peak_device_bytes"),
            ),
            environment=Environment(
                python="3.11", packages={}, device="cpu", device_class="cpu-x86_64", dtype="float32", threads=1
            ),
            source=Source(commit="c" * 40, dirty=dirty),
        )
        return folder.write_record(record)


class _Reader:
    """The same data with other comparisons: whose state is asked is changed, and nothing else."""

    def __init__(self, data, comparisons):
        self.comparisons, self.items, self.truth = comparisons, data.items, data.truth
