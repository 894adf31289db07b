"""The record of `triton_kernel.py`."""

from __future__ import annotations

from fusec.ir import Graph, Node
from fusec.ir.types import float_attr, int_attr
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


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    if not node.attrs.get("has_weight"):
        return "it needs a weight"
    return supports_rows(graph, node, target)


def _launch(call: Call) -> Launch:
    x, weight = call.inputs
    (y,) = call.outputs
    length = row_length(call.input_type(0)) or 0
    block = block_of(length)
    return launch_rows(
        call,
        "rms_norm",
        "rms_norm_kernel",
        pointers=[("p_x", x), ("p_w", weight), ("p_y", y)],
        integers=[("x_stride", row_stride(x)), ("y_stride", row_stride(y))],
        floats=[("eps", float_attr(call.attrs, "eps"))],
        constants={
            "N": length,
            "BLOCK": block,
            "WEIGHT_OFFSET": int_attr(call.attrs, "weight_offset"),
        },
        grid=(row_count(x), 1, 1),
        block=block,
    )


TRITON = Kernel(
    op="rms_norm",
    name="rms_norm.triton",
    provider="triton",
    families=FAMILIES,
    source="rms_norm/triton_kernel.py",
    supports=_supports,
    launch=_launch,
    layouts=row_layouts,
)
