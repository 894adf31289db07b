"""The record of `triton_kernel.py`."""

from __future__ import annotations

from fusec.ir.types import float_attr, int_attr
from fusec.kernels.launch import Call, Launch
from fusec.kernels.triton_rows import block_of, launch_rows, row_kernel, row_length


def _launch(call: Call) -> Launch:
    x, residual, weight = call.inputs
    y, total = call.outputs
    length = row_length(call.input_type(0))
    block = block_of(length)
    offset = int_attr(call.attrs, "weight_offset")
    return launch_rows(
        call,
        "add_rms_norm_kernel",
        {"x": x, "residual": residual, "w": weight, "y": y, "sum": total},
        floats={"eps": float_attr(call.attrs, "eps")},
        constants={"N": length, "BLOCK": block, "WEIGHT_OFFSET": offset},
        block=block,
    )


TRITON = row_kernel("add_rms_norm", _launch)
