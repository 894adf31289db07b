"""gather on the CPU."""

from __future__ import annotations

from fusec.ir import Graph, Node
from fusec.ir.types import int_attr
from fusec.kernels.cpu import (
    INDICES,
    cpp_kernel,
    itemsize,
    leading,
    operands,
    strided_layouts,
)
from fusec.kernels.launch import Call, Launch, Storage
from fusec.symbolic import Dim
from fusec.target import Target

RANK = 8
"""Dims that the kernel walks."""


def elements_fit(graph: Graph, node: Node, target: Target) -> str | None:
    """Integer indices, and a rank that the kernels of `gather` and `scatter` walk."""
    index = graph.type(node.inputs[1])
    if index.dtype not in INDICES:
        return f"its indices are {', '.join(INDICES)}, not {index.dtype}"
    return None if 1 <= index.rank <= RANK else f"it takes rank 1 to {RANK}, not {index.rank}"


def without_axis(storage: Storage, axis: int) -> tuple[Dim, ...]:
    """Strides of the eight dims, with 0 for the one that the index replaces."""
    strides = (*storage.strides[:axis], 0, *storage.strides[axis + 1 :])
    return leading(strides, RANK, 0)


def picked_sizes(x: Storage, index: Storage, axis: int) -> tuple[Dim, ...]:
    """The sizes of `x` that those of the index must not exceed, with its own for the axis."""
    sizes = (*x.shape[:axis], index.shape[axis], *x.shape[axis + 1 :])
    return leading(sizes, RANK, 1)


def _gather(call: Call) -> Launch:
    x, index = call.inputs
    out = call.outputs[0]
    axis = int_attr(call.attrs, "axis") % len(x.shape)
    params = (
        *(itemsize(x), itemsize(index), x.shape[axis], x.strides[axis]),
        *leading(index.shape, RANK, 1),
        *without_axis(x, axis),
        *leading(index.strides, RANK, 0),
        *leading(out.strides, RANK, 0),
        *picked_sizes(x, index, axis),
    )
    return Launch("fusec_gather", operands(call), params)


KERNELS = (cpp_kernel("gather", _gather, supports=elements_fit, layouts=strided_layouts),)
