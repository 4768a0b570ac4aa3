"""PAL-A (Chen et al., ICLR 2025, arXiv 2406.08469): the nearer an item is to a person's ideal point, the better.

    r_u(x) = -|| f(x) - f(sum_k softmax(w_u)_k p_k) ||,   f(x) = x + mlp2(x),   x = phi(x) / sqrt(d)
    p [K, d] and mlp2 (d -> width -> width -> d) shared;   w_u [K] per person

Loss: hinge, max(0, 1 - (r_u(chosen) - r_u(rejected))). Prototypes live where the features do, and pass through the same
f as items: what is compared are two points of the preference space. Of a new person w_u alone is fitted.

The residual projector makes the untrained model a distance between features. Standardised ones are sqrt(d) long, where
a prototype starts at length 1: divided by that, neither drowns the other and the first margins are small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from methods.interface import Array, MethodSpec
from methods.limits import ABOVE, Limits
from methods.neural.ideal_points import IdealPoints, projector
from methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor, nn


@register
@dataclass(kw_only=True, eq=False, repr=False)
class PalA(IdealPoints):
    """Distance to an ideal point; the published f(Pw) with a residual projector.

    prototype_gain: how many times faster than the network prototypes learn.
    """

    spec = MethodSpec(
        name="pal-a",
        title="PAL-A (ideal points by distance)",
        level="feature",
        adaptation="gradient",
        citation="PAL, Chen et al. (ICLR 2025), arXiv 2406.08469",
        equation="r_u(x) = -|f(phi(x)) - f(sum_k softmax(w_u)_k p_k)|; f = id + mlp2, p [K, d] shared, w_u [K] theirs",
        shared_parameters="K d + 2 d width + width^2 + 2 width + d",
        per_user_parameters="K",
        cold_start="the mean mixture of seen people",
        deviations=(
            "frozen features, standardised and over sqrt(d), instead of a language model's tokens: one distance per "
            "item, where the published loss weighs tokens by position and its metric reads a padding position; w_u "
            "starts at 0 and not at random, so that nobody has a taste that they did not show; a new person's starts "
            "at the mean seen mixture and takes 40 full-batch steps of .1 (published: random, .005, 20 epochs); AdamW "
            "at .003 with decay .1 and 50 times the rate for w_u, published .0001, .01 and the same ratio (prototypes "
            "learn 5 times as fast as the network, published 50 times); the step with least validation NLL is kept, "
            "where the published code selects new people's on their test set; of the two published projectors the one "
            "with GELU: with ReLU, whose kinks amplify rounding, the order of people changed a fit"
        ),
    )
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "prototypes": (2, 4, 8),
        "width": (64, 256),
        "weight_decay": (0.01, 0.1, 1.0),
    }

    weight_decay: float = 0.1
    prototype_gain: float = 5.0

    def network(self, d: int, n_people: int) -> nn.Module:
        """Return f's mlp2 and the prototypes, which start with unit norm as published."""
        import torch
        from torch import nn

        net = nn.Module()
        net.add_module("mlp", projector(d, self.width, d))
        drawn = nn.functional.normalize(torch.randn(self.prototypes, d), dim=1)
        net.register_parameter("prototypes", nn.Parameter(drawn / self.prototype_gain))
        net.register_parameter("own", nn.Parameter(torch.zeros(n_people, self.prototypes)))
        return net

    def inputs(self, items: Array) -> Tensor:
        """Return standardised features over sqrt(d), float32 [n, d]."""
        return super().inputs(items) / math.sqrt(max(1, len(self.scale_)))

    def of_person(self, net: nn.Module, logits: Tensor) -> Tensor:
        """Return ideal points f(sum_k softmax(w_u)_k p_k), [m, d]."""
        prototypes = self.prototype_gain * net.get_parameter("prototypes")
        return self.of_item(net, logits.softmax(1) @ prototypes)

    def of_item(self, net: nn.Module, inputs: Tensor) -> Tensor:
        """Return f(x), [n, d]."""
        return inputs + net.get_submodule("mlp")(inputs)

    def closeness(self, person: Tensor, item: Tensor) -> Tensor:
        """Return minus the distance, [n]."""
        import torch

        return -torch.linalg.vector_norm(item - person, dim=1)

    def loss_of(self, margin: Tensor) -> Tensor:
        """Return the hinge loss, [n]."""
        return (1.0 - margin).clamp(min=0.0)

    def limits(self) -> Limits:
        """Return by option what is allowed."""
        return {**super().limits(), "prototype_gain": ABOVE}
