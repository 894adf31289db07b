"""What the sizes of the inputs make of a program: every size, place and parameter as a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusec.diagnostics import InputError
from fusec.dtypes import DTYPES
from fusec.runtime.artifact import TensorSpec
from fusec.runtime.documents import MAX_INTEGER, evaluate_dim
from fusec.runtime.errors import OutOfBoundsError
from fusec.runtime.steps import Operand, Program, StridedOperand

KEPT_PLANS = 16
CACHE_LINE = 64

Storage = NDArray[np.generic]
"""An array of a dtype's storage type: bf16 is uint16."""

Key = tuple[tuple[str, int], ...]
"""A combination of sizes."""

Read = Callable[[int, int, int], NDArray[np.uint8]]
"""Gives a copy of memory of the program: the buffer, the first byte in it, how many bytes."""

Watch = Callable[[int, Read], None]
"""Is called after a step with its place in the program, while memory is as the step left it."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """How long one step of a run took."""

    node: str
    op: str
    kernel: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Place:
    """An operand of onnxruntime, for one combination of sizes."""

    spec: TensorSpec
    shape: tuple[int, ...]
    buffer: int
    offset: int

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * DTYPES[self.spec.dtype].itemsize


@dataclass(frozen=True, slots=True)
class StridedPlace:
    """An operand of a library, for one combination of sizes; strides are in elements."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    buffer: int
    offset: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A program for one combination of sizes.

    Attributes:
        values: of the symbols.
        output_shapes: of each output.
        sizes: bytes of each buffer.
        arena_bytes: of the arena.
        arena_offsets: of each arena buffer in the arena; 0 for other buffers.
        pointer_offsets: byte offset of each pointer in its buffer.
        params: the parameters that steps read.
        grids: the sizes of the launches' grids.
    """

    values: Mapping[str, int]
    output_shapes: tuple[tuple[int, ...], ...]
    sizes: NDArray[np.int64]
    arena_bytes: int
    arena_offsets: NDArray[np.int64]
    pointer_offsets: NDArray[np.int64]
    params: NDArray[np.int64]
    grids: NDArray[np.int64]


def lay_out(program: Program, values: Mapping[str, int], alignment: int) -> Layout:
    """Work out every size, with each slot of the arena at a multiple of `alignment`.

    Raises:
        InputError: these sizes need more memory than there can be.
        ArtifactError: the program does not hold together for these sizes.
    """
    at = program.at
    known: dict[object, int] = {}

    def size(dim: object) -> int:
        if isinstance(dim, int):
            return dim
        if dim not in known:
            known[dim] = evaluate_dim(dim, values, at)  # type: ignore[arg-type]
        return known[dim]

    expressions = np.array(
        [evaluate_dim(dim, values, at, -MAX_INTEGER - 1) for dim in program.expressions],
        np.int64,
    )
    sizes = np.array([size(buffer.bytes) for buffer in program.buffers], np.int64)
    slots = [max((size(dim) for dim in slot), default=0) for slot in program.slots]
    slot_offsets: list[int] = []
    arena = 0
    for slot in slots:
        slot_offsets.append(arena)
        arena += -(-slot // alignment) * alignment
    if arena > MAX_INTEGER:
        raise InputError(f"these sizes need {arena} bytes of memory")
    offsets = program.pointer_offsets.filled(expressions)
    _check_places(program, sizes, slots, offsets)
    layout = Layout(
        values=values,
        output_shapes=tuple(tuple(map(size, binding.spec.shape)) for binding in program.outputs),
        sizes=sizes,
        arena_bytes=arena,
        arena_offsets=np.array(
            [0 if b.slot is None else slot_offsets[b.slot] for b in program.buffers], np.int64
        ),
        pointer_offsets=offsets,
        params=program.params.filled(expressions),
        grids=program.grids.filled(expressions),
    )
    _check_outputs(program, layout)
    return layout


def place(program: Program, operand: Operand, layout: Layout) -> Place:
    """Where an operand of onnxruntime lies.

    Raises:
        OutOfBoundsError: it leaves its buffer.
    """
    at = program.at
    offset = evaluate_dim(operand.offset, layout.values, at)
    shape = tuple(evaluate_dim(dim, layout.values, at) for dim in operand.spec.shape)
    placed = Place(operand.spec, shape, operand.buffer, offset)
    end = offset + placed.bytes
    if end > layout.sizes[operand.buffer]:
        raise OutOfBoundsError(
            f"`{operand.spec.name}` ends at byte {end} of a buffer of "
            f"{layout.sizes[operand.buffer]}",
            at=at,
        )
    return placed


def strided_place(program: Program, operand: StridedOperand, layout: Layout) -> StridedPlace:
    """Where an operand of a library lies.

    Raises:
        OutOfBoundsError: it leaves its buffer.
    """
    at = program.at
    offset = evaluate_dim(operand.offset, layout.values, at)
    shape, strides = (
        tuple(evaluate_dim(dim, layout.values, at) for dim in dims)
        for dims in (operand.shape, operand.strides)
    )
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    elements = 0 if 0 in shape else last + 1
    end = offset + elements * DTYPES[operand.dtype].itemsize
    if end > layout.sizes[operand.buffer]:
        raise OutOfBoundsError(
            f"an operand ends at byte {end} of a buffer of {layout.sizes[operand.buffer]}", at=at
        )
    return StridedPlace(operand.dtype, shape, strides, operand.buffer, offset)


def check_input(program: Program, layout: Layout, buffer: int, value: Storage) -> None:
    """An input must fill its buffer.

    Raises:
        OutOfBoundsError: it does not.
    """
    if value.nbytes != layout.sizes[buffer] or not value.flags.c_contiguous:
        raise OutOfBoundsError(
            f"an input of {value.nbytes} bytes does not fill its buffer of {layout.sizes[buffer]}",
            at=program.at,
        )


def new_array(dtype: str, shape: tuple[int, ...]) -> Storage:
    """Uninitialised memory that begins on a cache line.

    Raises:
        InputError: there is not as much memory.
    """
    storage = DTYPES[dtype].numpy
    size = math.prod(shape) * storage.itemsize
    try:
        raw = np.empty(size + CACHE_LINE, np.uint8)
    except (MemoryError, ValueError, OverflowError):
        raise out_of_memory(size) from None
    begin = -address_of(raw) % CACHE_LINE
    return raw[begin : begin + size].view(storage).reshape(shape)


def address_of(array: NDArray[np.generic]) -> int:
    """Where an array begins; `array.ctypes.data`, which makes an object first."""
    address: int = array.__array_interface__["data"][0]
    return address


def out_of_memory(size: int, detail: tuple[str, ...] = ()) -> InputError:
    """The error for inputs that need more memory than there is."""
    return InputError(
        f"there is not enough memory: these sizes need {size / 2**30:.1f} GiB at once",
        detail=detail,
        hint="give smaller batches",
    )


def index_error(index: int, bound: int, at: str) -> InputError:
    """The error for an index outside of `[0, bound)`."""
    return InputError(
        f"the index {index} is out of range: it must be less than {bound}",
        at=at,
        hint="check the ids in the input against the size of the table they index",
    )


def _check_places(
    program: Program, sizes: NDArray[np.int64], slots: list[int], offsets: NDArray[np.int64]
) -> None:
    """No buffer leaves its slot, no pointer its buffer."""
    for index, buffer in enumerate(program.buffers):
        if buffer.slot is not None and sizes[index] > slots[buffer.slot]:
            raise OutOfBoundsError(
                f"buffer {index} has {sizes[index]} bytes in a slot of {slots[buffer.slot]}",
                at=program.at,
            )
    outside = (offsets < 0) | (offsets > sizes[program.pointer_buffers])
    if outside.any():
        index = int(np.argmax(outside))
        raise OutOfBoundsError(
            f"an operand begins at byte {offsets[index]} of a buffer of "
            f"{sizes[program.pointer_buffers[index]]}",
            at=program.at,
        )


def _check_outputs(program: Program, layout: Layout) -> None:
    """Every output fills its buffer."""
    for binding, shape in zip(program.outputs, layout.output_shapes, strict=True):
        needed = math.prod(shape) * DTYPES[binding.spec.dtype].itemsize
        if needed != layout.sizes[binding.buffer]:
            raise OutOfBoundsError(
                f"the output `{binding.spec.name}` has {needed} bytes in a buffer of "
                f"{layout.sizes[binding.buffer]}",
                at=program.at,
            )
