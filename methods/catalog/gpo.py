"""GPO, group preference optimization (Zhao et al., ICLR 2024, arXiv 2310.11523): an in-context neural process.

    tokens [phi(item), y];   (mean_x, std_x) = transformer(context of (item, y), item x), no positions

A person is the context: each comparison is two points, the preferred item with y = 1 and the other with y = 0.
A target attends to the context alone, so nothing depends on the order of a context or on other targets. Margins
(the pairwise adapter): 1.702 (mean_first - mean_second) / sqrt(std_first^2 + std_second^2), the logit of the probit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from datasets_registry.records import Comparisons, Float32
from methods.interface import Budget, MethodSpec, UserState
from methods.limits import Limit, Limits, whole
from methods.neural.context import ContextMethod, Contexts
from methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor, nn

    from methods.neural.process import NeuralProcess
    from methods.neural.training import Rows

Array = NDArray[Any]
_QUERIES_AT_ONCE = 4096
_BLOCK = 8  # pairs of targets of one person that are padded together


@register
@dataclass(kw_only=True, eq=False, repr=False)
class GPO(ContextMethod):
    """Options: `width` of the tokens, `layers`, `heads`."""

    width: int = 128
    layers: int = 6
    heads: int = 4
    lr: float = 3e-4

    spec = MethodSpec(
        name="gpo",
        title="Group preference optimization (GPO), pairwise",
        level="feature",
        adaptation="in-context",
        citation="GPO: Zhao et al. (ICLR 2024), arXiv 2310.11523; its pairwise adapter",
        equation="(mean, std)_x = transformer([phi(c), y] of the context, x); margin the logit of the probit of both",
        shared_parameters="(d + 1) w + 4 w (w + 1) + ..., 1,188,354 at d = 4096, w = 128, 6 layers",
        per_user_parameters="0; the state is the context: items and answers",
        cold_start="an empty context: what the process says of an item alone",
        deviations=(
            "a pairwise adapter: points are the two items of a comparison with the answers 1 and 0 (soft labels as "
            "they are), where GPO reads the shares of options in a group; trained on the Bradley-Terry likelihood of "
            "its margin instead of the Normal likelihood of shares; an empty context, where the published attention is "
            "undefined, is heard as nothing; contexts of every size are drawn in training; frozen features of the "
            "track's encoder; the head begins at 0, so that an untrained process holds no opinion; the step with the "
            "least validation NLL is kept, asked more often at first, and nothing ends training early, which is "
            "hundreds of steps (published 200,000); where no seen person has two units, contexts cannot be trained and "
            "are not read"
        ),
    )
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "lr": (1e-3, 3e-3, 1e-2),
        "context": (8, 32),
        "weight_decay": (0.0, 0.1, 10.0),
    }

    def network(self, d: int, n_people: int) -> nn.Module:
        """Return the neural process."""
        from methods.neural.process import NeuralProcess

        return NeuralProcess(d, self.width, self.layers, self.heads)

    def answered(self, net: nn.Module, rows: Rows, contexts: Contexts, asked: Tensor) -> Tensor:
        """Return -log P(label | context) of each comparison, [n]."""
        from torch.nn.functional import binary_cross_entropy_with_logits as nll

        return nll(self._margin(net, (rows, contexts), rows.first, rows.second, asked), rows.label, reduction="none")

    def adapt(self, users: Sequence[int], history: Sequence[Comparisons], budget: Budget) -> list[UserState]:
        """Return the newest `context` comparisons of each person: first, second int32 [m], answer float32 [m]."""
        histories = self.heard(history)
        table = histories.table
        columns = {"first": table.first, "second": table.second, "answer": table.label}
        return [
            UserState({name: column[lo:hi].copy() for name, column in columns.items()})
            for lo, hi in pairwise(histories.offsets.tolist())
        ]

    def margins(self, states: Sequence[UserState], queries: Comparisons) -> Float32:
        """Return the logit of the probit, float32 [n]; people are taken in their order, many at once."""
        import torch

        net = self.ready()
        out = np.empty(len(queries), np.float32)
        order = np.argsort(queries.user, kind="stable")
        with torch.no_grad():
            for lo in range(0, len(order), _QUERIES_AT_ONCE):
                at = order[lo : lo + _QUERIES_AT_ONCE]
                people, person = np.unique(queries.user[at], return_inverse=True)
                said = self._contexts([states[p] for p in people.tolist()])
                asked = torch.from_numpy(person.reshape(-1)).to(self._device)
                first, second = self.inputs(queries.first[at]), self.inputs(queries.second[at])
                out[at] = self._margin(net, said, first, second, asked).float().cpu().numpy()
        return out

    def rewards(self, states: Sequence[UserState], users: Array, items: Array) -> Float32 | None:
        """Return None: a margin is no difference of rewards."""
        return None

    def limits(self) -> Limits:
        """Return by option what is allowed."""
        count = whole()
        heads = Limit(lambda v: count.allows(v) and self.width % v == 0, f"divisors of the width, {self.width}")
        return {**super().limits(), "width": count, "layers": count, "heads": heads}

    def _contexts(self, states: Sequence[UserState]) -> tuple[Rows, Contexts]:
        """Return the states' comparisons and the context of each state."""
        from methods.neural.training import Rows

        lengths = np.array([len(s.arrays["answer"]) for s in states], np.int64)
        said = Comparisons.of(
            user=np.repeat(np.arange(len(states)), lengths),
            unit=np.zeros(int(lengths.sum())),
            first=np.concatenate([s.arrays["first"] for s in states]),
            second=np.concatenate([s.arrays["second"] for s in states]),
            label=np.concatenate([s.arrays["answer"] for s in states]),
        )
        rows = Rows.of(said, self.inputs, self._device)
        return rows, Contexts.of(rows.person, len(states), self.context)

    def _margin(
        self, net: nn.Module, said: tuple[Rows, Contexts], first: Tensor, second: Tensor, asked: Tensor
    ) -> Tensor:
        """Return the margin of each pair of inputs [n, d] under the context `asked` int64 [n], [n]."""
        import torch

        model, (rows, contexts) = cast("NeuralProcess", net), said
        blocks, whose = Contexts.blocks(asked, len(contexts.real), _BLOCK)
        none = torch.zeros_like(first[:, 0])
        target = [model.token(inputs, none)[blocks.row] for inputs in (first, second)]
        mean, std = model(*_tokens(model, rows, contexts), torch.cat(target, 1), whose)
        (m1, m2), (s1, s2) = mean.chunk(2, 1), std.chunk(2, 1)
        margin = 1.702 * (m1 - m2) / (s1**2 + s2**2).sqrt()
        return none.index_put((blocks.row[blocks.real],), margin[blocks.real])


def _tokens(model: NeuralProcess, rows: Rows, contexts: Contexts) -> tuple[Tensor, Tensor]:
    """Return each context's points as tokens [contexts, 2 C, width], and which are there, bool [contexts, 2 C]."""
    import torch

    real = torch.cat([contexts.real, contexts.real], 1)
    points = [model.token(rows.first, rows.label), model.token(rows.second, 1 - rows.label)]
    if not len(rows):
        return points[0].new_zeros((*real.shape, points[0].shape[1])), real
    return torch.cat([point[contexts.row] for point in points], 1), real
