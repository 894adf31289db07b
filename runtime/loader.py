"""From a file to a model that runs: choose the target, check the device, then load code."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusec.diagnostics import UsageError
from fusec.runtime.artifact import (
    Artifact,
    Checksum,
    Progress,
    TargetSpec,
    TensorSpec,
    WeightSpec,
    open_artifact,
)
from fusec.runtime.cpu import (
    available_cpus,
    check_threads,
    load_module,
    why_not,
)
from fusec.runtime.devices import check_code, choose_target, family_of, open_driver
from fusec.runtime.driver import Driver
from fusec.runtime.errors import MalformedError, TargetError, WeightsError
from fusec.runtime.executor import Executor
from fusec.runtime.external import load_external
from fusec.runtime.gpu_executor import GpuExecutor
from fusec.runtime.layout import CACHE_LINE, Storage, new_array, out_of_memory
from fusec.runtime.model import Model, to_storage
from fusec.runtime.onnx_part import OnnxPart
from fusec.runtime.pages import new_pages
from fusec.runtime.program import read_program
from fusec.runtime.steps import ExternalStep, OnnxStep, Program

Weights = str | Path | Mapping[str, NDArray[np.generic]]
"""A safetensors file, or arrays by name."""

_FAMILIES = {"hip": "amdgpu", "cuda": "nvidia"}

_DEVICES = {"cpu": "`cpu`", "amdgpu": "`hip:0`", "nvidia": "`cuda:0`"}
"""What a person calls the first device of each family."""


def load(
    path: str | Path | Artifact,
    device: str = "cpu",
    threads: int | None = None,
    *,
    weights: Weights | None = None,
    verify: bool = True,
    progress: Progress | None = None,
    driver: Driver | None = None,
    graphs: bool = True,
    huge_pages: bool = False,
) -> Model:
    """Load an artifact; its native code runs in this process, so load only what you trust.

    Args:
        path: of the artifact; or the artifact itself, which has been opened.
        device: `cpu`, `hip:0` or `cuda:0`.
        threads: of the CPU that take part in each step; by default as many as this process may
            keep busy, which containers can limit.
        weights: for an artifact compiled with `--weights none`, or external weights that moved.
            Arrays go by the name in the artifact or, where a weight is the source's own bytes,
            by its name in the source.
        verify: read all weights once and compare their checksums.  Without it a flipped bit in a
            weight goes unnoticed; everything else is always verified, by its digest.
        progress: called with bytes of weights verified and in all.
        driver: of the GPU to run on, instead of that of `device`; it stays the caller's to close.
        graphs: whether a GPU keeps the launches of the last combinations of sizes as graphs.
        huge_pages: on a CPU, copy weights into memory with pages of 2 MiB instead of mapping them
            from the file, whose pages are of 4 KiB on most file systems before Linux 6.16.

    Raises:
        InputError: the file cannot be read, or onnxruntime is needed and not installed.
        ArtifactError: it is damaged, of another version, or not made for this device.
        DeviceError: there is no such device, no driver for it, or not enough memory on it.
        UsageError: the device is not the name of one, or has no such pages; or a file of weights
            is given to an artifact that holds its own.
    """
    kind, _ = parse_device(device)
    check_threads(threads)
    on_cpu = kind == "cpu" and driver is None
    _check_pages(huge_pages, on_cpu)
    artifact = path if isinstance(path, Artifact) else open_artifact(path)
    if on_cpu:
        return _load_on_cpu(artifact, threads, weights, verify, progress, huge_pages)
    found = driver or _open_gpu(artifact, device)
    try:
        return _load_on_gpu(
            artifact, found, threads, weights, verify, progress, graphs, owns_driver=driver is None
        )
    except BaseException:
        if driver is None:
            found.close()
        raise


def open_device(artifact: Artifact, device: str, *, huge_pages: bool = False) -> Driver | None:
    """The driver of a GPU that an artifact may have code for; `None` for a CPU that it runs on.

    Raises:
        ArtifactError: it has no code for such a device, or none for this CPU.
        DeviceError: there is no such device, or no driver for it.
        UsageError: the device is not the name of one, or has no huge pages.
    """
    kind, _ = parse_device(device)
    _check_pages(huge_pages, kind == "cpu")
    if kind == "cpu":
        choose_cpu_target(artifact)
        return None
    return _open_gpu(artifact, device)


def _open_gpu(artifact: Artifact, device: str) -> Driver:
    kind, index = parse_device(device)
    _sections(artifact, _FAMILIES[kind], device)
    return open_driver(kind, index)


def _check_pages(huge_pages: bool, on_cpu: bool) -> None:
    if huge_pages and not on_cpu:
        raise UsageError(
            "`--huge-pages` is about weights in the memory of a CPU",
            hint="leave it out: a GPU has its own copy of the weights",
        )


def _load_on_cpu(
    artifact: Artifact,
    threads: int | None,
    weights: Weights | None,
    verify: bool,
    progress: Progress | None,
    huge_pages: bool,
) -> Model:
    at = str(artifact.path)
    section, reason = choose_cpu_target(artifact)
    program = _program(artifact, section)
    module = None
    for entry in program.modules:
        digest = artifact.manifest.entries[entry][1]
        module = load_module(artifact.entry(entry), digest, f"{at}: {entry}")
    checksum = zlib.crc32 if module is None else module.crc32
    arrays = _weight_arrays(artifact, weights, verify, progress, checksum)
    onnx = _onnx_parts(artifact, program, threads)
    if huge_pages:
        arrays = _in_huge_pages(arrays)
    placed = {name: _on_cache_line(array) for name, array in arrays.items()}
    executor = Executor(program, module, placed, onnx, threads)
    return Model(artifact, section.target, executor, reason)


def _load_on_gpu(
    artifact: Artifact,
    driver: Driver,
    threads: int | None,
    weights: Weights | None,
    verify: bool,
    progress: Progress | None,
    graphs: bool,
    owns_driver: bool,
) -> Model:
    at = str(artifact.path)
    info = driver.info()
    sections = _sections(artifact, family_of(info.arch), f"{driver.kind}:{info.index}")
    section = choose_target(sections, info, at)
    program = _program(artifact, section)
    code = {entry: artifact.entry(entry) for entry in program.modules}
    for entry, data in code.items():
        check_code(data, info, f"{at}: {entry}")
    external = tuple(
        load_external(step.call) for step in program.steps if isinstance(step, ExternalStep)
    )
    onnx = _onnx_parts(artifact, program, threads)
    arrays = _weight_arrays(artifact, weights, verify, progress, zlib.crc32)
    executor = GpuExecutor(
        program, driver, code, arrays, onnx, external, graphs=graphs, owns_driver=owns_driver
    )
    return Model(artifact, section.target, executor, f"the device is `{info.arch}`")


def _program(artifact: Artifact, section: TargetSpec) -> Program:
    """The program of a target, checked against what the manifest says of it."""
    program = read_program(artifact.program(section.target), artifact.manifest)
    if (program.arch, program.features) != (section.arch, section.features):
        raise MalformedError("the target differs from that of the manifest", at=program.at)
    if not set(program.modules) <= set(section.modules):
        raise MalformedError("the module is not one of the target", at=program.at)
    return program


def parse_device(device: str) -> tuple[str, int]:
    """The kind and index of `cpu`, `hip:0` or `cuda:0`.

    Raises:
        UsageError: it is none of these.
    """
    found = re.fullmatch(r"(cpu|hip|cuda)(?::(\d{1,4}))?", device)
    if found is None or (found[1] == "cpu" and found[2] is not None):
        raise UsageError(
            f"unknown device `{device}`", hint="devices are `cpu`, `hip:0` and `cuda:0`"
        )
    return found[1], int(found[2] or 0)


def choose_cpu_target(artifact: Artifact) -> tuple[TargetSpec, str]:
    """The richest CPU target of `artifact` that can run here, and why it is that one.

    Raises:
        TargetError: there is none.
        DeviceError: this machine has no processor of that kind.
    """
    sections = _sections(artifact, "cpu", "cpu")
    sections.sort(key=lambda section: len(section.features), reverse=True)
    refused: list[str] = []
    for section in sections:
        refusal = why_not(section.features)
        if refusal is None:
            alone = len(sections) == 1
            best = "the only one for a CPU" if alone else "the richest that runs here"
            return section, "; ".join((best, *refused))
        refused.append(f"not `{section.target}`: {refusal}")
    compiled = ", ".join(f"`{section.arch}`" for section in reversed(sections))
    raise TargetError(
        f"the artifact was compiled for {compiled}, but {refusal}",
        at=str(artifact.path),
        detail=tuple(refused) if len(sections) > 1 else (),
        hint="compile it with `--target cpu` on this machine, or also for an older level: "
        "`--target x86-64-v3`",
    )


def _sections(artifact: Artifact, family: str, device: str) -> list[TargetSpec]:
    found = [section for section in artifact.manifest.targets if section.family == family]
    if not found:
        targets = artifact.manifest.targets
        known = ", ".join(f"`{section.target}`" for section in targets)
        devices = " or ".join(dict.fromkeys(_DEVICES[section.family] for section in targets))
        raise TargetError(
            f"the artifact holds no code for `{device}`",
            at=str(artifact.path),
            hint=f"it was compiled for {known}: choose the device {devices}",
        )
    return found


def _weight_arrays(
    artifact: Artifact,
    given: Weights | None,
    verify: bool,
    progress: Progress | None,
    checksum: Checksum,
) -> dict[str, Storage]:
    """Every weight; those of a file are mapped, and not read unless they are verified."""
    table = artifact.manifest.weights
    if isinstance(given, Mapping):
        return {tensor.name: _given_weight(tensor, given, artifact) for tensor in table.tensors}
    file = artifact.weights(None if given is None else Path(given))
    if verify:
        artifact.verify_weights(file, progress, checksum=checksum)
    return {tensor.name: np.frombuffer(file[tensor.name], np.uint8) for tensor in table.tensors}


def _given_weight(
    tensor: WeightSpec, given: Mapping[str, NDArray[np.generic]], artifact: Artifact
) -> Storage:
    for name in tensor.known_as:
        if name in given:
            array = to_storage(TensorSpec(name, tensor.dtype, tensor.shape), given[name])
            if array.shape != tensor.shape:
                raise WeightsError(
                    f"the weight `{name}` is {list(array.shape)}, but the artifact was compiled "
                    f"for {list(tensor.shape)}",
                    at=str(artifact.path),
                )
            return array
    raise WeightsError(
        f"the weight `{tensor.name}` is missing",
        at=str(artifact.path),
        hint=f"it is {tensor.dtype}{list(tensor.shape)}, packed as `{tensor.packing}`",
    )


def _in_huge_pages(arrays: Mapping[str, Storage]) -> dict[str, Storage]:
    """Copies of all arrays, one after the other on cache lines."""
    from concurrent.futures import ThreadPoolExecutor

    begins: dict[str, int] = {}
    end = 0
    for name, array in arrays.items():
        begins[name] = end
        end += -(-array.nbytes // CACHE_LINE) * CACHE_LINE
    try:
        memory = new_pages(end)
    except OSError:
        raise out_of_memory(end) from None

    def copied(name: str) -> Storage:
        raw = arrays[name].reshape(-1).view(np.uint8)
        copy = memory[begins[name] : begins[name] + raw.nbytes]
        copy[:] = raw
        return copy

    with ThreadPoolExecutor(available_cpus()) as pool:
        return dict(zip(arrays, pool.map(copied, arrays), strict=True))


def _on_cache_line(array: Storage) -> Storage:
    """`array`, copied if it does not begin on a cache line."""
    if array.ctypes.data % CACHE_LINE == 0:
        return array
    raw = array.reshape(-1).view(np.uint8)
    copy = new_array("u8", raw.shape)
    copy[:] = raw
    return copy


def _onnx_parts(artifact: Artifact, program: Program, threads: int | None) -> dict[str, OnnxPart]:
    models = {step.model: step for step in program.steps if isinstance(step, OnnxStep)}
    return {
        model: OnnxPart(artifact.entry(model), f"{artifact.path}: {model}", threads)
        for model in models
    }
