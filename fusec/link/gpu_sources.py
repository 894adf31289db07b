"""What a GPU code object depends on, as a digest; found without importing a compiler."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import fusec.kernels
import fusec.link
from fusec.diagnostics import InternalError
from fusec.kernels.launch import HipSource, TritonSource
from fusec.link.gpu_checks import GpuSource
from fusec.link.hip_build import find_hip_compiler
from fusec.link.linker import headers_digest
from fusec.link.triton_build import triton_version
from fusec.target import Target

_BUILDERS = ("amdgpu_tools", "assembly", "gpu_kernel", "hip_build", "triton_build")
"""Modules of this package that decide what is built."""


def source_digest(source: GpuSource, target: Target) -> str:
    """The digest of the text of a source, its constants, the target, and what compiles it.

    Raises:
        InputError: Triton is not installed.
        UnsupportedError: no compiler for a HIP source is there.
        LinkError: a file cannot be read.
    """
    state = hashlib.sha256()
    text = _hip_text(source) if isinstance(source, HipSource) else _triton_text(source)
    for part in (text, target.arch, triton_version(), _builders()):
        state.update(part.encode() + b"\0")
    state.update(source_json(source).encode())
    return state.hexdigest()


def source_json(source: GpuSource) -> str:
    """A source as one line of JSON."""
    kind = "hip" if isinstance(source, HipSource) else "triton"
    return json.dumps({"kind": kind, **asdict(source)}, sort_keys=True)


def source_from_json(line: str) -> GpuSource:
    """The source that `source_json` printed."""
    fields = json.loads(line)
    kind = fields.pop("kind")
    values = {name: _tuples(value) for name, value in fields.items()}
    return HipSource(**values) if kind == "hip" else TritonSource(**values)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _hip_text(source: HipSource) -> str:
    root = Path(fusec.kernels.__path__[0])
    text = (root / source.file).read_bytes()
    headers = headers_digest(text, root / "include")
    return f"{hashlib.sha256(text).hexdigest()} {headers} {find_hip_compiler().version}"


def _triton_text(source: TritonSource) -> str:
    """Digests of the modules of a source; those that a generated one imports."""
    if not source.text:
        return triton_text(source.module)
    return " ".join(triton_text(name) for name in sorted({*_imported(source.text.encode())}))


@cache
def triton_text(module: str) -> str:
    """Digests of the file of `module` and of the kernels' modules that it imports."""
    found: dict[str, str] = {}
    names = [module]
    while names:
        name = names.pop()
        if name not in found:
            text = _module_path(name).read_bytes()
            found[name] = hashlib.sha256(text).hexdigest()
            names += _imported(text)
    return " ".join(f"{name} {digest}" for name, digest in sorted(found.items()))


def _module_path(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise InternalError(f"a record names the module `{name}`, which is not there")
    return Path(spec.origin)


def _imported(text: bytes) -> Iterator[str]:
    """Modules below `fusec` that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [node.module, *(name for name in below if _is_module(name))]
        else:
            continue
        yield from (name for name in names if name.startswith("fusec."))


def _is_module(name: str) -> bool:
    if not name.startswith("fusec."):
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@cache
def _builders() -> str:
    folder = Path(fusec.link.__path__[0])
    state = hashlib.sha256()
    for name in _BUILDERS:
        state.update((folder / f"{name}.py").read_bytes())
    return state.hexdigest()
