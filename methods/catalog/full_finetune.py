"""Full fine-tuning: the trunk itself and a scalar head are trained for everybody. What adapters are cheaper than.

r(x) = <w, pool(trunk(x))>,   every weight of the trunk (from the first of `adapt_layers` on) and w [d] shared
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datasets_registry.errors import RequestError
from methods.backbone.method import BackboneMethod
from methods.interface import MethodSpec
from methods.registry import register

if TYPE_CHECKING:
    from methods.backbone.lesson import Lesson
    from methods.backbone.training import Factors


@register
@dataclass(kw_only=True, eq=False, repr=False)
class FullFinetune(BackboneMethod):
    """Adapters' options (rank, alpha, init_scale, targets) have no effect here."""

    spec = MethodSpec(
        name="full-finetune",
        title="Full fine-tuning for everybody",
        level="backbone",
        adaptation="none",
        citation="Ouyang et al. 2022 (arXiv 2203.02155), reward model",
        equation="r(x) = <w, pool(trunk(x))>, all weights trained and shared",
        shared_parameters="all of the trunk + d",
        per_user_parameters="0",
        cold_start="itself",
        deviations="the pass with the least validation NLL is kept; adapt_layers trains the last layers only",
        needs=frozenset({"backbone"}),
    )

    def check(self) -> None:
        """Raise RequestError for an option out of range; bfloat16 weights would round most steps away."""
        super().check()
        if self.dtype != "float32":
            raise RequestError(
                f"full-finetune: dtype={self.dtype!r} would round most steps of the weights away; leave dtype out, and "
                "give checkpointing=true to save memory"
            )

    @property
    def adapters(self) -> bool:
        """Return False: the trunk itself is trained."""
        return False

    def whose(self) -> Mapping[str, str]:
        """Return that nothing is a person's own."""
        return {}

    def learn(self, lesson: Lesson) -> Factors:
        """Train the trunk and the head."""
        return lesson.train(lesson.shared_start(), self.schedule)
