"""From a file to a model that runs: choose the target, check the device, then load code."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusec.diagnostics import DeviceError, UnsupportedError, UsageError
from fusec.runtime.artifact import (
    Artifact,
    Progress,
    TargetSpec,
    TensorSpec,
    WeightSpec,
    open_artifact,
)
from fusec.runtime.cpu import (
    check_threads,
    host_features,
    load_module,
    request_tiles,
    require_features,
)
from fusec.runtime.errors import MalformedError, TargetError, WeightsError
from fusec.runtime.executor import Executor
from fusec.runtime.layout import CACHE_LINE, Storage, new_array
from fusec.runtime.model import Model, to_storage
from fusec.runtime.onnx_part import OnnxPart
from fusec.runtime.program import read_program
from fusec.runtime.steps import OnnxStep, Program

Weights = str | Path | Mapping[str, NDArray[np.generic]]
"""A safetensors file, or arrays by name."""

_FAMILIES = {"cpu": "cpu", "hip": "amdgpu", "cuda": "nvidia"}
_DRIVERS = {
    "hip": ("libamdhip64.so", "libamdhip64.so.6", "libamdhip64.so.7"),
    "cuda": ("libcuda.so.1",),
}


def load(
    path: str | Path,
    device: str = "cpu",
    threads: int | None = None,
    *,
    weights: Weights | None = None,
    verify: bool = True,
    progress: Progress | None = None,
) -> Model:
    """Load an artifact; its native code runs in this process, so load only what you trust.

    Args:
        path: of the artifact.
        device: `cpu`, `hip:0` or `cuda:0`.
        threads: that take part in each step; by default as many as this process may use.
        weights: for an artifact compiled with `--weights none`, or external weights that moved.
            Arrays go by the name in the artifact or, where a weight is the source's own bytes,
            by its name in the source.
        verify: read all weights once and compare their digests.  Without it a flipped bit in a
            weight goes unnoticed; everything else is always verified.
        progress: called with bytes of weights verified and in all.

    Raises:
        InputError: the file cannot be read, or onnxruntime is needed and not installed.
        ArtifactError: it is damaged, of another version, or not made for this device.
        DeviceError: there is no such device, or no driver for it.
        UsageError: the device is not the name of one.
    """
    kind, _ = parse_device(device)
    check_threads(threads)
    artifact = open_artifact(path)
    at = str(artifact.path)
    if kind != "cpu":
        _refuse_gpu(artifact, kind, device)
    section = choose_cpu_target(artifact)
    program = read_program(artifact.program(section.target), artifact.manifest)
    if (program.arch, program.features) != (section.arch, section.features):
        raise MalformedError("the target differs from that of the manifest", at=program.at)
    if not set(program.modules) <= set(section.modules):
        raise MalformedError("the module is not one of the target", at=program.at)
    if any(name.startswith("amx") for name in section.features):
        request_tiles(at)
    arrays = _weight_arrays(artifact, weights, verify, progress)
    module = None
    for entry in program.modules:
        module = load_module(artifact.entry(entry), f"{at}: {entry}")
    onnx = _onnx_parts(artifact, program, threads)
    return Model(artifact, section.target, Executor(program, module, arrays, onnx, threads))


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


def choose_cpu_target(artifact: Artifact) -> TargetSpec:
    """The richest CPU target of `artifact` that this processor can run.

    Raises:
        TargetError: there is none.
        DeviceError: this machine has no processor of that kind.
    """
    sections = _sections(artifact, "cpu", "cpu")
    sections.sort(key=lambda section: len(section.features), reverse=True)
    available = host_features()
    for section in sections:
        if available.issuperset(section.features):
            return section
    require_features(sections[-1].arch, sections[-1].features, str(artifact.path))
    return sections[-1]


def _sections(artifact: Artifact, family: str, device: str) -> list[TargetSpec]:
    found = [section for section in artifact.manifest.targets if section.family == family]
    if not found:
        known = ", ".join(f"`{section.target}`" for section in artifact.manifest.targets)
        raise TargetError(
            f"the artifact holds no code for `{device}`",
            at=str(artifact.path),
            hint=f"it was compiled for {known or 'nothing'}",
        )
    return found


def _refuse_gpu(artifact: Artifact, kind: str, device: str) -> None:
    """Say what is missing: code for the device, a driver, or a launcher in this version."""
    section = _sections(artifact, _FAMILIES[kind], device)[0]
    if not any(map(_has_library, _DRIVERS[kind])):
        raise DeviceError(
            f"there is no driver for `{device}`: `{_DRIVERS[kind][0]}` is not installed",
            hint="`fusec doctor` shows the devices of this machine",
        )
    raise UnsupportedError(
        f"this version of fusec compiles for `{section.target}` but cannot launch on it",
        at=str(artifact.path),
    )


def _has_library(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _weight_arrays(
    artifact: Artifact, given: Weights | None, verify: bool, progress: Progress | None
) -> dict[str, Storage]:
    """The bytes of every weight, each on a cache line."""
    table = artifact.manifest.weights
    if isinstance(given, Mapping):
        return {tensor.name: _given_weight(tensor, given, artifact) for tensor in table.tensors}
    file = artifact.weights(None if given is None else Path(given))
    if verify:
        artifact.verify_weights(file, progress)
    return {
        tensor.name: _aligned(np.frombuffer(file[tensor.name], np.uint8))
        for tensor in table.tensors
    }


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
            return _aligned(array)
    raise WeightsError(
        f"the weight `{tensor.name}` is missing",
        at=str(artifact.path),
        hint=f"it is {tensor.dtype}{list(tensor.shape)}, packed as `{tensor.packing}`",
    )


def _aligned(array: Storage) -> Storage:
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
