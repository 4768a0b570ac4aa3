"""LoRA-global (Hu et al., arXiv 2106.09685): one adapter for everybody. What personalised adapters have to beat.

    r(x) = <w, pool(trunk(x))>,   each adapted layer W0 x + (alpha / r) B A x,   A [r, d_in], B [r, d_out], w [d] shared

Loss: -log sigmoid(r(chosen) - r(rejected)) over everybody's comparisons. As in the baselines of P-ShareLoRA
(arXiv 2503.19201): AdamW, lr 5e-5, linear decay, 3 epochs, batch 128, r 32, alpha 16, query and value projections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from methods.backbone.method import BackboneMethod
from methods.interface import MethodSpec
from methods.registry import register

if TYPE_CHECKING:
    from methods.backbone.lesson import Lesson
    from methods.backbone.training import Factors


@register
@dataclass(kw_only=True, eq=False, repr=False)
class LoraGlobal(BackboneMethod):
    """Everything shared: equals PEFT's LoRA with a scalar head, step for step."""

    spec = MethodSpec(
        name="lora-global",
        title="One LoRA adapter for everybody",
        level="backbone",
        adaptation="none",
        citation="Hu et al. 2021 (arXiv 2106.09685); baseline of arXiv 2503.19201",
        equation="W0 x + (alpha/r) B A x, A [r, d_in] and B [r, d_out] shared; r(x) = <w, pool(h)>",
        shared_parameters="L r (d_in + d_out) + d",
        per_user_parameters="0",
        cold_start="itself",
        deviations=(
            "A is drawn within 1/sqrt(d_in), as PEFT does; the pass with the least validation NLL is kept "
            "(select='last' keeps the last, as published)"
        ),
        needs=frozenset({"backbone"}),
    )

    def whose(self) -> Mapping[str, str]:
        """Return that nothing is a person's own."""
        return {}

    def learn(self, lesson: Lesson) -> Factors:
        """Train the one adapter and the head."""
        return lesson.train(lesson.shared_start(), self.schedule)
