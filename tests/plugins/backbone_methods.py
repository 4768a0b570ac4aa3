"""Methods that train inside a text model by their spec, and tell what they were given: the run's plumbing is tested."""

import resource

import numpy as np

from methods.interface import Method, MethodSpec, UserState

GIB = 1 << 30


def spec(name, **changes):
    told = {
        "name": name,
        "title": "tells what it was given",
        "level": "backbone",
        "adaptation": "none",
        "citation": "none",
        "equation": "none",
        "shared_parameters": "0",
        "per_user_parameters": "0",
        "cold_start": "none",
        "deviations": "none",
        "needs": frozenset({"backbone"}),
        **changes,
    }
    return MethodSpec(**told)


class Told(Method):
    """Margins are all zero; learned are 1,000 comparisons, and an estimate is 2 GiB and a MiB per person."""

    spec = spec("told+inside")

    def __init__(self, *, depth=1, core="full"):
        self.depth = depth
        self.core = core

    def fit(self, train, val, world, budget):
        self.world, self.device = world, budget.device

    def adapt(self, users, history, budget):
        assert budget.device == self.device
        return [UserState() for _ in users]

    def margins(self, states, queries):
        return np.zeros(len(queries), np.float32)

    @property
    def comparisons_trained(self):
        return 1000

    def memory_estimate(self, encoder, n_users):
        return {"weights": 2 * GIB * self.depth, "own factors": n_users << 20}


class Says(Told):
    """Fails with what it was given, so that a test can read it."""

    def fit(self, train, val, world, budget):
        limited = resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY
        given = world.encoder, world.features is not None, budget.device, limited
        raise ValueError(f"given {given}")


class SaysFeatures(Says):
    spec = spec("says-features", needs=frozenset({"features"}))


class SaysNothing(Says):
    spec = spec("says-nothing", needs=frozenset())


class Miscounts(Told):
    @property
    def comparisons_trained(self):
        return -1


class Untold(Told):
    comparisons_trained = None


class OnDevice(Told):
    """Holds 4 MiB on its device."""

    def fit(self, train, val, world, budget):
        import torch

        super().fit(train, val, world, budget)
        self.held = torch.zeros(1 << 20, device=budget.device)
