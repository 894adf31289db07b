"""Links a program for a GPU: compiles what its launches name, and checks each against its launch.

Nothing is written before every symbol of every launch is there, for every target, with arguments
where the launch puts them, and without instructions that the device does not execute right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fusec.diagnostics import FusecError
from fusec.kernels.registry import Kernel, kernels
from fusec.link.cache import ObjectCache
from fusec.link.gpu_checks import GpuSource, fitted, unfit
from fusec.link.gpu_compile import CompileError, compile_sources
from fusec.link.gpu_kernel import GpuKernel
from fusec.link.linker import LinkError
from fusec.lower.gpu import GpuProgram, GpuStep
from fusec.target import Target


@dataclass(frozen=True, slots=True)
class LinkedGpu:
    """The code objects of a program.

    Attributes:
        kernels: by source.
        compiled: sources that had to be compiled.
        cached: sources whose code was kept.
    """

    kernels: Mapping[GpuSource, GpuKernel]
    compiled: int
    cached: int


def link_gpu(
    program: GpuProgram,
    cache: ObjectCache,
    *,
    jobs: int = 1,
    providers: Sequence[Kernel] = (),
    progress: Callable[[int, int], None] | None = None,
) -> LinkedGpu:
    """Every code object that `program` launches, checked against every launch of it.

    Args:
        program: for a GPU.
        cache: of code objects.
        jobs: how many compilers may run at a time.
        providers: records that were asked before those of the registry.
        progress: is told how many code objects are ready, and of how many.

    Raises:
        LinkError: a source cannot be compiled, or a code object does not fit a launch of it.
        InputError: Triton is not installed.
    """
    first = {step.source: step for step in reversed(program.steps)}
    sources = list(dict.fromkeys(step.source for step in program.steps))
    target = program.target
    try:
        made = compile_sources(sources, target, cache, jobs=jobs, progress=progress)
    except CompileError as error:
        message = f"does not compile: {error}"
        raise _link_error(program, first[error.source], message, providers, error) from error
    for step in _different_launches(program.steps):
        code = made.code[step.source]
        reasons = [*unfit(code, step.source, step.launch, target, step.kernel)]
        if reasons:
            message = f"does not fit its launch: {'; '.join(reasons)}"
            raise _link_error(program, step, message, providers)
    built = {source: fitted(code, source, target) for source, code in made.code.items()}
    return LinkedGpu(built, made.compiled, made.cached)


def _different_launches(steps: Sequence[GpuStep]) -> Iterator[GpuStep]:
    """One step for each source and each form of its arguments."""
    seen: set[tuple[object, ...]] = set()
    for step in steps:
        launch = step.launch
        kinds = tuple(isinstance(param, float) for param in launch.params)
        form = (step.source, launch.symbol, len(launch.operands), kinds, step.kernel.name)
        if form not in seen:
            seen.add(form)
            yield step


def alternatives(
    program: GpuProgram, step: GpuStep, providers: Sequence[Kernel] = ()
) -> Iterator[str]:
    """What other records say of the node of `step`."""
    node, target = step.node, program.target
    others = [
        kernel
        for kernel in (*providers, *kernels().get(node.op, ()))
        if kernel.op == node.op and kernel.name != step.kernel.name
    ]
    for kernel in others:
        if target.family not in kernel.families:
            yield f"`{kernel.name}` is not for `{target.name}`"
            continue
        why_not = kernel.supports(program.graph, node, target)
        yield f"`{kernel.name}` {'can compute it' if why_not is None else f'cannot: {why_not}'}"
    if not others:
        yield f"no other kernel computes `{node.op}`"


def _link_error(
    program: GpuProgram,
    step: GpuStep,
    what: str,
    providers: Sequence[Kernel],
    cause: FusecError | None = None,
) -> LinkError:
    target: Target = program.target
    said = () if cause is None else cause.detail
    hint = f"the record `{step.kernel.name}` and {step.kernel.source} do not agree"
    return LinkError(
        f"`{step.launch.symbol}` of `{step.kernel.name}`, which computes `{step.node.op}` for "
        f"`{target.name}`, {what}",
        at=step.node.origin.path or step.node.name,
        detail=(*said, *alternatives(program, step, providers)),
        hint=hint if cause is None else cause.hint,
    )
