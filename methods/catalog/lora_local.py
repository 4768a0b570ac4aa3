"""LoRA-local: one adapter and one head per person, learned from that person's comparisons alone.

    r_u(x) = <w_u, pool(trunk(x))>,   each adapted layer W0 x + (alpha / r) B_u A_u x,   A_u [r, d_in], B_u [r, d_out]

Nothing is shared but the frozen trunk. All people are trained in the same mixed batches; as every row has moments and a
step count of its own, each takes the path that a fit alone on the same steps would take.
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
class LoraLocal(BackboneMethod):
    """Everything a person's own; each A is drawn for its person, B is zero, the head begins as `head_init` says."""

    spec = MethodSpec(
        name="lora-local",
        title="One LoRA adapter per person",
        level="backbone",
        adaptation="gradient",
        citation="Baseline of P-ShareLoRA, arXiv 2503.19201 (AISTATS 2025)",
        equation="W0 x + (alpha/r) B_u A_u x; r_u(x) = <w_u, pool(h)>, everything per user",
        shared_parameters="0",
        per_user_parameters="L r (d_in + d_out) + d",
        cold_start="the mean of each factor over seen people; their A being independent, nearly the frozen trunk",
        deviations=(
            "people are trained in mixed batches, each row with AdamW moments of its own; a new person begins at the "
            "mean of each factor, since the paper has no new people; the head is a person's own, too, and begins as "
            "head_init says (with 'probe' it begins from everybody's comparisons)"
        ),
        needs=frozenset({"backbone"}),
    )

    def whose(self) -> Mapping[str, str]:
        """Return that everything is a person's own."""
        return {"a": "user", "b": "user", "head": "user"}

    def learn(self, lesson: Lesson) -> Factors:
        """Train everybody's adapter on their own comparisons; one that was given as `start` is everybody's first."""
        drawn = "independent" if self.start is None else "copied"
        return lesson.train(lesson.personal(lesson.shared_start(), drawn), self.schedule)
