"""A convolutional network on the graph of who chose and who rejected what (CoPL, stage 1).

    Z+ = A+ E',  Z- = A- E'                      sums over neighbours of the other kind, normalised by degrees
    E <- LeakyReLU( Z+ + W+(Z+ * E) - (Z- + W-(Z- * E)) + W_self E )          per layer, for people and for items

A+ and A- [people, items]: the comparisons in which a person chose, or rejected, an item, each entry divided by
sqrt(its row's sum x its column's sum). W+, W- and W_self are affine maps of width d; people and items have their own:
6 (d^2 + d) numbers per layer, 6.3 million at d = 512 and 4 layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, leaky_relu, normalize

from datasets_registry.protocol import mix, seed_of
from datasets_registry.records import Comparisons, Float32
from methods.bradley_terry import calibrated_nll, person_draws, person_keys
from methods.interface import Histories
from methods.neural.training import Best, seeded
from methods.progress import Teller

Array = NDArray[Any]
_SLOPE = 0.2
_PUBLISHED_BATCH = 1024
_ENOUGH = 30


@dataclass(frozen=True, slots=True, eq=False)
class Edges:
    """The edges of one sign, by person: person, item int64 [m], value float32 [m], a key per edge, uint64 [m].

    A key says what the person compared and which item it is: what is drawn by it does not depend on row numbers.
    by_item: int64 [m], the order of edges by item.
    """

    person: Array
    item: Array
    value: Array
    key: Array
    by_item: Array
    shape: tuple[int, int]

    @classmethod
    def of(cls, person: Array, item: Array, weight: Array, keys: Array, n_items: int) -> Edges:
        """Sum the weights of equal edges, leave out those of weight 0, and normalise by degrees."""
        both, at = np.unique(person.astype(np.int64) * n_items + item, return_inverse=True)
        total = np.bincount(at, weight, minlength=len(both))
        both, total = both[total > 0], total[total > 0]
        person, item = both // n_items, both % n_items
        degree = np.bincount(person, total)[person] * np.bincount(item, total)[item]
        value = (total / np.sqrt(degree)).astype(np.float32)
        key, by_item = mix(keys[person], item.astype(np.uint64)), np.argsort(item, kind="stable")
        return cls(person, item, value, key, by_item, (len(keys), n_items))

    def adjacency(self, device: str, dropout: float = 0.0, salt: int = 0) -> Adjacency:
        """Return the matrix [people, items]; a share `dropout` of edges is left out and the rest scaled up."""
        value = self.value
        if dropout:
            draw = mix(self.key, np.full(len(self.key), salt, np.uint64)) >> np.uint64(11)
            value = np.where(draw.astype(np.float64) / 2.0**53 < dropout, 0, value / (1 - dropout)).astype(np.float32)
        return Adjacency(*(_product(m, device) for m in self.matrices(value)))

    def matrices(self, value: Array) -> tuple[Any, Any]:
        """Return scipy's sparse matrix [people, items] of so much per edge, and its transpose."""
        from scipy.sparse import csr_array

        n_people, n_items = self.shape
        by_item = self.by_item
        starts = (
            np.searchsorted(self.person, np.arange(n_people + 1)),
            np.searchsorted(self.item[by_item], np.arange(n_items + 1)),
        )
        return (
            csr_array((value, self.item, starts[0]), shape=self.shape),
            csr_array((value[by_item], self.person[by_item], starts[1]), shape=self.shape[::-1]),
        )


Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Adjacency:
    """A sparse matrix [people, items] as two products: of rows of items, and of rows of people by its transpose."""

    of_items: Product
    of_people: Product

    def to_people(self, items: Tensor) -> Tensor:
        """Return what people get from items [n_items, d], [n_people, d]."""
        return cast(Tensor, _Pass.apply(items, self.of_items, self.of_people))

    def to_items(self, people: Tensor) -> Tensor:
        """Return what items get from people [n_people, d], [n_items, d]."""
        return cast(Tensor, _Pass.apply(people, self.of_people, self.of_items))


class _Pass(torch.autograd.Function):
    """A product with a matrix, whose gradient is the product with its transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Product, back: Product) -> Tensor:
        ctx.back = back
        return there(x)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(slopes[0]), None, None


def _product(matrix: Any, device: str) -> Product:
    """Return x -> matrix x on a device; on a processor by scipy, many times as fast as torch's sparse product there."""
    if device == "cpu":
        return lambda x: torch.from_numpy(matrix @ x.detach().numpy())
    entries = matrix.tocoo()
    at = torch.from_numpy(np.stack(entries.coords).astype(np.int64))
    there = torch.sparse_coo_tensor(at, torch.from_numpy(entries.data), matrix.shape, check_invariants=False).to(device)
    return lambda x: torch.sparse.mm(there, x)


