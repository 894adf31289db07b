"""fp8_linear on the CPU, of rows that are floats: the weight stays in 8 bits until it is used."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from fusec.ir import Graph, Node
from fusec.ir.ops.quantised import has_scaled_rows, weight_block
from fusec.kernels.cpu import cpp_kernel
from fusec.kernels.launch import Call, Launch
from fusec.kernels.quantised_panels import (
    DEPTH,
    float_rows_refusal,
    linear_launch,
    pack_codes,
    pack_scales,
)
from fusec.kernels.registry import Packing
from fusec.target import Target


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    if has_scaled_rows(node.attrs):
        return "it takes x as floats, without scales"
    weight, scale = map(graph.type, node.inputs[1:3])
    if (weight.dtype, scale.dtype) != ("f8e4m3fn", "f32"):
        return f"it takes f8e4m3fn with f32 scales, not {weight.dtype} with {scale.dtype}"
    columns = weight_block(node.attrs)[1]
    if scale.shape[1] != 1 and columns % DEPTH:
        return f"it takes a scale for each multiple of {DEPTH} along K, not for each {columns}"
    return float_rows_refusal(graph, node)


def _packing(graph: Graph, node: Node, target: Target) -> Mapping[int, Packing]:
    rows = graph.parameters[node.inputs[1]].shape[0]
    block = weight_block(node.attrs)
    return {1: pack_codes, 2: partial(pack_scales, block=block, rows=rows)}


def _launch(call: Call) -> Launch:
    groups = call.input_type(2).shape[1]
    group = 0 if groups == 1 else weight_block(call.attrs)[1]
    return linear_launch(call, "fp8_linear", (*call.input_type(1).shape, group))


CPP = cpp_kernel("fp8_linear", _launch, supports=_supports, packing=_packing)
