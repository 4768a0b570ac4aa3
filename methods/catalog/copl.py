"""CoPL, collaborative preference learning (Choi et al., EMNLP 2025, arXiv 2503.01658).

    stage 1   e_u [d_e] of seen people, |e_u| = 1, and E_i [d_e] of the items they compared: a convolutional network
              on the graph of who chose and who rejected what (methods/neural/signed_graph),
              with the loss -log sigmoid(<e_u, E_chosen - E_rejected>)
    stage 2   r_u(x) = <w, f(phi(x); e_u)>: a network on the features whose layers have one adapter for all and E
              experts, of which a gate on the frozen e_u chooses one (methods/neural/experts)
    new u     e_u = sum_v p_v e_v over seen v who chose an item that u chose,
              p = softmax_v(mean over u's comparisons of log sigmoid(<e_v, E_chosen - E_rejected>) / tau)

Nothing is optimised for a new person, but they must have compared items that seen people compared: the method is
transductive. Where nobody's items are known, `adapt` raises `UnableError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from datasets_registry.errors import UnableError
from datasets_registry.records import Comparisons, Float32, Float64
from methods.bradley_terry import held_out, nll
from methods.interface import Array, Budget, Histories, MethodSpec, UserState, World, places, unstack
from methods.limits import ABOVE, Limits, number, whole
from methods.neural.method import NeuralMethod
from methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor, nn

    from methods.neural.experts import ExpertReward
    from methods.neural.training import Rows

_BLOCK = 4 << 20


@register
@dataclass(kw_only=True, eq=False, repr=False)
class CoPL(NeuralMethod):
    """embedding d_e, layers, graph_*: stage 1. width of the hidden layers, experts E, rank, alpha, noise: stage 2.

    graph_lr: AdamW's rate in stage 1 times d_e, so that one value serves every width. temperature: tau of a new
    person's neighbours.
    """

    lr: float = 1e-2
    steps: int = 150
    every: int = 10
    patience: float = 0.35
    embedding: int = 512
    layers: int = 4
    graph_steps: int = 100
    graph_lr: float = 1.0
    dropout: float = 0.1
    l2: float = 1e-6
    width: int = 512
    experts: int = 8
    rank: int = 8
    alpha: float = 16.0
    noise: float = 0.1
    temperature: float = 0.07

    spec = MethodSpec(
        name="copl",
        title="CoPL (collaborative preference learning)",
        level="feature",
        adaptation="closed-form",
        citation="CoPL, Choi et al. (EMNLP 2025), arXiv 2503.01658",
        equation=(
            "e_u, E_i [d_e] from a signed graph; r_u(x) = <w, f(phi(x))>, f of layers W x + (alpha/r) (B_0 A_0 x + "
            "p_k B_k A_k x), k = argmax p, p = softmax(gate(e_u)) [E]"
        ),
        shared_parameters=(
            "6 layers (d_e^2 + d_e) + n_items d_e; (d + width) width + 3 width + 1, (1 + E) r (d + 3 width), and twice "
            "the gate's d_e d_g + d_g + d_g E + E with d_g = d_e / 2"
        ),
        per_user_parameters="d_e",
        cold_start="the mean of the experts that seen people choose",
        deviations=(
            "frozen features under two small layers that are trained with their adapters (published: adapters of the "
            "query and value projections of gemma-2b-it, which is frozen); people and items have maps of their own in "
            "the graph; e_u has length 1 in the "
            "graph's loss too (published: only where gates and neighbours read it); an expert counts by its gate "
            "once; a label's edges weigh |2y - 1|, none for a tie; biases begin at 0, "
            "AdamW at 1 / d_e in 100 steps of up to 16384 comparisons, then at .01 in up to 150, the best on macro "
            "validation NLL kept (published: .0001 for 100 epochs, .00005 for 1500 steps, accuracy); where fewer than "
            "30 validation pairs are of known items, a tenth of training decides on the graph's step, and is back in "
            "the graph afterwards; somebody without a neighbour, who has no embedding (published: NaN), is served with "
            "the mean of seen people's shares of the experts; the head begins at 0, and validation is asked more often "
            "at first, so that an untrained network holds no opinion and a short training can be kept"
        ),
        transductive=True,
    )
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "lr": (1e-3, 1e-2),
        "layers": (1, 2, 4),
        "graph_lr": (0.3, 1.0),
        "experts": (4, 8, 16),
        "weight_decay": (0.0, 0.1, 1.0, 10.0),
    }

    _seen: Tensor | None = field(init=False, default=None)

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Learn people's embeddings, then the reward model on them."""
        from methods.neural.signed_graph import GraphTraining, embedded

        self.check()
        users = np.unique(train.user)
        histories = Histories.group(train, users)
        self.items_ = np.unique(np.concatenate([train.first, train.second])).astype(np.int64)
        training = GraphTraining(
            self.embedding,
            self.layers,
            self.graph_lr / self.embedding,
            self.graph_steps,
            dropout=self.dropout,
            l2=self.l2,
        )
        found = embedded(histories, self.items_, held_out(val, users), training, budget.seed, budget.device)
        self.people_, self.placed_, self.maps_ = found.people, found.items, found.maps
        table = histories.table
        self.choices_ = _choices(table, places(self.items_, table.first), places(self.items_, table.second))
        super().fit(train, val, world, budget)
        self.comparisons_trained_ += found.learned
        self.everybody_ = self._shares_of_everybody()

    def network(self, d: int, n_people: int) -> nn.Module:
        """Return stage 2's network."""
        from methods.neural.experts import ExpertReward, Mixture

        hidden = max(1, self.embedding // 2)
        mixture = Mixture(self.experts, self.rank, self.alpha, self.embedding, hidden, self.noise)
        return ExpertReward(d, self.width, mixture)

    def begin(self, net: nn.Module, histories: Histories, budget: Budget) -> None:
        """Hold seen people's frozen embeddings ready."""
        import torch

        self._seen = torch.from_numpy(self.people_).to(self._device)

    def loss(self, net: nn.Module, rows: Rows) -> Tensor:
        """Return the negative log-likelihood of soft labels, [n]; one draw of the gates' noise per comparison."""
        from torch.nn.functional import binary_cross_entropy_with_logits as bce

        model = cast("ExpertReward", net)
        assert self._seen is not None
        shares = model.shares(self._seen[rows.person])
        return bce(model(rows.first, shares) - model(rows.second, shares), rows.label, reduction="none")

    def reward(self, net: nn.Module, codes: Tensor, inputs: Tensor) -> Tensor:
        """Return rewards [n] under embeddings [n, d_e]; 0, which nobody's embedding is, stands for everybody's mean."""
        import torch

        model = cast("ExpertReward", net)
        shares, nobody = model.shares(codes), ~codes.any(1)
        if nobody.any():
            mean = torch.from_numpy(self.everybody_).to(codes.device)
            shares = [torch.where(nobody[:, None], m, own) for m, own in zip(mean, shares, strict=True)]
        return model(inputs, shares)

    def _shares_of_everybody(self) -> Float32:
        """Return the mean over seen people of their shares of each layer's adapters, float32 [layers, 1 + E].

        The gate chooses one expert, so the gate of a mean embedding would serve all new people with that of some.
        """
        import torch

        model = cast("ExpertReward", self.ready())
        with torch.no_grad():
            shares = model.shares(torch.from_numpy(self.people_).to(self._device))
        total = np.stack([s.sum(0).cpu().numpy() for s in shares])
        return (total / max(1, len(self.people_))).astype(np.float32)

    def adapt(self, users: Sequence[int], history: Sequence[Comparisons], budget: Budget) -> list[UserState]:
        """Return e_u: seen people's as trained, new people's from their neighbours, 0 without any.

        Raises UnableError if new people said something, and not one of them about an item that seen people compared.
        """
        histories, rows = Histories.of(history), np.asarray(users, np.int64)
        e = np.zeros((len(rows), self.people_.shape[1]))
        place = places(self.users_, rows)
        seen = place >= 0
        e[seen] = self.people_[place[seen]]
        new = np.flatnonzero(~seen & (histories.lengths > 0))
        if len(new):
            weights = self.neighbours(Histories.group(histories.table, new))
            some = weights.any(1)
            e[new[some]] = weights[some] @ self.people_
        return unstack(code=e.astype(np.float32))

    def neighbours(self, histories: Histories) -> Float64:
        """Return what each seen person counts for each new one, float64 [n_new, n_seen]: rows sum to 1, or are 0."""
        from scipy.sparse import csr_array

        table = histories.table
        first, second = places(self.items_, table.first), places(self.items_, table.second)
        if not ((first >= 0) | (second >= 0)).any():
            raise UnableError(
                f"{self.spec.name} serves new people by seen people who chose the same items, and none of the "
                f"{len(histories)} who said something compared any of the {len(self.items_)} items that seen people "
                "compared: a transductive method needs support items that seen people compared, which the regime "
                "known-prompts gives"
            )
        shape = (len(self.users_), len(self.items_))
        chose = csr_array((np.ones(len(self.choices_)), tuple(self.choices_.T)), shape=shape)
        mine = _choices(table, first, second)
        shared = csr_array((np.ones(len(mine)), tuple(mine.T)), shape=(len(histories), shape[1])) @ chose.T
        candidate = shared.toarray() > 0
        likely = self._likelihood(histories, first, second)
        logits = np.where(candidate, likely / self.temperature, -np.inf)
        best = logits.max(1, keepdims=True)
        p = np.exp(logits - np.where(np.isfinite(best), best, 0.0))
        return p / np.maximum(p.sum(1, keepdims=True), 1e-300)

    def _likelihood(self, histories: Histories, first: Array, second: Array) -> Float64:
        """Return the mean log-likelihood of each new person's comparisons by each seen one, float64 [n_new, n_seen].

        Comparisons of an item that is not known are left out; without any other the mean is 0 for all.
        """
        both = np.flatnonzero((first >= 0) & (second >= 0))
        table = histories.table.take(both)
        apart = self.placed_[first[both]] - self.placed_[second[both]]
        total = np.zeros((len(histories), len(self.people_)))
        for lo in range(0, len(both), rows := max(1, _BLOCK // max(len(self.people_), 1))):
            at = slice(lo, lo + rows)
            loss = table.weight[at, None] * nll(apart[at] @ self.people_.T, table.label[at, None])
            who, starts = np.unique(table.user[at], return_index=True)
            total[who] -= np.add.reduceat(loss, starts, axis=0)
        weight = np.bincount(table.user, table.weight, minlength=len(histories))
        return total / np.maximum(weight, 1e-12)[:, None]

    @property
    def n_trained(self) -> int:
        """Return both stages' shared parameters: the graph's maps, where items start, and the reward model."""
        return super().n_trained + self.maps_ + self.placed_.size

    def limits(self) -> Limits:
        """Return by option what is allowed."""
        counts = {name: whole() for name in ("embedding", "layers", "width", "experts", "rank")}
        above = {name: ABOVE for name in ("graph_lr", "alpha", "temperature")}
        least = {"graph_steps": whole(0), "noise": number(), "l2": number(), "dropout": number(below=1)}
        return {**super().limits(), **counts, **above, **least}


def _choices(table: Comparisons, first: Array, second: Array) -> Array:
    """Return who chose which item, int64 [m, 2], each once; items are positions, -1 for one that is not known."""
    won = np.where(table.label > 0.5, first, second)
    kept = (table.label != 0.5) & (table.weight > 0) & (won >= 0)
    return np.unique(np.stack([table.user[kept], won[kept]], axis=1).astype(np.int64), axis=0)
