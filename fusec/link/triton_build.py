"""Builds GPU code objects from Triton functions, with no GPU and no ROCm on the machine.

Triton's own command line asks for a device even where the target is named; its library call does
not.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import linecache
import re
from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

from fusec.diagnostics import InputError
from fusec.kernels.launch import TritonSource
from fusec.link.amdgpu_tools import GPU_HINT
from fusec.link.assembly import read_assembly, read_ptx
from fusec.link.gpu_kernel import CompiledCode, MachineCode
from fusec.target import Target

FP_FUSION = True
"""Whether a multiplication and an addition may become one instruction; always said explicitly,
because Triton's default changes between releases."""

NO_PACKED_F32 = "-packed-fp32-ops"
"""LLVM's name for doing without packed f32 instructions."""

StagesHook: TypeAlias = Callable[..., tuple[str, str] | None]

_ATTRIBUTES_OF_FUNCTION = re.compile(r"^define .* #(\d+)(?: .*)?\{$", re.MULTILINE)


def build_triton(source: TritonSource, target: Target) -> CompiledCode:
    """Compile one Triton function for `target`; the same bytes always.

    Where packed f32 instructions come out in a form that the target does not execute right, it is
    compiled without them.

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
    function = triton_function(source)
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

    def compiled(stages_hook: StagesHook | None = None) -> Any:
        knobs = triton.knobs
        with knobs.compilation.scope(), knobs.runtime.scope():
            # Line tables name files of this machine, and would differ between machines.
            knobs.compilation.disable_line_info = True
            knobs.compilation.always_compile = stages_hook is not None  # 3.6 keeps no two results
            knobs.runtime.add_stages_inspection_hook = stages_hook
            return triton.compile(made, target=_gpu_target(backends, target), options=options)

    found = compiled()
    if target.family != "amdgpu":
        return _compiled_code(found, "cubin", read_ptx(found.asm["ptx"]), source, target)
    machine = read_assembly(found.asm["amdgcn"], target.arch)
    if machine.forbidden:
        found = compiled(_without_packed_f32)
        machine = read_assembly(found.asm["amdgcn"], target.arch)
    return _compiled_code(found, "hsaco", machine, source, target)


@cache
def triton_function(source: TritonSource) -> Any:
    """The function of `source`, as `triton.jit` made it.

    That of a generated text is in no module that could be imported; Triton reads its lines where
    Python keeps those of source files.

    Raises:
        InputError: the extension that it belongs to is not installed.
    """
    if not source.text:
        return getattr(_module(source.module), source.function)
    name = f"<{source.function}>"
    linecache.cache[name] = len(source.text), None, source.text.splitlines(True), name
    namespace: dict[str, Any] = {"__name__": source.function}
    exec(compile(source.text, name, "exec"), namespace)
    return namespace[source.function]


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise InputError(
            f"the module `{name}`, which holds the source of a kernel, is not there",
            hint="install the extension that it belongs to",
        ) from None


def _compiled_code(
    found: Any, suffix: str, machine: MachineCode, source: TritonSource, target: Target
) -> CompiledCode:
    return CompiledCode(
        symbol=found.metadata.name,
        code=found.asm[suffix],
        suffix=suffix,
        threads=source.warps * target.wave_size,
        shared_bytes=found.metadata.shared,
        machine=machine,
    )


def _without_packed_f32(*stage: Any) -> tuple[str, str] | None:
    """Triton's hook into its stages: LLVM may not form packed f32 instructions.

    Without arguments it is asked for what tells its results from others in Triton's cache.
    """
    if not stage:
        return NO_PACKED_F32, NO_PACKED_F32
    stages = stage[1]
    make = stages["amdgcn"]
    stages["amdgcn"] = lambda text, metadata: make(forbid_packed_f32(text), metadata)
    return None


def forbid_packed_f32(text: str) -> str:
    """LLVM IR `text` with packed f32 instructions forbidden in every function that it defines."""
    for group in set(_ATTRIBUTES_OF_FUNCTION.findall(text)):
        begin = f"attributes #{group} = {{"
        text = text.replace(begin, f'{begin} "target-features"="{NO_PACKED_F32}"')
    return text


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
