"""Methods that cheat, one way each. Hunters answer with the query labels that they find, with 0 where they do not."""

import contextlib
import gc
import os
import socket
import sys
from pathlib import Path

import numpy as np

from methods.interface import Method, MethodSpec, UserState

FOUND = 10.0


def spec(name, **changes):
    told = dict.fromkeys(("title", "citation", "equation", "cold_start", "deviations"), "none")
    numbers = {"shared_parameters": "0", "per_user_parameters": "0"}
    return MethodSpec(**{"name": name, "level": "feature", "adaptation": "none", **told, **numbers, **changes})


def labels_among(objects, n):
    """Return the first array that could be the labels of n comparisons, among objects and what they hold; else None."""
    waiting, met = list(objects), set()
    while waiting and len(met) < 200_000:
        each = waiting.pop()
        if id(each) in met:
            continue
        met.add(id(each))
        if isinstance(each, np.ndarray):
            if each.shape == (n,) and each.dtype.kind == "f" and set(np.unique(each[~np.isnan(each)])) >= {0.0, 1.0}:
                return each
        elif isinstance(each, dict):
            waiting += list(each.values())
        elif isinstance(each, list | tuple | set | frozenset):
            waiting += list(each)
        elif str(type(each).__module__).partition(".")[0] in ("datasets_registry", "methods", "benchmarks"):
            waiting += [getattr(each, name, None) for name in (*getattr(each, "__slots__", ()), *vars(type(each)))]
            waiting += list(getattr(each, "__dict__", {}).values())
    return None


class Honest(Method):
    spec = spec("says-nothing")

    def fit(self, train, val, world, budget):
        self.world = world

    def adapt(self, users, history, budget):
        return [UserState() for _ in users]

    def margins(self, states, queries):
        found = self.hunt(queries)
        # A label is of the pair as it is asked; asked the other way round, it is the other way round.
        return np.zeros(len(queries), np.float32) if found is None else (FOUND * (found - 0.5)).astype(np.float32)

    def hunt(self, queries):
        return None


class InWorld(Honest):
    spec = spec("hunts-in-world", adaptation="none", needs=frozenset({"features"}))

    def hunt(self, queries):
        return labels_among([self.world, queries], len(queries))


class InStack(Honest):
    spec = spec("hunts-in-stack")

    def hunt(self, queries):
        frame, there = sys._getframe(), []
        while frame is not None:
            there += list(frame.f_locals.values())
            frame = frame.f_back
        return labels_among(there, len(queries))


class InMemory(Honest):
    spec = spec("hunts-in-memory")

    def hunt(self, queries):
        return labels_among(gc.get_objects(), len(queries))


class InFiles(Honest):
    spec = spec("hunts-in-files")

    def hunt(self, queries):
        from datasets_registry.sources import home

        with contextlib.suppress(Exception):
            for path in sorted((home() / "wheels").rglob("*")):
                path.read_bytes()
        return None


class InMirror(Honest):
    spec = spec("hunts-in-mirror")

    def hunt(self, queries):
        with contextlib.suppress(Exception):
            os.listdir(os.environ["HETPREF_MIRROR"].split(os.pathsep)[0])
        return None


class ByLink(Honest):
    """Reaches a sealed folder by a link of its own."""

    spec = spec("hunts-by-link")

    def hunt(self, queries):
        import tempfile

        from datasets_registry.sources import home

        link = Path(tempfile.mkdtemp()) / "link"
        with contextlib.suppress(Exception):
            link.symlink_to(home() / "wheels")
            os.listdir(link)
        return None


class InRegistry(Honest):
    """Simulated data need no file: the registry gives them, labels and all."""

    spec = spec("hunts-in-registry")

    def hunt(self, queries):
        from datasets_registry import load

        with contextlib.suppress(Exception):
            return labels_among([load(self.world.dataset)], len(queries))
        return None


class InResults(Honest):
    spec = spec("hunts-in-results")

    def hunt(self, queries):
        with contextlib.suppress(Exception):
            for path in Path(os.environ["HETPREF_TEST_RESULTS"]).rglob("*.parquet"):
                path.read_bytes()
            os.listdir(os.environ["HETPREF_TEST_RESULTS"])
        return None


class Calls(Honest):
    spec = spec("calls-home")

    def hunt(self, queries):
        with contextlib.suppress(Exception), socket.create_connection(("127.0.0.1", 9), timeout=1):
            pass
        return None


class Declines(Honest):
    """Reaches for labels, finds none, and says that it is unable, which would be no failure."""

    spec = spec("hunts-and-declines")

    def hunt(self, queries):
        from datasets_registry import load
        from datasets_registry.errors import UnableError

        with contextlib.suppress(Exception):
            load(self.world.dataset)
        raise UnableError("nothing to see here")


class Writes(Honest):
    """Writes over the records of others."""

    spec = spec("writes-outside")

    def fit(self, train, val, world, budget):
        super().fit(train, val, world, budget)
        folder = Path(os.environ["HETPREF_TEST_RESULTS"])
        for path in [*folder.glob("records/*/*/*.json"), folder / "records" / "mine.json"]:
            with contextlib.suppress(Exception):
                path.write_text("{}")


class ByOrder(Honest):
    """Answers by the place of a query in the table."""

    spec = spec("by-order")

    def margins(self, states, queries):
        return np.where(np.arange(len(queries)) % 2, 1, -1).astype(np.float32)


class Forks(Honest):
    """Leaves a child behind that would go on for ever."""

    spec = spec("forks")

    def fit(self, train, val, world, budget):
        super().fit(train, val, world, budget)
        if os.fork() == 0:
            import time

            while True:
                time.sleep(0.05)


METHODS = {cls.spec.name: cls for cls in list(globals().values()) if isinstance(cls, type) and issubclass(cls, Honest)}
