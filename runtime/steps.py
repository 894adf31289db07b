"""A program as it was read and checked: what `fusec.runtime.program` makes of its document.

The operands and parameters of kernels are kept in a few long arrays, so that a program of tens of
thousands of steps is worked out for a combination of sizes in one go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fusec.runtime.artifact import TensorSpec
from fusec.runtime.external import ExternalSpec
from fusec.symbolic import Dim


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory that steps read and write.

    Attributes:
        kind: who owns it: `input`, `output`, `weight`, `arena` or `error`.
        bytes: its size.
        name: of the weight it is.
        slot: of the arena it lies in.
    """

    kind: str
    bytes: Dim
    name: str | None
    slot: int | None


@dataclass(frozen=True, slots=True)
class Binding:
    """An input or output of the model and the buffer that holds it, contiguous."""

    spec: TensorSpec
    buffer: int


@dataclass(frozen=True, slots=True)
class KernelStep:
    """One call of a kernel; its operands and parameters are in `Program.pointers`/`params`.

    Attributes:
        symbol: the function.
        kernel: the record it came from.
        node: of the graph.
        op: of the node.
        pointers: its part of `Program.pointers`.
        params: its part of `Program.params`.
    """

    symbol: str
    kernel: str
    node: str
    op: str
    pointers: range
    params: range


@dataclass(frozen=True, slots=True)
class LaunchStep:
    """One launch of a kernel on a GPU.

    Its operands, parameters and grid are in `Program.pointers`/`params`/`grids`.

    Attributes:
        module: the entry of the code.
        symbol: the function in it.
        kernel: the record it came from.
        node: of the graph.
        op: of the node.
        pointers: its part of `Program.pointers`.
        params: its part of `Program.params`.
        grid: its part of `Program.grids`: three sizes.
        block: lanes of a work group along each axis.
        shared_bytes: shared memory that is asked for at the launch.
        arguments: offset and size in the argument block of each operand and then each parameter.
        kernarg_bytes: size of the argument block.
    """

    module: str
    symbol: str
    kernel: str
    node: str
    op: str
    pointers: range
    params: range
    grid: range
    block: tuple[int, int, int]
    shared_bytes: int
    arguments: tuple[tuple[int, int], ...]
    kernarg_bytes: int


@dataclass(frozen=True, slots=True)
class StridedOperand:
    """A tensor inside a buffer that a library reads or writes.

    Attributes:
        dtype: fusec's name of the element type.
        shape: sizes.
        strides: steps, in elements.
        buffer: that it lies in.
        offset: bytes before its first element.
    """

    dtype: str
    shape: tuple[Dim, ...]
    strides: tuple[Dim, ...]
    buffer: int
    offset: Dim


@dataclass(frozen=True, slots=True)
class ExternalStep:
    """A call of a function of a library that is installed beside the artifact."""

    op: str
    node: str
    kernel: str
    call: ExternalSpec
    operands: tuple[StridedOperand, ...]


@dataclass(frozen=True, slots=True)
class Operand:
    """A contiguous tensor inside a buffer that onnxruntime reads or writes."""

    spec: TensorSpec
    buffer: int
    offset: Dim


@dataclass(frozen=True, slots=True)
class OnnxStep:
    """A part of the model that onnxruntime runs, and why."""

    model: str
    node: str
    op: str
    reason: str
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]


Step: TypeAlias = KernelStep | LaunchStep | ExternalStep | OnnxStep


@dataclass(frozen=True, slots=True)
class Numbers:
    """A long list of integers, some of which are expressions.

    Attributes:
        constants: the integers; 0 where there is an expression.
        places: where the expressions are.
        expressions: their indexes in `Program.expressions`.
    """

    constants: NDArray[np.int64]
    places: NDArray[np.int64]
    expressions: NDArray[np.int64]

    def filled(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """The integers, with expressions taken from `values`."""
        result = self.constants.copy()
        result[self.places] = values[self.expressions]
        return result


@dataclass(frozen=True, slots=True)
class Program:
    """A checked program.

    Attributes:
        at: the file and entry it was read from.
        arch: the instruction set.
        features: what the processor must have.
        symbols: inclusive range of each.
        modules: the entries of the code that steps need.
        inputs: in order.
        outputs: in order.
        buffers: by index.
        slots: of the arena: the sizes it must hold.
        steps: in order.
        expressions: every expression of pointers, parameters and grids, once.
        pointer_buffers: the buffer of every operand of every kernel step and launch.
        pointer_offsets: its byte offset.
        params: every parameter of every kernel step and launch.
        grids: three sizes for every launch.
        sources: by entry of the code: what it was compiled from, as the compiler wrote it.
    """

    at: str
    arch: str
    features: tuple[str, ...]
    symbols: Mapping[str, tuple[int, int]]
    modules: tuple[str, ...]
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    buffers: tuple[Buffer, ...]
    slots: tuple[tuple[Dim, ...], ...]
    steps: tuple[Step, ...]
    expressions: tuple[Dim, ...]
    pointer_buffers: NDArray[np.int64]
    pointer_offsets: Numbers
    params: Numbers
    grids: Numbers
    sources: Mapping[str, object]
