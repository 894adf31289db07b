"""Builds GPU code objects from Triton functions, with no GPU and no ROCm on the machine.

Triton's own command line asks for a device even where the target is named; its library call does
not.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

from fusec.diagnostics import InputError
from fusec.kernels.launch import TritonSource
from fusec.link.amdgpu_tools import GPU_HINT
from fusec.link.assembly import read_assembly, read_ptx
from fusec.link.gpu_checks import fitted
from fusec.link.gpu_kernel import CompiledCode, GpuKernel
from fusec.target import Target

FP_FUSION = True
"""Whether a multiplication and an addition may become one instruction; always said explicitly,
because Triton's default changes between releases."""


def build_triton(source: TritonSource, target: Target) -> CompiledCode:
    """Compile one Triton function for `target`; the same bytes always.

    Raises:
        InputError: Triton is not installed.
        Exception: what Triton raises when it refuses the function.
    """
    try:
        triton = importlib.import_module("triton")
        compiler = importlib.import_module("triton.compiler")
        backends = importlib.import_module("triton.backends.compiler")
    except ModuleNotFoundError as error:
        raise InputError(f"compiling for `{target.name}` needs Triton", hint=GPU_HINT) from error
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
    options = {"num_warps": source.warps, "enable_fp_fusion": FP_FUSION, **dict(source.options)}
    with triton.knobs.compilation.scope():
        # Line tables name files of this machine, and would differ between machines.
        triton.knobs.compilation.disable_line_info = True
        compiled = triton.compile(made, target=_gpu_target(backends, target), options=options)
    is_amd = target.family == "amdgpu"
    suffix = "hsaco" if is_amd else "cubin"
    if is_amd:
        machine = read_assembly(compiled.asm["amdgcn"], target.arch)
    else:
        machine = read_ptx(compiled.asm["ptx"])
    return CompiledCode(
        symbol=compiled.metadata.name,
        code=compiled.asm[suffix],
        suffix=suffix,
        threads=source.warps * target.wave_size,
        shared_bytes=compiled.metadata.shared,
        machine=machine,
    )


def build(source: TritonSource, target: Target) -> GpuKernel:
    """Compile one Triton function and read what came out.

    Raises:
        InputError: Triton is not installed.
        Exception: what Triton raises when it refuses the function.
    """
    return fitted(build_triton(source, target), source, target)


def triton_version() -> str:
    """The version of Triton that is installed.

    Raises:
        InputError: it is not.
    """
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError("compiling for a GPU needs Triton", hint=GPU_HINT) from error


def _gpu_target(backends: Any, target: Target) -> Any:
    if target.family == "amdgpu":
        return backends.GPUTarget("hip", target.arch, target.wave_size)
    return backends.GPUTarget("cuda", int(target.arch.removeprefix("sm_")), target.wave_size)