@dataclass(frozen=True, slots=True, eq=False)
class SignedGraph:
    """Who chose and who rejected what: a tie does neither, a label of .8 does both .6 times as much as one of 1."""

    chosen: Edges
    rejected: Edges

    @classmethod
    def of(cls, histories: Histories, items: Array) -> SignedGraph:
        """Return the graph of histories; `items` are sorted rows, all that occur there."""
        table, keys = histories.table, person_keys(histories)
        first, second = np.searchsorted(items, table.first), np.searchsorted(items, table.second)
        strength = table.weight * np.abs(2 * table.label - 1)
        won = table.label > 0.5
        chosen, rejected = (
            Edges.of(table.user, np.where(won, *pair), strength, keys, len(items))
            for pair in ((first, second), (second, first))
        )
        return cls(chosen, rejected)


class SignedGCN(nn.Module):
    """The network; people's numbers are the parameter `own` [n_people, d], items' are `items` [n_items, d]."""

    def __init__(self, own: Tensor, items: Tensor, layers: int) -> None:
        super().__init__()
        d = own.shape[1]
        self.own, self.items = nn.Parameter(own), nn.Parameter(items)
        kinds = ("chosen", "rejected", "self")
        self.layers = nn.ModuleList(
            nn.ModuleDict({f"{side}_{kind}": nn.Linear(d, d) for side in ("people", "items") for kind in kinds})
            for _ in range(layers)
        )
        for name, number in self.layers.named_parameters():
            if name.endswith("bias"):
                # embeddings begin small: beside torch's own biases all people would begin alike
                nn.init.zeros_(number)

    def forward(self, chosen: Adjacency, rejected: Adjacency) -> tuple[Tensor, Tensor]:
        """Return embeddings of people [n_people, d], of length 1, and of items [n_items, d]."""
        people, items = self.own, self.items
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleDict)
            people, items = (
                _message(layer, "people", people, chosen.to_people(items), rejected.to_people(items)),
                _message(layer, "items", items, chosen.to_items(people), rejected.to_items(people)),
            )
        return normalize(people, dim=1), items


def _message(layer: nn.ModuleDict, side: str, own: Tensor, chosen: Tensor, rejected: Tensor) -> Tensor:
    pulled = chosen + layer[f"{side}_chosen"](chosen * own)
    pushed = rejected + layer[f"{side}_rejected"](rejected * own)
    return leaky_relu(pulled - pushed + layer[f"{side}_self"](own), _SLOPE)


@dataclass(frozen=True, slots=True)
class GraphTraining:
    """Width d and number of layers; AdamW's rate, steps and batch; how often validation is asked; dropout of edges.

    l2: the penalty on the squares of the compared items' embeddings, which the published loss sums over 1024 pairs
    while it averages the rest.
    """

    width: int = 512
    layers: int = 4
    lr: float = 2e-3
    steps: int = 100
    batch: int = 16384
    every: int = 5
    dropout: float = 0.1
    l2: float = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """people: float32 [n_people, d], of length 1; items: float32 [n_items, d].

    maps: how many numbers the layers' maps have. learned: how many comparisons were learned from, once per pass.
    """

    people: Float32
    items: Float32
    maps: int
    learned: int = 0

    def scores(self, table: Comparisons, items: Array) -> Float32:
        """Return <E_u, E_first - E_second>, float32 [n]; `user` is a position, `items` are sorted rows."""
        apart = self.items[np.searchsorted(items, table.first)] - self.items[np.searchsorted(items, table.second)]
        return np.einsum("nd,nd->n", self.people[table.user], apart)


