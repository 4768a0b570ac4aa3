"""How far a learned subspace is from the planted one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def principal_angles(learned: NDArray[Any], planted: NDArray[Any]) -> NDArray[np.float64]:
    """Return the principal angles between two column spaces in degrees, largest first, float64 [min(r, rank)].

    learned: [d, r], planted: [d, rank]. With r > rank the angles say how far the planted space is from lying within the
    learned one.

    >>> principal_angles(np.eye(3)[:, :2], np.eye(3)[:, 1:]).round().tolist()
    [90.0, 0.0]
    """
    from scipy.linalg import subspace_angles

    return np.degrees(subspace_angles(learned.astype(np.float64), planted.astype(np.float64)))
