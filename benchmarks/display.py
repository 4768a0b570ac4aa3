"""What a person sees of a run: a live bar on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from benchmarks.cells import Cell
from benchmarks.executor import Outcome, first_line

_QUIET_SECONDS = 10.0


class LiveProgress:
    """Progress of a run: a bar when stderr is a terminal, else a line every ten seconds.

    There is a line for each failure, and one for each reason why a method's measurements are skipped.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bar: Bar | None = None
        self._task: object = None
        self._total = self._done = self._failed = self._skipped = 0
        self._said_why: set[tuple[str, str]] = set()
        self._started = self._said = time.monotonic()

    def note(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, markup=False, soft_wrap=True)

    def planned(self, total: int, finished: int) -> None:
        """Start the bar, counting what was found finished."""
        self._total = total - finished
        self._started = self._said = time.monotonic()
        if finished:
            self.note(f"{finished} of {total} cells are finished already and are not run again")
        if not self._total:
            return
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Bar(*columns, TimeRemainingColumn(), console=self._console)
            self._task = self._bar.add_task("cells", total=self._total)
            self._bar.start()

    def ended(self, cell: Cell, outcome: Outcome) -> None:
        """Count a cell; a failure is said at once, and so is what was skipped, once per method and reason."""
        self._done += 1
        if outcome.failed:
            self._failed += 1
            self.note(f"{outcome.status}: {cell.title}: {first_line(outcome.reason)}")
        ended = [outcome.of(task.title) for task in cell.fit.tasks] or [(outcome.status, outcome.reason)]
        for why in (why for status, why in ended if status == "skipped"):
            self._skipped += 1
            self._say_why(cell.method.cls.spec.name, why or "")
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=cell.method.title[:22].ljust(22))  # type: ignore[arg-type]
        elif time.monotonic() - self._said > _QUIET_SECONDS or self._done == self._total:
            self._said = time.monotonic()
            spent = self._said - self._started
            left = spent / self._done * (self._total - self._done)
            lost = f", {self._failed} failed" if self._failed else ""
            lost += f", {self._skipped} measurements skipped" if self._skipped else ""
            self.note(f"{self._done}/{self._total} cells{lost}, {spent:.0f} s, about {left:.0f} s left")

    def _say_why(self, method: str, why: str) -> None:
        if (method, why) not in self._said_why:
            self._said_why.add((method, why))
            self.note(f"skipped: {method}: {first_line(why)}")

    def close(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()
