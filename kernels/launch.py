"""What a kernel is handed and what it gives back: storages in, one launch out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fusec.diagnostics import InternalError
from fusec.dtypes import DTYPES
from fusec.ir import Attrs, Graph, Node, TensorType
from fusec.kernels.external.call import ExternalCall
from fusec.symbolic import Dim
from fusec.target import Target

Layout = Literal["contiguous", "even_rows", "rows", "strided"]
"""What a kernel needs of an operand: dense in memory; unit stride along the last axis and the same
distance between all rows; unit stride along the last axis and any strides elsewhere; or any strides
at all."""

OWN_PACKAGE = "fusec.kernels"
"""The package of the sources of fusec's own kernels."""

Param: TypeAlias = "Dim | float"
"""A launch parameter: an integer expression, or a double that travels as its bits."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a value lies: an element at (i, j, ...) is `offset + i*strides[0] + j*strides[1] ...`.

    Attributes:
        buffer: the number of the buffer in the program.
        dtype: the element type.
        shape: sizes.
        strides: steps, in elements; 0 where one element serves a whole axis.
        offset: elements before the first one.
    """

    buffer: int
    dtype: str
    shape: tuple[Dim, ...]
    strides: tuple[Dim, ...]
    offset: Dim = 0

    @property
    def byte_offset(self) -> Dim:
        """Bytes before the first element; none where there is none."""
        return 0 if 0 in self.shape else self.offset * DTYPES[self.dtype].itemsize

    @property
    def is_contiguous(self) -> bool:
        """Whether elements lie densely in row-major order."""
        return self.strides_of_size_above_one() == tuple(
            stride
            for dim, stride in zip(self.shape, dense_strides(self.shape), strict=True)
            if dim != 1
        )

    @property
    def has_unit_rows(self) -> bool:
        """Whether elements along the last axis are neighbours."""
        return not self.shape or self.shape[-1] == 1 or self.strides[-1] == 1

    @property
    def has_even_rows(self) -> bool:
        """Whether all rows are the same distance from the one before."""
        steps = zip(self.shape[:-1], self.strides[:-1], strict=True)
        outer = [(size, step) for size, step in steps if size != 1]
        return all(step == size * inner for (_, step), (size, inner) in itertools.pairwise(outer))

    def strides_of_size_above_one(self) -> tuple[Dim, ...]:
        """The strides that matter: an axis of size 1 is never stepped along."""
        pairs = zip(self.shape, self.strides, strict=True)
        return tuple(stride for dim, stride in pairs if dim != 1)

    def meets(self, layout: Layout) -> bool:
        """Whether a kernel that needs `layout` can read this as it lies."""
        if layout == "contiguous":
            return self.is_contiguous
        if layout == "even_rows":
            return self.has_unit_rows and self.has_even_rows
        return layout == "strided" or self.has_unit_rows


def dense_strides(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Row-major strides, in elements."""
    strides: list[Dim] = []
    step: Dim = 1
    for dim in reversed(shape):
        strides.append(step)
        step = step * dim
    return tuple(reversed(strides))


def no_scratch(dtype: str, shape: tuple[Dim, ...]) -> Storage:
    """For lowerings whose kernels have no intermediate buffers.

    Raises:
        InternalError: always.
    """
    raise InternalError(f"there is no room for an intermediate {dtype}{list(shape)}")


def no_error() -> Storage:
    """For lowerings whose kernels report errors on their own.

    Raises:
        InternalError: always.
    """
    raise InternalError("there is no place for an error")


@dataclass(frozen=True, slots=True)
class Call:
    """A node whose operands have a place in memory.

    Attributes:
        graph: the graph of the node.
        node: what to compute.
        target: for what.
        inputs: storages of the operands, in order; a packed weight is one dense row of bytes.
        outputs: storages of the results, in order.
        scratch: gives a dense buffer of a dtype and shape that lives for this node alone; what is
            in it at first is undefined.
        error: gives an i64 [1] that is zero at the start of a run.  A kernel that meets an index
            outside [0, bound) stores `bound << 32 | (index & 0xFFFFFFFF)` in it; the runtime reads
            it after the run.
    """

    graph: Graph
    node: Node
    target: Target
    inputs: tuple[Storage, ...]
    outputs: tuple[Storage, ...]
    scratch: Callable[[str, tuple[Dim, ...]], Storage] = no_scratch
    error: Callable[[], Storage] = no_error

    @property
    def attrs(self) -> Attrs:
        """The attributes of the node."""
        return self.node.attrs

    def input_type(self, index: int) -> TensorType:
        """The type of an operand."""
        return self.graph.type(self.node.inputs[index])

    def output_type(self, index: int = 0) -> TensorType:
        """The type of a result."""
        return self.graph.type(self.node.outputs[index])


@dataclass(frozen=True, slots=True)
class TritonSource:
    """A Triton function with the constants that make it one code object.

    Attributes:
        module: the Python module of the function; "" if it is generated.
        function: its name.
        signature: its run-time arguments in order, with Triton's type names (`*bf16`, `i64`).
        constants: its compile-time arguments.
        divisible: run-time arguments that are multiples of 16.
        warps: waves or warps of a work group.
        options: further options of Triton's backend for the target, such as `num_stages`.
        text: a whole Python module that defines a generated function.
    """

    module: str
    function: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, int], ...]
    divisible: tuple[str, ...]
    warps: int
    options: tuple[tuple[str, int], ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class HipSource:
    """A HIP C++ file with the constants that make it one code object.

    Attributes:
        file: below the folder of `package`, such as `rms_norm/kernel.hip`.
        function: the `extern "C"` kernel that is launched.
        signature: its arguments in order, each with a type: `ptr`, `i32`, `i64` or `f32`.
        defines: macros that are set for the preprocessor, sorted by name.
        threads: work items of a work group.
        package: the Python package that holds `file`.
    """

    file: str
    function: str
    signature: tuple[tuple[str, str], ...]
    defines: tuple[tuple[str, int], ...]
    threads: int
    package: str = OWN_PACKAGE


@dataclass(frozen=True, slots=True)
class Launch:
    """One call of a native symbol.

    Attributes:
        symbol: the exported function.
        operands: storages whose addresses are passed, in the order of the symbol's ABI.
        params: parameters, in the order of the symbol's ABI.
        scratch_bytes: size of one more buffer, passed last, when not 0; may use the symbol
            `threads`.
        grid: work groups along each axis, on a GPU; a launch with none along one is left out.
        code: what makes the symbol, on a GPU; or the library's function that is called instead.
    """

    symbol: str
    operands: tuple[Storage, ...]
    params: tuple[Param, ...]
    scratch_bytes: Dim = 0
    grid: tuple[Dim, Dim, Dim] = (1, 1, 1)
    code: TritonSource | HipSource | ExternalCall | None = None
