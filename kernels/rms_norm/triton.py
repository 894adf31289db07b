"""The records of `triton_kernel.py`: norms of rows, alone or after a sum, quantised or not."""

from __future__ import annotations

from fusec.formats import Scaling
from fusec.ir.types import bool_attr, float_attr, int_attr
from fusec.kernels.launch import Call, Launch
from fusec.kernels.triton_rows import (
    RowArguments,
    group_of,
    programs_of,
    row_count,
    row_kernels,
    row_length,
    tile_of,
)


def launch_norm(call: Call) -> Launch:
    """`rms_norm`, `add_rms_norm`, and both with `_quant`."""
    adds, quantises = call.node.op.startswith("add"), call.node.op.endswith("quant")
    scaling = Scaling.of(call.attrs) if quantises else None
    length = row_length(call.input_type(0))
    inputs, outputs = list(call.inputs), list(call.outputs)
    x = inputs.pop(0)
    residual = inputs.pop(0) if adds else None
    weight = inputs.pop(0) if adds or bool_attr(call.attrs, "has_weight") else None
    total = outputs.pop() if adds else None
    codes = scale = None
    if scaling is not None:
        codes = outputs.pop(0)
        scale = inputs.pop(0) if bool_attr(call.attrs, "has_scale") else outputs.pop(0)
    plain = outputs.pop(0) if outputs else None
    tile = tile_of(length, call.target, narrow=quantises)
    arguments = RowArguments()
    arguments.rows("x", x)
    arguments.rows("residual", residual)
    arguments.pointer("w", weight)
    arguments.rows("y", plain)
    arguments.rows("sum", total)
    arguments.codes(codes, scale, scaling)
    arguments.integer("rows", row_count(x))
    arguments.number("eps", float_attr(call.attrs, "eps"))
    arguments.scaling(scaling)
    arguments.constants |= {
        "N": length,
        "BLOCK": tile.block,
        "ROWS": tile.rows,
        "WEIGHT": int(weight is not None),
        "WEIGHT_OFFSET": int_attr(call.attrs, "weight_offset"),
        "RESIDUAL": int(adds),
        "PLAIN": int(plain is not None),
        "QUANTISED": int(quantises),
        "GROUP": group_of(scaling, length),
    }
    programs = programs_of(row_count(x), tile)
    return arguments.launch("rms_norm.triton_kernel", "rms_norm_kernel", tile, programs)


TRITON = row_kernels(("rms_norm", "rms_norm_quant"), "rms_norm", launch_norm)
