"""Runs HIP kernels on the host: the same source, compiled for the CPU, lane by lane."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from fusec.diagnostics import InternalError
from fusec.kernels.launch import HipSource
from fusec.kernels.sources import include_folder, source_path
from fusec.link.cache import ObjectCache, default_cache_directory
from fusec.link.linker import headers_digest
from fusec.link.toolchain import find_toolchain

FLAGS = (
    "-std=c++17 -O1 -fPIC -shared -fvisibility=hidden -Wall -Wno-unknown-pragmas "
    "-fno-exceptions -x c++"
).split()
"""Hidden, because the loader makes one of all visible static arrays of an inline function, and
kernels with more lanes have larger ones."""

ARGUMENTS = {
    "ptr": ctypes.c_void_p,
    "i32": ctypes.c_int32,
    "i64": ctypes.c_int64,
    "f32": ctypes.c_float,
}


def run(
    source: HipSource, arguments: Sequence[int | float], grid: Sequence[int], *, fnuz: bool
) -> None:
    """Run every group of a launch.

    Args:
        source: of the kernel.
        arguments: addresses and numbers, as in its signature.
        grid: groups along each axis.
        fnuz: whether fp8 is that of gfx942.

    Raises:
        InternalError: the source does not compile for the host.
    """
    values = [
        ARGUMENTS[kind](argument)  # type: ignore[arg-type]
        for argument, (_, kind) in zip(arguments, source.signature, strict=True)
    ]
    addresses = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
    sizes = (ctypes.c_int64 * 3)(*grid, *[1] * (3 - len(grid)))
    function = getattr(library(source, fnuz), source.function)
    function.restype = None
    function(addresses, sizes)


@cache
def library(source: HipSource, fnuz: bool) -> ctypes.CDLL:
    """The source as a shared object of the host.

    Raises:
        InputError: the extension that it belongs to is not installed.
        InternalError: it does not compile; the detail is what the compiler says.
    """
    path, include = source_path(source.package, source.file), include_folder()
    toolchain = find_toolchain()
    options = [
        *FLAGS,
        "-DFUSEC_HOST_SHIM",
        f"-DFUSEC_FP8_FNUZ={int(fnuz)}",
        f"-DFUSEC_THREADS={source.threads}",
        *(f"-D{name}={value}" for name, value in source.defines),
    ]
    text = path.read_bytes()
    headers = headers_digest(text, include, path.parent)
    parts = (hashlib.sha256(text).hexdigest(), headers, toolchain.version, *options)
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    cache = ObjectCache(default_cache_directory())
    found = cache.find_object(digest)
    if found is None:
        driver = [*toolchain.command, "c++"] if toolchain.family == "zig" else toolchain.command
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "kernel.so"
            command = [*driver, *options, f"-I{include}", str(path), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise InternalError(
                    f"`{source.file}` does not compile for the host",
                    detail=tuple(done.stderr.splitlines()[:20]),
                )
            found = cache.keep(digest, made)
    return ctypes.CDLL(str(found))
