"""Builds GPU code objects from Triton functions, with no GPU and no ROCm on the machine.

Triton's own command line asks for a device even where the target is named; its library call does
not.  What is built is checked against what the launch will do: the entry point, the architecture
and the kernel arguments, from the code object itself.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fusec.diagnostics import InputError, UnsupportedError
from fusec.kernels.launch import TritonSource
from fusec.link.code_object import read_code_object
from fusec.target import Target

FP_FUSION = True
"""Whether a multiplication and an addition may become one instruction; always said explicitly,
because Triton's default changes between releases."""


@dataclass(frozen=True, slots=True)
class GpuKernel:
    """A built code object.

    Attributes:
        symbol: the entry point.
        code: the bytes that a driver loads: an ELF file.
        suffix: what kind of file that is: `hsaco` or `cubin`.
        threads: lanes of a work group.
        resources: registers, memory and spills, as `inspect` shows them.
        arguments: offset and size of each kernel argument that the launch gives, in order.
    """

    symbol: str
    code: bytes
    suffix: str
    threads: int
    resources: Mapping[str, int]
    arguments: tuple[tuple[int, int], ...]


def build(source: TritonSource, target: Target) -> GpuKernel:
    """Compile one Triton function for `target`.

    Raises:
        InputError: Triton is not installed.
        UnsupportedError: Triton refuses the function, or what it built does not fit the launch.
    """
    try:
        triton = importlib.import_module("triton")
        compiler = importlib.import_module("triton.compiler")
        backends = importlib.import_module("triton.backends.compiler")
    except ModuleNotFoundError as error:
        hint = "pip install 'fusec[gpu]'"
        raise InputError(f"compiling for `{target.name}` needs Triton", hint=hint) from error
    function = getattr(importlib.import_module(source.module), source.function)
    names = function.arg_names
    divisible = {(names.index(name),): [["tt.divisibility", 16]] for name in source.divisible}
    constants = dict(source.constants)
    signature = {**dict(source.signature), **dict.fromkeys(constants, "constexpr")}
    made = compiler.ASTSource(
        fn=function,
        signature={name: signature[name] for name in names},
        constexprs=constants,
        attrs=divisible,
    )
    options = {"num_warps": source.warps, "enable_fp_fusion": FP_FUSION}
    with triton.knobs.compilation.scope():
        # Line tables name files of this machine, and would differ between machines.
        triton.knobs.compilation.disable_line_info = True
        compiled = triton.compile(made, target=_gpu_target(backends, target), options=options)
    if target.family == "amdgpu":
        return _amd(compiled, source, target)
    return GpuKernel(
        symbol=compiled.metadata.name,
        code=compiled.asm["cubin"],
        suffix="cubin",
        threads=source.warps * target.wave_size,
        resources={"lds_bytes": compiled.metadata.shared},
        arguments=(),
    )


def triton_version() -> str:
    """The version of Triton that `build` uses."""
    return importlib.metadata.version("triton")


def _gpu_target(backends: Any, target: Target) -> Any:
    if target.family == "amdgpu":
        return backends.GPUTarget("hip", target.arch, target.wave_size)
    return backends.GPUTarget("cuda", int(target.arch.removeprefix("sm_")), target.wave_size)


def _amd(compiled: Any, source: TritonSource, target: Target) -> GpuKernel:
    code: bytes = compiled.asm["hsaco"]
    symbol: str = compiled.metadata.name
    found = read_code_object(code)
    kernel = found.kernels.get(symbol)
    if kernel is None:
        raise _unfit(source, target, f"it defines {', '.join(found.kernels) or 'nothing'}")
    if found.arch != target.arch:
        raise _unfit(source, target, f"it is for `{found.arch}`")
    sizes = [8 if kind[0] == "*" or kind.endswith("64") else 4 for _, kind in source.signature]
    given = kernel.arguments[: len(sizes)]
    if [size for _, size in given] != sizes:
        found_sizes = [size for _, size in given]
        raise _unfit(source, target, f"its arguments take {found_sizes} bytes, not {sizes}")
    resources = dict(kernel.resources)
    resources["lds_bytes"] = compiled.metadata.shared  # Triton's LDS is not in the descriptor
    spilled = {key: resources[key] for key in _UNWANTED if resources[key]}
    if spilled:
        raise _unfit(source, target, f"it spills: {spilled}")
    return GpuKernel(symbol, code, "hsaco", kernel.threads, resources, given)


_UNWANTED = ("vgpr_spills", "sgpr_spills", "scratch_bytes")


def _unfit(source: TritonSource, target: Target, why: str) -> UnsupportedError:
    message = f"the code object of `{source.function}` for `{target.name}` does not fit: {why}"
    return UnsupportedError(message, at=source.module)
