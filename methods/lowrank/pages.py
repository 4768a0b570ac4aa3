"""Large buffers on the CPU, asked for in large pages: the first touch of a page costs more than what is written to it.

The C library maps large memory afresh at many allocations (beyond 32 MiB, at every one). In pages of 4 KiB the faults
of a gradient of 128 MiB take longer than computing it; in pages of 2 MiB they are few. Elsewhere nothing changes.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor

_LARGE = 4 << 20
_PAGE = 4096
_MADV_HUGEPAGE = 14


def empty(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an uninitialised tensor of like's dtype and device, in large pages where it is large."""
    made = torch.empty(shape, dtype=dtype or like.dtype, device=like.device)
    if made.device.type == "cpu" and made.nbytes >= _LARGE and (advise := _madvise()) is not None:
        first = -(-made.data_ptr() // _PAGE) * _PAGE
        advise(first, (made.data_ptr() + made.nbytes - first) // _PAGE * _PAGE, _MADV_HUGEPAGE)
    return made


@cache
def _madvise() -> Any:
    """Return the C library's madvise, or None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        found = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    found.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return found
