"""Adam (Kingma and Ba 2015) over numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Adam:
    """Adam over several arrays, changed in place; `step` counts the steps made."""

    def __init__(self, point: list[Array], rate: float) -> None:
        self.point, self.rate, self.step = point, rate, 0
        self.first = [np.zeros_like(p) for p in point]
        self.second = [np.zeros_like(p) for p in point]

    def advance(self, gradient: list[Array], horizon: int | None = None) -> None:
        """Make one step; with a horizon the rate falls to zero there by a cosine."""
        now = self.rate if horizon is None else self.rate * 0.5 * (1.0 + np.cos(np.pi * self.step / horizon))
        self.step += 1
        for p, m, s, g in zip(self.point, self.first, self.second, gradient, strict=True):
            m += 0.1 * (g - m)
            s += 0.001 * (g * g - s)
            p -= now * (m / (1 - 0.9**self.step)) / (np.sqrt(s / (1 - 0.999**self.step)) + 1e-8)
