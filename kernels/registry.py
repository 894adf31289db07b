"""Which kernel computes which operation, on which target.

A kernel is a record.  Importing a record imports no compiler: sources are named, not loaded.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Literal, TypeAlias

import fusec.kernels
from fusec.ir import Graph, Node, Weight
from fusec.kernels.launch import OWN_PACKAGE, Call, Launch, Layout
from fusec.target import Family, Target

Provider = Literal["triton", "hip", "cpp", "codegen", "external"]

Supports: TypeAlias = Callable[[Graph, Node, Target], str | None]
"""`None` when the kernel can compute the node on the target; else the reason it cannot."""

Layouts: TypeAlias = Callable[[Graph, Node], tuple[Layout, ...]]
"""What the kernel needs of each operand and then of each result, in order."""

Packing: TypeAlias = Callable[[Weight], Weight]
"""Makes, of a weight, the bytes in the order in which the kernel reads them."""


def all_contiguous(graph: Graph, node: Node) -> tuple[Layout, ...]:
    """A kernel that needs every operand and result dense."""
    contiguous: Layout = "contiguous"
    return (contiguous,) * (len(node.inputs) + len(node.outputs))


def no_packing(graph: Graph, node: Node, target: Target) -> Mapping[int, Packing]:
    """A kernel that reads weights as they are."""
    return MappingProxyType({})


def row_major(graph: Graph, node: Node) -> tuple[int, ...] | None:
    """A kernel that writes its result in row-major order."""
    return None


@dataclass(frozen=True, slots=True)
class Kernel:
    """One implementation of one operation.

    Attributes:
        op: the operation of the IR.
        name: unique, such as `rms_norm.cpp`.
        provider: the language it is written in.
        families: target families it is for.
        source: its file, below the folder of `package`; for a generator, "".
        supports: `None`, or why it cannot compute a node.
        launch: how to call it, once operands have a place in memory; several launches run in order.
        layouts: what it needs of operands and results.
        packing: weights that it reads packed, by operand; such an operand is a parameter.
        output_order: axes of the first result from outermost to innermost in memory, if they are
            not in order; saves the transposition that usually follows.
        scalar_spills: scalar registers that a wave may keep in lanes of vector registers on a GPU;
            that takes no memory.
        scratch_bytes: memory beside its registers that a lane may use on a GPU; a code object that
            uses more is refused.
        package: the Python package that holds `source`; an extension names its own.
    """

    op: str
    name: str
    provider: Provider
    families: tuple[Family, ...]
    source: str
    supports: Supports
    launch: Callable[[Call], Launch | tuple[Launch, ...]]
    layouts: Layouts = all_contiguous
    packing: Callable[[Graph, Node, Target], Mapping[int, Packing]] = no_packing
    output_order: Callable[[Graph, Node], tuple[int, ...] | None] = row_major
    scalar_spills: int = 0
    scratch_bytes: int = 0
    package: str = OWN_PACKAGE

    def launches(self, call: Call) -> tuple[Launch, ...]:
        """What runs, in order, for a node whose operands have a place in memory."""
        launch = self.launch(call)
        return (launch,) if isinstance(launch, Launch) else launch


@dataclass(frozen=True, slots=True)
class Refused:
    """A kernel that was asked before one was found, and why it cannot compute the node."""

    kernel: str
    reason: str

    def __str__(self) -> str:
        return f"{self.kernel}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Choice:
    """The kernel that computes a node, and those that were asked before it.

    Attributes:
        kernel: the first that can, or `None`.
        refused: the others that were asked, in order.
    """

    kernel: Kernel | None
    refused: tuple[Refused, ...] = ()

    @property
    def reason(self) -> str:
        """Why no kernel can, in one line."""
        return "; ".join(map(str, self.refused))


@cache
def kernels() -> Mapping[str, tuple[Kernel, ...]]:
    """Every kernel by operation, in order of preference: the order of `KERNELS` in its folder.

    Each folder of `fusec.kernels` is a package whose `KERNELS` holds its records.
    """
    found: dict[str, list[Kernel]] = {}
    for module in pkgutil.iter_modules(fusec.kernels.__path__):
        if module.ispkg:
            package = importlib.import_module(f"fusec.kernels.{module.name}")
            for kernel in package.KERNELS:
                found.setdefault(kernel.op, []).append(kernel)
    return MappingProxyType({op: tuple(records) for op, records in found.items()})


def no_objection(kernel: Kernel) -> str | None:
    """For callers that have nothing to say against a kernel."""
    return None


def choose(
    graph: Graph,
    node: Node,
    target: Target,
    preferred: Sequence[Kernel] = (),
    objection: Callable[[Kernel], str | None] = no_objection,
) -> Choice:
    """The first kernel that can compute `node` on `target`, and every reason why others cannot.

    Args:
        graph: of the node.
        node: what to compute.
        target: for what.
        preferred: records that are asked before those of the registry: those of a library that
            was asked for, and of extensions.
        objection: what the caller has against a kernel that could compute the node, or `None`.
    """
    refused: list[Refused] = []
    for kernel in (*preferred, *kernels().get(node.op, ())):
        if kernel.op != node.op or target.family not in kernel.families:
            continue
        why_not = kernel.supports(graph, node, target) or objection(kernel)
        if why_not is None:
            return Choice(kernel, tuple(refused))
        refused.append(Refused(kernel.name, why_not))
    return Choice(None, tuple(refused))
