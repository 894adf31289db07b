"""The record of `triton_kernel.py`."""

from __future__ import annotations

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


def _launch(call: Call) -> Launch:
    x, residual, weight = call.inputs
    y, total = call.outputs
    length = row_length(call.input_type(0)) or 0
    block = block_of(length)
    return launch_rows(
        call,
        "add_rms_norm",
        "add_rms_norm_kernel",
        pointers=[
            ("p_x", x),
            ("p_residual", residual),
            ("p_w", weight),
            ("p_y", y),
            ("p_sum", total),
        ],
        integers=[
            ("x_stride", row_stride(x)),
            ("residual_stride", row_stride(residual)),
            ("y_stride", row_stride(y)),
            ("sum_stride", row_stride(total)),
        ],
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
    op="add_rms_norm",
    name="add_rms_norm.triton",
    provider="triton",
    families=FAMILIES,
    source="add_rms_norm/triton_kernel.py",
    supports=supports_rows,
    launch=_launch,
    layouts=row_layouts,
)
