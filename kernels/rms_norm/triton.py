"""The record of `triton_kernel.py`."""

from __future__ import annotations

from fusec.ir import Graph, Node
from fusec.ir.types import float_attr, int_attr
from fusec.kernels.launch import Call, Launch
from fusec.kernels.triton_rows import block_of, launch_rows, row_kernel, row_length, supports_rows
from fusec.target import Target


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    if not node.attrs.get("has_weight"):
        return "it needs a weight"
    return supports_rows(graph, node, target)


def _launch(call: Call) -> Launch:
    x, weight = call.inputs
    length = row_length(call.input_type(0))
    block = block_of(length)
    offset = int_attr(call.attrs, "weight_offset")
    return launch_rows(
        call,
        "rms_norm_kernel",
        {"x": x, "w": weight, "y": call.outputs[0]},
        floats={"eps": float_attr(call.attrs, "eps")},
        constants={"N": length, "BLOCK": block, "WEIGHT_OFFSET": offset},
        block=block,
    )


TRITON = row_kernel("rms_norm", _launch, _supports)
