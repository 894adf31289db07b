"""Finds a C++ compiler and knows how each one is called.

A system `clang++` or `g++` is taken from PATH; otherwise the clang inside the `ziglang` wheel.
Nothing here depends on the processor of this machine: the instruction set comes from the target.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from fusec.diagnostics import InputError, UnsupportedError
from fusec.target import Target

Family = Literal["clang", "gcc", "zig"]

# An old C library that any machine of the last years has; only zig can choose it.
_ZIG_TARGET = "x86_64-linux-gnu.2.28"

_SHARED_FLAGS = (
    "-std=c++17",
    "-fPIC",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-threadsafe-statics",
    "-fno-stack-protector",
    "-U_FORTIFY_SOURCE",  # some compilers define it, and the module has no library for its checks
    "-fno-ident",
    "-ffunction-sections",
    "-fdata-sections",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
)
_LIBRARY_FLAGS = ("-O3",)
# Every fma of generated code is written, its integers wrap, and its loops are marked for vectors.
_GENERATED_FLAGS = ("-O2", "-ffp-contract=off", "-fwrapv", "-fopenmp-simd")


# Instruction sets are named by what is in them: compilers learn names of processors late.
_EXTENSIONS = {
    "avx512_bf16": "avx512bf16",
    "avx512_vnni": "avx512vnni",
    "avx512vbmi": "avx512vbmi",
    "avx512_fp16": "avx512fp16",
    "amx_tile": "amx-tile",
    "amx_bf16": "amx-bf16",
    "amx_int8": "amx-int8",
}


def _level(target: Target) -> str:
    return "x86-64-v4" if "avx512f" in target.features else "x86-64-v3"


def _extensions(target: Target) -> list[str]:
    return [_EXTENSIONS[name] for name in target.features if name in _EXTENSIONS]


def _instruction_flags(target: Target) -> tuple[str, ...]:
    return (f"-march={_level(target)}", *(f"-m{name}" for name in _extensions(target)))


def _zig_processor(target: Target) -> str:
    names = (_level(target), *_extensions(target))
    return "+".join(name.replace("-", "_") for name in names)


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A C++ compiler and linker.

    Attributes:
        family: which kind.
        command: how it is called.
        version: what it says of itself, in one line.
    """

    family: Family
    command: tuple[str, ...]
    version: str

    def compile_command(
        self, source: Path, made: Path, target: Target, include: Path, *, generated: bool
    ) -> list[str]:
        """The command that compiles `source` to the object `made`."""
        flags = self.flags(target, generated=generated)
        paths = [f"-ffile-prefix-map={include}=include", "-I", str(include)]
        language = ["-x", "c++"] if self.family == "zig" else []
        return [*self._driver(), *flags, *paths, *language, "-c", str(source), "-o", str(made)]

    def flags(self, target: Target, *, generated: bool) -> tuple[str, ...]:
        """Flags that decide what code comes out."""
        kind = _GENERATED_FLAGS if generated else _LIBRARY_FLAGS
        if generated and self.family != "gcc" and "avx512f" in target.features:
            kind = (*kind, "-mprefer-vector-width=512")  # its own choice is half of that
        if self.family == "zig":
            zig = ("-target", _ZIG_TARGET, f"-mcpu={_zig_processor(target)}")
            return (*_SHARED_FLAGS, *kind, *zig, "-fno-sanitize=all", "-g0")
        tuning = () if self.family == "clang" else ("-fno-semantic-interposition",)
        return (*_SHARED_FLAGS, *kind, *tuning, *_instruction_flags(target))

    def link_command(self, objects: Sequence[Path], exports: Path, target: Path) -> list[str]:
        """The command that links `objects` to the shared object `target`, the same bytes always."""
        flags = [
            "-shared",
            "-nostdlib",
            f"-Wl,--version-script={exports}",
            "-Wl,--gc-sections",
            "-Wl,-Bsymbolic",
            "-Wl,-z,noexecstack",
            "-Wl,--build-id=none",
        ]
        if self.family == "zig":
            flags = [flag for flag in flags if flag != "-nostdlib"]
            flags += ["-target", _ZIG_TARGET, "-nostdlib++"]
        flags.append("-s")
        libraries = ["-lm", "-lpthread", "-lc"]
        return [*self._driver(), *flags, "-o", str(target), *map(str, objects), *libraries]

    def _driver(self) -> list[str]:
        return [*self.command, "cc"] if self.family == "zig" else list(self.command)


def find_toolchain(choice: str | None = None) -> Toolchain:
    """The compiler called `choice`, or the first there is of `clang++`, `g++` and `ziglang`.

    Args:
        choice: `clang++`, `g++`, `zig`, or the path of a compiler; `None` for the first one found.

    Raises:
        InputError: the one that was asked for is not there, or does not run.
        UnsupportedError: there is none at all.
    """
    if choice is not None:
        found = _toolchain(choice)
        if found is None:
            hint = "leave out the choice, or install it"
            raise InputError(f"there is no C++ compiler `{choice}`", hint=hint)
        return found
    for name in ("clang++", "g++", "zig"):
        found = _toolchain(name)
        if found is not None:
            return found
    raise UnsupportedError(
        "the CPU target needs a C++ compiler, and there is none",
        detail=("looked for `clang++` and `g++` on PATH, and for the Python package `ziglang`",),
        hint="install one with `pip install 'fusec[toolchain]'`",
    )


@cache
def _toolchain(name: str) -> Toolchain | None:
    if name in ("zig", "ziglang"):
        if importlib.util.find_spec("ziglang") is None:
            return None
        command = (sys.executable, "-m", "ziglang")
        version = _first_line((*command, "version"))
        return None if version is None else Toolchain("zig", command, f"zig {version}")
    path = shutil.which(name)
    if path is None:
        return None
    version = _first_line((path, "--version"))
    if version is None:
        return None
    family: Family = "clang" if "clang" in version else "gcc"
    return Toolchain(family, (path,), version)


def _first_line(command: tuple[str, ...]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None
