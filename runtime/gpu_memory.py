"""Memory of a device: the weights, which are uploaded once, and room to work in, which grows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fusec.runtime.driver import Bytes, Driver, OutOfMemoryError
from fusec.runtime.errors import WeightsError
from fusec.runtime.layout import Storage, out_of_memory
from fusec.runtime.steps import Program

ALIGNMENT = 256
"""Bytes: what the drivers align an allocation to, and so what every buffer is aligned to."""
STAGING_BYTES = 32 << 20


class Weights:
    """The weights of a program, in one block."""

    def __init__(
        self, driver: Driver, program: Program, weights: Mapping[str, Storage], stream: int
    ) -> None:
        """Upload them: while one piece is on its way, the next is read from the file.

        Raises:
            OutOfMemoryError: they do not fit on the device.
            WeightsError: a weight has another size.
        """
        self._driver = driver
        offsets: dict[str, int] = {}
        total = 0
        for buffer in program.buffers:
            if buffer.name is None or buffer.name in offsets:
                continue
            if weights[buffer.name].nbytes != buffer.bytes:
                raise WeightsError(
                    f"the weight `{buffer.name}` has {weights[buffer.name].nbytes} bytes, not "
                    f"{buffer.bytes}",
                    at=program.at,
                )
            offsets[buffer.name] = total
            total += aligned(weights[buffer.name].nbytes)
        self._block = driver.allocate(max(total, 1), "the weights")
        self.bytes = total
        self.bases: NDArray[np.int64] = np.array(
            [0 if b.name is None else self._block + offsets[b.name] for b in program.buffers],
            np.int64,
        )
        """The address of each buffer that is a weight; 0 for others."""
        staging = _Staging(driver, stream, min(STAGING_BYTES, total))
        for name, offset in offsets.items():
            staging.upload(self._block + offset, weights[name].reshape(-1).view(np.uint8))
        driver.synchronize(stream)

    def free(self) -> None:
        """Give the memory back."""
        self._driver.free(self._block)


class _Staging:
    """Two pinned buffers that take turns."""

    def __init__(self, driver: Driver, stream: int, size: int) -> None:
        self._driver = driver
        self._stream = stream
        self._size = size
        self._buffers = [driver.host_array(size) for _ in range(2)]
        self._events = [driver.event() for _ in range(2)]
        self._pieces = 0

    def upload(self, address: int, data: Bytes) -> None:
        """Copy `data` to the device; it is read before this returns."""
        for begin in range(0, data.nbytes, max(self._size, 1)):
            piece = data[begin : begin + self._size]
            turn = self._pieces % 2
            if self._pieces > 1:
                self._driver.wait(self._events[turn])
            buffer = self._buffers[turn][: piece.nbytes]
            buffer[:] = piece
            self._driver.upload(address + begin, buffer, self._stream)
            self._driver.record(self._events[turn], self._stream)
            self._pieces += 1


class Workspace:
    """What a run needs on the device, and pinned memory for what goes there and comes back.

    Both only grow, in steps of an eighth, so that sizes that creep up do not move them each time.

    Attributes:
        address: of the memory of the device.
        host: the pinned memory.
        moves: how often the memory of the device has moved, which makes its addresses stale.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._size = 0
        self.address = 0
        self.host: Bytes = np.empty(0, np.uint8)
        self.moves = 0

    def reserve(self, size: int, host_size: int) -> None:
        """Have room for a run; nothing may be using the room at this moment.

        Raises:
            InputError: the device has not as much memory.
        """
        if host_size > self.host.nbytes:
            self.host = np.empty(0, np.uint8)
            try:
                self.host = self._driver.host_array(bucket(host_size))
            except OutOfMemoryError as error:
                raise out_of_memory(host_size, (str(error),)) from None
        if size > self._size:
            self.moves += 1
            self.free()
            self._size, self.address = self._allocate(size)

    def free(self) -> None:
        """Give the memory of the device back."""
        if self._size:
            self._driver.free(self.address)
        self._size = self.address = 0

    def _allocate(self, size: int) -> tuple[int, int]:
        purpose = "intermediate values"
        try:
            return bucket(size), self._driver.allocate(bucket(size), purpose)
        except OutOfMemoryError:
            pass
        try:
            return size, self._driver.allocate(size, purpose)
        except OutOfMemoryError as error:
            raise out_of_memory(size, (str(error),)) from None


def aligned(size: int) -> int:
    """`size`, rounded up to where the next buffer may begin."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def bucket(size: int) -> int:
    """`size`, rounded up by less than an eighth."""
    step = max(ALIGNMENT, 1 << max(0, size.bit_length() - 4))
    return -(-size // step) * step
