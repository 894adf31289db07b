"""`fusec doctor`: what this machine can compile for and run, and what to install for the rest."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fusec import __version__
from fusec.cli.console import data, data_json, say, table, terminal_width, text_width
from fusec.diagnostics import DeviceError, FusecError
from fusec.report import size_text
from fusec.runtime.cpu import available_cpus, host_features
from fusec.runtime.devices import list_devices, loaded_library
from fusec.runtime.driver import DeviceInfo
from fusec.target import CPU_ARCHES, GPU_TARGETS, Target, best_cpu_arch, target_named
from fusec.versions import PACKAGES, found_version, outside

SYSTEM = Path("/")
"""The root of the file system that is looked at."""

_DRIVERS = {
    "amdgpu": ("hip", "libamdhip64", "install ROCm's HIP runtime"),
    "nvidia": ("cuda", "libcuda", "install the NVIDIA driver"),
}
"""By family of targets: the kind of device, its library, and how to get that."""

_SOURCES = {
    "model folders": ("torch", "safetensors", "transformers"),
    "archives (.pt2, .pt) and modules": ("torch",),
    "ONNX files": ("onnx",),
}
"""The packages that each kind of source needs."""

_ON_GPU = ("triton", "msgpack", "pyelftools")
"""The packages that compiling for a GPU needs."""


class Need(StrEnum):
    """What `--target` has to be good for."""

    compile = "compile"
    run = "run"
    both = "both"


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


@dataclass(frozen=True, slots=True)
class Ready:
    """What can be done for a target here.

    Attributes:
        target: its name.
        compile: what is missing to compile for it; empty if nothing is.
        run: what is missing to run it; empty if nothing is.
    """

    target: str
    compile: tuple[str, ...]
    run: tuple[str, ...]

    def lacks(self, need: Need) -> tuple[str, ...]:
        """What is missing for `need`."""
        parts = {Need.compile: self.compile, Need.run: self.run}
        return parts.get(need, tuple(dict.fromkeys((*self.compile, *self.run))))


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(doctor)


def doctor(
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="TARGET",
            help="Exit with code 6 unless this target is ready; repeatable.",
        ),
    ] = None,
    need: Annotated[
        Need,
        typer.Option(
            "--need", metavar="compile|run|both", help="What `--target` has to be ready for."
        ),
    ] = Need.both,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say what this machine can do, and what to install for the rest.

    The targets that it can compile for and run, the sources that it can read, its processor and
    devices, and the versions of tools beside those that were tested. Without `--target` what is
    missing is no failure.
    """
    findings = _findings()
    known = {each.name: each for each in (*CPU_ARCHES.values(), *GPU_TARGETS.values())}
    ready = [_cpu_ready(), *(_ready(each) for each in known.values())]
    wanted = _wanted(target or [], ready)
    if json:
        data_json(_document(findings, ready))
    else:
        data(_text(findings, wanted or ready, asked=bool(wanted)))
    missing = {each.target: each.lacks(need) for each in wanted if each.lacks(need)}
    if missing:
        what = {Need.compile: "compiled for", Need.run: "run"}.get(need, "compiled for and run")
        raise DeviceError(
            f"{', '.join(f'`{name}`' for name in missing)} cannot be {what} here",
            detail=tuple(f"{name}: {text}" for name, texts in missing.items() for text in texts),
            hint="install what is missing, or name what is needed: `--need compile`",
        )


def _wanted(names: list[str], ready: list[Ready]) -> list[Ready]:
    """What is said of the targets called `names`."""
    by_name = {each.target: each for each in ready}
    return [by_name[name if name.lower() == "cpu" else target_named(name).name] for name in names]


# --- what is here ---------------------------------------------------------------------------


def _findings() -> list[Finding]:
    """Everything that fusec can use, as `--json` has it since the first version."""
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
        *(
            Finding(name, found_version(name), tested.needed, _install(name))
            for name, tested in PACKAGES.items()
        ),
        *_devices("amdgpu", "running on an AMD GPU"),
        *_devices("nvidia", "running on an NVIDIA GPU"),
    ]


