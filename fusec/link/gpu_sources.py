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

import fusec.link
from fusec.diagnostics import InternalError
from fusec.kernels.launch import HipSource, TritonSource
from fusec.kernels.sources import include_folder, source_path
from fusec.link.gpu_checks import GpuSource
from fusec.link.hip_build import find_hip_compiler
from fusec.link.linker import headers_digest
from fusec.link.triton_build import triton_version
from fusec.target import Target

_OWN = "fusec"

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
    path = source_path(source.package, source.file)
    text = path.read_bytes()
    headers = headers_digest(text, include_folder(), path.parent)
    return f"{hashlib.sha256(text).hexdigest()} {headers} {find_hip_compiler().version}"


def _triton_text(source: TritonSource) -> str:
    """Digests of the modules of a source; those that a generated one imports."""
    if not source.text:
        return triton_text(source.module)
    imported = _imported(source.text.encode(), "", frozenset({_OWN}))
    return " ".join(triton_text(name) for name in sorted({*imported}))


@cache
def triton_text(module: str) -> str:
    """Digests of the file of `module` and of the modules that it imports.

    Of all modules, those of fusec and those of the package that holds `module` count.
    """
    packages = frozenset({_OWN, module.partition(".")[0]})
    found: dict[str, str] = {}
    names = [module]
    while names:
        name = names.pop()
        if name not in found:
            path = _module_file(name)
            if path is None:
                raise InternalError(f"a record names the module `{name}`, which is not there")
            text = path.read_bytes()
            found[name] = hashlib.sha256(text).hexdigest()
            within = name if path.name == "__init__.py" else name.rpartition(".")[0]
            names += _imported(text, within, packages)
    return " ".join(f"{name} {digest}" for name, digest in sorted(found.items()))


def _module_file(name: str) -> Path | None:
    """The file of a module, which is not imported: it may need a compiler."""
    top, *below = name.split(".")
    spec = importlib.util.find_spec(top)
    found = None if spec is None or spec.origin is None else Path(spec.origin)
    for part in below:
        if found is None or found.name != "__init__.py":
            return None
        places = (found.parent / part / "__init__.py", found.parent / f"{part}.py")
        found = next((place for place in places if place.is_file()), None)
    return found


def _imported(text: bytes, within: str, packages: frozenset[str]) -> Iterator[str]:
    """Modules below `packages` that a file imports, wherever in it.

    Args:
        text: of the file.
        within: the package that it is in.
        packages: top-level packages whose modules count.
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            named = importlib.util.resolve_name("." * node.level + (node.module or ""), within)
            names = [named, *(f"{named}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name != _OWN and name.partition(".")[0] in packages and _module_file(name):
                yield name


@cache
def _builders() -> str:
    folder = Path(fusec.link.__path__[0])
    state = hashlib.sha256()
    for name in _BUILDERS:
        state.update((folder / f"{name}.py").read_bytes())
    return state.hexdigest()
