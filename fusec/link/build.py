"""Makes, of a rewritten graph and a target, everything that an artifact holds for it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from fusec.diagnostics import UnsupportedError
from fusec.ir import Graph, Weight
from fusec.kernels.launch import HipSource
from fusec.kernels.registry import Choice, Kernel
from fusec.link.artifact_writer import (
    KernelRecord,
    ResidualRecord,
    TargetContents,
    WeightData,
    module_entry,
)
from fusec.link.cache import ObjectCache, default_cache_directory
from fusec.link.gpu_kernel import RESOURCES, GpuKernel
from fusec.link.gpu_link import link_gpu
from fusec.link.hip_build import find_hip_compiler
from fusec.link.linker import link
from fusec.link.toolchain import Toolchain, find_toolchain
from fusec.link.triton_build import triton_version
from fusec.lower.gpu import ExternalStep, GpuProgram, GpuStep, lower_gpu
from fusec.lower.lowering import Lowered, lower
from fusec.lower.program import program_document
from fusec.lower.residual import build_residual
from fusec.runtime.documents import canonical_json
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
        choices: by node, the kernel that computes it and those that were asked before it.
    """

    contents: TargetContents
    weights: tuple[Weight, ...]
    residual: Mapping[str, bytes] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    summary: str = ""
    choices: Mapping[str, Choice] = field(default_factory=dict)


def build_target(
    graph: Graph,
    target: Target,
    *,
    allow_host_fallback: bool,
    jobs: int,
    toolchain: str | None = None,
    providers: Sequence[Kernel] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Built:
    """Lower `graph` for `target`, compile what it needs, and check that it fits together.

    Args:
        graph: rewritten for `target`.
        target: for what.
        allow_host_fallback: whether a GPU target may leave operations to the host.
        jobs: compilers to run at once.
        toolchain: the C++ compiler for a CPU target; by default the first that is found.
        providers: kernels of libraries that were asked for, preferred to fusec's own on a GPU.
        progress: is told how many objects are ready, and of how many.

    Raises:
        UnsupportedError: operations cannot be lowered.
        LinkError: a symbol is missing, or a compiler refuses a source.
    """
    if target.is_gpu:
        program = lower_gpu(
            graph, target, allow_host_fallback=allow_host_fallback, providers=providers
        )
        return _build_gpu(program, providers, jobs, progress)
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


def _build_gpu(
    program: GpuProgram,
    providers: Sequence[Kernel],
    jobs: int,
    progress: Callable[[int, int], None] | None,
) -> Built:
    target = program.target
    cache = ObjectCache(default_cache_directory())
    linked = link_gpu(program, cache, jobs=jobs, providers=providers, progress=progress)

    def entry(kernel: GpuKernel) -> str:
        return module_entry(target.arch, kernel.code, kernel.suffix)

    records = [_gpu_record(step, linked.kernels[step.source]) for step in program.steps]
    records += [_external_record(step) for step in program.external]
    kernels = {(record.name, record.symbol, record.sha256): record for record in reversed(records)}
    weights = tuple(program.graph.parameters.values())
    contents = TargetContents(
        target=target.name,
        family=target.family,
        arch=target.arch,
        features=(),
        program=program.document(linked.kernels, entry),
        modules={entry(kernel): kernel.code for kernel in linked.kernels.values()},
        kernels=tuple(reversed(kernels.values())),
        launches=program.launches,
        residual=tuple(ResidualRecord(node.op, node.node, node.reason) for node in program.host),
        weights_bytes=sum(weight.nbytes for weight in weights),
        arena_bytes=0,
    )
    summary = (
        f"{target.name}: {len(contents.modules)} code objects in {program.launches} launches, "
        f"{linked.compiled} compiled, {linked.cached} cached, every symbol resolved; "
        f"{len(program.host)} operations left to the host"
    )
    tools = {"triton": triton_version()}
    if any(isinstance(step.source, HipSource) for step in program.steps):
        tools["hip"] = find_hip_compiler().version
    return Built(contents, weights, {}, tools, summary, program.choices)


def _gpu_record(step: GpuStep, kernel: GpuKernel) -> KernelRecord:
    return KernelRecord(
        name=step.kernel.name,
        op=step.node.op,
        provider=step.kernel.provider,
        symbol=kernel.symbol,
        sha256=kernel.sha256,
        bytes=len(kernel.code),
        resources=kernel.resources,
        machine={
            "threads": kernel.threads,
            "waves_per_unit": kernel.waves,
            "widest_load": kernel.machine.widest_load,
            "widest_store": kernel.machine.widest_store,
            "mfma": list(kernel.machine.mfma),
        },
    )


def _external_record(step: ExternalStep) -> KernelRecord:
    return KernelRecord(
        name=step.kernel.name,
        op=step.node.op,
        provider="external",
        symbol=step.call.symbol,
        sha256=hashlib.sha256(canonical_json(step.call.document())).hexdigest(),
        bytes=0,
        resources=_no_resources(),
    )


def _no_resources() -> dict[str, int]:
    return dict.fromkeys(RESOURCES, 0)


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
