"""Methods that misbehave, one way each: the harness must turn every one into a record and go on."""

import os
import signal
import subprocess
import sys
import time

import numpy as np

from methods.interface import Method, MethodSpec, UserState


def spec(name, **changes):
    told = {
        "name": name,
        "title": "misbehaves",
        "level": "feature",
        "adaptation": "none",
        "citation": "none",
        "equation": "none",
        "shared_parameters": "0",
        "per_user_parameters": "0",
        "cold_start": "none",
        "deviations": "none",
        **changes,
    }
    return MethodSpec(**told)


class Zero(Method):
    """Well-behaved: every margin is zero."""

    spec = spec("zero")

    def fit(self, train, val, world, budget):
        self.world = world

    def adapt(self, users, history, budget):
        return [UserState() for _ in users]

    def margins(self, states, queries):
        return np.zeros(len(queries), np.float32)


class Raises(Zero):
    spec = spec("raises")

    def fit(self, train, val, world, budget):
        raise ArithmeticError("the matrix was tired")


class Hangs(Zero):
    spec = spec("hangs")

    def fit(self, train, val, world, budget):
        while True:
            time.sleep(0.01)


class Exits(Zero):
    spec = spec("exits")

    def fit(self, train, val, world, budget):
        os._exit(7)


class Crashes(Zero):
    spec = spec("crashes")

    def fit(self, train, val, world, budget):
        print("last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)


class Hoards(Zero):
    """Allocates without end."""

    spec = spec("hoards")

    def fit(self, train, val, world, budget):
        kept = []
        while True:
            kept.append(np.ones(1 << 20))


class NotANumber(Zero):
    spec = spec("not-a-number")

    def margins(self, states, queries):
        return np.full(len(queries), np.nan, np.float32)


class WrongShape(Zero):
    spec = spec("wrong-shape")

    def margins(self, states, queries):
        return np.zeros((len(queries), 2), np.float32)


class NoStates(Zero):
    spec = spec("no-states")

    def adapt(self, users, history, budget):
        return []


class Prints(Zero):
    """Prints garbage on both streams and then works."""

    spec = spec("prints")

    def fit(self, train, val, world, budget):
        super().fit(train, val, world, budget)
        os.write(1, b"\xff\x00garbage" * 1000)
        print("more", "x" * 100_000)


class Forks(Zero):
    """Leaves a child that would outlive the cell."""

    spec = spec("forks")

    def fit(self, train, val, world, budget):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        print(f"child {child.pid}", file=sys.stderr, flush=True)
        raise RuntimeError(f"child {child.pid}")


class AlwaysFirst(Zero):
    """Prefers `first` whatever it is."""

    spec = spec("always-first")

    def margins(self, states, queries):
        return np.ones(len(queries), np.float32)


class Peeks(Zero):
    """Looks for labels in what it is handed."""

    spec = spec("peeks")

    def margins(self, states, queries):
        if not np.isnan(queries.label).all():
            raise AssertionError("a query label was visible")
        return np.zeros(len(queries), np.float32)


class OneSided(Zero):
    """A pairwise judge that prefers what it reads first."""

    spec = spec("one-sided", scoring="pairwise")

    def margins(self, states, queries):
        return np.ones(len(queries), np.float32)


class KillsTheServer(Zero):
    """Ends the process that started it, on which its neighbours depend."""

    spec = spec("kills-the-server")

    def fit(self, train, val, world, budget):
        time.sleep(0.3)
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(5)


class Slow(Zero):
    """Takes a second."""

    spec = spec("slow")

    def fit(self, train, val, world, budget):
        super().fit(train, val, world, budget)
        time.sleep(1)


class Detaches(Zero):
    """Leaves a child in a session of its own, and hangs."""

    spec = spec("detaches")

    def fit(self, train, val, world, budget):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
        print(f"child {child.pid}", file=sys.stderr, flush=True)
        time.sleep(60)