def _install(package: str) -> str:
    extra = PACKAGES[package].extra
    return f"pip install 'fusec[{extra}]'" if extra else f"pip install {package}"


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


def _devices(family: str, needed: str) -> list[Finding]:
    """A driver and each of its devices, or why there is none."""
    kind, library, hint = _DRIVERS[family]
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


# --- what it is good for --------------------------------------------------------------------


def _cpu_ready() -> Ready:
    """The target `cpu`: this host."""
    host = () if _host() else ("this CPU has no AVX2, or this is not Linux on x86-64",)
    return Ready("cpu", (*host, *_compiler_lack()), host)


def _ready(target: Target) -> Ready:
    if not target.is_gpu:
        return Ready(target.name, _compiler_lack(), tuple(_cpu_lacks(target)))
    lacks = [f"{name}: {_install(name)}" for name in _ON_GPU if found_version(name) is None]
    if target.family == "amdgpu" and _hip_compiler() is None:
        lacks.append("a HIP compiler: pip install 'fusec[gpu]', or install clang++ 20 or newer")
    return Ready(target.name, tuple(lacks), tuple(_gpu_lacks(target)))


def _compiler_lack() -> tuple[str, ...]:
    if _compiler() is not None:
        return ()
    return ("a C++ compiler: pip install 'fusec[toolchain]', or install g++ or clang++",)


def _cpu_lacks(target: Target) -> Iterator[str]:
    try:
        missing = [name for name in target.features if name not in host_features()]
    except DeviceError as error:
        yield str(error)
        return
    if missing:
        yield f"this CPU has no {', '.join(missing)}"


def _gpu_lacks(target: Target) -> Iterator[str]:
    kind, library, hint = _DRIVERS[target.family]
    if loaded_library(kind) is None:
        yield f"{library}: {hint}"
        return
    try:
        devices = list_devices(kind)
    except DeviceError as error:
        yield str(error)
        return
    arches = [device.arch.partition(":")[0] for device in devices]
    if target.name not in arches:
        yield f"a device of `{target.name}`: here are {', '.join(arches) or 'none'}"


# --- the machine ----------------------------------------------------------------------------


def _machine() -> dict[str, Any]:
    """The processor and memory, and what a container leaves of them.

    Returns:
        `cpu`: its name; `features`: those that kernels are chosen by; `processors`: of the machine;
        `threads`: that fusec uses by default, after affinity and container limits; `memory_bytes`;
        `memory_limit_bytes`: of the container, or null; `huge_pages`: the kernel's setting.
    """
    features = sorted({name for each in CPU_ARCHES.values() for name in each.features})
    try:
        host = host_features()
    except DeviceError:
        host = frozenset()
    cpuinfo = _read("proc/cpuinfo")
    memory = _line(_read("proc/meminfo"), "MemTotal").removesuffix("kB").strip()
    setting = _read("sys/kernel/mm/transparent_hugepage/enabled")
    chosen = setting.partition("[")[2].partition("]")[0]
    return {
        "cpu": _line(cpuinfo, "model name") or "unknown",
        "features": [name for name in features if name in host],
        "processors": sum(line.startswith("processor") for line in cpuinfo.splitlines()),
        "threads": available_cpus(SYSTEM),
        "memory_bytes": int(memory) * 1024 if memory.isdigit() else 0,
        "memory_limit_bytes": _memory_limit(),
        "huge_pages": chosen or "unknown",
    }


def _read(path: str) -> str:
    """A small file of the system; empty where there is none."""
    file = SYSTEM / path
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _line(text: str, key: str) -> str:
    """What stands after `key:` in the first line that begins so."""
    found = next((line for line in text.splitlines() if line.startswith(key)), "")
    return found.partition(":")[2].strip()


