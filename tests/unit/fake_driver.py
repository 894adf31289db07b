"""A device that is none: it keeps what it is told to do, and does it as late as it may.

Copies, fills, launches and graphs wait in a queue until something waits for the stream or an event,
so an executor that reuses a buffer too early, or reads a result too soon, gets a wrong answer.
Kernels are functions of Python, by symbol.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fusec.runtime.driver import (
    Bytes,
    DeviceInfo,
    KernelLaunch,
    LaunchError,
    OutOfMemoryError,
    launch_lines,
)
from fusec.runtime.errors import CodeError

STALE = 0xFF


@dataclass(frozen=True)
class Arguments:
    """What a kernel is given.

    Attributes:
        memory: of each operand, from its address to the end of its buffer.
        params: the bytes of each parameter.
    """

    memory: tuple[Bytes, ...]
    params: tuple[bytes, ...]

    def array(self, index: int, dtype: str) -> NDArray[np.generic]:
        """An operand, as many whole elements as there are."""
        memory = self.memory[index]
        size = np.dtype(dtype).itemsize
        return memory[: memory.nbytes // size * size].view(dtype)

    def integer(self, index: int) -> int:
        """A parameter."""
        return int.from_bytes(self.params[index], "little", signed=True)

    def single(self, index: int) -> float:
        """A parameter of 4 bytes."""
        return float(struct.unpack("<f", self.params[index])[0])


Kernel = Callable[[Arguments], None]


@dataclass
class FakeDriver:
    """The device.

    Attributes:
        kernels: by symbol.
        kind: what it claims to be.
        arch: what it claims to be made of.
        memory_bytes: that can be allocated.
        has_graphs: whether captured launches are kept, or done at once.
        fails: by symbol: how many launches go well before one fails; a negative number never fails.
        calls: names of all calls of the driver, in order.
        launches: all launches that were done, in order.
        purposes: what memory was allocated for.
    """

    kernels: Mapping[str, Kernel]
    kind: str = "cuda"
    arch: str = "sm_90"
    memory_bytes: int = 1 << 30
    has_graphs: bool = True
    fails: dict[str, int] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    launches: list[KernelLaunch] = field(default_factory=list)
    purposes: list[str] = field(default_factory=list)
    modules: list[tuple[str, bytes]] = field(default_factory=list)
    functions: list[tuple[int, str, int]] = field(default_factory=list)
    held: dict[int, Bytes] = field(default_factory=dict)
    graphs: dict[int, list[KernelLaunch]] = field(default_factory=dict)
    queue: list[Callable[[], None]] = field(default_factory=list)
    capture: list[KernelLaunch] | None = None
    broken: bool = False
    closed: bool = False
    _done: int = 0
    _events: list[int] = field(default_factory=list)
    _handles: int = 0
    _sizes: dict[int, int] = field(default_factory=dict)

    def info(self) -> DeviceInfo:
        return DeviceInfo("fake", self.arch, self.memory_bytes)

    def allocate(self, size: int, purpose: str) -> int:
        self.calls.append("allocate")
        self.purposes.append(purpose)
        free = self.memory_bytes - sum(self._sizes.values())
        if size > free:
            raise OutOfMemoryError(f"{size} bytes are needed for {purpose}, {free} are free")
        raw = np.full(size + 256, STALE, np.uint8)
        address = -(-raw.ctypes.data // 256) * 256
        begin = address - raw.ctypes.data
        self.held[address] = raw[begin : begin + size]
        self._sizes[address] = size
        return address

    def free(self, address: int) -> None:
        self.calls.append("free")
        assert not self._waiting(), "memory is freed that may be in use"
        del self.held[address], self._sizes[address]

    def host_array(self, size: int) -> Bytes:
        return np.full(size, STALE, np.uint8)

    def upload(self, address: int, source: Bytes, stream: int) -> None:
        self.calls.append("upload")
        self._queue(lambda: self._write(address, source))

    def download(self, target: Bytes, address: int, stream: int) -> None:
        self.calls.append("download")

        def copy() -> None:
            target[:] = self.view(address, target.nbytes)

        self._queue(copy)

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        self._queue(lambda: self._write(target, self.view(source, size).copy()))

    def fill(self, address: int, byte: int, size: int, stream: int) -> None:
        self.calls.append("fill")
        self._queue(lambda: self._write(address, np.full(size, byte, np.uint8)))

    def load_module(self, code: memoryview, entry: str) -> int:
        self.modules.append((entry, bytes(code)))
        return len(self.modules)

    def function(self, module: int, symbol: str, shared_bytes: int) -> int:
        if symbol not in self.kernels:
            raise CodeError(f"the code has no kernel `{symbol}`")
        self.functions.append((module, symbol, shared_bytes))
        return len(self.functions)

    def launch(self, launch: KernelLaunch, stream: int) -> None:
        self.calls.append("launch")
        assert all(size > 0 for size in launch.grid)
        symbol = self._symbol(launch)
        if symbol in self.fails:
            self.fails[symbol] -= 1
            if self.fails[symbol] == -1:
                raise LaunchError(f"`{launch.at}` failed", detail=launch_lines(launch))
        if self.capture is None or not self.has_graphs:
            self._queue(lambda: self._do(launch))
        else:
            self.capture.append(launch)

    def stream(self) -> int:
        return self._handle()

    def synchronize(self, stream: int) -> None:
        self.calls.append("synchronize")
        self._run(len(self.queue))

    def begin_capture(self, stream: int) -> None:
        self.calls.append("begin_capture")
        self.capture = []

    def end_capture(self, stream: int) -> int | None:
        self.calls.append("end_capture")
        captured, self.capture = self.capture, None
        assert captured is not None
        if not self.has_graphs:
            return None
        graph = self._handle()
        self.graphs[graph] = captured
        return graph

    def replay(self, graph: int, stream: int) -> None:
        self.calls.append("replay")
        for launch in self.graphs[graph]:
            self._queue(lambda launch=launch: self._do(launch))  # type: ignore[misc]

    def free_graph(self, graph: int) -> None:
        self.calls.append("free_graph")
        assert not self._waiting(), "a graph is freed that may be in use"
        del self.graphs[graph]

    def event(self) -> int:
        self._events.append(0)
        return len(self._events) - 1

    def record(self, event: int, stream: int) -> None:
        self._events[event] = len(self.queue)

    def wait(self, event: int) -> None:
        self.calls.append("wait")
        self._run(self._events[event])

    def elapsed_ms(self, begin: int, end: int) -> float:
        assert self._events[begin] <= self._events[end] <= self._done
        return float(self._events[end] - self._events[begin])

    def close(self) -> None:
        self.closed = True

    # --- what tests look at ---

    def view(self, address: int, size: int) -> Bytes:
        """Memory of the device, which must be inside one allocation."""
        if size == 0:
            return np.empty(0, np.uint8)
        for base, memory in self.held.items():
            if base <= address and address + size <= base + memory.nbytes:
                return memory[address - base : address - base + size]
        raise AssertionError(f"{size} bytes at {address:#x} are not allocated")

    def located(self, address: int) -> tuple[int, int]:
        """An address as the number of its allocation, the oldest first, and an offset."""
        for number, (base, memory) in enumerate(self.held.items()):
            if base <= address <= base + memory.nbytes:
                return number, address - base
        raise AssertionError(f"{address:#x} is not allocated")

    def _symbol(self, launch: KernelLaunch) -> str:
        return self.functions[launch.function - 1][1]

    def _do(self, launch: KernelLaunch) -> None:
        if self.broken:
            raise CodeError("the device failed")
        self.launches.append(launch)
        values = [launch.kernargs[begin : begin + size] for begin, size in launch.arguments]
        addresses = [int.from_bytes(value, "little") for value in values[: launch.operands]]
        memory = []
        for address, (begin, end) in zip(addresses, launch.spans, strict=True):
            assert begin <= address <= end, "an operand lies outside of its buffer"
            memory.append(self.view(address, end - address))
        arguments = Arguments(tuple(memory), tuple(values[launch.operands :]))
        self.kernels[self._symbol(launch)](arguments)

    def _write(self, address: int, source: Bytes) -> None:
        self.view(address, source.nbytes)[:] = source

    def _queue(self, work: Callable[[], None]) -> None:
        assert self.capture is None or not self.has_graphs, "this is no launch"
        self.queue.append(work)

    def _waiting(self) -> bool:
        return self._done < len(self.queue)

    def _run(self, end: int) -> None:
        while self._done < end:
            self._done += 1
            self.queue[self._done - 1]()

    def _handle(self) -> int:
        self._handles += 1
        return self._handles
