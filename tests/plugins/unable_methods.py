"""Methods that cannot serve everything they are asked: a transductive one, and some that are unable in other places."""

import numpy as np

from datasets_registry.errors import UnableError
from methods.interface import Histories, LinearMethod, MethodSpec, stack, unstack

WHY = "by-neighbours serves a person through items that seen people compared, and here nobody met one"


def spec(name, **changes):
    told = {
        "name": name,
        "title": name,
        "level": "feature",
        "adaptation": "in-context",
        "citation": "none",
        "equation": "theta_u = sum_v a_uv theta_v",
        "shared_parameters": "n d",
        "per_user_parameters": "d",
        "cold_start": "the mean of everybody",
        "deviations": "none",
        **changes,
    }
    return MethodSpec(**told)


class ByNeighbours(LinearMethod):
    """theta_u is the mean of seen people's, weighted by how they agree on the comparisons whose items both met."""

    spec = spec("by-neighbours", transductive=True)

    def fit(self, train, val, world, budget):
        self.world = world
        self.known_ = np.zeros(len(world.items), bool)
        self.known_[train.first] = self.known_[train.second] = True
        signed = world.differences(train) * (2 * train.label - 1)[:, None]
        people, at = np.unique(train.user, return_inverse=True)
        self.own_ = np.zeros((len(people), signed.shape[1]), np.float32)
        np.add.at(self.own_, at, signed)
        self.own_ /= np.bincount(at)[:, None]

    def adapt(self, users, history, budget):
        table = Histories.of(history).table
        known = self.known_[table.first] & self.known_[table.second]
        if len(table) and not known.any():
            raise UnableError(WHY)
        table = table.take(known)
        signed = self.world.differences(table) * (2 * table.label - 1)[:, None]
        agree = np.zeros((len(users), len(self.own_)), np.float32)
        np.add.at(agree, table.user, np.log1p(np.exp(-np.abs(signed @ self.own_.T))) * np.sign(signed @ self.own_.T))
        weight = np.exp(agree - agree.max(axis=1, keepdims=True))
        return unstack(theta=(weight / weight.sum(axis=1, keepdims=True) @ self.own_).astype(np.float32))

    def weights(self, states):
        return stack(states, "theta")


class Unfit(ByNeighbours):
    """Can learn nothing from such data."""

    spec = spec("unfit")

    def fit(self, train, val, world, budget):
        raise UnableError("unfit needs ratings, and these are comparisons\nask it elsewhere")


class NoMargins(ByNeighbours):
    """Can adapt to anybody, and answer only for those who said something."""

    spec = spec("no-margins")

    def adapt(self, users, history, budget):
        states = super().adapt(users, history, budget)
        self.silent = not len(Histories.of(history).table)
        return states

    def margins(self, states, queries):
        if self.silent:
            raise UnableError("no-margins needs a history")
        return super().margins(states, queries)


class WrongUserOnly(ByNeighbours):
    """Answers with one's own state, and not with another's."""

    spec = spec("wrong-user-only")
    asked = 0

    def margins(self, states, queries):
        self.asked += 1
        if self.asked > 2:
            raise UnableError("")
        return super().margins(states, queries)


class Mute(ByNeighbours):
    """Can adapt to nobody."""

    spec = spec("mute")

    def adapt(self, users, history, budget):
        raise UnableError("mute\x1b[31m serves nobody")
