"""rope on the CPU."""

from __future__ import annotations

from dataclasses import replace

from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr, int_attr, str_attr
from fusec.kernels.cpu import (
    OUTER_DIMS,
    any_float_kernel,
    cpp_kernel,
    flags,
    operands,
    outer_params,
)
from fusec.kernels.launch import Call, Launch, Storage
from fusec.symbolic import Dim
from fusec.target import Target


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    x, cos, sin = (graph.type(value) for value in node.inputs)
    if cos.dtype != sin.dtype or cos.dtype not in ("f32", x.dtype):
        return f"its tables are f32 or `{x.dtype}`, not `{cos.dtype}` and `{sin.dtype}`"
    if x.rank > OUTER_DIMS + 1:
        return f"it takes operands of rank up to {OUTER_DIMS + 1}, not {x.rank}"
    if int_attr(node.attrs, "rotary_dim") % 2:
        return "it turns pairs, and `rotary_dim` is odd"
    return any_float_kernel(graph, node, target)


def _broadcast(table: Storage, shape: tuple[Dim, ...]) -> Storage:
    """The table with the outer sizes of x: stride 0 where it has size 1 or no axis."""
    missing = len(shape) - len(table.shape)
    strides: tuple[Dim, ...] = (0,) * missing + tuple(
        0 if size == 1 else step
        for size, step in zip(table.shape[:-1], table.strides[:-1], strict=True)
    )
    return replace(table, shape=(*shape[:-1], table.shape[-1]), strides=(*strides, 1))


def _rope(call: Call) -> Launch:
    x, cos, sin = call.inputs
    out = call.outputs[0]
    rotary = int_attr(call.attrs, "rotary_dim")
    interleaved = str_attr(call.attrs, "style") == "interleaved"
    deinterleave = interleaved and bool_attr(call.attrs, "deinterleave")
    full = cos.shape[-1] == rotary
    tables = (_broadcast(cos, x.shape), _broadcast(sin, x.shape))
    params = (
        *outer_params(x, *tables, out),
        x.shape[-1],
        rotary,
        *flags(interleaved, deinterleave),
        2 if full and interleaved and not deinterleave else 1,
        1 if cos.dtype == x.dtype else 2,
    )
    return Launch(f"fusec_rope_{x.dtype}", operands(call), params)


KERNELS = (cpp_kernel("rope", _rope, supports=_supports),)
