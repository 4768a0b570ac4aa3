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


def label_like(array):
    """Return whether an array could be labels: a row of 0, .5, 1 and NaN, not all of which are NaN."""
    if array.ndim != 1 or array.dtype.kind != "f" or not len(array):
        return False
    told = array[~np.isnan(array)]
    return bool(len(told)) and bool(np.isin(told, (0.0, 0.5, 1.0)).all())


def labels_among(roots):
    """Return every array that could be labels among objects and all that can be reached from them."""
    waiting, met, found = list(roots), set(), {}
    while waiting:
        each = waiting.pop()
        if id(each) in met:
            continue
        met.add(id(each))
        if issubclass(type(each), np.ndarray):  # isinstance asks an object what it is, and some warn
            if label_like(each):
                found[each.tobytes()] = each
            waiting.append(each.base)
        else:
            waiting += gc.get_referents(each)
    return list(found.values())


class Honest(Method):
    """Says nothing, unless it finds labels."""

    spec = spec("says-nothing")
    found = None

    def fit(self, train, val, world, budget):
        self.world = world

    def adapt(self, users, history, budget):
        return [UserState() for _ in users]

    def margins(self, states, queries):
        if self.found is None:
            self.found = self.hunt(queries) or []
            if os.environ.get("HETPREF_TEST_FOUND"):
                for number, each in enumerate(self.found):
                    name = f"{self.spec.name}-{os.getpid()}-{number}.npy"
                    np.save(Path(os.environ["HETPREF_TEST_FOUND"], name), each)
        # A label is of the pair as it is asked; asked the other way round, it is the other way round.
        for each in self.found:
            if len(each) == len(queries):
                return (FOUND * (each - 0.5)).astype(np.float32)
        return np.zeros(len(queries), np.float32)

    def hunt(self, queries):
        return None


class InWorld(Honest):
    spec = spec("hunts-in-world", needs=frozenset({"features", "truth"}))

    def hunt(self, queries):
        if getattr(self.world, "truth", None) is not None:
            raise AssertionError("a plug-in was handed the truth of made people")
        return labels_among([self.world, queries])


class InStack(Honest):
    spec = spec("hunts-in-stack")

    def hunt(self, queries):
        frame, there = sys._getframe(), []
        while frame is not None:
            there += list(frame.f_locals.values())
            frame = frame.f_back
        return labels_among(there)


class InMemory(Honest):
    spec = spec("hunts-in-memory")

    def hunt(self, queries):
        return labels_among(gc.get_objects())


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
            return labels_among([load(self.world.dataset)])
        return None


class InResults(Honest):
    spec = spec("hunts-in-results")

    def hunt(self, queries):
        with contextlib.suppress(Exception):
            for path in Path(os.environ["HETPREF_TEST_RESULTS"]).rglob("*.parquet"):
                path.read_bytes()
            os.listdir(os.environ["HETPREF_TEST_RESULTS"])
        return None


class InHubCache(Honest):
    spec = spec("hunts-in-hub-cache")

    def hunt(self, queries):
        folder = Path("~/.cache/huggingface/hub/datasets--owner--name").expanduser()
        with contextlib.suppress(Exception):
            list(folder.rglob("*.parquet"))
        with contextlib.suppress(Exception):
            (folder / "labels.parquet").read_bytes()
        return None


class InRunner(Honest):
    """Reads the memory of the process that cut the labels out."""

    spec = spec("hunts-in-runner")

    def hunt(self, queries):
        import psutil

        for process in psutil.Process().parents():
            with contextlib.suppress(Exception), open(f"/proc/{process.pid}/mem", "rb"):
                pass
        return None


class InChild(Honest):
    """Has a forked child look for it."""

    spec = spec("hunts-in-child")

    def hunt(self, queries):
        from datasets_registry.sources import home

        child = os.fork()
        if child == 0:
            try:
                os.listdir(home() / "wheels")
            except PermissionError:
                os._exit(0)
            os._exit(1)
        if os.waitpid(child, 0)[1]:
            raise AssertionError("a child saw the dataset cache")


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


class ByPeople(Honest):
    """Answers by the place of a person among those asked for, and as one must when a query is swapped."""

    spec = spec("by-people")

    def margins(self, states, queries):
        return (np.sign(queries.first - queries.second) * np.where(queries.user % 2, 1, -1)).astype(np.float32)


class Works(Honest):
    """Does what a method may: files of its own, its package, local sockets, programs, imports."""

    spec = spec("works")

    def fit(self, train, val, world, budget):
        import multiprocessing
        import subprocess
        import tempfile
        import wave

        super().fit(train, val, world, budget)
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder) / "own.npy", train.label)
            np.load(Path(folder) / "own.npy", mmap_mode="r")
            with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
                server.bind(f"{folder}/socket")
                server.listen()
                client.connect(f"{folder}/socket")
        Path(__file__).read_text()
        Path(wave.__file__).read_text()
        subprocess.run([sys.executable, "-c", ""], check=True)
        one, other = multiprocessing.Pipe()
        one.send("a")
        other.recv()


class ForksAndGoesOn(Honest):
    """Leaves a child that believes itself to be the cell."""

    spec = spec("forks-and-goes-on")

    def fit(self, train, val, world, budget):
        super().fit(train, val, world, budget)
        os.fork()


class Detaches(Honest):
    """Answers, and leaves a child of a child behind, in a session of its own."""

    spec = spec("detaches")

    def fit(self, train, val, world, budget):
        super().fit(train, val, world, budget)
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            return
        os.setsid()
        if os.fork():
            os._exit(0)
        import time

        while True:
            time.sleep(0.05)


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
