"""`--lm`: the language model that the prompt methods of a run ask."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.suites import MethodPlan, Suite
from datasets_registry.errors import RequestError


def answered_by(suite: Suite, chosen: Sequence[str] | None, lm: str | None) -> Suite:
    """Return a suite whose prompt methods, and those of `chosen` that it lacks, ask the language model `lm`.

    Entries that differed in their language model alone become one. None leaves the suite as it is. Raises RequestError
    for a name that is no language model's, an unknown method, and where no method asks one.
    """
    if lm is None:
        return suite
    from methods.prompt.language_models import must_be_a_language_model
    from methods.registry import find

    must_be_a_language_model(lm)
    known = {plan.name for plan in suite.methods}
    more = [MethodPlan(name, {}) for name in chosen or () if name not in known]
    plans: dict[tuple[str, str], MethodPlan] = {}
    asks = False
    for plan in (*suite.methods, *more):
        # a method that is not run may be a plug-in that cannot be had
        wanted = chosen is None or plan.name in chosen
        if wanted and find(plan.name).spec.level == "prompt":
            plan, asks = MethodPlan(plan.name, {**plan.config, "lm": lm}), True
        plans.setdefault((plan.name, json.dumps(plan.config, sort_keys=True)), plan)
    if not asks:
        raise RequestError(
            f"--lm {lm}: no method of this run asks a language model; add one, for example --methods in-context"
        )
    return replace(suite, methods=tuple(plans.values()))
