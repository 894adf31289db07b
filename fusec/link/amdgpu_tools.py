"""The assembler, the linker and the device libraries that Triton's AMD backend carries.

They are internal to Triton and have moved between its releases (3.6 has the assembler in its
extension module, 3.9 in the backend's compiler), so this is the one place that calls them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fusec.diagnostics import FusecError, InputError, UnsupportedError

GPU_HINT = "pip install 'fusec[gpu]'"

_ASSEMBLERS = (
    ("triton.backends.amd.compiler", "assemble_amdgcn"),
    ("triton._C.libtriton.amd", "assemble_amdgcn"),
)


def assemble(assembly: str, arch: str) -> bytes:
    """The code object made of AMDGPU assembly.

    Args:
        assembly: text for LLVM's assembler.
        arch: such as `gfx950`.

    Raises:
        InputError: Triton is not installed.
        UnsupportedError: this release of Triton has no assembler where it is known to be, or the
            assembler refuses the text.
    """
    assembler = _assembler()
    linker = _linker()
    refusal = f"the assembler of Triton refuses code for `{arch}`"
    try:
        made: bytes = assembler(assembly, arch, "")
    except (RuntimeError, ValueError) as error:
        raise UnsupportedError(f"{refusal}: {error}") from error
    if not made:
        raise UnsupportedError(refusal, detail=("it says why on the standard error stream",))
    with tempfile.TemporaryDirectory(prefix="fusec-") as folder:
        relocatable, code = Path(folder) / "module.o", Path(folder) / "module.hsaco"
        relocatable.write_bytes(made)
        linker(str(relocatable), str(code))
        return code.read_bytes()


def device_library(name: str) -> Path:
    """The bitcode of a library for the device, such as `ocml`.

    Raises:
        InputError: Triton is not installed.
        UnsupportedError: this release of Triton does not carry it.
    """
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        raise InputError("building HIP kernels needs Triton", hint=GPU_HINT)
    path = Path(spec.origin).parent / "backends" / "amd" / "lib" / f"{name}.bc"
    if not path.is_file():
        raise _changed(f"`backends/amd/lib/{name}.bc`")
    return path


def _assembler() -> Callable[[str, str, str], bytes]:
    _require_triton()
    _module("triton._C.libtriton.llvm").init_targets()
    for module, name in _ASSEMBLERS:
        found: Callable[[str, str, str], bytes] | None = getattr(_module(module), name, None)
        if found is not None:
            return found
    raise _changed("`assemble_amdgcn`")


def _linker() -> Callable[[str, str], None]:
    module = _module("triton._C.libtriton.amd")
    found: Callable[[str, str], None] | None = getattr(module, "link_hsaco", None)
    if found is None:
        raise _changed("`link_hsaco`")
    return found


def _module(name: str) -> Any:
    """A module, or an attribute of the extension module that looks like one; `None` if neither."""
    parent, _, last = name.rpartition(".")
    return getattr(importlib.import_module(parent), last, None)


def _require_triton() -> None:
    try:
        importlib.import_module("triton.backends.amd.compiler")
    except ModuleNotFoundError as error:
        raise InputError("building HIP kernels needs Triton", hint=GPU_HINT) from error


def _changed(what: str) -> FusecError:
    version = importlib.metadata.version("triton")
    return UnsupportedError(
        f"Triton {version} has no {what} where fusec knows it to be",
        hint="install a release of Triton between 3.6 and 3.9",
    )
