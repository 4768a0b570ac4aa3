"""A method fitted on a stage of the conformance suite, as many tests begin."""

from methods.conformance import BUDGET
from methods.registry import create


def fitted(name, stage, **config):
    method = create(name, **config)
    method.fit(stage.train, stage.val, stage.world, BUDGET)
    return method
