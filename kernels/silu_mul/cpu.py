"""silu_mul, gelu_mul and swiglu_oai on the CPU: all from `silu_mul/kernel.cpp`."""

from __future__ import annotations

from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr, float_attr, str_attr
from fusec.kernels.cpu import ACTIVATIONS, OUTER_DIMS, cpp_kernel, operands, outer_params
from fusec.kernels.cpu_rows import QuantisedRows, quantised_layouts, supports_quantised_rows
from fusec.kernels.launch import Call, Launch, Layout, Param


def _layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    if graph.type(node.inputs[0]).rank > OUTER_DIMS + 1:
        return ("contiguous", "contiguous", "contiguous")
    # Gate and up are often the halves, or the alternate columns, of one projection.
    return ("strided", "strided", "rows")


def _quantised_layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    if graph.type(node.inputs[0]).rank > OUTER_DIMS + 1:
        return quantised_layouts(graph, node)
    return quantised_layouts(graph, node, ("strided", "strided"))


def _activation_params(call: Call) -> tuple[Param, ...]:
    """The params after sizes and strides of rows."""
    gate, up = call.inputs[:2]
    activation, alpha, limit = call.node.op.removesuffix("_quant").removesuffix("_mul"), 0.0, 0.0
    if activation == "gelu" and str_attr(call.attrs, "approximate") == "tanh":
        activation = "gelu_tanh"
    if activation == "swiglu_oai":
        alpha, limit = float_attr(call.attrs, "alpha"), float_attr(call.attrs, "limit")
    steps = (gate.strides[-1], up.strides[-1])
    return (gate.shape[-1], *steps, ACTIVATIONS[activation], alpha, limit)


def _gated(call: Call) -> Launch:
    gate, up = call.inputs
    params = (*outer_params(gate, up, call.outputs[0]), *_activation_params(call))
    return Launch(f"fusec_gated_activation_{gate.dtype}", operands(call), params)


def _gated_quant(call: Call) -> Launch:
    gate, up, *given = call.inputs
    scale = given[0] if bool_attr(call.attrs, "has_scale") else None
    results = QuantisedRows.of(call, list(call.outputs), scale)
    outer, codes = results.outer(gate, up, results.rows)
    params = (*outer, *_activation_params(call), *results.params(codes))
    return Launch(f"fusec_gated_activation_quant_{gate.dtype}", operands(call), params)


OPS = ("silu_mul", "gelu_mul", "swiglu_oai")

KERNELS = (
    *(cpp_kernel(op, _gated, layouts=_layouts, source="silu_mul") for op in OPS),
    *(
        cpp_kernel(
            f"{op}_quant",
            _gated_quant,
            supports=supports_quantised_rows,
            layouts=_quantised_layouts,
            source="silu_mul",
        )
        for op in OPS
    ),
)
