"""The record of `triton_kernel.py`."""

from __future__ import annotations

from fusec.ir.types import bool_attr, float_attr
from fusec.kernels.launch import Call, Launch
from fusec.kernels.triton_rows import (
    RowArguments,
    programs_of,
    row_count,
    row_kernels,
    row_length,
    tile_of,
)


def _launch(call: Call) -> Launch:
    x, *rest = call.inputs
    length = row_length(call.input_type(0))
    weight = rest.pop(0) if bool_attr(call.attrs, "has_weight") else None
    bias = rest.pop(0) if bool_attr(call.attrs, "has_bias") else None
    tile = tile_of(length, call.target)
    arguments = RowArguments()
    arguments.rows("x", x)
    arguments.pointer("w", weight)
    arguments.pointer("bias", bias)
    arguments.rows("y", call.outputs[0])
    arguments.integer("rows", row_count(x))
    arguments.number("eps", float_attr(call.attrs, "eps"))
    arguments.constants |= {
        "N": length,
        "BLOCK": tile.block,
        "ROWS": tile.rows,
        "WEIGHT": int(weight is not None),
        "BIAS": int(bias is not None),
    }
    programs = programs_of(row_count(x), tile)
    return arguments.launch("layer_norm.triton_kernel", "layer_norm_kernel", tile, programs)


TRITON = row_kernels(("layer_norm",), "layer_norm", _launch)
