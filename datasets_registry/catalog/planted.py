"""People with a planted low-rank parameter, theta_u = theta_0 + B a_u: the truth is known, every knob is an option.

Items are standard normal vectors x in R^d, so that the encoder `tabular@1`, which standardises, is nearly the identity;
`truth` lives in the space of these raw attributes. A person chooses among the items of a unit by
P(choice = i) = 2 flip / n + (1 - 2 flip) softmax_i(temperature <theta_u, x_i>), which for two items is
P(first) = flip + (1 - 2 flip) sigma(temperature <theta_u, x_first - x_second>).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from datasets_registry.errors import RequestError
from datasets_registry.protocol import generator
from datasets_registry.records import Card, Comparisons, Float32, Items, Truth, Users
from datasets_registry.registry import Pieces, dataset

CARD = Card(
    name="planted@1",
    title="Planted low-rank preferences",
    population="simulated people whose parameters lie in a planted subspace",
    licence="none needed: simulated by this file",
    consent="nobody was asked: simulated",
    source="simulated from a seed",
    revision="generator 1",
    sha256="",
    citation="Model of aggregated low-rank parameters after P-ShareLoRA (arXiv 2503.19201)",
    simulated=True,
    notes="Options: users; units and choices (items per unit; choices - 1 comparisons each); d; rank; quality = norm "
    "of the shared direction theta_0; personal = typical norm of B a_u; groups = 0 for Gaussian a_u, else so many "
    "group centres, whose sizes follow Zipf(imbalance), mixed per person by Dirichlet(concentration) when that is not "
    "0; temperature and flip as in P(first) = flip + (1 - 2 flip) sigma(temperature margin); margin = least utility "
    "gap between the best two items of a unit; shift: a fifth of the people, by hash, meet items stretched by 1 + "
    "shift along one direction (a shifted mean would cancel in differences); items and clusters of the pool; seed.",
)

SHIFTED_SHARE = 0.2
ROUNDS = 200
CHUNK = 100_000


@dataclass(frozen=True, slots=True)
class Knobs:
    """The options of the dataset; raises RequestError for one out of range."""

    users: int
    units: int
    choices: int
    d: int
    rank: int
    groups: int
    imbalance: float
    concentration: float
    quality: float
    personal: float
    temperature: float
    flip: float
    margin: float
    shift: float
    items: int
    clusters: int
    seed: int

    def __post_init__(self) -> None:
        pool = max(2, self.items // max(1, 2 * self.clusters if self.shift else self.clusters))
        most = max(2, pool // 2)
        limits: Mapping[str, tuple[float, float]] = {
            "users": (2, 10_000_000),
            "units": (1, 100_000),
            "choices": (2, most),
            "d": (1, 4096),
            "rank": (0, self.d),
            "groups": (0, self.users),
            "imbalance": (0, 10 if self.groups else 0),
            "concentration": (0, 1e6 if self.groups else 0),
            "quality": (0, 1e6),
            "personal": (0, 1e6),
            "temperature": (0, 1e6),
            "flip": (0, 0.5),
            "margin": (0, 1e6),
            "shift": (0, 1e3),
            "items": (4 * self.clusters, 5_000_000),
            "clusters": (4, 100_000),
            "seed": (0, 2**62),
        }
        for field in fields(self):
            value, (low, high) = getattr(self, field.name), limits[field.name]
            if not low <= value <= high:
                why = " (needs groups above 0)" if field.name in ("imbalance", "concentration") else ""
                raise RequestError(
                    f"option {field.name}={value:g} of {CARD.name} is out of range; allowed: {low:g} to {high:g}{why}"
                )

    def random(self, what: str) -> np.random.Generator:
        """Return the generator of one part, so that changing one knob leaves the other parts as they are."""
        return generator(CARD.name, self.seed, what)


@dataset(CARD)
def load(
    *,
    users: int = 200,
    units: int = 48,
    choices: int = 2,
    d: int = 32,
    rank: int = 4,
    groups: int = 0,
    imbalance: float = 0.0,
    concentration: float = 0.0,
    quality: float = 1.0,
    personal: float = 1.0,
    temperature: float = 2.0,
    flip: float = 0.0,
    margin: float = 0.0,
    shift: float = 0.0,
    items: int = 2000,
    clusters: int = 20,
    seed: int = 0,
) -> Pieces:
    """Simulate; attributes float32 [items, d], truth.theta float32 [users, d] in the space of these attributes.

    A unit is one situation of one person: `choices` items of one cluster. A person's units go round all clusters.
    """
    knobs = Knobs(**locals())
    truth, shifted = _truth(knobs), knobs.random("shifted").permutation(users) < round(SHIFTED_SHARE * users)
    pool = _pool(knobs)
    cluster = _clusters(knobs)
    shown = np.concatenate(list(_choices(knobs, truth, pool, cluster, shifted)))  # (users * units, choices)
    n = len(shown)
    topics = np.arange(items) % clusters
    return Pieces(
        users=Users(tuple(f"u{u:06d}" for u in range(users))),
        items=Items(
            prompt=tuple(f"Topic {topic}: which of these would you take?" for topic in topics),
            response=tuple(f"Item {k}: " + " ".join(f"{v:+.1f}" for v in row) for k, row in enumerate(pool.tolist())),
            attributes=pool,
            attribute_names=tuple(f"x{k}" for k in range(d)),
        ),
        comparisons=Comparisons.of(
            user=np.repeat(np.arange(users), units * (choices - 1)),
            unit=np.repeat(np.arange(n), choices - 1),
            first=np.repeat(shown[:, 0], choices - 1),
            second=shown[:, 1:].ravel(),
            label=np.ones(n * (choices - 1), np.float32),
        ),
        unit_cluster=cluster,
        clusters=tuple(f"topic-{k}" for k in range(clusters)),
        truth=truth,
    )


def _truth(knobs: Knobs) -> Truth:
    """Plant theta_u = theta_0 + B a_u, with |theta_0| = quality and E|B a_u|^2 = personal^2 for Gaussian a_u."""
    random = knobs.random("subspace")
    mean = random.standard_normal(knobs.d)
    mean *= knobs.quality / np.linalg.norm(mean)
    basis = np.linalg.qr(random.standard_normal((knobs.d, knobs.d)))[0][:, : knobs.rank]  # (d, rank), orthonormal
    random = knobs.random("people")
    scale = knobs.personal / np.sqrt(max(1, knobs.rank))
    if knobs.groups == 0:
        factors = random.standard_normal((knobs.users, knobs.rank))
    else:
        centres = random.standard_normal((knobs.groups, knobs.rank))
        sizes = np.arange(1, knobs.groups + 1, dtype=float) ** -knobs.imbalance
        sizes /= sizes.sum()
        if knobs.concentration:
            factors = random.dirichlet(knobs.concentration * knobs.groups * sizes, knobs.users) @ centres
        else:
            factors = centres[random.choice(knobs.groups, knobs.users, p=sizes)]
    theta = mean + scale * factors @ basis.T
    return Truth(
        theta=theta.astype(np.float32),
        basis=basis.astype(np.float32),
        mean=mean.astype(np.float32),
        temperature=knobs.temperature,
        flip=knobs.flip,
    )


def _pool(knobs: Knobs) -> Float32:
    """Draw the items, [items, d]: item k is of cluster k mod clusters; a shift stretches every second one of it."""
    pool = knobs.random("items").standard_normal((knobs.items, knobs.d), np.float32)
    if knobs.shift:
        along = knobs.random("shift").standard_normal(knobs.d).astype(np.float32)
        along /= np.linalg.norm(along)
        stretched = (np.arange(knobs.items) // knobs.clusters) % 2 == 1
        pool[stretched] += np.float32(knobs.shift) * (pool[stretched] @ along)[:, None] * along
    return pool


def _clusters(knobs: Knobs) -> NDArray[np.int32]:
    """Return the cluster of every unit, [users * units]: each person goes round all clusters in a random order."""
    random = knobs.random("clusters")
    laps = -(-knobs.units // knobs.clusters)
    order = np.tile(np.arange(knobs.clusters, dtype=np.int32), (knobs.users, 1))
    order = random.permuted(order, axis=1)
    return np.tile(order, (1, laps))[:, : knobs.units].ravel()


def _choices(
    knobs: Knobs, truth: Truth, pool: Float32, cluster: NDArray[np.int32], shifted: NDArray[np.bool_]
) -> Iterator[NDArray[np.int32]]:
    """Yield the items of each unit, the chosen one first, int32 [chunk, choices], in chunks that bound the memory."""
    random = knobs.random("choices")
    for start in range(0, len(cluster), CHUNK):
        topic = cluster[start : start + CHUNK]
        user = np.arange(start, start + len(topic)) // knobs.units
        shown = np.empty((len(topic), knobs.choices), np.int32)
        utility = np.empty((len(topic), knobs.choices), np.float32)
        left = np.arange(len(topic))
        for _ in range(ROUNDS):
            shown[left] = _drawn(knobs, random, topic[left], shifted[user[left]])
            for k in range(knobs.choices):
                utility[left, k] = np.einsum("nd,nd->n", pool[shown[left, k]], truth.theta[user[left]])
            best = np.sort(utility[left], axis=1)
            twice = (np.diff(np.sort(shown[left], axis=1), axis=1) == 0).any(axis=1)
            left = left[twice | (best[:, -1] - best[:, -2] < knobs.margin)]
            if not len(left):
                break
        else:
            raise RequestError(
                f"margin={knobs.margin:g} of {CARD.name} is too large: after {ROUNDS} draws {len(left)} units still "
                "have items closer than that; lower margin, or raise quality, personal or items"
            )
        noisy = knobs.temperature * utility + random.gumbel(size=utility.shape)
        chosen = noisy.argmax(axis=1)
        blind = random.random(len(topic)) < 2 * knobs.flip
        chosen[blind] = random.integers(knobs.choices, size=int(blind.sum()))
        rows = np.arange(len(topic))
        winner, shown[rows, chosen] = shown[rows, chosen], shown[:, 0].copy()
        shown[:, 0] = winner
        yield shown


def _drawn(
    knobs: Knobs, random: np.random.Generator, topic: NDArray[np.int32], shifted: NDArray[np.bool_]
) -> NDArray[np.int32]:
    """Draw items of each unit's cluster, [n, choices]; with a shift, shifted people get the stretched half."""
    step = 2 if knobs.shift else 1
    size = knobs.items // (knobs.clusters * step)
    place = step * random.integers(size, size=(len(topic), knobs.choices))
    if knobs.shift:
        place += shifted[:, None]
    return (topic[:, None] + knobs.clusters * place).astype(np.int32)
