"""How far a long training is, told on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Teller:
    """Tells on stderr how far a long training is, at most every ten seconds."""

    title: str
    total: int
    began: float = field(default_factory=time.monotonic)
    told: float = field(default_factory=time.monotonic)

    def step(self, done: int, loss: Callable[[], float]) -> None:
        """Tell that so many steps are done; `loss` is asked only when something is told."""
        now = time.monotonic()
        if now - self.told > 10:
            self.told = now
            left = (now - self.began) * (self.total - done) / done
            print(f"{self.title}: step {done} of {self.total}, loss {loss():.3f}, {left:.0f} s left", file=sys.stderr)
