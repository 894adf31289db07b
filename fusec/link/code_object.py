"""What an AMD GPU code object says of itself.

The format is LLVM's "User Guide for AMDGPU Backend", section "Code Object Metadata": an ELF file
whose note `NT_AMDGPU_METADATA` holds a msgpack document, and whose flags hold the architecture.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import NoteSection

from fusec.diagnostics import UnsupportedError

METADATA_NOTES = (32, "NT_AMDGPU_METADATA")
"""The type of the note, and what pyelftools may call it."""

_RESOURCES = {
    "vgpr": ".vgpr_count",
    "agpr": ".agpr_count",
    "sgpr": ".sgpr_count",
    "lds_bytes": ".group_segment_fixed_size",
    "scratch_bytes": ".private_segment_fixed_size",
    "vgpr_spills": ".vgpr_spill_count",
    "sgpr_spills": ".sgpr_spill_count",
}


@dataclass(frozen=True, slots=True)
class KernelMetadata:
    """One kernel of a code object.

    Attributes:
        threads: the largest work group it may be launched with.
        resources: registers, memory in bytes and spills.
        arguments: offset and size of each argument, in order.
    """

    threads: int
    resources: Mapping[str, int]
    arguments: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class CodeObject:
    """A code object: its architecture, such as `gfx950`, and its kernels by symbol."""

    arch: str
    kernels: Mapping[str, KernelMetadata]


def read_code_object(code: bytes) -> CodeObject:
    """Read the metadata of a code object.

    Raises:
        UnsupportedError: it is not an AMD GPU code object.
    """
    try:
        document = _metadata(code)
        arch = document["amdhsa.target"].rpartition("-")[2].partition(":")[0]
        kernels = {kernel[".name"]: _kernel(kernel) for kernel in document["amdhsa.kernels"]}
    except (ELFError, msgpack.UnpackException, KeyError, ValueError) as error:
        raise UnsupportedError(f"this is not an AMD GPU code object: {error}") from error
    return CodeObject(arch, kernels)


def _metadata(code: bytes) -> Any:
    for section in ELFFile(io.BytesIO(code)).iter_sections():
        if isinstance(section, NoteSection):
            for note in section.iter_notes():
                if note["n_name"] == "AMDGPU" and note["n_type"] in METADATA_NOTES:
                    return msgpack.unpackb(note["n_descdata"])
    raise ValueError("it has no note with metadata")


def _kernel(fields: Mapping[str, Any]) -> KernelMetadata:
    arguments = tuple((int(arg[".offset"]), int(arg[".size"])) for arg in fields.get(".args", ()))
    return KernelMetadata(
        threads=int(fields[".max_flat_workgroup_size"]),
        resources={name: int(fields.get(key, 0)) for name, key in _RESOURCES.items()},
        arguments=arguments,
    )
