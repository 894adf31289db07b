"""The memory of the emulated device: ranges of the memory of this process."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from fusec.diagnostics import InternalError

Bytes = NDArray[np.uint8]

ALIGNMENT = 256
"""Bytes: what drivers of devices align an allocation to."""

STALE = 0xFF
"""What memory holds that nobody wrote: NaN in every float, -1 in every integer."""


class Memory:
    """Allocations, by address."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[Bytes, int]] = {}
        self._addresses: list[int] = []

    def allocate(self, size: int) -> int:
        """The address of `size` bytes, aligned to 256, each of them 0xFF."""
        raw = np.full(size + ALIGNMENT, STALE, np.uint8)
        address = -(-raw.ctypes.data // ALIGNMENT) * ALIGNMENT
        self._held[address] = raw, size
        self._addresses = sorted(self._held)
        return address

    def free(self, address: int) -> None:
        """Give an allocation back.

        Raises:
            InternalError: there is none at `address`.
        """
        found = self._held.pop(address, None)
        if found is None:
            raise InternalError(f"there is no allocation at {address:#x}")
        found[0].fill(STALE)
        self._addresses = sorted(self._held)

    def holds(self, begin: int, end: int) -> bool:
        """Whether the range from `begin` to before `end` lies inside one allocation."""
        place = bisect_right(self._addresses, begin) - 1
        if place < 0:
            return False
        address = self._addresses[place]
        return begin <= end <= address + self._held[address][1]

    def view(self, address: int, size: int) -> Bytes:
        """The bytes at `address`.

        Raises:
            InternalError: they are not all inside one allocation.
        """
        if not self.holds(address, address + size):
            raise InternalError(f"there are no {size} bytes at {address:#x}")
        raw, _ = self._held[self._addresses[bisect_right(self._addresses, address) - 1]]
        begin = address - int(raw.ctypes.data)
        return raw[begin : begin + size]

    def clear(self) -> None:
        """Give everything back."""
        for address in list(self._held):
            self.free(address)
