"""quantize and dequantize on the CPU."""

from __future__ import annotations

from fusec.formats import Scaling
from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr
from fusec.kernels.cpu import FLOATS, OUTER_DIMS, cpp_kernel, operands, outer_params
from fusec.kernels.cpu_rows import (
    QuantisedRows,
    dequantise_params,
    quantised_layouts,
    refused_scaling,
    supports_quantised_rows,
)
from fusec.kernels.launch import Call, Launch, Layout
from fusec.target import Target


def _quantize(call: Call) -> Launch:
    x = call.inputs[0]
    given = call.inputs[1] if bool_attr(call.attrs, "has_scale") else None
    results = QuantisedRows.of(call, list(call.outputs), given)
    outer, codes_strides = results.outer(x)
    params = (*outer, x.shape[-1], *results.params(codes_strides))
    return Launch(f"fusec_quantize_{x.dtype}", operands(call), params)


def _supports_dequantize(graph: Graph, node: Node, target: Target) -> str | None:
    dtype = graph.type(node.output).dtype
    if dtype not in FLOATS:
        return f"it computes {', '.join(FLOATS)}, not {dtype}"
    return refused_scaling(Scaling.of(node.attrs), static=True)


def _dequantize_layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    rows: Layout = "rows" if graph.type(node.output).rank <= OUTER_DIMS + 1 else "contiguous"
    return (rows, "contiguous", rows)


def _dequantize(call: Call) -> Launch:
    codes, scale = call.inputs
    out = call.outputs[0]
    scaling = Scaling.of(call.attrs)
    params = (
        *outer_params(codes, out),
        out.shape[-1],
        *dequantise_params(scale, scaling),
    )
    return Launch(f"fusec_dequantize_{out.dtype}", operands(call), params)


KERNELS = (
    cpp_kernel("quantize", _quantize, supports=supports_quantised_rows, layouts=quantised_layouts),
    cpp_kernel(
        "dequantize",
        _dequantize,
        supports=_supports_dequantize,
        layouts=_dequantize_layouts,
        source="quantize",
    ),
)
