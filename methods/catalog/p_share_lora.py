"""P-ShareLoRA (arXiv 2503.19201): low-rank adaptation in the aggregated parameter space of all people, learned jointly.

    r_u(x) = <w, pool(trunk(x))>,   each adapted layer W0 x + (alpha / r) B (A_u x)
    A_u [r, d_in] per user, B [r, d_out] (zero at first) and w [d] shared; rank-major

Loss: -log sigmoid(r_u(chosen) - r_u(rejected)) over mixed batches of all people. `share`="A" makes B_u a person's own
instead; `core` puts a person's own matrix or diagonal between two shared factors: B K_u A, B diag(s_u) A. `init`:
"independent" A_u, one draw "copied" to everybody, or "warmup", the A and B of a short global run, A copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from datasets_registry.errors import RequestError, unknown
from methods.backbone.method import BackboneMethod
from methods.interface import MethodSpec
from methods.limits import SHARE, Limit, Limits
from methods.registry import register

if TYPE_CHECKING:
    from methods.backbone.lesson import Lesson
    from methods.backbone.training import Factors

INITS = ("independent", "copied", "warmup")
SHARES = ("B", "A")
CORES = ("none", "kernel", "diagonal")


@register
@dataclass(kw_only=True, eq=False, repr=False)
class PShareLora(BackboneMethod):
    """Options: `init`, `share`, `core`, and `warmup`, the share of the steps that a warm-up takes."""

    init: Literal["independent", "copied", "warmup"] = "independent"
    share: Literal["B", "A"] = "B"
    core: Literal["none", "kernel", "diagonal"] = "none"
    warmup: float = 0.15

    spec = MethodSpec(
        name="p-share-lora",
        title="P-ShareLoRA: one factor shared, one per person",
        level="backbone",
        adaptation="gradient",
        citation="P-ShareLoRA, arXiv 2503.19201 (AISTATS 2025)",
        equation="W0 x + (alpha/r) B A_u x, B [r, d_out] shared, A_u [r, d_in] per user; r_u(x) = <w, pool(h)>",
        shared_parameters="L r d_out + d",
        per_user_parameters="L r d_in; share=A: L r d_out; core=kernel: L r^2; core=diagonal: L r",
        cold_start="the mean of seen people's own factors",
        deviations=(
            "every variant draws A within 1/sqrt(d_in) (the published variants' bounds differ 64-fold); new people are "
            "fitted with the shared factors frozen, which the paper does not describe; lr_own, lr_head, user_balanced "
            "and core are extensions; the pass with the least validation NLL is kept"
        ),
        needs=frozenset({"backbone"}),
    )

    def limits(self) -> Limits:
        """Return by option what is allowed."""
        return {**super().limits(), "warmup": Limit(SHARE.allows, "a share of the steps, 0 to 1")}

    def check(self) -> None:
        """Raise RequestError for an option out of range, or for two that contradict each other."""
        super().check()
        for name, given, allowed in (
            ("init", self.init, INITS),
            ("share", self.share, SHARES),
            ("core", self.core, CORES),
        ):
            if given not in allowed:
                raise unknown(f"{name} of p-share-lora", str(given), allowed)
        if self.core != "none" and self.share != "B":
            raise RequestError(
                f"p-share-lora: core={self.core!r} shares both A and B, so share={self.share!r} says nothing; leave "
                "one of the two out"
            )
        if self.start is not None and self.init == "independent":
            raise RequestError(
                "p-share-lora: init='independent' draws anew what start brings; give init='copied' or init='warmup'"
            )

    def whose(self) -> Mapping[str, str]:
        """Return what `share` and `core` make a person's own."""
        if self.core != "none":
            return {"core": self.core}
        return {"a" if self.share == "B" else "b": "user"}

    def learn(self, lesson: Lesson) -> Factors:
        """Train everybody's own factors and the shared ones together, after a global run where `init` asks for one."""
        start, schedule = lesson.shared_start(), self.schedule
        if self.init == "warmup":
            start = lesson.train(start, schedule.part(self.warmup), "warm-up")
            schedule = schedule.part(1 - self.warmup)
        drawn = "independent" if self.init == "independent" else "copied"
        return lesson.train(lesson.personal(start, drawn), schedule)
