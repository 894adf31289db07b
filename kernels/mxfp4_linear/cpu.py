"""mxfp4_linear on the CPU, of rows that are floats: the weight stays in 4 bits until it is used."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from fusec.formats import MX_GROUP
from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr
from fusec.kernels.cpu import cpp_kernel
from fusec.kernels.launch import Call, Launch
from fusec.kernels.quantised_panels import (
    float_rows_refusal,
    linear_launch,
    pack_codes,
    pack_scales,
)
from fusec.kernels.registry import Packing
from fusec.target import Target


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    if bool_attr(node.attrs, "has_x_scale"):
        return "it takes x as floats, without scales"
    return float_rows_refusal(graph, node)


def _packing(graph: Graph, node: Node, target: Target) -> Mapping[int, Packing]:
    rows = graph.parameters[node.inputs[1]].shape[0]
    return {1: pack_codes, 2: partial(pack_scales, block=(1, MX_GROUP), rows=rows)}


def _launch(call: Call) -> Launch:
    rows, pairs = call.input_type(1).shape
    return linear_launch(call, "mxfp4_linear", (rows, pairs * 2))


CPP = cpp_kernel("mxfp4_linear", _launch, supports=_supports, packing=_packing)
