"""A compiled code object, and what is known of it without running it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

RESOURCES = ("vgpr", "agpr", "sgpr", "lds_bytes", "scratch_bytes", "vgpr_spills", "sgpr_spills")
"""What `inspect` shows of every kernel; on an NVIDIA GPU registers are counted as `vgpr`."""


@dataclass(frozen=True, slots=True)
class MachineCode:
    """What the instructions of a kernel show.

    Attributes:
        widest_load: bytes that one lane reads from memory with one instruction, at most.
        widest_store: bytes that one lane writes, at most.
        mfma: matrix instructions, by name, sorted.
        forbidden: instructions that the device does not execute as they are written.
    """

    widest_load: int = 0
    widest_store: int = 0
    mfma: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CompiledCode:
    """What a compiler made of one source.

    Attributes:
        symbol: the entry point that is launched.
        code: the bytes that a driver loads: an ELF file.
        suffix: what kind of file that is: `hsaco` or `cubin`.
        threads: lanes of a work group.
        shared_bytes: shared memory that the launch has to ask for.
        machine: what its instructions show.
    """

    symbol: str
    code: bytes
    suffix: str
    threads: int
    shared_bytes: int
    machine: MachineCode


@dataclass(frozen=True, slots=True)
class GpuKernel:
    """A code object that has been checked against its launch.

    Attributes:
        symbol: the entry point.
        code: the bytes that a driver loads: an ELF file.
        suffix: what kind of file that is: `hsaco` or `cubin`.
        threads: lanes of a work group.
        shared_bytes: shared memory that the launch has to ask for.
        resources: registers, memory and spills, by the names of `RESOURCES`.
        arguments: offset and size of each kernel argument that the launch gives, in order.
        kernarg_bytes: size of all arguments, those included that only the compiler knows of.
        waves: waves of this kernel that a compute unit holds at once; 0 if that is not known.
        machine: what its instructions show.
    """

    symbol: str
    code: bytes
    suffix: str
    threads: int
    shared_bytes: int
    resources: Mapping[str, int]
    arguments: tuple[tuple[int, int], ...]
    kernarg_bytes: int
    waves: int
    machine: MachineCode = field(default_factory=MachineCode)

    @property
    def sha256(self) -> str:
        """The digest of the code object."""
        return hashlib.sha256(self.code).hexdigest()


def pack(compiled: CompiledCode) -> bytes:
    """One line of JSON about the code, with its digest, and then the code."""
    fields = asdict(compiled)
    code: bytes = fields.pop("code")
    fields["sha256"] = hashlib.sha256(code).hexdigest()
    return json.dumps(fields, sort_keys=True).encode() + b"\n" + code


def unpack(data: bytes) -> CompiledCode | None:
    """What `pack` packed, or `None` when the bytes are damaged."""
    line, _, code = data.partition(b"\n")
    try:
        fields = json.loads(line)
        seen = fields.pop("machine")
        intact = fields.pop("sha256") == hashlib.sha256(code).hexdigest()
        machine = MachineCode(
            widest_load=seen["widest_load"],
            widest_store=seen["widest_store"],
            mfma=tuple(seen["mfma"]),
            forbidden=tuple(seen["forbidden"]),
        )
        compiled = CompiledCode(code=code, machine=machine, **fields)
    except (ValueError, KeyError, TypeError):
        return None
    return compiled if intact else None
