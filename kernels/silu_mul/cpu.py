"""silu_mul, gelu_mul and swiglu_oai on the CPU: all from `silu_mul/kernel.cpp`."""

from __future__ import annotations

from fusec.ir import Graph, Node
from fusec.ir.types import float_attr, str_attr
from fusec.kernels.cpu import ACTIVATIONS, OUTER_DIMS, cpp_kernel, operands, outer_params
from fusec.kernels.launch import Call, Launch, Layout


def _layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    if graph.type(node.inputs[0]).rank > OUTER_DIMS + 1:
        return ("contiguous", "contiguous", "contiguous")
    # Gate and up are often the halves, or the alternate columns, of one projection.
    return ("strided", "strided", "rows")


def _gated(call: Call) -> Launch:
    gate, up = call.inputs
    activation, alpha, limit = call.node.op.removesuffix("_mul"), 0.0, 0.0
    if activation == "gelu" and str_attr(call.attrs, "approximate") == "tanh":
        activation = "gelu_tanh"
    if activation == "swiglu_oai":
        alpha, limit = float_attr(call.attrs, "alpha"), float_attr(call.attrs, "limit")
    params = (
        *outer_params(gate, up, call.outputs[0]),
        gate.shape[-1],
        gate.strides[-1],
        up.strides[-1],
        ACTIVATIONS[activation],
        alpha,
        limit,
    )
    return Launch(f"fusec_gated_activation_{gate.dtype}", operands(call), params)


KERNELS = tuple(
    cpp_kernel(op, _gated, layouts=_layouts, source="silu_mul")
    for op in ("silu_mul", "gelu_mul", "swiglu_oai")
)
