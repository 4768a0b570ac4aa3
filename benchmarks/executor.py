"""Runs payloads in processes of their own, side by side, each with a time limit and a memory limit.

A fork server with torch and the packages preloaded starts a process in tens of milliseconds. Whatever happens inside
(an exception, a signal, a hang, no memory) comes back as an `Outcome`; nothing it does reaches the others.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing as mp
import os
import pickle
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Generic, TypeVar

import psutil

from benchmarks.cell_process import Answer, Payload, reason
from benchmarks.tripwire import Models, Tripwire
from datasets_registry.errors import UnableError, printable
from leaderboard.records import Status

T = TypeVar("T")
_POLL_S = 0.1
_STDERR_LINES = 12
_MESSAGE_CHARACTERS = 2000
DONE: tuple[Status, ...] = ("ok", "skipped")  # what is not run again, and no failure
_SERVER_LOST = 255  # what multiprocessing says of a process whose fork server is gone
_ROUNDS = 20  # of ending what a cell started, which may start more in the meantime


@dataclass(frozen=True, slots=True)
class Limits:
    """What one cell may use: wall seconds, and resident bytes above its start."""

    seconds: float
    memory_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """How a cell ended: an answer, or a status and the reason; "skipped" where the method can answer nothing."""

    status: Status
    answer: Answer | None = None
    reason: str | None = None

    @property
    def headline(self) -> str:
        """Return the first line of the reason, or nothing."""
        return first_line(self.reason, _MESSAGE_CHARACTERS)

    @property
    def failed(self) -> bool:
        """Return whether the cell gave nothing that it should have given."""
        return self.status not in DONE

    def of(self, title: str) -> tuple[Status, str | None]:
        """Return how one question of the cell ended, and why it was not answered."""
        skipped = self.answer.skipped.get(title) if self.answer is not None else None
        return (self.status, self.reason) if skipped is None else ("skipped", skipped)


def first_line(reason: str | None, most: int = 160) -> str:
    r"""Return the beginning of the first line of a reason, for a person.

    >>> first_line("the matrix was tired\nTraceback")
    'the matrix was tired'
    """
    return (reason or "").partition("\n")[0][:most]


@dataclass(slots=True, eq=False)
class _Running(Generic[T]):
    ticket: T
    process: BaseProcess
    connection: Connection
    stderr: Path
    deadline: float
    limits: Limits
    build: Callable[[], Payload]
    alone: bool
    base_rss: int = 0


class LocalExecutor:
    """Up to `jobs` processes side by side on this machine; use as a context manager.

    `preload` names modules that the fork server imports besides its own; one that cannot be imported is left out.
    `results` is the folder that the run writes to, which no method may open.
    """

    def __init__(self, jobs: int, limits: Limits, preload: Sequence[str] = (), results: Path | None = None) -> None:
        self.jobs = jobs
        self.limits = limits
        self.results = results
        # One thread per cell, so that timings mean something: set before the fork server starts, which hands it on.
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = "1"
        # A library that asks whether there is a GPU must not wake its driver in the server: a process that is forked
        # from one that did cannot use it.
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        self._context = mp.get_context("forkserver")
        # This module is among them so that a cell does what the run that sent it does, though files are edited.
        self._context.set_forkserver_preload(["benchmarks.preload", "benchmarks.executor", *preload])
        self._running: list[_Running[object]] = []
        self._scratch = tempfile.TemporaryDirectory(prefix="hetpref-cells-")

    def __enter__(self) -> LocalExecutor:
        # Ctrl-C is for the run, which ends its cells: the server inherits that it is ignored, and prints no traceback.
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                forkserver.ensure_running()
            finally:
                signal.signal(signal.SIGINT, before)
        return self

    def __exit__(self, *_: object) -> None:
        for cell in self._running:
            _kill(cell.process)
        self._running.clear()
        self._scratch.cleanup()

    def run(self, tickets: Iterable[tuple[T, Callable[[], Payload]]]) -> Iterator[tuple[T, Outcome]]:
        """Yield an outcome per ticket as cells end; payloads are built only when their turn comes."""
        waiting = iter(tickets)
        running: list[_Running[T]] = []
        self._running = running  # type: ignore[assignment]
        suspects: list[tuple[T, Callable[[], Payload]]] = []
        exhausted = False
        while True:
            while len(running) < self.jobs and not any(c.alone for c in running):
                if suspects:
                    if not running:
                        self._start(running, *suspects.pop(0), alone=True)
                    break
                try:
                    self._start(running, *next(waiting))
                except StopIteration:
                    exhausted = True
                    break
            if exhausted and not running and not suspects:
                return
            wait([c.connection for c in running] + [c.process.sentinel for c in running], timeout=_POLL_S)
            for cell in list(running):
                outcome = self._outcome(cell)
                if outcome is None:
                    continue
                running.remove(cell)
                _kill(cell.process)
                cell.connection.close()
                cell.stderr.unlink(missing_ok=True)
                if cell.process.exitcode == _SERVER_LOST and outcome.answer is None and not cell.alone:
                    # one of those that ran took the fork server down: each is run again alone, to find which
                    suspects.append((cell.ticket, cell.build))
                else:
                    yield cell.ticket, outcome

    def _start(
        self, running: list[_Running[T]], ticket: T, build: Callable[[], Payload], *, alone: bool = False
    ) -> None:
        """Start a cell's process and add it to those that run."""
        receiver, sender = self._context.Pipe(duplex=False)
        handle, name = tempfile.mkstemp(dir=self._scratch.name, suffix=".err")
        os.close(handle)
        payload = build()
        # Ctrl-C waits until the process has its work and is among those that are ended: cut short, it would end with a
        # traceback of its own.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            work = _Work.of(payload, name, self.limits.memory_bytes, self.results)
            process = self._context.Process(target=_main, args=(work, sender), daemon=True, name="hetpref-cell")
            process.start()
            sender.close()
            deadline = time.monotonic() + self.limits.seconds
            running.append(_Running(ticket, process, receiver, Path(name), deadline, self.limits, build, alone))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _outcome(self, cell: _Running[T]) -> Outcome | None:
        if cell.connection.poll():
            try:
                kind = cell.connection.recv_bytes().decode()
                if kind == "ok":
                    return Outcome("ok", Answer.unpack(cell.connection.recv_bytes(), cell.connection.recv_bytes()))
                message = cell.connection.recv_bytes().decode(errors="replace")
                if kind == "unable":
                    return Outcome("skipped", reason=message)
                return Outcome("out_of_memory" if kind == "memory" else "failed", reason=_with_stderr(message, cell))
            except (EOFError, OSError, ValueError, KeyError) as why:
                if not isinstance(why, EOFError):
                    return Outcome("failed", reason=_with_stderr(f"the cell's answer cannot be read: {why}", cell))
        if cell.process.exitcode is not None:
            return Outcome("failed", reason=_with_stderr(_exit_words(cell.process.exitcode), cell))
        if time.monotonic() > cell.deadline:
            return Outcome("timeout", reason=_with_stderr(f"over the limit of {cell.limits.seconds:g} s", cell))
        used = _resident(cell.process.pid)
        cell.base_rss = cell.base_rss or used
        if used - cell.base_rss > cell.limits.memory_bytes:
            megabytes = cell.limits.memory_bytes >> 20
            told = f"out of memory: over the limit of {megabytes} MB"
            return Outcome("out_of_memory", reason=_with_stderr(told, cell))
        return None


