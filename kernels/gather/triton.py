"""gather on a GPU: the record of `triton_kernel.py`."""

from __future__ import annotations

from fusec import symbolic
from fusec.ir import Graph, Node
from fusec.ir.types import int_attr
from fusec.kernels.cpu import strided_layouts
from fusec.kernels.launch import Call, Launch, Storage
from fusec.kernels.triton_index import (
    BLOCK,
    as_bits,
    index_kernel,
    index_launch,
    refused_dims,
    refused_indices,
    walk,
    where_it_fits,
)
from fusec.symbolic import Dim, product
from fusec.target import Target


def elements_fit(graph: Graph, node: Node, target: Target) -> str | None:
    """Integer indices, of as many dims as the kernels of `gather` and `scatter` walk."""
    index = graph.type(node.inputs[1])
    return refused_indices(graph, node.inputs[1:2]) or refused_dims(index.shape)


def without_axis(storage: Storage, axis: int) -> tuple[Dim, ...]:
    """Strides, with 0 for the dim that the index replaces."""
    return (*storage.strides[:axis], 0, *storage.strides[axis + 1 :])


def _gather(call: Call) -> tuple[Launch, ...]:
    x, index = call.inputs
    out = call.outputs[0]
    axis = int_attr(call.attrs, "axis") % len(x.shape)
    count = product(index.shape)
    launch = index_launch(
        "gather.triton_kernel",
        "gather_kernel",
        {"p_x": as_bits(x), "p_index": index, "p_out": as_bits(out), "p_error": call.error()},
        {"count": count, "bound": x.shape[axis], "axis_step": x.strides[axis]},
        {"BLOCK": BLOCK},
        walk(index.shape, without_axis(x, axis), index.strides, out.strides),
        ("x", "index", "out"),
        programs=symbolic.ceil_divide(count, BLOCK),
    )
    return where_it_fits(call, axis, (launch,))


TRITON = (index_kernel("gather", _gather, elements_fit, strided_layouts, "gather"),)
