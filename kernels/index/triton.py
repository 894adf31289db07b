"""index and take on a GPU: the records of `triton_kernel.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from fusec import symbolic
from fusec.ir import Graph, Node
from fusec.ir.types import broadcast, int_attr, ints_attr
from fusec.kernels.cpu import expanded_strides
from fusec.kernels.launch import Call, Launch, Layout
from fusec.kernels.triton_index import (
    BLOCK,
    as_bits,
    index_kernel,
    index_launch,
    refused_dims,
    refused_indices,
    walk,
)
from fusec.kernels.triton_rows import Tile, column_tile_of, power_above, tile_of
from fusec.symbolic import product
from fusec.target import Target

T = TypeVar("T")

OPERANDS = ("a", "b", "c", "d")
"""What the kernel calls its index operands."""

LONG = 512
"""Elements of a row above which several programs may share it."""

SHORT = 64
"""Elements of a row below which a lane has fewer than its share: each has a place to compute."""


def refused_positions(graph: Graph, values: tuple[str, ...]) -> str | None:
    """Why kernels do not read the index operands `values`, broadcast together, or `None`."""
    if len(values) > len(OPERANDS):
        return f"shape: it takes {len(OPERANDS)} index operands, not {len(values)}"
    positions = broadcast(*(graph.type(value).shape for value in values))
    return refused_indices(graph, values) or refused_dims(positions)


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    return refused_positions(graph, node.inputs[1:])


def _layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    strided: Layout = "strided"
    return ("contiguous", *(strided,) * (len(node.inputs) - 1), "contiguous")


def _tile(length: int, target: Target) -> Tile:
    if length < SHORT:
        block = power_above(max(length, 1), least=1)
        return Tile(block, BLOCK // block, 4)
    return column_tile_of(length, target) if length > LONG else tile_of(length, target)


def _launch(call: Call, first: int, axes: int) -> Launch:
    x, *indices = call.inputs
    positions = broadcast(*(storage.shape for storage in indices))
    walked = walk(positions, *(expanded_strides(storage, positions) for storage in indices))
    bounds = x.shape[first : first + axes]
    outer, inner = product(x.shape[:first]), product(x.shape[first + axes :])
    tile = _tile(inner if isinstance(inner, int) else LONG, call.target)
    tasks = outer * product(positions)
    return index_launch(
        "index.triton_kernel",
        "index_kernel",
        {
            "p_x": as_bits(x),
            **by_operand("p_{}", indices),
            "p_out": as_bits(call.outputs[0]),
            "p_error": call.error(),
        },
        {
            "tasks": tasks,
            "count": product(positions),
            "rows": product(bounds),
            "inner": inner,
            **by_operand("{}_bound", bounds),
        },
        {
            **{f"p_{name}": 0 for name in OPERANDS[axes:]},
            **{f"{name}_bound": 0 for name in OPERANDS[axes:]},
            "OUTER": int(outer != 1),
            "AXES": axes,
            "ROWS": tile.rows,
            "BLOCK": tile.block,
        },
        walked,
        OPERANDS,
        programs=symbolic.ceil_divide(tasks, tile.rows) * symbolic.ceil_divide(inner, tile.block),
        warps=tile.warps,
    )


def by_operand(pattern: str, values: Sequence[T]) -> dict[str, T]:
    """`values` of the index operands by names made of those of the operands."""
    return {pattern.format(name): value for name, value in zip(OPERANDS, values, strict=False)}


def _take(call: Call) -> Launch:
    return _launch(call, int_attr(call.attrs, "axis") % len(call.inputs[0].shape), 1)


def _index(call: Call) -> Launch:
    axes = ints_attr(call.attrs, "axes")
    return _launch(call, axes[0] % len(call.inputs[0].shape), len(axes))


TRITON = (
    index_kernel("take", _take, _supports, _layouts, "index"),
    index_kernel("index", _index, _supports, _layouts, "index"),
)
