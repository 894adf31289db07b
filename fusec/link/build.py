"""Makes, of a rewritten graph and a target, everything that an artifact holds for it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from fusec.diagnostics import InternalError, UnsupportedError, counted
from fusec.ir import Graph, Weight
from fusec.kernels.external.call import ExternalCall
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
from fusec.link.gpu_checks import GpuSource
from fusec.link.gpu_kernel import RESOURCES, GpuKernel
from fusec.link.gpu_link import link_gpu
from fusec.link.hip_build import find_hip_compiler
from fusec.link.linker import link
from fusec.link.toolchain import Toolchain, find_toolchain
from fusec.link.triton_build import triton_version
from fusec.lower.layers import launches_by_layer
from fusec.lower.lowering import lower
from fusec.lower.program import GpuCode, program_document
from fusec.lower.residual import build_residual
from fusec.lower.steps import KernelStep, Lowered
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
    unfused: Mapping[str, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Built:
    """Lower `graph` for `target`, compile what it needs, and check that it fits together.

    Args:
        graph: rewritten for `target`.
        target: for what.
        allow_host_fallback: whether a GPU target may leave operations to the host.
        jobs: compilers to run at once.
        toolchain: the C++ compiler for a CPU target; by default the first that is found.
        providers: kernels of libraries that were asked for and of extensions, preferred to fusec's
            own.
        unfused: operations of each layer before anything was fused.
        progress: is told how many objects are ready, and of how many.

    Raises:
        UnsupportedError: operations cannot be lowered.
        LinkError: a symbol is missing, or a compiler refuses a source.
    """
    lowered = lower(graph, target, allow_host_fallback=allow_host_fallback, providers=providers)
    if target.is_gpu:
        built = _build_gpu(lowered, providers, jobs, progress)
    else:
        built = _build_cpu(lowered, find_toolchain(toolchain), jobs, progress)
    layers = launches_by_layer(lowered, unfused or {})
    return replace(built, contents=replace(built.contents, layers=layers))


def _build_cpu(
    lowered: Lowered,
    toolchain: Toolchain,
    jobs: int,
    progress: Callable[[int, int], None] | None,
) -> Built:
    target = lowered.target
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
    contents = _contents(lowered, program_document(lowered, entry), {entry: linked.code}, kernels)
    summary = (
        f"{target.name}: {len(kernels)} kernels in {lowered.launches} launches, "
        f"{linked.compiled} objects compiled, {linked.cached} cached, every symbol resolved"
    )
    tools = {"compiler": toolchain.version}
    return Built(contents, lowered.weights, models, tools, summary, lowered.choices)


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


def _contents(
    lowered: Lowered,
    program: Mapping[str, object],
    modules: Mapping[str, bytes],
    kernels: tuple[KernelRecord, ...],
) -> TargetContents:
    target = lowered.target
    return TargetContents(
        target=target.name,
        family=target.family,
        arch=target.arch,
        features=target.features,
        program=program,
        modules=modules,
        kernels=kernels,
        launches=lowered.launches,
        residual=tuple(ResidualRecord(r.op, r.node, r.reason) for r in lowered.residual),
        weights_bytes=lowered.weights_bytes,
        arena_bytes=lowered.arena_bytes,
        arena_sizes=lowered.arena_sizes,
    )


def _build_gpu(
    lowered: Lowered,
    providers: Sequence[Kernel],
    jobs: int,
    progress: Callable[[int, int], None] | None,
) -> Built:
    target = lowered.target
    models = _residual_models(lowered)
    cache = ObjectCache(default_cache_directory())
    linked = link_gpu(lowered, cache, jobs=jobs, providers=providers, progress=progress)
    code = GpuCode(
        linked.kernels, lambda kernel: module_entry(target.arch, kernel.code, kernel.suffix)
    )
    records = {
        (record.name, record.symbol, record.sha256): record
        for step in reversed(lowered.kernel_steps)
        for record in [_gpu_record(step, linked.kernels)]
    }
    modules = {code.entry(kernel): kernel.code for kernel in linked.kernels.values()}
    program = program_document(lowered, code=code)
    contents = _contents(lowered, program, modules, tuple(reversed(records.values())))
    left = f"; {counted(len(models), 'operation')} left to the host" if models else ""
    summary = (
        f"{target.name}: {len(modules)} code objects in {lowered.launches} launches, "
        f"{linked.compiled} compiled, {linked.cached} cached, every symbol resolved{left}"
    )
    tools = {"triton": triton_version()}
    if any(isinstance(step.source, HipSource) for step in lowered.kernel_steps):
        tools["hip"] = find_hip_compiler().version
    return Built(contents, lowered.weights, models, tools, summary, lowered.choices)


def _gpu_record(step: KernelStep, kernels: Mapping[GpuSource, GpuKernel]) -> KernelRecord:
    call = step.launch.code
    if isinstance(call, ExternalCall):
        return KernelRecord(
            name=step.kernel.name,
            op=step.op,
            provider="external",
            symbol=call.symbol,
            sha256=hashlib.sha256(canonical_json(call.document())).hexdigest(),
            bytes=0,
            resources=_no_resources(),
        )
    if call is None:
        raise InternalError(f"`{step.kernel.name}` does not say what makes `{step.launch.symbol}`")
    kernel = kernels[call]
    return KernelRecord(
        name=step.kernel.name,
        op=step.op,
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


def _no_resources() -> dict[str, int]:
    return dict.fromkeys(RESOURCES, 0)


def merge_targets(
    built: Iterable[Built],
) -> tuple[tuple[TargetContents, ...], tuple[WeightData, ...]]:
    """The parts of an artifact that targets have of their own, and the weights of all, each once.

    Targets may have other contents under one name, such as codes of another 8-bit float.  Those of
    the first keep the name; those of another begin with its own, in its program as well.
    """
    found: dict[str, Weight] = {}
    names: dict[str, str] = {}
    contents: list[TargetContents] = []
    for each in built:
        for weight in each.weights:
            if weight.identity in names:
                continue
            name = weight.name
            while name in found:
                name = f"{each.contents.target}.{name}"
            found[name] = weight
            names[weight.identity] = name
        own = {weight.name: names[weight.identity] for weight in each.weights}
        program = _with_weights(each.contents.program, own)
        contents.append(replace(each.contents, program=program))
    weights = tuple(
        WeightData(
            name=name,
            dtype=weight.type.dtype,
            shape=weight.memory_shape,
            chunks=partial(_chunks, weight),
            packing=weight.packing,
            sources=weight.made_from,
        )
        for name, weight in found.items()
    )
    return tuple(contents), weights


def _with_weights(program: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, object]:
    """A program that calls its weights by other names."""
    buffers = [
        {**buffer, "name": names[buffer["name"]]} if buffer["kind"] == "weight" else buffer
        for buffer in program["buffers"]
    ]
    return {**program, "buffers": buffers}


def _chunks(weight: Weight) -> Iterator[memoryview]:
    array = np.ascontiguousarray(weight.load())
    yield array.reshape(-1).view(np.uint8).data
