"""The record of `triton_kernel.py`."""

from __future__ import annotations

from fusec.ir.types import float_attr, int_attr
from fusec.kernels.launch import Call, Launch
from fusec.kernels.triton_rows import block_of, launch_rows, row_kernel, row_length


def _launch(call: Call) -> Launch:
    x1, w1, x2, w2 = call.inputs
    y1, y2 = call.outputs
    length1, length2 = (row_length(call.input_type(index)) for index in (0, 2))
    block1, block2 = block_of(length1), block_of(length2)
    return launch_rows(
        call,
        "dual_rms_norm_kernel",
        {"x1": x1, "w1": w1, "x2": x2, "w2": w2, "y1": y1, "y2": y2},
        floats={name: float_attr(call.attrs, name) for name in ("eps1", "eps2")},
        constants={
            "N1": length1,
            "N2": length2,
            "BLOCK1": block1,
            "BLOCK2": block2,
            "WEIGHT_OFFSET": int_attr(call.attrs, "weight_offset"),
        },
        block=max(block1, block2),
        columns=2,
    )


TRITON = row_kernel("dual_rms_norm", _launch)
