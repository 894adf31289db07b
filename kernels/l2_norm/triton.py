"""The record of `triton_kernel.py`."""

from __future__ import annotations

from fusec.ir.types import float_attr, str_attr
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
    (x,) = call.inputs
    length = row_length(call.input_type(0))
    tile = tile_of(length, call.target)
    arguments = RowArguments()
    arguments.rows("x", x)
    arguments.rows("y", call.outputs[0])
    arguments.integer("rows", row_count(x))
    arguments.number("eps", float_attr(call.attrs, "eps"))
    arguments.constants |= {
        "N": length,
        "BLOCK": tile.block,
        "ROWS": tile.rows,
        "ADDED": int(str_attr(call.attrs, "mode") == "add"),
    }
    programs = programs_of(row_count(x), tile)
    return arguments.launch("l2_norm.triton_kernel", "l2_norm_kernel", tile, programs)


TRITON = row_kernels(("l2_norm",), "l2_norm", _launch)
