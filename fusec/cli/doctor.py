"""`fusec doctor`: what this machine can compile for and run, and what to install for the rest."""

from __future__ import annotations

import importlib.metadata
import sys
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from fusec import __version__
from fusec.cli.console import data, data_json, table
from fusec.diagnostics import DeviceError, FusecError
from fusec.runtime.cpu import host_features
from fusec.runtime.devices import list_devices, loaded_library
from fusec.runtime.driver import DeviceInfo
from fusec.target import best_cpu_arch


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that fusec can use.

    Attributes:
        what: what it is.
        found: version or description; `None` when it is not there.
        needed: what it is for.
        hint: how to get it.
    """

    what: str
    found: str | None
    needed: str
    hint: str


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(doctor)


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say what this machine can do, and what to install for the rest."""
    findings = _findings()
    if json:
        rows = [asdict(finding) for finding in findings]
        data_json({"schema": "fusec.doctor/1", "fusec": __version__, "findings": rows})
        return
    lines = [[f.what, f.found or "missing", f.needed] for f in findings]
    missing = [f"{f.what}: {f.hint}" for f in findings if f.found is None]
    data(table(["what", "found", "for"], lines))
    if missing:
        data("\nto get what is missing\n" + "\n".join(f"  {line}" for line in missing))


def _findings() -> list[Finding]:
    return [
        Finding("python", sys.version.split()[0], "everything", ""),
        Finding("fusec", __version__, "everything", ""),
        Finding("host CPU", _host(), "running the target `cpu`", "a CPU with AVX2 is needed"),
        Finding(
            "C++ compiler",
            _compiler(),
            "compiling for CPU targets",
            "pip install 'fusec[toolchain]', or install g++ or clang++",
        ),
        Finding(
            "HIP compiler",
            _hip_compiler(),
            "HIP kernels of AMD targets",
            "pip install 'fusec[gpu]', or install clang++ 20 or newer",
        ),
        _package("torch", "PyTorch modules and model folders", "torch"),
        _package("transformers", "Hugging Face model folders", "huggingface"),
        _package("tokenizers", "`text` records in batches", "huggingface"),
        _package("onnx", "ONNX files", "onnx"),
        _package("triton", "compiling for GPU targets", "gpu"),
        _package("onnxruntime-rocm", "operations left residual on the CPU", "residual"),
        *_devices("hip", "libamdhip64", "running on an AMD GPU", "install ROCm's HIP runtime"),
        *_devices("cuda", "libcuda", "running on an NVIDIA GPU", "install the NVIDIA driver"),
    ]


def _host() -> str | None:
    try:
        host = best_cpu_arch(host_features())
    except DeviceError:
        return None
    return None if host is None else host.arch


def _compiler() -> str | None:
    from fusec.link.toolchain import find_toolchain

    try:
        toolchain = find_toolchain()
    except FusecError:
        return None
    return toolchain.version


def _hip_compiler() -> str | None:
    from fusec.link.hip_build import find_hip_compiler

    try:
        return find_hip_compiler().version
    except FusecError:
        return None


def _package(name: str, needed: str, extra: str) -> Finding:
    try:
        version: str | None = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = None
    return Finding(name, version, needed, f"pip install 'fusec[{extra}]'")


def _devices(kind: str, library: str, needed: str, hint: str) -> list[Finding]:
    """A driver and each of its devices, or why there is none."""
    path = loaded_library(kind)
    if path is None:
        return [Finding(library, None, needed, hint)]
    findings = [Finding(library, path, needed, "")]
    try:
        devices = list_devices(kind)
    except DeviceError as error:
        return [*findings, Finding(f"{kind}:0", None, needed, str(error))]
    return findings + [
        Finding(f"{kind}:{device.index}", _described(device), needed, "") for device in devices
    ]


def _described(device: DeviceInfo) -> str:
    return f"{device.name}, {device.arch}, {device.memory_bytes / 2**30:.0f} GiB"
