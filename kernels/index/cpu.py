"""index and take on the CPU: both from `index/kernel.cpp`."""

from __future__ import annotations

from fusec.ir import Graph, Node
from fusec.ir.types import broadcast, int_attr, ints_attr
from fusec.kernels.cpu import (
    INDICES,
    cpp_kernel,
    expanded_strides,
    itemsize,
    leading,
    operands,
)
from fusec.kernels.launch import Call, Launch, Layout, Param, Storage
from fusec.symbolic import Dim, product
from fusec.target import Target

RANK = 6
"""Dims of the index operands, broadcast together, that the kernel walks."""


def indices_fit(graph: Graph, values: tuple[str, ...]) -> str | None:
    """`None` when the kernel can read the index operands `values`."""
    types = [graph.type(value) for value in values]
    for kind in types:
        if kind.dtype not in INDICES:
            return f"its indices are {', '.join(INDICES)}, not {kind.dtype}"
    rank = max(kind.rank for kind in types)
    return None if rank <= RANK else f"its indices have rank up to {RANK}, not {rank}"


def index_params(indices: tuple[Storage, ...], axis_sizes: tuple[Dim, ...]) -> list[Param]:
    """Sizes of the positions, then of each operand: size of its axis, bytes, strides."""
    positions = broadcast(*(storage.shape for storage in indices))
    params: list[Param] = [*leading(positions, RANK, 1)]
    for storage, size in zip(indices, axis_sizes, strict=True):
        steps = expanded_strides(storage, leading(positions, RANK, 1))
        params += [size, itemsize(storage), *steps]
    return params


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    return indices_fit(graph, node.inputs[1:])


def _layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    strided: Layout = "strided"
    return ("contiguous", *(strided,) * (len(node.inputs) - 1), "contiguous")


def _launch(call: Call, first: int, count: int) -> Launch:
    x = call.inputs[0]
    inner = product(x.shape[first + count :]) * itemsize(x)
    axis_sizes = x.shape[first : first + count]
    params = (product(x.shape[:first]), inner, count, *index_params(call.inputs[1:], axis_sizes))
    return Launch("fusec_index", operands(call), params)


def _take(call: Call) -> Launch:
    return _launch(call, int_attr(call.attrs, "axis") % len(call.inputs[0].shape), 1)


def _index(call: Call) -> Launch:
    axes = ints_attr(call.attrs, "axes")
    return _launch(call, axes[0] % len(call.inputs[0].shape), len(axes))


KERNELS = (
    cpp_kernel("take", _take, supports=_supports, layouts=_layouts, source="index"),
    cpp_kernel("index", _index, supports=_supports, layouts=_layouts),
)
