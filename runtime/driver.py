"""What the executor needs of a device, as one protocol: HIP, CUDA, and an emulator speak it.

Addresses, streams, events, modules, functions and graphs are integers that mean something to the
driver that gave them, and to no other.  Work goes to a stream in order, and returns before it is
done unless it says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fusec.diagnostics import DeviceError
from fusec.runtime.errors import CodeError

Bytes = NDArray[np.uint8]
"""Memory of the host, contiguous."""


class OutOfMemoryError(DeviceError):
    """The device has not as much memory as is needed."""


class LaunchError(CodeError):
    """A kernel could not be launched."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What a device is.

    Attributes:
        name: of the product.
        arch: what code must be made for: `gfx950:sramecc+:xnack-`, `sm_90`.
        memory_bytes: of the device, in all.
        index: among the devices of its driver.
    """

    name: str
    arch: str
    memory_bytes: int
    index: int = 0


@dataclass(frozen=True, slots=True)
class KernelLaunch:
    """One launch of a kernel, every size and address known.

    Attributes:
        function: from `Driver.function`.
        grid: work groups along each axis, at least 1.
        block: lanes of a work group along each axis.
        shared_bytes: shared memory that is asked for at the launch.
        kernargs: the argument block.
        arguments: offset and size in `kernargs` of each argument: operands, then parameters.
        spans: first address and address behind the last of the buffer of each operand, in order;
            for drivers that check accesses.
        at: the kernel and its node, for messages.
    """

    function: int
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    kernargs: bytes
    arguments: tuple[tuple[int, int], ...]
    spans: tuple[tuple[int, int], ...]
    at: str

    @property
    def operands(self) -> int:
        """How many of the arguments are addresses."""
        return len(self.spans)


class Driver(Protocol):
    """One device and its memory."""

    @property
    def kind(self) -> str:
        """`hip`, `cuda` or `emulator`."""

    def info(self) -> DeviceInfo:
        """What the device is."""

    def allocate(self, size: int, purpose: str) -> int:
        """The address of `size` bytes, at least 1, of the device, aligned to 256.

        Args:
            size: in bytes.
            purpose: what they are for, as in "the weights", for messages.

        Raises:
            OutOfMemoryError: there is not as much; it says how much is.
        """

    def free(self, address: int) -> None:
        """Give memory from `allocate` back; work that uses it must be done."""

    def host_array(self, size: int) -> Bytes:
        """Uninitialised memory of the host that copies from and to the device need not buffer."""

    def upload(self, address: int, source: Bytes, stream: int) -> None:
        """Copy to the device; `source` must stay as it is until the stream is done."""

    def download(self, target: Bytes, address: int, stream: int) -> None:
        """Copy from the device; `target` is filled when the stream is done."""

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy within the device."""

    def fill(self, address: int, byte: int, size: int, stream: int) -> None:
        """Set `size` bytes."""

    def load_module(self, code: memoryview, entry: str) -> int:
        """Load code that was checked to be for this device.

        Args:
            code: an ELF file.
            entry: of the artifact that it is in.

        Raises:
            CodeError: the driver refuses it.
        """

    def function(self, module: int, symbol: str, shared_bytes: int) -> int:
        """A kernel of a module, allowed to be launched with as much shared memory.

        Raises:
            CodeError: there is no such kernel, or the device has not as much shared memory.
        """

    def launch(self, launch: KernelLaunch, stream: int) -> None:
        """Launch a kernel.

        Raises:
            LaunchError: the driver refuses it.
        """

    def stream(self) -> int:
        """A new stream."""

    def synchronize(self, stream: int) -> None:
        """Wait until everything in a stream is done.

        Raises:
            CodeError: something in it failed.
        """

    def begin_capture(self, stream: int) -> None:
        """Keep the launches that follow in a graph instead of doing them.

        A driver that has no graphs does them.
        """

    def end_capture(self, stream: int) -> int | None:
        """The graph of the launches since `begin_capture`; `None` from a driver that did them."""

    def replay(self, graph: int, stream: int) -> None:
        """Do all launches of a graph."""

    def free_graph(self, graph: int) -> None:
        """Forget a graph."""

    def event(self) -> int:
        """A new event, which can be recorded again and again."""

    def record(self, event: int, stream: int) -> None:
        """Let an event happen when everything that is in a stream so far is done."""

    def wait(self, event: int) -> None:
        """Wait until an event that was recorded has happened."""

    def elapsed_ms(self, begin: int, end: int) -> float:
        """Milliseconds between two events that have happened."""

    def close(self) -> None:
        """Give everything back; the driver cannot be used any more."""


def launch_lines(launch: KernelLaunch) -> tuple[str, ...]:
    """A launch as lines of a message: its geometry and its arguments."""
    sizes = " x ".join(map(str, launch.grid)), " x ".join(map(str, launch.block))
    values = [
        int.from_bytes(launch.kernargs[offset : offset + size], "little", signed=True)
        for offset, size in launch.arguments
    ]
    pointers = ", ".join(f"{value:#x}" for value in values[: launch.operands])
    numbers = ", ".join(map(str, values[launch.operands :]))
    return (
        f"grid {sizes[0]}, block {sizes[1]}, {launch.shared_bytes} bytes of shared memory",
        f"addresses {pointers or 'none'}; numbers {numbers or 'none'}",
    )
