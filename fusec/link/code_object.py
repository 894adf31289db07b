"""What a GPU code object says of itself: its architecture, its kernels, what each one takes.

AMD: LLVM's "User Guide for AMDGPU Backend", sections "ELF Code Object" and "Code Object Metadata":
the note `NT_AMDGPU_METADATA` holds a msgpack document, and the ELF flags hold the architecture and
whether memory faults may be replayed (xnack) and on-chip memory is checked (sramecc).

NVIDIA: a cubin has `.nv.info` sections of attributes; their layout is as `cuobjdump` shows them.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fusec.diagnostics import UnsupportedError

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

ArgumentKind = Literal["pointer", "value", "hidden", "unknown"]


@dataclass(frozen=True, slots=True)
class KernelArgument:
    """One argument: `hidden` ones are the compiler's own; a cubin says `unknown` of all."""

    offset: int
    size: int
    kind: ArgumentKind


@dataclass(frozen=True, slots=True)
class KernelMetadata:
    """One kernel of a code object.

    Attributes:
        threads: the largest work group it may be launched with.
        resources: registers, memory in bytes and spills.
        arguments: in order.
        kernarg_bytes: size of all arguments together.
    """

    threads: int
    resources: Mapping[str, int]
    arguments: tuple[KernelArgument, ...]
    kernarg_bytes: int


@dataclass(frozen=True, slots=True)
class CodeObject:
    """A code object.

    Attributes:
        arch: such as `gfx950` or `sm_90`.
        settings: modes it insists on, such as `xnack+`; empty if it runs in any.
        kernels: by symbol; the symbol is defined by the file and described by its metadata.
    """

    arch: str
    settings: tuple[str, ...]
    kernels: Mapping[str, KernelMetadata]


def read_code_object(code: bytes) -> CodeObject:
    """Read the metadata of a code object.

    The readers of the formats are imported here: they come with the extra `gpu`, without which
    everything else of the linker works.

    Raises:
        UnsupportedError: it is not a code object of an AMD or NVIDIA GPU.
    """
    import msgpack
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        file = ELFFile(io.BytesIO(code))
        read = _READERS[file["e_machine"]]
        return read(file)
    except (ELFError, msgpack.UnpackException, struct.error, KeyError, ValueError) as error:
        raise UnsupportedError(f"this is not a GPU code object: {error}") from error


# --- AMD ------------------------------------------------------------------------------------

_METADATA_NOTES = (32, "NT_AMDGPU_METADATA")  # the type of the note, and what pyelftools calls it

_MACHINES = {0x4C: "gfx942", 0x4F: "gfx950"}
_XNACK = {0x200: "xnack-", 0x300: "xnack+"}
_SRAMECC = {0x800: "sramecc-", 0xC00: "sramecc+"}

_RESOURCES = {
    "vgpr": ".vgpr_count",
    "agpr": ".agpr_count",
    "sgpr": ".sgpr_count",
    "lds_bytes": ".group_segment_fixed_size",
    "scratch_bytes": ".private_segment_fixed_size",
    "vgpr_spills": ".vgpr_spill_count",
    "sgpr_spills": ".sgpr_spill_count",
}

_ARGUMENT_KINDS: Mapping[str, ArgumentKind] = {"global_buffer": "pointer", "by_value": "value"}


def _read_amd(file: ELFFile) -> CodeObject:
    document = _metadata(file)
    flags = file["e_flags"]
    arch = _MACHINES.get(flags & 0xFF, f"machine {flags & 0xFF:#x}")
    told = document["amdhsa.target"].partition(":")[0].rpartition("-")[2]
    if told != arch:
        raise ValueError(f"its flags are for {arch}, its metadata for {told}")
    settings = [names[flags & mask] for mask, names in _SETTINGS if flags & mask in names]
    symbols = _symbols(file, ".dynsym")
    kernels = {
        kernel[".name"]: _amd_kernel(kernel)
        for kernel in document["amdhsa.kernels"]
        if {kernel[".name"], kernel[".symbol"]} <= symbols
    }
    return CodeObject(arch, tuple(settings), kernels)


_SETTINGS = ((0x300, _XNACK), (0xC00, _SRAMECC))