def _memory_limit() -> int | None:
    """What the control group of this process grants, of either version of control groups."""
    for path in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _read(path).strip()
        if text.isdigit() and int(text) < 1 << 60:  # version 1 writes a huge number for none
            return int(text)
    return None


def _cache() -> dict[str, Any]:
    """The folder of compiled objects, how many there are and their bytes."""
    from fusec.link.cache import default_cache_directory

    folder = default_cache_directory()
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return {"folder": str(folder), "files": len(sizes), "bytes": sum(sizes)}


# --- what is said ---------------------------------------------------------------------------


def _warnings() -> dict[str, str]:
    """Packages that are older or newer than what was tested, with how."""
    found = {name: found_version(name) for name in PACKAGES}
    said = {name: outside(name, version) for name, version in found.items() if version}
    return {name: text for name, text in said.items() if text}


def _document(findings: list[Finding], ready: list[Ready]) -> dict[str, Any]:
    return {
        "schema": "fusec.doctor/1",
        "fusec": __version__,
        "findings": [asdict(finding) for finding in findings],
        "targets": [
            {
                "target": each.target,
                "compile": not each.compile,
                "compile_needs": list(each.compile),
                "run": not each.run,
                "run_needs": list(each.run),
            }
            for each in ready
        ],
        "sources": {
            kind: [name for name in packages if found_version(name) is None]
            for kind, packages in _SOURCES.items()
        },
        "machine": _machine(),
        "cache": _cache(),
        "untested": _warnings(),
    }


def _text(findings: list[Finding], ready: list[Ready], *, asked: bool) -> str:
    """The targets alone where some were asked for, else everything."""
    width = text_width()
    lines = [
        [each.target, "no" if each.compile else "yes", "no" if each.run else "yes"]
        for each in ready
    ]
    parts = [table(["target", "compile", "run"], lines), *_missing(ready)]
    if asked:
        return "\n\n".join(parts)
    rows = []
    for kind, packages in _SOURCES.items():
        lacking = [name for name in packages if found_version(name) is None]
        rows.append([kind, f"no: {_install(lacking[-1])}" if lacking else "yes"])
    parts.append(table(["source", "can be read"], rows, width))
    parts.append(table(["machine", ""], _machine_rows(), width))
    warned = _warnings()
    tools = [
        [each.what, each.found or "missing", warned.get(each.what, "") or each.needed]
        for each in findings
        if each.what != "host CPU"
    ]
    parts.append(table(["tool", "found", "for"], tools, terminal_width()))
    for name, text in warned.items():
        say(f"warning: {name} is {text}")
    return "\n\n".join(parts)


def _missing(ready: list[Ready]) -> list[str]:
    """What each target lacks, those that lack the same together."""
    found: dict[tuple[str, str], list[str]] = {}
    for each in ready:
        for what, texts in (("compile for", each.compile), ("run", each.run)):
            for text in texts:
                found.setdefault((what, text), []).append(each.target)
    lines = [[f"to {what} {', '.join(targets)}", text] for (what, text), targets in found.items()]
    return [table(["", "is missing"], lines, text_width())] if lines else []


def _machine_rows() -> list[list[str]]:
    machine, cache = _machine(), _cache()
    limit = machine["memory_limit_bytes"]
    memory = f"{machine['memory_bytes'] / 2**30:.1f} GiB"
    threads = f"{machine['threads']} of {machine['processors']} processors"
    return [
        ["CPU", machine["cpu"]],
        ["level", _host() or "none that fusec compiles for"],
        ["features", " ".join(machine["features"])],
        ["threads", threads + ("" if machine["threads"] == machine["processors"] else ", limited")],
        ["memory", memory + (f", limited to {limit / 2**30:.1f} GiB" if limit else "")],
        ["huge pages", machine["huge_pages"]],
        ["cache", f"{cache['folder']}, {cache['files']} files, {size_text(cache['bytes'])}"],
    ]
