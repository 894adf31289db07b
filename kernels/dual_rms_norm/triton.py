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
    x1, w1, x2, w2 = call.inputs
    y1, y2 = call.outputs
    length1, length2 = (row_length(call.input_type(index)) or 0 for index in (0, 2))
    block1, block2 = block_of(length1), block_of(length2)
    return launch_rows(
        call,
        "dual_rms_norm",
        "dual_rms_norm_kernel",
        pointers=[
            ("p_x1", x1),
            ("p_w1", w1),
            ("p_x2", x2),
            ("p_w2", w2),
            ("p_y1", y1),
            ("p_y2", y2),
        ],
        integers=[
            ("x1_stride", row_stride(x1)),
            ("x2_stride", row_stride(x2)),
            ("y1_stride", row_stride(y1)),
            ("y2_stride", row_stride(y2)),
        ],
        floats=[
            ("eps1", float_attr(call.attrs, "eps1")),
            ("eps2", float_attr(call.attrs, "eps2")),
        ],
        constants={
            "N1": length1,
            "N2": length2,
            "BLOCK1": block1,
            "BLOCK2": block2,
            "WEIGHT_OFFSET": int_attr(call.attrs, "weight_offset"),
        },
        grid=(row_count(x1), 2, 1),
        block=max(block1, block2),
    )


TRITON = Kernel(
    op="dual_rms_norm",
    name="dual_rms_norm.triton",
    provider="triton",
    families=FAMILIES,
    source="dual_rms_norm/triton_kernel.py",
    supports=supports_rows,
    launch=_launch,
    layouts=row_layouts,
)
