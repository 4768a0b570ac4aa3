"""PAL-B (Chen et al., ICLR 2025, arXiv 2406.08469): an ideal answer is a mixture of prototypical ones.

    r_u(x, y) = exp(s) cos( f(h(y)), sum_k softmax(w_u)_k g_k(h(x)) ),   exp(s) at most 100
    f, g_1 .. g_K = mlp2 (d -> width -> width -> width), s shared;   w_u [K] per person

Loss: cross-entropy over the two responses, which is -log sigmoid(r_u(chosen) - r_u(rejected)). h(y) are the features of
an item; h(x), of its prompt, is the mean feature vector of the items that answer the same prompt. Of an item the reward
needs only a_k = <f(y), g_k(x)> / |f(y)| and G_kl = <g_k(x), g_l(x)>: it is exp(s) <m, a> / sqrt(m^T G m), where
m = softmax(w_u). So a new person is fitted without asking the network again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from datasets_registry.records import Comparisons
from methods.interface import Array, Budget, MethodSpec, World
from methods.neural.ideal_points import IdealPoints, projector
from methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor, nn

_CHUNK = 8192


@register
@dataclass(kw_only=True, eq=False, repr=False)
class PalB(IdealPoints):
    """Angle to an ideal answer that depends on the prompt."""

    spec = MethodSpec(
        name="pal-b",
        title="PAL-B (ideal points by prompt)",
        level="feature",
        adaptation="gradient",
        citation="PAL, Chen et al. (ICLR 2025), arXiv 2406.08469",
        equation="r_u(x,y) = exp(s) cos(f(h(y)), sum_k softmax(w_u)_k g_k(h(x))); f, g_k = mlp2 shared, w_u [K] theirs",
        shared_parameters="(K + 1) (d width + 2 width^2 + 3 width) + 1",
        per_user_parameters="K",
        cold_start="the mean mixture of seen people",
        deviations=(
            "frozen features, standardised, instead of a language model's tokens, of which the published code compares "
            "prompt token i with response token i; a prompt's embedding is the mean of the features of the items that "
            "share it (of all items where they share one prompt, or have none); w_u starts at 0 and not at random, so "
            "that nobody has a taste that they did not show; a new person's starts at the mean seen mixture and takes "
            "40 full-batch steps of .1 (published: random, .005, 20 epochs in batches of 4); AdamW at .003 with decay "
            ".3 and 50 times the rate for w_u, published .0001, .01 and the same ratio; the step with the least "
            "validation NLL is kept, where the published code selects new people's on their test set"
        ),
    )
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "prototypes": (2, 4, 8),
        "width": (64, 256),
        "weight_decay": (0.3, 3.0, 10.0),
    }

    _prompts: tuple[Array, Tensor] | None = field(init=False, default=None)

    def fit(self, train: Comparisons, val: Comparisons, world: World, budget: Budget) -> None:
        """Train the network on seen people."""
        self._prompts = None
        super().fit(train, val, world, budget)

    def network(self, d: int, n_people: int) -> nn.Module:
        """Return f, the g_k and s, which starts at log(1 / .07) as published."""
        import torch
        from torch import nn

        net = nn.Module()
        projectors = [projector(d, self.width, self.width) for _ in range(1 + self.prototypes)]
        net.add_module("f", projectors[0])
        net.add_module("g", nn.ModuleList(projectors[1:]))
        net.register_parameter("s", nn.Parameter(torch.tensor(math.log(1 / 0.07))))
        net.register_parameter("own", nn.Parameter(torch.zeros(n_people, self.prototypes)))
        return net

    def inputs(self, items: Array) -> Tensor:
        """Return standardised features and, last, the number of the item's prompt, float32 [n, d + 1]."""
        import torch

        prompt, _ = self.prompts()
        number = torch.from_numpy(prompt[np.asarray(items)].astype(np.float32)).to(self._device)
        return torch.cat([super().inputs(items), number[:, None]], 1)

    def prompts(self) -> tuple[Array, Tensor]:
        """Return the number of each item's prompt, int64 [n_items], and h of every prompt, float32 [n_prompts, d]."""
        if self._prompts is None:
            import torch

            texts = self.world.items.prompt
            numbers = {text: k for k, text in enumerate(dict.fromkeys(texts))}
            prompt = np.fromiter((numbers[text] for text in texts), np.int64, len(texts))
            total = torch.zeros(len(numbers), len(self.scale_), device=self._device)
            for lo in range(0, len(texts), _CHUNK):
                items = np.arange(lo, min(lo + _CHUNK, len(texts)))
                total.index_add_(0, torch.from_numpy(prompt[items]).to(self._device), super().inputs(items))
            count = torch.from_numpy(np.bincount(prompt).astype(np.float32)).to(self._device)
            self._prompts = prompt, total / count[:, None]
        return self._prompts

    def of_person(self, net: nn.Module, logits: Tensor) -> Tensor:
        """Return mixtures, [m, K]."""
        return logits.softmax(1)

    def of_item(self, net: nn.Module, inputs: Tensor) -> Tensor:
        """Return exp(s) a and G, side by side, [n, K + K^2]; g is asked once per prompt."""
        import torch

        y = torch.nn.functional.normalize(net.get_submodule("f")(inputs[:, :-1]), dim=1)
        prompts, at = torch.unique(inputs[:, -1].long(), return_inverse=True)
        h = self.prompts()[1][prompts]
        g = torch.stack([each(h) for each in net.get_submodule("g").children()], 1)  # (prompts, K, width)
        likeness = torch.einsum("nw,nkw->nk", y, g[at])
        scale = net.get_parameter("s").exp().clamp(max=100.0)
        return torch.cat([scale * likeness, (g @ g.mT).flatten(1)[at]], 1)

    def closeness(self, person: Tensor, item: Tensor) -> Tensor:
        """Return the scaled cosine, [n]."""
        import torch

        k = person.shape[1]
        square = torch.einsum("nk,nkl,nl->n", person, item[:, k:].unflatten(1, (k, k)), person)
        return (person * item[:, :k]).sum(1) / square.clamp(min=1e-12).sqrt()

    def loss_of(self, margin: Tensor) -> Tensor:
        """Return -log sigmoid(margin), [n]."""
        from torch.nn.functional import softplus

        return softplus(-margin)
