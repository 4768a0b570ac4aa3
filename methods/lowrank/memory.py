"""Large results on the CPU, in memory that is kept: the first touch of a page costs more than writing all of it.

The C library maps large memory afresh at most allocations, and the system clears every page of it: a gradient of 128
MiB takes longer to map than to compute. A training step frees what the next one asks for, so what is freed here is kept
for the next result of about that size, in large pages where the system has them, up to `KEPT_BYTES` in all.
`release_memory()` gives it back. `torch` has the like for GPUs, none for the CPU.
"""

from __future__ import annotations

import contextlib
import mmap
import weakref
from typing import Any

import torch
from torch import Tensor

LARGE = 1 << 20  # smaller results are the C library's, which mostly keeps them itself
KEPT_BYTES = 512 << 20
_HUGE_PAGE = 2 << 20
_PRIVATE = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
_HUGE = getattr(mmap, "MADV_HUGEPAGE", None)

# Free blocks by their size, and the references that tell when a tensor's memory is free. Dicts and lists alone, whose
# operations are atomic: a block may become free in any thread, in the middle of anything.
_free: dict[int, list[mmap.mmap]] = {}
_leases: dict[int, weakref.ref[memoryview]] = {}


def empty(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an uninitialised tensor of like's dtype and device; a large one of the CPU in kept memory.

    >>> empty((2, 3), torch.ones(1)).shape
    torch.Size([2, 3])
    """
    dtype = dtype or like.dtype
    if like.device.type == "cpu" and _PRIVATE:
        count = 1
        for size in shape:
            count *= size
        if (size := count * dtype.itemsize) >= LARGE:
            return _lent(size, count, dtype).view(shape)
    return torch.empty(shape, dtype=dtype, device=like.device)


def release_memory() -> int:
    """Give the memory of results that are gone back to the system; return how many bytes that were."""
    given = 0
    for size, blocks in _free.copy().items():
        given += size * len(blocks)
        blocks.clear()
    return given


def block_bytes(size: int) -> int:
    """Return the size of a block for `size` bytes: the next of eight steps between powers of two, in whole pages.

    >>> block_bytes(1 << 20) == 1 << 20, block_bytes((1 << 20) + 1) == (1 << 20) + (1 << 17)
    (True, True)
    """
    step = max(1 << (size.bit_length() - 4), mmap.PAGESIZE)
    return -(-size // step) * step


def _lent(size: int, count: int, dtype: torch.dtype) -> Tensor:
    """Return a flat tensor on a free block, or on a new one; when its memory is free, the block is kept."""
    size = block_bytes(size)
    try:
        block = _free[size].pop()
    except (KeyError, IndexError):
        block = _mapped(size)
    lease = memoryview(block)
    tensor = torch.frombuffer(lease, dtype=dtype, count=count)
    key = id(lease)

    def kept(gone: Any, block: mmap.mmap = block) -> None:
        _leases.pop(key, None)
        _keep(block)

    _leases[key] = weakref.ref(lease, kept)
    return tensor


def _mapped(size: int) -> mmap.mmap:
    block = mmap.mmap(-1, size, flags=_PRIVATE)
    if _HUGE is not None and size >= _HUGE_PAGE:
        with contextlib.suppress(OSError):  # a kernel without large pages
            block.madvise(_HUGE)
    return block


def _keep(block: mmap.mmap) -> None:
    """Keep a block that became free; where it would be too much, blocks of other sizes go first."""
    size = len(block)
    if size > KEPT_BYTES:
        return
    _free.setdefault(size, []).append(block)
    held = _free.copy()
    excess = sum(each * len(blocks) for each, blocks in held.items()) - KEPT_BYTES
    for each in sorted(held, key=lambda other: other == size):
        while excess > 0 and held[each]:
            with contextlib.suppress(IndexError):  # another thread took it
                held[each].pop(0)
            excess -= each
