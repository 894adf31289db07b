"""grouped_mm on the CPU, with the weights packed when the artifact is written."""

from __future__ import annotations

from collections.abc import Mapping

from fusec.ir import Graph, Node
from fusec.kernels.cpu import (
    cpp_kernel,
    float_kernel,
    operands,
    pack_transposed_weight,
    precision_param,
)
from fusec.kernels.launch import Call, Launch
from fusec.kernels.registry import Packing
from fusec.target import Target


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    if node.inputs[1] not in graph.parameters:
        return "it packs the weights ahead of time, and these are computed at run time"
    offsets = graph.type(node.inputs[2]).dtype
    if offsets not in ("i32", "i64"):
        return f"its offsets are i32 or i64, not `{offsets}`"
    return float_kernel(graph, node, target)


def _packing(graph: Graph, node: Node, target: Target) -> Mapping[int, Packing]:
    return {1: pack_transposed_weight}


def _grouped_mm(call: Call) -> Launch:
    x, _, offsets = call.inputs
    out = call.outputs[0]
    groups, depth, columns = call.input_type(1).shape
    steps = (x.strides[0], out.strides[0], 8 if offsets.dtype == "i64" else 4)
    params = (x.shape[0], depth, columns, groups, *steps, precision_param(call.target))
    return Launch(f"fusec_grouped_mm_{x.dtype}", operands(call), params)


KERNELS = (
    cpp_kernel(
        "grouped_mm",
        _grouped_mm,
        supports=_supports,
        layouts=lambda graph, node: ("rows", "contiguous", "contiguous", "rows"),
        packing=_packing,
    ),
)