def embedded(
    histories: Histories, items: Array, val: Comparisons, training: GraphTraining, seed: int, device: str
) -> Embeddings:
    """Train on who chose what and return the embeddings; `items` are sorted rows, all that occur in the histories.

    The pass with the least macro NLL is kept: on comparisons of `val` (`user`: positions in `histories`) whose items
    are both known, or where there are none, on a tenth of the histories, which the graph is without in training.
    """
    val = val.take(np.isin(val.first, items) & np.isin(val.second, items))
    learned, held = (histories, val) if len(val) >= _ENOUGH else _parted(histories, seed)
    with seeded("signed-graph", seed):
        net = SignedGCN(*_starts(histories, len(items), training.width, seed), training.layers).to(device)
        count = _train(net, learned, held, items, training, seed)
    return replace(_embeddings(net, SignedGraph.of(histories, items)), learned=count)


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """Comparisons as tensors: user, first, second int64 [n] are positions; label and weight float32 [n]."""

    user: Tensor
    first: Tensor
    second: Tensor
    label: Tensor
    weight: Tensor

    @classmethod
    def of(cls, table: Comparisons, items: Array, device: str) -> _Asked:
        first, second = np.searchsorted(items, table.first), np.searchsorted(items, table.second)
        columns = (table.user.astype(np.int64), first, second, table.label, table.weight)
        return cls(*(torch.from_numpy(np.array(c)).to(device) for c in columns))

    def loss(self, rows: Array, people: Tensor, items: Tensor, l2: float) -> Tensor:
        """Return the mean over rows of BPR's loss and the penalty."""
        at = torch.from_numpy(rows).to(self.label.device)
        # index_select: its backward pass is several times faster than that of indexing
        first, second = items.index_select(0, self.first[at]), items.index_select(0, self.second[at])
        score = (people.index_select(0, self.user[at]) * (first - second)).sum(1)
        each = binary_cross_entropy_with_logits(score, self.label[at], reduction="none")
        each = each + _PUBLISHED_BATCH * l2 * (first.square().sum(1) + second.square().sum(1))
        return (self.weight[at] * each).sum() / self.weight[at].sum().clamp(min=1e-12)


def _train(
    net: SignedGCN, learned: Histories, held: Comparisons, items: Array, training: GraphTraining, seed: int
) -> int:
    """Fit in place: every step passes messages over the whole graph and scores one batch; return how many it scored.

    The rate rises for a tenth of the steps and falls by a cosine. The parameters that serve `held` best are kept.
    """
    device, graph = str(net.own.device), SignedGraph.of(learned, items)
    asked = _Asked.of(learned.table, items, device)
    optimiser = torch.optim.AdamW(net.parameters(), lr=training.lr)
    warm = max(1, round(0.1 * training.steps))

    def rate(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, training.steps - warm)))

    best = Best(net, lambda: calibrated_nll(_embeddings(net, graph).scores(held, items), held))
    count = 0
    schedule, teller = torch.optim.lr_scheduler.LambdaLR(optimiser, rate), Teller("signed graph", training.steps)
    order = np.argsort(_unit_keys(learned, seed, "batches"), kind="stable")
    turn = np.arange(min(training.batch, len(order)))
    for step in range(training.steps if len(order) else 0):
        rows = order[(step * len(turn) + turn) % len(order)]
        if len(held) and step % training.every == 0:
            best.ask()
        chosen = graph.chosen.adjacency(device, training.dropout, seed_of("edge-dropout", seed, step, "chosen"))
        rejected = graph.rejected.adjacency(device, training.dropout, seed_of("edge-dropout", seed, step, "rejected"))
        people, placed = net(chosen, rejected)
        loss = asked.loss(rows, people, placed, training.l2)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        count += len(rows)
        teller.step(step + 1, lambda loss=loss: float(loss.detach()))
    if len(held):
        best.ask()
        best.put_back()
    return count


def _embeddings(net: SignedGCN, graph: SignedGraph) -> Embeddings:
    device = str(net.own.device)
    with torch.no_grad():
        people, placed = net(graph.chosen.adjacency(device), graph.rejected.adjacency(device))
    maps = sum(p.numel() for p in net.layers.parameters())
    return Embeddings(people.cpu().numpy(), placed.cpu().numpy(), maps)


def _starts(histories: Histories, n_items: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return where people and items start, normal and as large as Xavier's bound makes it, [n, d] each.

    People's draws belong to what they compared, so that renaming them changes nothing.
    """
    people = math.sqrt(2.0 / (len(histories) + width)) * person_draws(histories, width, seed)
    items = math.sqrt(2.0 / (n_items + width)) * torch.randn(n_items, width)
    return torch.from_numpy(people.astype(np.float32)), items


def _parted(histories: Histories, seed: int) -> tuple[Histories, Comparisons]:
    """Return nine tenths of the histories, and the rest: whole groups of a person and unit, by their hash."""
    table = histories.table
    held = _unit_keys(histories, seed, "held") % np.uint64(10) == 0
    return Histories.group(table.take(~held), np.arange(len(histories))), table.take(held)


def _unit_keys(histories: Histories, seed: int, what: str) -> NDArray[np.uint64]:
    """Return a hash per comparison of what its person compared and of its unit, uint64 [n]."""
    table = histories.table
    key = mix(person_keys(histories)[table.user], table.unit.astype(np.uint64))
    return mix(key, np.full(len(key), seed_of("signed-graph", what, seed), np.uint64))
