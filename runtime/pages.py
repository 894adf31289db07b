"""Memory in whole pages, of 2 MiB where the system has them: the processor finds those faster."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import weakref
from collections import deque

import numpy as np
from numpy.typing import NDArray

from fusec.runtime.locks import Lock

HUGE_PAGE = 2 << 20
KEPT_BLOCKS = 4

_MADV_HUGEPAGE = 14
_MADV_POPULATE_READ = 22

_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

Bytes = NDArray[np.uint8]


def new_pages(size: int) -> Bytes:
    """Private memory full of zeros, which begins at a multiple of 2 MiB.

    Raises:
        OSError: there is not as much.
    """
    mapped = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # of a kernel without such pages
        mapped.madvise(mmap.MADV_HUGEPAGE)
    raw = np.frombuffer(mapped, np.uint8)
    begin = -raw.ctypes.data % HUGE_PAGE
    return raw[begin : begin + size]


def prefer_huge_pages(data: memoryview) -> None:
    """Ask for 2 MiB pages where a mapped file is read; file systems of late kernels have them."""
    _advise(data, _MADV_HUGEPAGE)


def read_ahead(data: memoryview) -> None:
    """Read a part of a mapped file and map all its pages at once.

    It does nothing before Linux 5.14: there, pages come one by one when they are used.
    """
    _advise(data, _MADV_POPULATE_READ)


class Recycler:
    """Hands out memory, and hands it out again once nothing refers to it any more.

    New memory has to be cleared by the system page by page, which takes longer than to compute
    most outputs.
    """

    def __init__(self) -> None:
        self._kept: deque[Bytes] = deque(maxlen=KEPT_BLOCKS)
        self._lock = Lock()

    def take(self, size: int) -> Bytes:
        """Uninitialised memory; comes back here when its last array is gone.

        Raises:
            OSError: there is not as much.
        """
        with self._lock:
            block = self._fitting(size)
        if block is None:
            block = new_pages(-(-size // HUGE_PAGE) * HUGE_PAGE)
        window = (ctypes.c_uint8 * block.nbytes).from_address(block.ctypes.data)
        weakref.finalize(window, self._kept.append, block).atexit = False
        return np.frombuffer(memoryview(window), np.uint8, size)

    def _fitting(self, size: int) -> Bytes | None:
        """A kept block that is not much too large."""
        for _ in range(len(self._kept)):
            block = self._kept.popleft()
            if size <= block.nbytes <= 2 * size:
                return block
            self._kept.append(block)
        return None


def _advise(data: memoryview, advice: int) -> None:
    """Give advice about the pages of `data`; a kernel that does not know it changes nothing."""
    address = np.frombuffer(data, np.uint8).ctypes.data if data.nbytes else 0
    start = address // mmap.PAGESIZE * mmap.PAGESIZE
    _madvise(start, address + data.nbytes - start, advice)
