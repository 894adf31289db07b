"""Makes, of a rewritten graph and a target, everything that an artifact holds for it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from fusec.diagnostics import UnsupportedError
from fusec.ir import Graph, Weight
from fusec.kernels.launch import TritonSource
from fusec.link.artifact_writer import (
    KernelRecord,
    ResidualRecord,
    TargetContents,
    WeightData,
    module_entry,
)
from fusec.link.cache import ObjectCache, default_cache_directory
from fusec.link.linker import link
from fusec.link.toolchain import Toolchain, find_toolchain
from fusec.link.triton_build import GpuKernel, build, triton_version
from fusec.lower.gpu import lower_gpu
from fusec.lower.lowering import Lowered, lower
from fusec.lower.program import program_document
from fusec.lower.residual import build_residual
from fusec.target import Target


@dataclass(frozen=True, slots=True)
class Built:
    """One target, ready to be written.

    Attributes:
        contents: its part of the artifact.
        weights: what its program reads, packed.
        residual: models for onnxruntime, by entry.
        tools: versions of what made it.
        summary: a line about it, for people.
    """

    contents: TargetContents
    weights: tuple[Weight, ...]
    residual: Mapping[str, bytes] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    summary: str = ""


def build_target(
    graph: Graph,
    target: Target,
    *,
    allow_host_fallback: bool,
    jobs: int,
    toolchain: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Built:
    """Lower `graph` for `target`, compile what it needs, and check that it fits together.

    Args:
        graph: rewritten for `target`.
        target: for what.
        allow_host_fallback: whether a GPU target may leave operations to the host.
        jobs: compilers to run at once.
        toolchain: the C++ compiler for a CPU target; by default the first that is found.
        progress: is told how many objects are ready, and of how many.

    Raises:
        UnsupportedError: operations cannot be lowered.
        LinkError: a symbol is missing, or a compiler refuses a source.
    """
    if target.is_gpu:
        return _build_gpu(graph, target, allow_host_fallback, jobs)
    return _build_cpu(lower(graph, target), target, find_toolchain(toolchain), jobs, progress)


def _build_cpu(
    lowered: Lowered,
    target: Target,
    toolchain: Toolchain,
    jobs: int,
    progress: Callable[[int, int], None] | None,
) -> Built:
    models = _residual_models(lowered)
    cache = ObjectCache(default_cache_directory())
    linked = link(lowered, toolchain, cache, jobs=jobs, progress=progress)
    entry = module_entry(target.arch, linked.code, "so")
    digest = hashlib.sha256(linked.code).hexdigest()
    kernels = tuple(
        KernelRecord(
            name=kernel.name,
            op=kernel.op,
            provider=kernel.provider,
            symbol=kernel.symbol,
            sha256=digest,
            bytes=linked.sizes[kernel.symbol],
            resources=_no_resources(),
        )
        for kernel in lowered.kernels
    )
    contents = TargetContents(
        target=target.name,
        family=target.family,
        arch=target.arch,
        features=target.features,
        program=program_document(lowered, entry),
        modules={entry: linked.code},
        kernels=kernels,
        launches=lowered.launches,
        residual=tuple(ResidualRecord(r.op, r.node, r.reason) for r in lowered.residual),
        weights_bytes=lowered.weights_bytes,
        arena_bytes=lowered.arena_bytes,
    )
    summary = (
        f"{target.name}: {len(kernels)} kernels in {lowered.launches} launches, "
        f"{linked.compiled} objects compiled, {linked.cached} cached, every symbol resolved"
    )
    tools = {"compiler": toolchain.version}
    return Built(contents, lowered.weights, models, tools, summary)


def _residual_models(lowered: Lowered) -> dict[str, bytes]:
    """What onnxruntime runs, by entry; refuses with every node that it cannot run."""
    models: dict[str, bytes] = {}
    refused: list[str] = []
    failed = 0
    for residual in lowered.residual:
        try:
            node = lowered.graph.node(residual.node)
            models[residual.model] = build_residual(lowered.graph, node).data
        except UnsupportedError as error:
            failed += 1
            refused += error.detail or (str(error),)
    if refused:
        operations = "operation" if failed == 1 else "operations"
        raise UnsupportedError(
            f"{failed} {operations} can run neither natively nor on onnxruntime",
            at=lowered.graph.name,
            detail=tuple(refused),
            hint="export the model without them, or with a model code that does not use them",
        )
    return models


def _build_gpu(graph: Graph, target: Target, allow_host_fallback: bool, jobs: int) -> Built:
    program = lower_gpu(graph, target, allow_host_fallback=allow_host_fallback)
    sources = list(dict.fromkeys(step.source for step in program.steps))
    with ThreadPoolExecutor(jobs) as pool:
        made = list(pool.map(partial(build, target=target), sources))
    built: dict[TritonSource, GpuKernel] = dict(zip(sources, made, strict=True))

    def entry(kernel: GpuKernel) -> str:
        return module_entry(target.arch, kernel.code, kernel.suffix)

    first = {step.source: step for step in reversed(program.steps)}
    kernels = tuple(
        KernelRecord(
            name=first[source].kernel.name,
            op=first[source].node.op,
            provider=first[source].kernel.provider,
            symbol=kernel.symbol,
            sha256=hashlib.sha256(kernel.code).hexdigest(),
            bytes=len(kernel.code),
            resources={**_no_resources(), **kernel.resources},
        )
        for source, kernel in built.items()
    )
    weights = tuple(graph.parameters.values())
    contents = TargetContents(
        target=target.name,
        family=target.family,
        arch=target.arch,
        features=(),
        program=program.document(built, entry),
        modules={entry(kernel): kernel.code for kernel in made},
        kernels=kernels,
        launches=len(program.steps),
        residual=tuple(ResidualRecord(node.op, node.node, node.reason) for node in program.host),
        weights_bytes=sum(weight.nbytes for weight in weights),
        arena_bytes=0,
    )
    summary = (
        f"{target.name}: {len(kernels)} code objects in {len(program.steps)} launches, no spills, "
        f"every symbol resolved; {len(program.host)} operations left to the host"
    )
    return Built(contents, weights, {}, {"triton": triton_version()}, summary)


def _no_resources() -> dict[str, int]:
    names = ("vgpr", "agpr", "sgpr", "lds_bytes", "scratch_bytes", "vgpr_spills", "sgpr_spills")
    return dict.fromkeys(names, 0)


def merge_weights(built: Iterable[Built]) -> tuple[WeightData, ...]:
    """The weights of all targets, each once; equal contents under one name are one weight."""
    found: dict[str, Weight] = {}
    for each in built:
        for weight in each.weights:
            known = found.get(weight.name)
            if known is None:
                found[weight.name] = weight
            elif known.identity != weight.identity:
                named = replace(weight, name=f"{each.contents.target}.{weight.name}")
                found[named.name] = named
    return tuple(
        WeightData(
            name=weight.name,
            dtype=weight.type.dtype,
            shape=weight.memory_shape,
            chunks=partial(_chunks, weight),
            packing=weight.packing,
            sources=weight.made_from,
        )
        for weight in found.values()
    )


def _chunks(weight: Weight) -> Iterator[memoryview]:
    array = np.ascontiguousarray(weight.load())
    yield array.reshape(-1).view(np.uint8).data
