"""The record of `triton_kernel.py`."""

from __future__ import annotations

from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr, float_attr, int_attr
from fusec.kernels.launch import Call, Launch
from fusec.kernels.registry import Kernel
from fusec.kernels.triton_rows import (
    FAMILIES,
    block_of,
    launch_rows,
    row_count,
    row_layouts,
    row_length,
    row_stride,
    supports_rows,
)
from fusec.target import Target

LONGEST = 4096
"""Elements of a row that stay in registers between the norm and the store."""


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    length = row_length(graph.type(node.inputs[0])) or 0
    if length > LONGEST:
        return f"a row has {length} elements, more than {LONGEST}"
    return supports_rows(graph, node, target)


def _launch(call: Call) -> Launch:
    x, weight, gate = call.inputs
    (y,) = call.outputs
    length = row_length(call.input_type(0)) or 0
    block = block_of(length, LONGEST)
    return launch_rows(
        call,
        "gated_rms_norm",
        "gated_rms_norm_kernel",
        pointers=[("p_x", x), ("p_w", weight), ("p_gate", gate), ("p_y", y)],
        integers=[
            ("x_stride", row_stride(x)),
            ("gate_stride", row_stride(gate)),
            ("y_stride", row_stride(y)),
        ],
        floats=[("eps", float_attr(call.attrs, "eps"))],
        constants={
            "N": length,
            "BLOCK": block,
            "WEIGHT_OFFSET": int_attr(call.attrs, "weight_offset"),
            "SILU": int(call.attrs["activation"] == "silu"),
            "NORM_BEFORE_GATE": int(bool_attr(call.attrs, "norm_before_gate")),
        },
        grid=(row_count(x), 1, 1),
        block=block,
    )


TRITON = Kernel(
    op="gated_rms_norm",
    name="gated_rms_norm.triton",
    provider="triton",
    families=FAMILIES,
    source="gated_rms_norm/triton_kernel.py",
    supports=_supports,
    launch=_launch,
    layouts=row_layouts,
)
