"""The grid as data: which shapes, which routing of tokens to users, which of them are quick."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

VARIANTS = ("full", "shared-a", "shared-b", "core", "vector")
MODES = ("forward", "both")
# Of the whole grid: every shape is crossed with every count of users and tokens; routing and variants are crossed with
# users and tokens at 768 x 768, rank 8. All factors crossed would be 22,000 cells, most of which differ in nothing.
_WIDTHS = ((384, 384), (768, 768), (768, 3072), (2048, 2048), (4096, 4096))
_RANKS = (1, 4, 8, 16, 64)
_USERS = (1, 8, 64, 512, 4096)
_TOKENS = (64, 256, 1024, 4096, 16384)


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One problem of the grid.

    `variant` is full (A and B per user), shared-a, shared-b, core (A and B shared, an r x r core per user) or vector
    (A and B shared, an r-vector per user); `routing` is a name of `ROUTINGS`.
    """

    d_in: int
    d_out: int
    rank: int
    users: int
    tokens: int
    routing: str = "uniform"
    variant: str = "full"
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """Return a name that is stable between versions and tells every field.

        >>> Cell(768, 768, 8, 64, 256).name
        'full-768x768-r8-u64-t256-uniform-float32'
        """
        shape = f"{self.d_in}x{self.d_out}-r{self.rank}-u{self.users}-t{self.tokens}"
        return f"{self.variant}-{shape}-{self.routing}-{self.dtype}"

    @property
    def per_user_a(self) -> bool:
        """Return whether every user has an A."""
        return self.variant in ("full", "shared-b")

    @property
    def per_user_b(self) -> bool:
        """Return whether every user has a B."""
        return self.variant in ("full", "shared-a")

    @property
    def operand_bytes(self) -> int:
        """Return the bytes of x, y, the factors and the core."""
        size = 8 if self.dtype == "float64" else 4 if self.dtype == "float32" else 2
        a = self.rank * self.d_in * (self.users if self.per_user_a else 1)
        b = self.rank * self.d_out * (self.users if self.per_user_b else 1)
        core = self.users * self.rank * {"core": self.rank, "vector": 1}.get(self.variant, 0)
        return size * (self.tokens * (self.d_in + self.d_out) + a + b + core)


def seeded(*context: object) -> int:
    """Return a seed of 63 bits from what it is for, so that no two uses share a stream.

    >>> seeded("ids", 1) != seeded("ids", 2)
    True
    """
    text = "\x1f".join(map(str, context))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def user_ids(cell: Cell) -> NDArray[np.int64]:
    """Return the user of every token, int64 [T] in 0 .. U - 1, or -1 for no adapter: the same ids for the same cell."""
    rng = np.random.default_rng(seeded("kernel routing", cell.routing, cell.users, cell.tokens))
    return ROUTINGS[cell.routing](rng, cell.users, cell.tokens)


def _one_user(rng: np.random.Generator, users: int, tokens: int) -> NDArray[np.int64]:
    return np.full(tokens, rng.integers(users))


def _uniform(rng: np.random.Generator, users: int, tokens: int) -> NDArray[np.int64]:
    return rng.integers(users, size=tokens)


def _sorted(rng: np.random.Generator, users: int, tokens: int) -> NDArray[np.int64]:
    return np.sort(_uniform(rng, users, tokens))


def _zipf(exponent: float, rng: np.random.Generator, users: int, tokens: int) -> NDArray[np.int64]:
    """Return ids whose k-th most frequent user has a share in proportion to k^-exponent; who is frequent is random."""
    weight = np.arange(1, users + 1) ** -exponent
    return rng.permutation(users)[rng.choice(users, size=tokens, p=weight / weight.sum())]


def _one_and_rest(rng: np.random.Generator, users: int, tokens: int) -> NDArray[np.int64]:
    """Return ids of two users: one has a single token, anywhere; the other has all the rest."""
    if users < 2:
        return np.zeros(tokens, np.int64)
    alone, rest = rng.choice(users, size=2, replace=False)
    ids = np.full(tokens, rest)
    ids[rng.integers(tokens)] = alone
    return ids


def _half_base(rng: np.random.Generator, users: int, tokens: int) -> NDArray[np.int64]:
    """Return uniform ids of which a random half is -1."""
    ids = _uniform(rng, users, tokens)
    ids[rng.permutation(tokens)[: tokens // 2]] = -1
    return ids


ROUTINGS = {
    "one-user": _one_user,
    "uniform": _uniform,
    "sorted": _sorted,
    "zipf-1.1": lambda rng, users, tokens: _zipf(1.1, rng, users, tokens),
    "zipf-1.5": lambda rng, users, tokens: _zipf(1.5, rng, users, tokens),
    "one-and-rest": _one_and_rest,
    "half-base": _half_base,
}


def quick() -> list[Cell]:
    """Return the quick grid: every value of d, r, U, T and the three common routings, and the published cells."""

    def square(d: int, rank: int, users: int, tokens: int, routing: str = "uniform", variant: str = "full") -> Cell:
        return Cell(d, d, rank, users, tokens, routing, variant)

    return [
        square(384, 4, 8, 256, "sorted"),
        square(384, 8, 64, 256, "zipf-1.1"),
        square(384, 8, 512, 256),
        square(384, 16, 2048, 256, "zipf-1.1"),
        square(384, 16, 8, 4096),
        square(384, 4, 64, 4096, "sorted"),
        square(384, 8, 512, 4096, "zipf-1.1"),
        square(384, 4, 2048, 4096, "sorted"),
        square(768, 4, 8, 256),
        square(768, 8, 64, 256),
        square(768, 16, 512, 256, "sorted"),
        square(768, 8, 2048, 256),
        square(768, 8, 8, 4096, "zipf-1.1"),
        square(768, 16, 64, 4096),
        square(768, 8, 512, 4096),
        square(768, 8, 2048, 4096, "sorted"),
        square(2048, 16, 8, 256, "zipf-1.1"),
        square(2048, 4, 64, 256, "sorted"),
        square(2048, 8, 2048, 256, "zipf-1.1"),
        square(2048, 8, 512, 4096),
        square(2048, 8, 2048, 4096),
        square(768, 8, 512, 4096, variant="shared-b"),
        square(768, 8, 64, 256, variant="core"),
        square(768, 8, 512, 4096, variant="core"),
    ]


def full() -> list[Cell]:
    """Return the whole grid, the quick cells first.

    Shapes are crossed with users and tokens; routing and variants are crossed with users and tokens at one shape.
    """
    crossed = [
        Cell(d_in, d_out, rank, users, tokens)
        for d_in, d_out in _WIDTHS
        for rank in _RANKS
        for users in _USERS
        for tokens in _TOKENS
    ]
    base = [cell for cell in crossed if (cell.d_in, cell.d_out, cell.rank) == (768, 768, 8)]
    routed = [replace(cell, routing=routing) for routing in ROUTINGS for cell in base]
    variants = [replace(cell, variant=variant) for variant in VARIANTS for cell in base]
    return list(dict.fromkeys([*quick(), *crossed, *routed, *variants]))


GRIDS = {"quick": quick, "full": full}