def _metadata(file: ELFFile) -> Any:
    import msgpack
    from elftools.elf.sections import NoteSection

    for section in file.iter_sections():
        if isinstance(section, NoteSection):
            for note in section.iter_notes():
                if note["n_name"] == "AMDGPU" and note["n_type"] in _METADATA_NOTES:
                    return msgpack.unpackb(note["n_descdata"])
    raise ValueError("it has no note with metadata")


def _amd_kernel(fields: Mapping[str, Any]) -> KernelMetadata:
    return KernelMetadata(
        threads=int(fields[".max_flat_workgroup_size"]),
        resources={name: int(fields.get(key, 0)) for name, key in _RESOURCES.items()},
        arguments=tuple(
            KernelArgument(
                offset=int(argument[".offset"]),
                size=int(argument[".size"]),
                kind=_ARGUMENT_KINDS.get(argument[".value_kind"], "hidden"),
            )
            for argument in fields.get(".args", ())
        ),
        kernarg_bytes=int(fields[".kernarg_segment_size"]),
    )


# --- NVIDIA ---------------------------------------------------------------------------------

_REGISTERS, _FRAME_BYTES = 0x2F, 0x11
_PARAMETER, _THREADS, _PARAMETER_BYTES = 0x17, 0x10, 0x19
_SIZED = 4  # the form of an attribute that is followed by its bytes


def _read_nvidia(file: ELFFile) -> CodeObject:
    flags = file["e_flags"]
    # The eighth revision of the format moved the number of the architecture up by a byte.
    number = flags >> 8 & 0xFF if file["e_ident"]["EI_ABIVERSION"] >= 8 else flags & 0xFF
    table = file.get_section_by_name(".symtab")
    of_all: dict[int, dict[str, int]] = {}
    for attribute, value in _attributes(file, ".nv.info"):
        if attribute in (_REGISTERS, _FRAME_BYTES):
            symbol, amount = struct.unpack("<II", value)
            of_all.setdefault(symbol, {})[
                "vgpr" if attribute == _REGISTERS else "scratch_bytes"
            ] = amount
    kernels = {}
    for index, found in of_all.items():
        name = table.get_symbol(index).name
        if name in _symbols(file, ".symtab"):
            kernels[name] = _nvidia_kernel(file, name, found)
    return CodeObject(f"sm_{number}", (), kernels)


def _nvidia_kernel(file: ELFFile, name: str, found: Mapping[str, int]) -> KernelMetadata:
    arguments: dict[int, KernelArgument] = {}
    threads = size = 0
    for attribute, value in _attributes(file, f".nv.info.{name}"):
        if attribute == _PARAMETER:
            _, ordinal, offset, packed = struct.unpack("<IHHI", value)
            arguments[ordinal] = KernelArgument(offset, packed >> 18, "unknown")
        elif attribute == _THREADS:
            threads = struct.unpack_from("<I", value)[0]
        elif attribute == _PARAMETER_BYTES:
            size = struct.unpack("<H", value)[0]
    resources = dict.fromkeys(_RESOURCES, 0) | dict(found)
    ordered = tuple(arguments[ordinal] for ordinal in sorted(arguments))
    return KernelMetadata(threads, resources, ordered, size)


def _attributes(file: ELFFile, section: str) -> Iterator[tuple[int, bytes]]:
    """The number and the value of each attribute in a section."""
    found = file.get_section_by_name(section)
    data: bytes = b"" if found is None else found.data()
    at = 0
    while at < len(data):
        form, attribute, size = struct.unpack_from("<BBH", data, at)
        value = data[at + 4 : at + 4 + size] if form == _SIZED else data[at + 2 : at + 4]
        at += 4 + (size if form == _SIZED else 0)
        yield attribute, value


def _symbols(file: ELFFile, section: str) -> set[str]:
    """The global symbols that the file defines."""
    table = file.get_section_by_name(section)
    if table is None:
        return set()
    return {
        symbol.name
        for symbol in table.iter_symbols()
        if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] == "STB_GLOBAL"
    }


_READERS = {"EM_AMDGPU": _read_amd, "EM_CUDA": _read_nvidia}
