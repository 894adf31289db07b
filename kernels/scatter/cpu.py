"""scatter and index_put on the CPU: both from `scatter/kernel.cpp`."""

from __future__ import annotations

from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr, broadcast, int_attr, ints_attr
from fusec.kernels.cpu import (
    FLOATS,
    INTEGERS,
    cpp_kernel,
    flags,
    itemsize,
    leading,
    operands,
)
from fusec.kernels.gather.cpu import RANK, elements_fit, picked_sizes, without_axis
from fusec.kernels.index.cpu import RANK as INDEX_RANK
from fusec.kernels.index.cpu import index_params, indices_fit
from fusec.kernels.launch import Call, Launch, Layout, dense_strides
from fusec.symbolic import Dim, product
from fusec.target import Target

COMBINE = {None: 0, "add": 1, "multiply": 2, "amax": 3, "amin": 4}
"""Numbers of `fusec::Combine` in `include/fusec/elements.h`."""

DTYPES = (*FLOATS, "f64", *INTEGERS, "bool")


def _known_dtype(graph: Graph, node: Node) -> str | None:
    dtype = graph.type(node.inputs[0]).dtype
    return None if dtype in DTYPES else f"it takes {', '.join(DTYPES)}, not {dtype}"


def _supports_scatter(graph: Graph, node: Node, target: Target) -> str | None:
    reduce = node.attrs.get("reduce")
    if reduce not in COMBINE:
        return f"it does not know the reduction `{reduce}`"
    return _known_dtype(graph, node) or elements_fit(graph, node, target)


def _scatter_layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    return ("contiguous", "strided", "strided", "contiguous")


def _scatter(call: Call) -> Launch:
    x, index, source = call.inputs
    out = call.outputs[0]
    axis = int_attr(call.attrs, "axis") % len(x.shape)
    reduce = call.attrs.get("reduce")
    params = (
        product(x.shape),
        COMBINE[reduce if isinstance(reduce, str) else None],
        itemsize(index),
        *flags(axis == len(x.shape) - 1),
        *(x.shape[axis], out.strides[axis]),
        *leading(index.shape, RANK, 1),
        *without_axis(out, axis),
        *leading(index.strides, RANK, 0),
        *leading(source.strides, RANK, 0),
        *picked_sizes(x, index, axis),
    )
    return Launch(f"fusec_scatter_{x.dtype}", operands(call), params)


def _merged(sizes: tuple[Dim, ...], strides: tuple[Dim, ...]) -> Dim | None:
    """The one stride with which dims of `sizes` are walked as a single dim, if there is one."""
    step: Dim | None = None
    reach: Dim = 0
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size == 1:
            continue
        if step is None:
            step = stride
        elif stride != reach:
            return None
        reach = stride * size
    return 0 if step is None else step


def _value_strides(
    shape: tuple[Dim, ...], values: tuple[Dim, ...], first: int, positions: int
) -> tuple[Dim | None, tuple[Dim, ...], Dim | None]:
    """Strides of dense `values` along outer rows, positions and inner elements of the result."""
    own = zip(values, dense_strides(values), strict=True)
    steps = leading(tuple(0 if size == 1 else step for size, step in own), len(shape), 0)
    last = first + positions
    outer = _merged(shape[:first], steps[:first])
    return outer, steps[first:last], _merged(shape[last:], steps[last:])


def _selected(
    shapes: tuple[tuple[Dim, ...], ...], axes: tuple[int, ...]
) -> tuple[tuple[Dim, ...], int, int]:
    """The shape that values expand to, where its positions begin, and how many dims they are."""
    x, _, *indices = shapes
    positions = broadcast(*indices)
    first = axes[0] % len(x)
    return (*x[:first], *positions, *x[first + len(axes) :]), first, len(positions)


def _supports_put(graph: Graph, node: Node, target: Target) -> str | None:
    reason = _known_dtype(graph, node) or indices_fit(graph, node.inputs[2:])
    if reason is not None:
        return reason
    shapes = tuple(graph.type(value).shape for value in node.inputs)
    shape, first, positions = _selected(shapes, ints_attr(node.attrs, "axes"))
    outer, _, inner = _value_strides(shape, shapes[1], first, positions)
    if outer is None or inner is None:
        return "its values are broadcast along some of several adjacent axes"
    return None


def _put_layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    strided: Layout = "strided"
    dense: Layout = "contiguous"
    return (dense, dense, *(strided,) * (len(node.inputs) - 2), dense)


def _index_put(call: Call) -> Launch:
    x, values, *indices = call.inputs
    axes = ints_attr(call.attrs, "axes")
    shapes = tuple(storage.shape for storage in call.inputs)
    shape, first, positions = _selected(shapes, axes)
    outer, steps, inner = _value_strides(shape, values.shape, first, positions)
    last = first + len(axes)
    walked = index_params(tuple(indices), x.shape[first:last])
    params = (
        *(product(x.shape[:first]), product(x.shape[last:])),
        *flags(bool_attr(call.attrs, "accumulate")),
        *(outer or 0, inner or 0, len(axes)),
        *walked[:INDEX_RANK],
        *leading(steps, INDEX_RANK, 0),
        *walked[INDEX_RANK:],
    )
    return Launch(f"fusec_index_put_{x.dtype}", operands(call), params)


KERNELS = (
    cpp_kernel("scatter", _scatter, supports=_supports_scatter, layouts=_scatter_layouts),
    cpp_kernel(
        "index_put", _index_put, supports=_supports_put, layouts=_put_layouts, source="scatter"
    ),
)
