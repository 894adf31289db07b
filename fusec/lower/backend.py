"""What differs between lowering for a CPU and for a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fusec.diagnostics import InternalError
from fusec.ir import Graph, Node
from fusec.kernels.launch import Call, Launch
from fusec.kernels.registry import Kernel
from fusec.lower.codegen_cpp import GeneratedFunction, print_function
from fusec.lower.codegen_triton import region_launch
from fusec.lower.memory_plan import ALIGNMENT
from fusec.lower.regions import BuiltRegion
from fusec.target import Family, Target

GPU_ALIGNMENT = 256
"""Bytes at multiples of which slots of a GPU's arena begin, as memory from its driver does."""


class Backend(Protocol):
    """Generates kernels, and says where they come from otherwise.

    Attributes:
        generated: the record under which generated kernels are listed.
        providers: records that are asked before those of the registry.
        alignment: bytes at multiples of which slots of the arena begin.
        functions: the C++ that was generated, by symbol.
    """

    generated: Kernel
    providers: Sequence[Kernel]
    alignment: int
    functions: dict[str, GeneratedFunction]

    def launch(self, built: BuiltRegion, comment: str) -> Launch:
        """The launch of a generated kernel; `comment` says what it is and where it comes from."""


def _not_asked(graph: Graph, node: Node, target: Target) -> str | None:
    raise InternalError("code is generated where the lowering says so")


def _not_launched(call: Call) -> Launch:
    raise InternalError("a generated kernel is launched by what generates it")


def _generator(name: str, *families: Family) -> Kernel:
    return Kernel("generated", name, "codegen", families, "", _not_asked, _not_launched)


CODEGEN_CPP = _generator("codegen.cpp", "cpu")
CODEGEN_TRITON = _generator("codegen.triton", "amdgpu", "nvidia")
"""The records of generated kernels."""


@dataclass(slots=True)
class CpuBackend:
    """C++, all in one module."""

    providers: Sequence[Kernel] = ()
    generated: Kernel = CODEGEN_CPP
    alignment: int = ALIGNMENT
    functions: dict[str, GeneratedFunction] = field(default_factory=dict)

    def launch(self, built: BuiltRegion, comment: str) -> Launch:
        """See `Backend`."""
        function = print_function(built.region, comment)
        self.functions.setdefault(function.symbol, function)
        return Launch(function.symbol, built.storages, function.params)


@dataclass(slots=True)
class GpuBackend:
    """Triton, a code object for each kernel."""

    graph: Graph
    target: Target
    providers: Sequence[Kernel] = ()
    generated: Kernel = CODEGEN_TRITON
    alignment: int = GPU_ALIGNMENT
    functions: dict[str, GeneratedFunction] = field(default_factory=dict)

    def launch(self, built: BuiltRegion, comment: str) -> Launch:
        """See `Backend`."""
        return region_launch(built.region, built.storages, comment, self.target, self.graph.symbols)
