"""Launches of Triton kernels that work on rows: what all of them share."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from fusec import symbolic
from fusec.diagnostics import InternalError
from fusec.ir import Graph, Node, TensorType
from fusec.kernels.launch import Call, Launch, Layout, Param, Storage, TritonSource
from fusec.symbolic import Dim, Expr
from fusec.target import Family, Target

FAMILIES: tuple[Family, ...] = ("amdgpu", "nvidia")
"""What Triton compiles for."""

POINTER_TYPES = {"f32": "*fp32", "bf16": "*bf16", "f16": "*fp16"}
"""Triton's pointer types by dtype."""

ROW_BLOCK = 8192
"""Elements of a row that one program holds at once."""

ALIGNMENT = 16
"""A multiple of this, in bytes for pointers and in elements for strides, allows wide loads."""


def row_length(type: TensorType) -> int | None:
    """The length of the last axis, if it is known at compile time."""
    length = type.shape[-1] if type.shape else None
    return length if isinstance(length, int) else None


def supports_rows(graph: Graph, node: Node, target: Target) -> str | None:
    """Float operands with rows of a length that is known at compile time."""
    for value in (*node.inputs, *node.outputs):
        kind = graph.type(value)
        if kind.dtype not in POINTER_TYPES:
            return f"`%{value}` is {kind.dtype}, not one of {', '.join(POINTER_TYPES)}"
        if row_length(kind) is None:
            return f"the rows of `%{value}: {kind}` have no length known at compile time"
    return None


def row_layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    """Unit stride along a row, any strides elsewhere."""
    rows: Layout = "rows"
    return (rows,) * (len(node.inputs) + len(node.outputs))


def row_count(storage: Storage) -> Dim:
    """How many rows there are."""
    return symbolic.product(storage.shape[:-1])


def row_stride(storage: Storage) -> Dim:
    """Elements from one row to the next, the same for all rows.

    Raises:
        InternalError: it is not the same; the caller checks `has_even_rows` first.
    """
    if not has_even_rows(storage):
        raise InternalError(f"rows of {storage} are not evenly spaced")
    steps = zip(storage.shape[:-1], storage.strides[:-1], strict=True)
    return next((stride for dim, stride in reversed([*steps]) if dim != 1), storage.shape[-1])


def has_even_rows(storage: Storage) -> bool:
    """Whether all rows are the same distance from the one before."""
    outer = [
        (dim, stride)
        for dim, stride in zip(storage.shape[:-1], storage.strides[:-1], strict=True)
        if dim != 1
    ]
    for (_, step), (size, inner) in itertools.pairwise(outer):
        if step != size * inner:
            return False
    return True


def block_of(length: int, most: int = ROW_BLOCK) -> int:
    """The power of two that holds a row, or `most` of it."""
    return min(most, max(64, 1 << (length - 1).bit_length()))


def warps_of(block: int, target: Target) -> int:
    """Waves of a work group so that a lane loads 16 bytes of bf16 at a time."""
    lanes = target.wave_size * 8
    return max(1, min(8 if target.family == "amdgpu" else 16, block // lanes))


def launch_rows(
    call: Call,
    module: str,
    function: str,
    pointers: Sequence[tuple[str, Storage]],
    integers: Sequence[tuple[str, Dim]],
    floats: Sequence[tuple[str, float]],
    constants: Mapping[str, int],
    grid: tuple[Dim, Dim, Dim],
    block: int,
) -> Launch:
    """A launch whose arguments are pointers, then integers, then floats, then constants."""
    signature = [
        *((name, POINTER_TYPES[storage.dtype]) for name, storage in pointers),
        *((name, "i64") for name, _ in integers),
        *((name, "fp32") for name, _ in floats),
    ]
    divisible = [name for name, storage in pointers if is_divisible(storage.byte_offset)]
    divisible += [name for name, value in integers if is_divisible(value)]
    params: tuple[Param, ...] = (*(value for _, value in integers), *(x for _, x in floats))
    return Launch(
        symbol=function,
        operands=tuple(storage for _, storage in pointers),
        params=params,
        grid=grid,
        triton=TritonSource(
            module=f"fusec.kernels.{module}.triton_kernel",
            function=function,
            signature=tuple(signature),
            constants=tuple(sorted(constants.items())),
            divisible=tuple(divisible),
            warps=warps_of(block, call.target),
        ),
    )


def is_divisible(value: Dim) -> bool:
    """Whether `value` is a multiple of `ALIGNMENT` for every size."""
    if isinstance(value, Expr):
        return all(factor % ALIGNMENT == 0 for _, factor in value.terms)
    return value % ALIGNMENT == 0
