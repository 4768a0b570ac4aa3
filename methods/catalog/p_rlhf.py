"""P-RLHF (arXiv 2402.05133): a soft prompt of a person's own before every text, and one for people nobody knows.

    individual:  e_u = e_0 + o_u              e_0 [T, d_e] shared, o_u [T, d_e] per user
    cluster:     e_u = softmax(w_u)^T E       E [C, T, d_e] shared, w_u [C] per user, e_0 = softmax(w_0)^T E, w_0 shared
    r_u(x) = <w, pool(trunk(BOS, e_u, x))>,   W0 x + (alpha / r) B A x, A [r, d_in], B [r, d_out] and w [d] shared

Loss: own_loss * L(e_u) + (1 - own_loss) * L(e_0), every comparison being asked of its person and of the generic one;
L = -log sigmoid(r(chosen) - r(rejected)). `own_loss` is the paper's alpha; `alpha` here is that of the adapters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from datasets_registry.records import Float32
from methods.backbone.method import BackboneMethod
from methods.backbone.soft_prompt import SoftPrompt
from methods.interface import MethodSpec
from methods.limits import SHARE, Limits, one_of, whole
from methods.registry import register

if TYPE_CHECKING:
    from methods.backbone.lesson import Lesson
    from methods.backbone.training import Factors


@register
@dataclass(kw_only=True, eq=False, repr=False)
class PRlhf(BackboneMethod):
    """Options: `user_model`, `tokens` T of a prompt, `clusters` C, `own_loss`, and `adaptation` of new people.

    `adaptation`: "none" serves new people with e_0 whatever they said; "tune" fits their o_u or w_u to it, beginning
    at the generic person, in `adapt_steps` steps with all else frozen. `adapt_layers` must stay None.
    """

    rank: int = 8
    alpha: float = 16.0
    epochs: float = 2
    batch: int = 32
    user_model: Literal["individual", "cluster"] = "individual"
    tokens: int = 10
    clusters: int = 10
    own_loss: float = 0.5
    adaptation: Literal["none", "tune"] = "none"

    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "user_model": ("individual", "cluster"),
        "tokens": (1, 10),
        "own_loss": (0.5, 0.8),
        "lr_own": (None, 0.01),
    }
    spec = MethodSpec(
        name="p-rlhf",
        title="P-RLHF: a soft prompt per person",
        level="backbone",
        adaptation="lookup",
        citation="Li et al. 2024 (arXiv 2402.05133), public code HumainLab/Personalized_RLHF",
        equation=(
            "r_u(x) = <w, pool(trunk(BOS, e_u, x))>, e_u = e_0 + o_u [T, d_e], or softmax(w_u)^T E with E [C, T, d_e]"
        ),
        shared_parameters="L r (d_in + d_out) + d + T d_e; cluster: C T d_e + C in the place of T d_e",
        per_user_parameters="T d_e; cluster: C",
        cold_start="the generic prompt e_0, whatever was said; adaptation=tune: fitted from there",
        deviations=(
            "the loss is Bradley-Terry on a scalar head, not DPO of a policy; o_u begins at 0 (published: at vectors "
            "of random words, which puts everybody far from e_0, the only prompt that new people get) and w_0 at equal "
            "weights (published: drawn, as w_u is); rates fall linearly without warm-up, no dropout, query and value "
            "projections alone are adapted; no demographic text; a mean over tokens leaves soft ones out; "
            "adaptation='tune' is an extension; the pass with the least validation NLL is kept"
        ),
        needs=frozenset({"backbone"}),
    )

    @property
    def soft(self) -> SoftPrompt:
        """Return the prompt that the user model gives."""
        return SoftPrompt(self.tokens, self.clusters if self.user_model == "cluster" else None)

    def whose(self) -> Mapping[str, str]:
        """Return that people have a part of the prompt."""
        return {"prompt": "user"}

    def learn(self, lesson: Lesson) -> Factors:
        """Train prompts, adapters and head together."""
        # prompts that differ can part people from the first step on; weights that are alike hardly can
        drawn = "independent" if self.user_model == "cluster" else "copied"
        begun = lesson.personal(lesson.shared_start(), drawn)
        return lesson.train(begun, replace(self.schedule, own_share=self.own_loss))

    def new_person(self, factors: Factors) -> Float32:
        """Return the own part of the generic person, float32 [P]: zeros, or w_0."""
        return self.soft.generic_row(factors.shared).cpu().numpy()

    @property
    def fits_new_people(self) -> bool:
        """Return whether new people's own part is fitted, which the paper does not do."""
        return self.adaptation == "tune" and self.adapt_steps > 0

    def limits(self) -> Limits:
        """Return by option what is allowed."""
        return {
            **super().limits(),
            "user_model": one_of("individual", "cluster"),
            "adaptation": one_of("none", "tune"),
            "tokens": whole(),
            "clusters": whole(),
            "own_loss": SHARE,
        }
