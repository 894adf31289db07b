"""Builds GPU code objects from HIP C++, with no GPU and no ROCm headers on the machine.

Any clang with an amdgcn back end compiles the source to assembly: that of a ROCm install, one of
the system, or the one in the `ziglang` wheel.  Triton's AMD backend assembles and links it.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fusec.diagnostics import UnsupportedError
from fusec.kernels.launch import HipSource
from fusec.kernels.sources import include_folder, package_folder
from fusec.link.amdgpu_tools import GPU_HINT, assemble, device_library
from fusec.link.assembly import read_assembly
from fusec.link.gpu_kernel import CompiledCode
from fusec.target import Target

OLDEST_CLANG = 20
"""The first clang that knows gfx950 and its conversion instructions well."""

_CANDIDATES = (
    "amdclang++",
    "/opt/rocm/llvm/bin/clang++",
    "clang++",
    *map("clang++-{}".format, (22, 21, 20)),
)

_FLAGS = (
    "-x",
    "hip",
    "--offload-device-only",
    "-nogpuinc",
    "-nogpulib",
    "-std=c++17",
    "-O3",
    "-ffp-contract=fast",
    "-fno-exceptions",
    "-fuse-cuid=none",
    "-Wall",
    "-Wno-unused-command-line-argument",
    "-S",
)

_ARCH_FLAGS = {"gfx950": ("-Xclang", "-target-feature", "-Xclang", "-packed-fp32-ops")}
"""gfx950 does not execute every form of its packed f32 instructions right: see `assembly`."""


@dataclass(frozen=True, slots=True)
class HipCompiler:
    """A clang that compiles for AMD GPUs.

    Attributes:
        command: how it is called.
        version: what it says of itself, in one line.
    """

    command: tuple[str, ...]
    version: str


@cache
def find_hip_compiler() -> HipCompiler:
    """The clang of a ROCm install, else of the system, else of `ziglang`, if it is new enough.

    Raises:
        UnsupportedError: there is none.
    """
    for name in _CANDIDATES:
        found = _system_compiler(name)
        if found is not None:
            return found
    if importlib.util.find_spec("ziglang") is not None:
        found = _recent_clang((sys.executable, "-m", "ziglang", "clang"))
        if found is not None:
            return found
    raise UnsupportedError(
        "HIP kernels need clang with an amdgcn back end, and there is none",
        detail=(
            f"looked for {', '.join(_CANDIDATES)} of version {OLDEST_CLANG} or newer, and for the "
            "Python package `ziglang`",
        ),
        hint=f"install one with `{GPU_HINT}`",
    )


def build_hip(source: HipSource, target: Target) -> CompiledCode:
    """Compile one HIP kernel for `target`; the same bytes always.

    Raises:
        InputError: Triton, which carries the assembler, is not installed.
        UnsupportedError: there is no compiler, or it refuses the source.
    """
    compiler = find_hip_compiler()
    root = package_folder(source.package)
    with tempfile.TemporaryDirectory(prefix="fusec-") as folder:
        made = Path(folder) / "kernel.s"
        command = [*compiler.command, *_code_flags(source, target)]
        command += ["-Xclang", "-mlink-builtin-bitcode", "-Xclang", str(device_library("ocml"))]
        command += [f"-ffile-prefix-map={root}=kernels", "-I", str(include_folder())]
        command += [str(root / source.file), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if done.returncode != 0:
            raise UnsupportedError(
                f"`{source.file}` does not compile for `{target.name}`",
                at=compiler.version,
                detail=tuple(done.stderr.strip().splitlines()[:20]),
            )
        assembly = made.read_text(encoding="utf-8")
    return CompiledCode(
        symbol=source.function,
        code=assemble(assembly, target.arch),
        suffix="hsaco",
        threads=source.threads,
        shared_bytes=0,
        machine=read_assembly(assembly, target.arch),
    )


def _code_flags(source: HipSource, target: Target) -> tuple[str, ...]:
    return (
        *_FLAGS,
        f"--offload-arch={target.arch}",
        *_ARCH_FLAGS.get(target.arch, ()),
        f"-DFUSEC_THREADS={source.threads}",
        *(f"-D{name}={value}" for name, value in source.defines),
    )


def _system_compiler(name: str) -> HipCompiler | None:
    path = shutil.which(name)
    if path is None:
        return None
    found = _recent_clang((path,))
    targets = None if found is None else _output((path, "--print-targets"))
    return found if targets and "amdgcn" in targets else None


def _recent_clang(command: tuple[str, ...]) -> HipCompiler | None:
    """What `command` calls, if that is a clang that is new enough."""
    version = (_output((*command, "--version")) or "").partition("\n")[0].strip()
    number = re.search(r"version (\d+)", version)
    if number is None or int(number[1]) < OLDEST_CLANG:
        return None
    return HipCompiler(command, version)


def _output(command: tuple[str, ...]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
