"""Whether a code object is what its launch takes it to be: asked before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fusec.diagnostics import InternalError, UnsupportedError
from fusec.kernels.launch import HipSource, Launch, TritonSource
from fusec.kernels.registry import Kernel
from fusec.link.code_object import CodeObject, KernelMetadata, read_code_object
from fusec.link.gpu_kernel import RESOURCES, CompiledCode, GpuKernel
from fusec.link.occupancy import waves_per_unit
from fusec.target import Target

GpuSource = TritonSource | HipSource

MOST_THREADS = 1024

_SIZES = {
    **dict.fromkeys(("i1", "i8", "u1", "u8"), 1),
    **dict.fromkeys(("i16", "u16"), 2),
    **dict.fromkeys(("i32", "u32", "fp32", "f32"), 4),
    **dict.fromkeys(("i64", "u64", "fp64", "ptr"), 8),
}
_FLOATS = ("fp32", "f32", "fp64")

_TRITON_POINTERS = 2
"""Triton's own arguments behind those of the function: scratch memory and a profile."""

_SPILLS = ("scratch_bytes", "vgpr_spills", "sgpr_spills")


def read_compiled(compiled: CompiledCode) -> CodeObject:
    """The metadata of a compiled source.

    Raises:
        UnsupportedError: it is no code object.
    """
    return read_code_object(compiled.code)


def unfit(
    compiled: CompiledCode, source: GpuSource, launch: Launch, target: Target, record: Kernel
) -> Iterator[str]:
    """Every reason why `compiled`, made of `source`, cannot be launched as `launch` says.

    Args:
        compiled: the code object.
        source: what it was made of.
        launch: a launch of it.
        target: what it was made for.
        record: of the kernel, which says what it may use beside its registers.
    """
    yield from _launch_against_signature(launch, source)
    try:
        read = read_compiled(compiled)
    except UnsupportedError as error:
        yield str(error)
        return
    if read.arch != target.arch:
        yield f"it is for `{read.arch}`"
    if read.settings:
        yield f"it runs only with {' '.join(read.settings)}, which `{target.name}` does not say"
    kernel = read.kernels.get(launch.symbol)
    if kernel is None or compiled.symbol != launch.symbol:
        defined = ", ".join(f"`{name}`" for name in read.kernels) or "no kernel"
        yield f"its source makes {defined}, and not that"
        return
    yield from _arguments(kernel, source)
    yield from _resources(kernel, compiled, target, record)
    for instruction in compiled.machine.forbidden:
        yield f"it has `{instruction}`, which {target.arch} does not execute right"


def fitted(compiled: CompiledCode, source: GpuSource, target: Target) -> GpuKernel:
    """The kernel of a code object against which nothing is said.

    Raises:
        InternalError: its entry point is not there: `unfit` was not asked.
    """
    kernel = read_compiled(compiled).kernels.get(compiled.symbol)
    if kernel is None:
        raise InternalError(f"`{compiled.symbol}` is not in its code object")
    resources = {name: kernel.resources.get(name, 0) for name in RESOURCES}
    resources["lds_bytes"] += compiled.shared_bytes
    given = kernel.arguments[: len(source.signature)]
    return GpuKernel(
        symbol=compiled.symbol,
        code=compiled.code,
        suffix=compiled.suffix,
        threads=compiled.threads,
        shared_bytes=compiled.shared_bytes,
        resources=resources,
        arguments=tuple((argument.offset, argument.size) for argument in given),
        kernarg_bytes=kernel.kernarg_bytes,
        waves=waves_per_unit(resources, compiled.threads, target),
        machine=compiled.machine,
    )


def _launch_against_signature(launch: Launch, source: GpuSource) -> Iterator[str]:
    """Whether a launch gives what the signature of the source takes."""
    given = ["ptr"] * len(launch.operands)
    given += ["float" if isinstance(param, float) else "integer" for param in launch.params]
    taken = [_kind(kind) for _, kind in source.signature]
    if given != taken:
        yield f"its launch gives ({', '.join(given)}); its signature is ({', '.join(taken)})"


def _kind(kind: str) -> str:
    if kind == "ptr" or kind.startswith("*"):
        return "ptr"
    return "float" if kind in _FLOATS else "integer"


def _size(kind: str) -> int:
    return 8 if kind.startswith("*") else _SIZES[kind]


def _arguments(kernel: KernelMetadata, source: GpuSource) -> Iterator[str]:
    """Whether the code object takes its arguments where the launch puts them."""
    at = 0
    wanted: list[tuple[int, int, str]] = []
    for _, kind in source.signature:
        size = _size(kind)
        at = -(-at // size) * size
        wanted.append((at, size, "pointer" if _kind(kind) == "ptr" else "value"))
        at += size
    visible = [argument for argument in kernel.arguments if argument.kind != "hidden"]
    found = [(argument.offset, argument.size, argument.kind) for argument in visible]
    count = len(wanted)
    same = [
        mine[:2] == other[:2] and other[2] in (mine[2], "unknown")
        for mine, other in zip(wanted, found, strict=False)
    ]
    if len(found) < count or not all(same):
        yield f"its arguments are {_listed(found[:count])}; its launch gives {_listed(wanted)}"
        return
    own = [size for _, size, kind in found[count:] if kind != "value"]
    allowed = _TRITON_POINTERS if isinstance(source, TritonSource) else 0
    if len(own) > allowed or len(own) != len(found) - count or any(size != 8 for size in own):
        yield f"it takes {len(found)} arguments; its launch gives {count}"


def _listed(arguments: Sequence[tuple[int, int, str]]) -> str:
    shown = ", ".join(f"{kind} of {size} at {offset}" for offset, size, kind in arguments)
    return f"({shown})"


def _resources(
    kernel: KernelMetadata, compiled: CompiledCode, target: Target, record: Kernel
) -> Iterator[str]:
    spills = {name: kernel.resources[name] for name in _SPILLS if kernel.resources[name]}
    allowed = {
        "scratch_bytes": record.scratch_bytes,
        "vgpr_spills": kernel.resources["vgpr_spills"] if record.scratch_bytes else 0,
        "sgpr_spills": record.scalar_spills,
    }
    if any(count > allowed[name] for name, count in spills.items()):
        told = ", ".join(f"{name} {count}" for name, count in spills.items())
        bound = f"{record.scratch_bytes} bytes of it" if record.scratch_bytes else "none of it"
        if record.scalar_spills:
            bound += f", and {record.scalar_spills} scalar registers"
        yield f"it has too few registers ({told}), and its record allows {bound}"
    lds = kernel.resources["lds_bytes"] + compiled.shared_bytes
    if lds > target.lds_bytes:
        yield f"a work group needs {lds} bytes of shared memory; there are {target.lds_bytes}"
    most = kernel.threads or MOST_THREADS
    if compiled.threads > most:
        yield f"it is launched with {compiled.threads} lanes and takes at most {most}"
