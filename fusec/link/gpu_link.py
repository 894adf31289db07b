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
from fusec.lower.steps import KernelStep, Lowered


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
    lowered: Lowered,
    cache: ObjectCache,
    *,
    jobs: int = 1,
    providers: Sequence[Kernel] = (),
    progress: Callable[[int, int], None] | None = None,
) -> LinkedGpu:
    """Every code object that `lowered` launches, checked against every launch of it.

    Args:
        lowered: for a GPU.
        cache: of code objects.
        jobs: how many compilers may run at a time.
        providers: records that were asked before those of the registry.
        progress: is told how many code objects are ready, and of how many.

    Raises:
        LinkError: a source cannot be compiled, or a code object does not fit a launch of it.
        InputError: Triton is not installed.
    """
    steps = [(step, step.source) for step in lowered.kernel_steps if step.source is not None]
    first = {source: step for step, source in reversed(steps)}
    sources = list(dict.fromkeys(source for _, source in steps))
    target = lowered.target
    try:
        made = compile_sources(sources, target, cache, jobs=jobs, progress=progress)
    except CompileError as error:
        message = f"does not compile: {error}"
        raise _link_error(lowered, first[error.source], message, providers, error) from error
    for step, source in _different_launches(steps):
        code = made.code[source]
        reasons = [*unfit(code, source, step.launch, target, step.kernel)]
        if reasons:
            message = f"does not fit its launch: {'; '.join(reasons)}"
            raise _link_error(lowered, step, message, providers)
    built = {source: fitted(code, source, target) for source, code in made.code.items()}
    return LinkedGpu(built, made.compiled, made.cached)


def _different_launches(
    steps: Sequence[tuple[KernelStep, GpuSource]],
) -> Iterator[tuple[KernelStep, GpuSource]]:
    """One step for each source and each form of its arguments."""
    seen: set[tuple[object, ...]] = set()
    for step, source in steps:
        launch = step.launch
        kinds = tuple(isinstance(param, float) for param in launch.params)
        form = (source, launch.symbol, len(launch.operands), kinds, step.kernel.name)
        if form not in seen:
            seen.add(form)
            yield step, source


def alternatives(
    lowered: Lowered, step: KernelStep, providers: Sequence[Kernel] = ()
) -> Iterator[str]:
    """What other records say of the node of `step`."""
    node, target = step.node, lowered.target
    others = [
        kernel
        for kernel in (*providers, *kernels().get(node.op, ()))
        if kernel.op == node.op and kernel.name != step.kernel.name
    ]
    for kernel in others:
        if target.family not in kernel.families:
            yield f"`{kernel.name}` is not for `{target.name}`"
            continue
        why_not = kernel.supports(lowered.graph, node, target)
        yield f"`{kernel.name}` {'can compute it' if why_not is None else f'cannot: {why_not}'}"
    if not others:
        yield f"no other kernel computes `{node.op}`"


def _link_error(
    lowered: Lowered,
    step: KernelStep,
    what: str,
    providers: Sequence[Kernel],
    cause: FusecError | None = None,
) -> LinkError:
    target = lowered.target
    said = () if cause is None else cause.detail
    hint = f"the record `{step.kernel.name}` and {step.kernel.source} do not agree"
    return LinkError(
        f"`{step.launch.symbol}` of `{step.kernel.name}`, which computes `{step.op}` for "
        f"`{target.name}`, {what}",
        at=step.node.origin.path or step.node.name,
        detail=(*said, *alternatives(lowered, step, providers)),
        hint=hint if cause is None else cause.hint,
    )
