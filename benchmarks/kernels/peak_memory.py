"""How much memory a call takes at most, as the system saw it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def peak_memory(call: Callable[[], Any]) -> tuple[Any, int | None]:
    """Return what a call returns, and by how many bytes the process' resident memory rose at most while it ran.

    What the call returns is in it, and so is whatever any library took, not only torch. None where the system does not
    tell: it is Linux that lets a process set its peak back.
    """
    if not sys.platform.startswith("linux"):
        return call(), None
    _return_free_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return call(), None
    before = _resident("VmRSS")
    result = call()
    return result, max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def _return_free_memory() -> None:
    """Give what was freed back to the system, so that taking it again shows; glibc alone has a call for it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
