"""The record of `triton_kernel.py`."""

from __future__ import annotations

from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr, float_attr, int_attr
from fusec.kernels.launch import Call, Launch
from fusec.kernels.triton_rows import block_of, launch_rows, row_kernel, row_length, supports_rows
from fusec.target import Target

LONGEST = 4096
"""Elements of a row that stay in registers between the norm and the store."""


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    refused = supports_rows(graph, node, target)
    if refused is not None:
        return refused
    length = row_length(graph.type(node.inputs[0]))
    return f"a row has {length} elements, more than {LONGEST}" if length > LONGEST else None


def _launch(call: Call) -> Launch:
    x, weight, gate = call.inputs
    length = row_length(call.input_type(0))
    block = block_of(length, LONGEST)
    return launch_rows(
        call,
        "gated_rms_norm_kernel",
        {"x": x, "w": weight, "gate": gate, "y": call.outputs[0]},
        floats={"eps": float_attr(call.attrs, "eps")},
        constants={
            "N": length,
            "BLOCK": block,
            "WEIGHT_OFFSET": int_attr(call.attrs, "weight_offset"),
            "SILU": int(call.attrs["activation"] == "silu"),
            "NORM_BEFORE_GATE": int(bool_attr(call.attrs, "norm_before_gate")),
        },
        block=block,
    )


TRITON = row_kernel("gated_rms_norm", _launch, _supports)
