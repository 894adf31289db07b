"""The emulated device: the driver that runs each launch on the CPU, and believes nothing.

A launch is held against the code object that a GPU would run: its arguments lie where the metadata
of the code object says, addresses lie in the buffers of the operands, what was compiled as a
multiple of 16 is one.  Then the source of the code object is run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from fusec.diagnostics import FusecError, InputError, InternalError
from fusec.emulator import host
from fusec.emulator.memory import Memory
from fusec.kernels.launch import HipSource, TritonSource
from fusec.link.amdgpu_tools import GPU_HINT
from fusec.link.code_object import CodeObject, KernelMetadata, read_code_object
from fusec.link.gpu_checks import GpuSource
from fusec.link.gpu_sources import source_from_json
from fusec.runtime.artifact import Artifact, open_artifact
from fusec.runtime.driver import DeviceInfo, KernelLaunch, LaunchError
from fusec.runtime.errors import CodeError, TargetError
from fusec.runtime.gpu_plan import MOST_GROUPS
from fusec.target import Target, target_named

Bytes = NDArray[np.uint8]

MEMORY_BYTES = 1 << 40
"""What the device says it has: nothing is too large for it, only for the machine."""

DIVISOR = 16
"""What arguments that are compiled as divisible are multiples of."""

_FORMATS = {
    "i32": "<i",
    "u32": "<I",
    "i64": "<q",
    "u64": "<Q",
    "fp32": "<f",
    "f32": "<f",
    "fp64": "<d",
}
_ADDRESS = "<Q"


@dataclass(frozen=True, slots=True)
class _Function:
    """A kernel of a code object, and what it was made of."""

    source: GpuSource
    metadata: KernelMetadata
    shared_bytes: int


class Emulator:
    """A device that is emulated on the CPU; it has no memory but that of this process.

    Args:
        target_name: the GPU target whose code it takes, such as `gfx950`.
        sources: of each code object, by the name of its entry in the artifact.

    Raises:
        InputError: Triton is not installed.
    """

    kind = "emulator"

    def __init__(self, target_name: str, sources: Mapping[str, GpuSource]) -> None:
        if importlib.util.find_spec("triton") is None:
            raise InputError("the emulator needs Triton", hint=GPU_HINT)
        self.target: Target = target_named(target_name)
        self._sources = {PurePosixPath(entry).stem: made for entry, made in sources.items()}
        self._memory = Memory()
        self._modules: list[tuple[CodeObject, GpuSource]] = []
        self._functions: list[_Function] = []
        self._streams = 0
        self._events: list[float] = []

    @classmethod
    def for_artifact(cls, path: str | Path | Artifact, target_name: str | None = None) -> Emulator:
        """A device for what an artifact holds for a target.

        Args:
            path: of the artifact; or the artifact itself, which has been opened.
            target_name: by default the first GPU that the artifact holds code for.

        Raises:
            ArtifactError: it cannot be read, or holds no code for that target.
            InputError: Triton is not installed.
        """
        artifact = path if isinstance(path, Artifact) else open_artifact(path)
        if target_name is None:
            gpus = [spec.target for spec in artifact.manifest.targets if spec.family != "cpu"]
            if not gpus:
                raise TargetError("the artifact holds no code for a GPU", at=str(artifact.path))
            target_name = gpus[0]
        name = artifact.target(target_name).target
        program = artifact.program(name)
        sources = {
            entry: source_from_json(json.dumps(dict(field.mapping())))
            for entry, field in program.get("sources").members()
        }
        return cls(name, sources)

    def info(self) -> DeviceInfo:
        """What it stands for."""
        return DeviceInfo(f"emulated {self.target.arch}", self.target.arch, MEMORY_BYTES)

    def allocate(self, size: int, purpose: str) -> int:
        """The address of `size` bytes; what is in them is NaN and -1."""
        return self._memory.allocate(size)

    def free(self, address: int) -> None:
        """Give memory back."""
        self._memory.free(address)

    def host_array(self, size: int) -> Bytes:
        """Memory of the host."""
        return np.full(size, 0xFF, np.uint8)

    def upload(self, address: int, source: Bytes, stream: int) -> None:
        """Copy to the device."""
        self._memory.view(address, source.nbytes)[:] = source.reshape(-1).view(np.uint8)

    def download(self, target: Bytes, address: int, stream: int) -> None:
        """Copy from the device."""
        target.reshape(-1).view(np.uint8)[:] = self._memory.view(address, target.nbytes)

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy within the device."""
        self._memory.view(target, size)[:] = self._memory.view(source, size).copy()

    def fill(self, address: int, byte: int, size: int, stream: int) -> None:
        """Set `size` bytes."""
        self._memory.view(address, size).fill(byte)

    def load_module(self, code: memoryview, entry: str) -> int:
        """Read the metadata of a code object, and find what it was made of.

        Raises:
            CodeError: it is no code object, or is for another device, or its source is not known.
        """
        data = bytes(code)
        source = self._sources.get(hashlib.sha256(data).hexdigest())
        if source is None:
            raise CodeError("the source of this code is not known", at=entry)
        try:
            read = read_code_object(data)
        except FusecError as error:
            raise CodeError(str(error), at=entry) from error
        if read.arch != self.target.arch:
            raise CodeError(f"it is for `{read.arch}`, not `{self.target.arch}`", at=entry)
        self._modules.append((read, source))
        return len(self._modules) - 1

    def function(self, module: int, symbol: str, shared_bytes: int) -> int:
        """A kernel of a module.

        Raises:
            CodeError: it is not there, or needs more shared memory than there is.
        """
        read, source = self._modules[module]
        metadata = read.kernels.get(symbol)
        if metadata is None or source.function != symbol:
            raise CodeError(f"there is no kernel `{symbol}`")
        needed = shared_bytes + metadata.resources["lds_bytes"]
        if needed > self.target.lds_bytes:
            raise CodeError(
                f"`{symbol}` needs {needed} bytes of shared memory; there are "
                f"{self.target.lds_bytes}"
            )
        self._functions.append(_Function(source, metadata, shared_bytes))
        return len(self._functions) - 1

    def launch(self, launch: KernelLaunch, stream: int) -> None:
        """Check a launch, and run it.

        Raises:
            LaunchError: it is not one that the code object can be launched with, or the kernel
                fails or accesses memory outside of its operands.
        """
        function = self._functions[launch.function]
        problems = [*self._problems(launch, function)]
        if problems:
            raise LaunchError(
                f"`{function.source.function}` cannot be launched like that",
                at=launch.at,
                detail=tuple(problems),
            )
        values = _values(launch, function.source)
        problems = [*self._unfit(launch, function.source, values)]
        if problems:
            raise LaunchError(
                f"`{function.source.function}` cannot be launched on that",
                at=launch.at,
                detail=tuple(problems),
            )
        self._run(launch, function.source, values)

    def stream(self) -> int:
        """A new stream."""
        self._streams += 1
        return self._streams

    def synchronize(self, stream: int) -> None:
        """Everything is done when it returns."""

    def begin_capture(self, stream: int) -> None:
        """Launches are done all the same."""

    def end_capture(self, stream: int) -> int | None:
        """There are no graphs."""
        return None

    def replay(self, graph: int, stream: int) -> None:
        """There are no graphs.

        Raises:
            InternalError: always.
        """
        raise InternalError("the emulator keeps no graphs")

    def free_graph(self, graph: int) -> None:
        """There are no graphs.

        Raises:
            InternalError: always.
        """
        raise InternalError("the emulator keeps no graphs")

    def event(self) -> int:
        """A new event."""
        self._events.append(math.nan)
        return len(self._events) - 1

    def record(self, event: int, stream: int) -> None:
        """It happens now."""
        self._events[event] = time.perf_counter()

    def wait(self, event: int) -> None:
        """It has happened."""

    def elapsed_ms(self, begin: int, end: int) -> float:
        """Milliseconds that the emulator took, which say nothing of a device."""
        return (self._events[end] - self._events[begin]) * 1000

    def close(self) -> None:
        """Give everything back."""
        self._memory.clear()

    def _problems(self, launch: KernelLaunch, function: _Function) -> Iterator[str]:
        """Where the geometry and the argument block differ from what the code object takes."""
        source, metadata = function.source, function.metadata
        for axis, size, most in zip("xyz", launch.grid, MOST_GROUPS, strict=True):
            if not 1 <= size <= most:
                yield f"the grid has {size} groups along {axis}; it may have 1 to {most}"
        threads = math.prod(launch.block)
        wanted = source.threads if isinstance(source, HipSource) else _threads(source, self.target)
        if threads != wanted or (metadata.threads and threads != metadata.threads):
            yield f"a group has {threads} lanes; the code is for {metadata.threads or wanted}"
        if launch.shared_bytes != function.shared_bytes:
            yield (
                f"it asks for {launch.shared_bytes} bytes of shared memory, and was loaded with "
                f"{function.shared_bytes}"
            )
        if len(launch.kernargs) != metadata.kernarg_bytes:
            yield (
                f"its argument block has {len(launch.kernargs)} bytes; the code object takes "
                f"{metadata.kernarg_bytes}"
            )
        taken = [argument for argument in metadata.arguments if argument.kind != "hidden"]
        count = len(source.signature)
        if len(launch.arguments) != count or len(taken) < count:
            yield (
                f"it has {len(launch.arguments)} arguments; the source takes {count}, the code "
                f"object {len(taken)}"
            )
            return
        for (name, kind), place, argument in zip(
            source.signature, launch.arguments, taken, strict=False
        ):
            if place != (argument.offset, argument.size):
                yield (
                    f"`{name}` is {place[1]} bytes at {place[0]}; the code object takes "
                    f"{argument.size} at {argument.offset}"
                )
            is_pointer = argument.kind == "pointer"
            if argument.kind != "unknown" and is_pointer != _is_pointer(kind):
                yield f"`{name}` is `{kind}` in the source, a {argument.kind} in the code object"
            if struct.calcsize(_format(kind)) != argument.size:
                yield f"`{name}` is `{kind}`, which does not have {argument.size} bytes"
        pointers = sum(_is_pointer(kind) for _, kind in source.signature)
        if launch.operands != pointers:
            yield f"it has {launch.operands} operands; the source takes {pointers}"

    def _unfit(
        self, launch: KernelLaunch, source: GpuSource, values: tuple[int | float, ...]
    ) -> Iterator[str]:
        """What is wrong with the values of arguments."""
        divisible = source.divisible if isinstance(source, TritonSource) else ()
        named = dict(zip((name for name, _ in source.signature), values, strict=True))
        for name in divisible:
            if named[name] % DIVISOR:
                yield f"`{name}` is compiled as a multiple of {DIVISOR}, and is {named[name]}"
        for (name, _), value, (begin, end) in zip(
            source.signature, values, launch.spans, strict=False
        ):
            if not begin <= value <= end:
                yield f"`{name}` points to {value:#x}, outside of its buffer {begin:#x}..{end:#x}"
            if not self._memory.holds(begin, end):
                yield f"the buffer of `{name}`, {begin:#x}..{end:#x}, is not allocated"

    def _run(
        self, launch: KernelLaunch, source: GpuSource, values: tuple[int | float, ...]
    ) -> None:
        if isinstance(source, HipSource):
            host.run(source, values, launch.grid, fnuz=self.target.fp8 == "f8e4m3fnuz")
            return
        from fusec.emulator import interpreter

        count = launch.operands
        pointers = [
            interpreter.Pointer(int(value), begin, end)
            for value, (begin, end) in zip(values[:count], launch.spans, strict=True)
        ]
        try:
            interpreter.run(
                source, [*pointers, *values[count:]], launch.grid, self.target.wave_size
            )
        except LaunchError as error:
            error.at = launch.at
            raise


def _threads(source: TritonSource, target: Target) -> int:
    return source.warps * target.wave_size


def _is_pointer(kind: str) -> bool:
    return kind == "ptr" or kind.startswith("*")


def _format(kind: str) -> str:
    return _ADDRESS if _is_pointer(kind) else _FORMATS[kind]


def _values(launch: KernelLaunch, source: GpuSource) -> tuple[int | float, ...]:
    """The arguments, unpacked."""
    return tuple(
        struct.unpack_from(_format(kind), launch.kernargs, offset)[0]
        for (_, kind), (offset, _) in zip(source.signature, launch.arguments, strict=True)
    )
