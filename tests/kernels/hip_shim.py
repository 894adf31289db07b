"""Builds the source of a HIP kernel for the host and runs it there, lane by lane."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from cpu_library import KERNELS, compiler

from fusec.kernels.launch import HipSource, Launch
from fusec.symbolic import evaluate

FLAGS = "-std=c++17 -O1 -fPIC -shared -Wall -Wno-unknown-pragmas -fno-exceptions -x c++".split()
ARGUMENTS = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "f32": ctypes.c_float}


def run_launch(launch: Launch, memory: dict[int, np.ndarray | torch.Tensor], fnuz: bool) -> None:
    """Run a launch of known sizes on `memory`, the buffers by number.

    Args:
        launch: of a HIP kernel.
        memory: arrays or tensors on the CPU, which the kernel reads and writes in place.
        fnuz: whether fp8 is that of gfx942.
    """
    assert isinstance(launch.code, HipSource)
    pointers = [
        _address(memory[storage.buffer]) + evaluate(storage.byte_offset, {})
        for storage in launch.operands
    ]
    params = [param if isinstance(param, float) else evaluate(param, {}) for param in launch.params]
    grid = [evaluate(size, {}) for size in launch.grid]
    run(launch.code, [*pointers, *params], grid, fnuz=fnuz)


def run(
    source: HipSource, arguments: Sequence[int | float], grid: Sequence[int], *, fnuz: bool
) -> None:
    """Run every group of a kernel; `arguments` are addresses and numbers, as in its signature."""
    values: list[object] = []
    assert len(arguments) == len(source.signature)
    for argument, (_, kind) in zip(arguments, source.signature, strict=True):
        make = ctypes.c_void_p if kind == "ptr" else ARGUMENTS[kind]
        values.append(make(argument))  # type: ignore[arg-type]
    addresses = (ctypes.c_void_p * len(values))(
        *(ctypes.addressof(value) for value in values)  # type: ignore[arg-type]
    )
    sizes = (ctypes.c_int64 * 3)(*grid, *[1] * (3 - len(grid)))
    function = getattr(library(source, fnuz), source.function)
    function.restype = None
    function(addresses, sizes)


def library(source: HipSource, fnuz: bool) -> ctypes.CDLL:
    """The source as a shared object of the host; fails with what the compiler says."""
    return _library(source.file, source.defines, source.threads, fnuz)


@cache
def _library(
    file: str, macros: tuple[tuple[str, int], ...], threads: int, fnuz: bool
) -> ctypes.CDLL:
    made = Path(tempfile.mkdtemp(prefix="fusec-hip-")) / "kernel.so"
    defines = [f"-D{name}={value}" for name, value in macros]
    command = [
        *compiler(),
        *FLAGS,
        "-DFUSEC_HOST_SHIM",
        f"-DFUSEC_FP8_FNUZ={int(fnuz)}",
        f"-DFUSEC_THREADS={threads}",
        *defines,
        f"-I{KERNELS / 'include'}",
        str(KERNELS / file),
        "-o",
        str(made),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(made))


def _address(memory: np.ndarray | torch.Tensor) -> int:
    if isinstance(memory, torch.Tensor):
        return memory.data_ptr()
    return int(memory.ctypes.data)
