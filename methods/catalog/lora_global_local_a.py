"""LoRA-global, then a person's own A: the shared adapter is trained first, then A_u from there with all else frozen.

    stage 1: W0 x + (alpha / r) B A x;   stage 2: W0 x + (alpha / r) B A_u x,   A_u [r, d_in] per user, B and w frozen

The two-stage baseline of P-ShareLoRA (arXiv 2503.19201), in which people never shape what is shared together with what
is their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from methods.backbone.method import BackboneMethod
from methods.interface import MethodSpec
from methods.limits import Limits, number, or_none
from methods.registry import register

if TYPE_CHECKING:
    from methods.backbone.lesson import Lesson
    from methods.backbone.training import Factors


@register
@dataclass(kw_only=True, eq=False, repr=False)
class LoraGlobalLocalA(BackboneMethod):
    """Two stages; `local_epochs` passes in the second (None: as many as in the first)."""

    local_epochs: float | None = None

    spec = MethodSpec(
        name="lora-global+local-a",
        title="One LoRA adapter, then everybody's own A",
        level="backbone",
        adaptation="gradient",
        citation="Baseline of P-ShareLoRA, arXiv 2503.19201 (AISTATS 2025)",
        equation="W0 x + (alpha/r) B A_u x, B and w frozen after a global run, A_u begun from its A",
        shared_parameters="L r (d_in + d_out) + d",
        per_user_parameters="L r d_in",
        cold_start="the mean of seen people's A",
        deviations=(
            "the pass with the least validation NLL is kept in each stage; new people are fitted like seen ones; with "
            "local_epochs=None both stages have the steps of the schedule, twice those of other methods in all"
        ),
        needs=frozenset({"backbone"}),
    )

    def limits(self) -> Limits:
        """Return by option what is allowed."""
        return {**super().limits(), "local_epochs": or_none(number())}

    def whose(self) -> Mapping[str, str]:
        """Return that A is a person's own."""
        return {"a": "user"}

    def learn(self, lesson: Lesson) -> Factors:
        """Train the shared adapter, hand everybody its A, and train those alone."""
        everybody = lesson.train(lesson.shared_start(), self.schedule, "global")
        own = lesson.personal(everybody, "copied")
        epochs, steps = (self.epochs, self.min_steps) if self.local_epochs is None else (self.local_epochs, 0)
        return lesson.train(own, replace(self.schedule, epochs=epochs, min_steps=steps, trained=frozenset()), "local A")