@dataclass(slots=True, eq=False)
class _Work:
    """What a cell's process is sent. The payload is packed, so that the method's modules are imported when armed."""

    packed: bytes
    models: Models
    tripwire: Tripwire
    device: str
    stderr: str
    memory_bytes: int

    @classmethod
    def of(cls, payload: Payload, stderr: str, memory_bytes: int, results: Path | None) -> _Work:
        models = Models.of(payload.method, payload.config, payload.encoder)
        tripwire = Tripwire.around(models, results)
        packed = bytes(ForkingPickler.dumps(payload))
        return cls(packed, models, tripwire, payload.budget.device, stderr, memory_bytes)

    def unpack(self) -> Payload:
        """Return the payload, once."""
        packed, self.packed = self.packed, b""
        return pickle.loads(packed)  # as multiprocessing does with all that it sends


def _main(work: _Work, sender: Connection) -> None:
    """Run in the cell's process: be a session of its own, die with the parent, write only to the error file."""
    os.setsid()
    _die_with_parent()
    with open(work.stderr, "ab", buffering=0) as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    sys.stdout = open(1, "w", closefd=False, buffering=1, errors="replace")  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, buffering=1, errors="replace")  # noqa: SIM115
    cell = os.getpid()
    ending = _ending(work)
    if os.getpid() != cell:
        os._exit(0)  # a child that the method forked, and that went on as if it were the cell
    _end_children()
    for part in ending:
        sender.send_bytes(part)
    sender.close()


