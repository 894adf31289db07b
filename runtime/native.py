"""What the drivers of HIP and CUDA have in common: nearly everything.

The two interfaces are one by design: the same functions with the same arguments under other names.
`API` lists those that are used, with both names; `fusec.runtime.hip` and `fusec.runtime.cuda` hold
what is left, which is how a device is found, chosen and described.

The libraries are called by ctypes: they are C interfaces with a stable ABI, and packages such as
`hip-python` would tie fusec to one release of ROCm for the same few calls.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fusec.diagnostics import DeviceError, FusecError
from fusec.runtime.driver import (
    Bytes,
    DeviceInfo,
    KernelLaunch,
    LaunchError,
    OutOfMemoryError,
    launch_lines,
)
from fusec.runtime.errors import CodeError

OUT_OF_MEMORY = 2
NO_DEVICE = (100, 101)
"""No device, and no valid one, which is what HIP calls none at all."""
NON_BLOCKING = 1
"""A stream that does not wait for the default one."""
THREAD_LOCAL = 1
"""A capture that calls of other threads do not disturb."""
BUFFER_POINTER = 1
BUFFER_SIZE = 2

_HANDLE = POINTER(c_void_p)
_SIZE = POINTER(c_size_t)


class Function(NamedTuple):
    """A function that both interfaces have."""

    hip: str
    cuda: str
    arguments: tuple[Any, ...]


API: dict[str, Function] = {
    "init": Function("hipInit", "cuInit", (c_uint,)),
    "count": Function("hipGetDeviceCount", "cuDeviceGetCount", (POINTER(c_int),)),
    "device": Function("hipDeviceGet", "cuDeviceGet", (POINTER(c_int), c_int)),
    "device_name": Function("hipDeviceGetName", "cuDeviceGetName", (c_char_p, c_int, c_int)),
    "total_memory": Function("hipDeviceTotalMem", "cuDeviceTotalMem_v2", (_SIZE, c_int)),
    "free_memory": Function("hipMemGetInfo", "cuMemGetInfo_v2", (_SIZE, _SIZE)),
    "allocate": Function("hipMalloc", "cuMemAlloc_v2", (_HANDLE, c_size_t)),
    "free": Function("hipFree", "cuMemFree_v2", (c_void_p,)),
    "host_allocate": Function("hipHostMalloc", "cuMemHostAlloc", (_HANDLE, c_size_t, c_uint)),
    "host_free": Function("hipHostFree", "cuMemFreeHost", (c_void_p,)),
    "upload": Function(
        "hipMemcpyHtoDAsync",
        "cuMemcpyHtoDAsync_v2",
        (c_void_p, c_void_p, c_size_t, c_void_p),
    ),
    "download": Function(
        "hipMemcpyDtoHAsync",
        "cuMemcpyDtoHAsync_v2",
        (c_void_p, c_void_p, c_size_t, c_void_p),
    ),
    "copy": Function(
        "hipMemcpyDtoDAsync",
        "cuMemcpyDtoDAsync_v2",
        (c_void_p, c_void_p, c_size_t, c_void_p),
    ),
    "fill": Function(
        "hipMemsetD8Async", "cuMemsetD8Async", (c_void_p, c_ubyte, c_size_t, c_void_p)
    ),
    "load": Function("hipModuleLoadData", "cuModuleLoadData", (_HANDLE, c_void_p)),
    "unload": Function("hipModuleUnload", "cuModuleUnload", (c_void_p,)),
    "function": Function(
        "hipModuleGetFunction",
        "cuModuleGetFunction",
        (_HANDLE, c_void_p, c_char_p),
    ),
    "launch": Function(
        "hipModuleLaunchKernel",
        "cuLaunchKernel",
        (c_void_p, *(c_uint,) * 7, c_void_p, c_void_p, c_void_p),
    ),
    "stream": Function("hipStreamCreateWithFlags", "cuStreamCreate", (_HANDLE, c_uint)),
    "free_stream": Function("hipStreamDestroy", "cuStreamDestroy_v2", (c_void_p,)),
    "synchronize": Function("hipStreamSynchronize", "cuStreamSynchronize", (c_void_p,)),
    "begin_capture": Function(
        "hipStreamBeginCapture", "cuStreamBeginCapture_v2", (c_void_p, c_int)
    ),
    "end_capture": Function("hipStreamEndCapture", "cuStreamEndCapture", (c_void_p, _HANDLE)),
    "instantiate": Function(
        "hipGraphInstantiateWithFlags",
        "cuGraphInstantiateWithFlags",
        (_HANDLE, c_void_p, c_uint64),
    ),
    "replay": Function("hipGraphLaunch", "cuGraphLaunch", (c_void_p, c_void_p)),
    "free_graph": Function("hipGraphDestroy", "cuGraphDestroy", (c_void_p,)),
    "free_executable": Function("hipGraphExecDestroy", "cuGraphExecDestroy", (c_void_p,)),
    "event": Function("hipEventCreateWithFlags", "cuEventCreate", (_HANDLE, c_uint)),
    "free_event": Function("hipEventDestroy", "cuEventDestroy_v2", (c_void_p,)),
    "record": Function("hipEventRecord", "cuEventRecord", (c_void_p, c_void_p)),
    "wait": Function("hipEventSynchronize", "cuEventSynchronize", (c_void_p,)),
    "elapsed": Function(
        "hipEventElapsedTime",
        "cuEventElapsedTime",
        (POINTER(c_float), c_void_p, c_void_p),
    ),
}
"""What is called, by a name of our own."""


class NativeDriver(ABC):
    """A device behind a driver library.

    Attributes:
        kind: `hip` or `cuda`.
        count: how many devices the driver has.
        libraries: names under which the loader may find the library, best first.
        remedy: what to do where there is none.
        access: what to do where it finds no device.
        end: what closes the list of a launch's extra arguments.
    """

    kind: ClassVar[str]
    libraries: ClassVar[tuple[str, ...]]
    remedy: ClassVar[str]
    access: ClassVar[str]
    end: ClassVar[int]

    def __init__(self, index: int = 0, library: str | None = None) -> None:
        """Find a device; it is not touched before the first call that needs it.

        Args:
            index: among the devices of the driver.
            library: name or path of the driver library; by default the first of `libraries`.

        Raises:
            DeviceError: there is no library, or no such device.
        """
        self.index = index
        self._library = _open(str(self), (library,) if library else self.libraries, self.remedy)
        self._calls = {
            name: self.symbol(getattr(function, self.kind), function.arguments)
            for name, function in API.items()
        }
        self._local = threading.local()
        self._chosen = False
        self._owned: dict[str, dict[int, None]] = {}
        self._images: list[Bytes] = []
        self._pinned: dict[int, weakref.finalize[[int], Any]] = {}
        self.count = self._counted()
        self._device = c_int()
        self._check(self._calls["device"](self._device, index), "the device cannot be found")
        self._info = self._described()

    def info(self) -> DeviceInfo:
        """What the device is."""
        return self._info

    def allocate(self, size: int, purpose: str) -> int:
        """Memory of the device; the drivers align it to 256 bytes or more."""
        address = c_void_p()
        code = self._code("allocate", address, size)
        if code == OUT_OF_MEMORY:
            raise self._out_of_memory(size, purpose)
        self._check(code, f"{size} bytes for {purpose} cannot be allocated")
        return self._keep("free", address)

    def free(self, address: int) -> None:
        """Give memory back."""
        self._drop("free", address)

    def host_array(self, size: int) -> Bytes:
        """Pinned memory; it is given back when nothing refers to the array any more."""
        if size == 0:
            return np.empty(0, np.uint8)
        address = c_void_p()
        code = self._code("host_allocate", address, size, 0)
        if code == OUT_OF_MEMORY:
            raise OutOfMemoryError(
                f"`{self}` cannot pin {_gib(size)} of memory of the host",
                hint="give smaller inputs, or raise the limit on locked memory",
            )
        self._check(code, f"{size} bytes of memory of the host cannot be pinned")
        place = address.value or 0
        held = (ctypes.c_uint8 * size).from_address(place)
        self._pinned[place] = weakref.finalize(held, self._unpin, place)
        self._pinned[place].atexit = False
        return np.frombuffer(memoryview(held), np.uint8)

    def upload(self, address: int, source: Bytes, stream: int) -> None:
        """Copy to the device."""
        if source.nbytes:
            self._do("upload", address, source.ctypes.data, source.nbytes, stream)

    def download(self, target: Bytes, address: int, stream: int) -> None:
        """Copy from the device."""
        if target.nbytes:
            self._do("download", target.ctypes.data, address, target.nbytes, stream)

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy within the device."""
        if size:
            self._do("copy", target, source, size, stream)

    def fill(self, address: int, byte: int, size: int, stream: int) -> None:
        """Set bytes."""
        if size:
            self._do("fill", address, byte, size, stream)

    def load_module(self, code: memoryview, entry: str) -> int:
        """Load a code object, which is held until the end: HIP goes on reading it."""
        module = c_void_p()
        image = np.frombuffer(code, np.uint8)
        status = self._code("load", module, image.ctypes.data)
        self._check(status, "the driver refuses the code", entry)
        self._images.append(image)
        return self._keep("unload", module)

    def function(self, module: int, symbol: str, shared_bytes: int) -> int:
        """A kernel of a module."""
        function = c_void_p()
        status = self._code("function", function, module, symbol.encode("ascii"))
        self._check(status, f"the code has no kernel `{symbol}`")
        self._allow_shared(function, symbol, shared_bytes)
        return function.value or 0

    def launch(self, launch: KernelLaunch, stream: int) -> None:
        """Launch a kernel with its argument block as it is."""
        if not getattr(self._local, "bound", False):
            self._bind()
        size = c_size_t(len(launch.kernargs))
        block = ctypes.create_string_buffer(launch.kernargs, max(1, len(launch.kernargs)))
        extra = (c_void_p * 5)(
            BUFFER_POINTER, ctypes.addressof(block), BUFFER_SIZE, ctypes.addressof(size), self.end
        )
        code = self._calls["launch"](
            launch.function, *launch.grid, *launch.block, launch.shared_bytes, stream, None, extra
        )
        if code:
            raise LaunchError(
                f"the kernel `{launch.at}` could not be launched: {self._named(code)}",
                at=str(self),
                detail=launch_lines(launch),
            )

    def stream(self) -> int:
        """A stream apart from the default one."""
        return self._new("stream", "free_stream", NON_BLOCKING)

    def synchronize(self, stream: int) -> None:
        """Wait for a stream."""
        self._check(self._code("synchronize", stream), "the device failed")

    def begin_capture(self, stream: int) -> None:
        """Keep launches instead of doing them."""
        self._do("begin_capture", stream, THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """The launches since `begin_capture`, ready to be done again and again."""
        graph, executable = c_void_p(), c_void_p()
        self._do("end_capture", stream, graph)
        try:
            self._do("instantiate", executable, graph, 0)
        finally:
            self._do("free_graph", graph)
        return self._keep("free_executable", executable)

    def replay(self, graph: int, stream: int) -> None:
        """Do all launches of a graph."""
        self._do("replay", graph, stream)

    def free_graph(self, graph: int) -> None:
        """Forget a graph."""
        self._drop("free_executable", graph)

    def event(self) -> int:
        """An event that keeps its time."""
        return self._new("event", "free_event", 0)

    def record(self, event: int, stream: int) -> None:
        """Let an event happen behind what is in a stream."""
        self._do("record", event, stream)

    def wait(self, event: int) -> None:
        """Wait for an event."""
        self._check(self._code("wait", event), "the device failed")

    def elapsed_ms(self, begin: int, end: int) -> float:
        """Milliseconds between two events."""
        milliseconds = c_float()
        self._do("elapsed", milliseconds, begin, end)
        return milliseconds.value

    def close(self) -> None:
        """Give everything back, what depends on something before that."""
        # A device that failed gives an error for everything, and the rest is still to be freed.
        for free in ("free_executable", "free_event", "free_stream", "unload", "free"):
            for handle in list(self._owned.get(free, ())):
                with contextlib.suppress(FusecError):
                    self._drop(free, handle)
        for pinned in list(self._pinned.values()):
            with contextlib.suppress(FusecError):
                pinned()
        if self._chosen:
            self._chosen = False
            with contextlib.suppress(FusecError):
                self._release()

    def __str__(self) -> str:
        return f"{self.kind}:{self.index}"

    # --- what differs ---

    @abstractmethod
    def _choose(self) -> None:
        """Prepare the device for this process."""

    @abstractmethod
    def _make_current(self) -> None:
        """Let the calls of this thread go to the device."""

    @abstractmethod
    def _arch(self) -> str:
        """What code must be made for."""

    @abstractmethod
    def _error_name(self, code: int) -> str:
        """The name that the interface has for an error."""

    # One of the two interfaces has nothing to do in these.
    def _allow_shared(  # noqa: B027
        self, function: c_void_p, symbol: str, shared_bytes: int
    ) -> None:
        """Raise the limit on a kernel's shared memory, where there is one to raise."""

    def _release(self) -> None:  # noqa: B027
        """Undo `_choose`."""

    # --- calls ---

    def symbol(self, name: str, arguments: Sequence[Any]) -> Callable[..., int]:
        """A function of the library that returns an error code."""
        try:
            function = self._library[name]
        except AttributeError:
            raise DeviceError(
                f"the driver library `{self._library._name}` has no `{name}`: it is too old",
                at=str(self),
                hint=self.remedy,
            ) from None
        function.argtypes = tuple(arguments)
        function.restype = c_int
        return function

    def _do(self, name: str, *arguments: object) -> None:
        self._check(self._code(name, *arguments), f"the driver call `{name}` failed")

    def _code(self, name: str, *arguments: object) -> int:
        self._bind()
        return self._calls[name](*arguments)

    def _bind(self) -> None:
        """The device of a thread is anyone's to change, such as a library's."""
        if not self._chosen:
            self._choose()
            self._chosen = True
        self._make_current()
        self._local.bound = True

    def _check(self, code: int, message: str, at: str | None = None) -> None:
        if code:
            raise CodeError(f"{message}: {self._named(code)}", at=at or str(self))

    def _named(self, code: int) -> str:
        return f"{self._error_name(code)} ({code})"

    def _new(self, make: str, free: str, flags: int) -> int:
        handle = c_void_p()
        self._do(make, handle, flags)
        return self._keep(free, handle)

    def _keep(self, free: str, handle: c_void_p) -> int:
        value = handle.value or 0
        self._owned.setdefault(free, {})[value] = None
        return value

    def _drop(self, free: str, handle: int) -> None:
        del self._owned[free][handle]
        self._do(free, handle)

    def _unpin(self, address: int) -> None:
        del self._pinned[address]
        self._do("host_free", address)

    # --- finding the device ---

    def _counted(self) -> int:
        count = c_int()
        code = self._calls["init"](0) or self._calls["count"](count)
        found = 0 if code else count.value
        if self.index < found:
            return found
        if code not in (0, *NO_DEVICE):
            raise DeviceError(
                f"the driver for `{self}` does not start: {self._named(code)}",
                hint="`fusec doctor` shows the devices of this machine",
            )
        devices = ", ".join(f"`{self.kind}:{index}`" for index in range(found))
        raise DeviceError(
            f"there is no device `{self}`: the driver is installed, but finds "
            + (f"only {devices}" if found else "none"),
            hint="`fusec doctor` shows the devices of this machine" if found else self.access,
        )

    def _described(self) -> DeviceInfo:
        name = ctypes.create_string_buffer(256)
        total = c_size_t()
        message = "the device does not describe itself"
        self._check(self._calls["device_name"](name, len(name), self._device), message)
        self._check(self._calls["total_memory"](total, self._device), message)
        shown = name.value.decode("utf-8", "replace") or self.kind
        return DeviceInfo(shown, self._arch(), total.value, self.index)

    def _out_of_memory(self, size: int, purpose: str) -> OutOfMemoryError:
        free, total = c_size_t(), c_size_t()
        self._do("free_memory", free, total)
        return OutOfMemoryError(
            f"`{self}` has not enough memory for {purpose}: {_gib(size)} are needed, "
            f"{_gib(free.value)} of {_gib(total.value)} are free",
            hint="stop what else uses the device, or give smaller inputs",
        )


def _open(device: str, names: Sequence[str], remedy: str) -> ctypes.CDLL:
    reasons: list[str] = []
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            reasons.append(str(error))
    raise DeviceError(
        f"there is no driver for `{device}`: `{names[0]}` cannot be loaded",
        detail=tuple(reasons),
        hint=remedy,
    )


def has_library(name: str) -> bool:
    """Whether the loader finds a library."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