def _ending(work: _Work) -> tuple[bytes, ...]:
    """Return what is sent back: a word, and the answer or the reason why there is none."""
    from benchmarks.cell_process import answer

    tripwire = work.tripwire
    try:
        work.models.unpack()
        tripwire.arm()
        payload = work.unpack()
        # CUDA reserves address space by the size of its devices; there, what is resident is watched from outside alone.
        if not work.device.startswith("cuda"):
            _limit_memory(work.memory_bytes)
        ending = (b"ok", *answer(payload).pack())
    except UnableError as why:
        ending = (b"unable", reason(why).encode())
    except MemoryError as why:
        ending = (b"memory", f"out of memory: {why}".encode())
    except BaseException as why:
        traceback.print_exc()
        told = f"{type(why).__name__}: {why}"
        # torch raises RuntimeError, not MemoryError, when the allocator is refused; a GPU is "out of memory".
        short = "out of memory" in told or ("alloc" in told and "memory" in told)
        ending = (b"memory" if short else b"error", told[:_MESSAGE_CHARACTERS].encode())
    if (touched := tripwire.reason) is not None:  # however it ended, and though it went on as if nothing had been
        return b"error", touched.encode()
    return ending


def _limit_memory(memory_bytes: int) -> None:
    """Refuse allocations beyond the limit, so that a method meets MemoryError before the machine is short."""
    if sys.platform != "linux":
        return
    data = psutil.Process().memory_info().data
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = data + memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == -1 else min(limit, hard), hard))


def _die_with_parent() -> None:
    """End with the parent, and be the one that orphans of this process are given to, so that they end with it."""
    if sys.platform == "linux":
        pr_set_pdeathsig, pr_set_child_subreaper = 1, 36
        library = ctypes.CDLL(None)
        library.prctl(pr_set_pdeathsig, signal.SIGKILL)
        library.prctl(pr_set_child_subreaper, 1)


def _end_children() -> None:
    """End, in a cell that has its answer, what it started, and what that left behind."""
    for _ in range(_ROUNDS):
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        _kill_all(psutil.Process().children(recursive=True))


def _kill_all(processes: Iterable[psutil.Process]) -> int:
    """Kill processes, and return how many were alive."""
    alive = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                process.kill()
                alive += 1
    return alive


def _kill(process: BaseProcess) -> None:
    """End a cell and whatever it started: it leads a session of its own, and its descendants are looked up besides."""
    if process.pid is not None:
        with contextlib.suppress(psutil.Error):
            cell = psutil.Process(process.pid)
            cell.suspend()  # it starts no more meanwhile, and who loses a parent is given to it
            for _ in range(_ROUNDS):
                if not _kill_all(cell.children(recursive=True)):
                    break
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            process.kill()
    process.join(timeout=5)


def _resident(pid: int | None) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _exit_words(exitcode: int) -> str:
    if exitcode < 0:
        try:
            return f"the cell's process was killed by {signal.Signals(-exitcode).name}"
        except ValueError:
            return f"the cell's process was killed by signal {-exitcode}"
    return f"the cell's process ended with exit code {exitcode} and no answer"


def _with_stderr(message: str, cell: _Running[T]) -> str:
    try:
        with cell.stderr.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            tail = file.read().decode(errors="replace").splitlines()[-_STDERR_LINES:]
    except OSError:
        tail = []
    return printable("\n".join([message, *tail]))[: _MESSAGE_CHARACTERS * 2 - 100]
