"""The record of `triton_kernel.py`."""

from __future__ import annotations

from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr, float_attr
from fusec.kernels.launch import Call, Launch
from fusec.kernels.triton_rows import (
    FLOATS,
    LONGEST,
    RowArguments,
    programs_of,
    row_count,
    row_kernels,
    tile_of,
)
from fusec.target import Target


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    """Float operands; rows may have any length."""
    for value in node.inputs:
        if (dtype := graph.type(value).dtype) not in FLOATS:
            return f"`%{value}` is {dtype}, not one of {', '.join(FLOATS)}"
    return None


def _launch(call: Call) -> Launch:
    x, *rest = call.inputs
    length = x.shape[-1]
    weight = rest.pop(0) if bool_attr(call.attrs, "has_weight") else None
    bias = rest.pop(0) if bool_attr(call.attrs, "has_bias") else None
    arguments = RowArguments()
    arguments.rows("x", x)
    arguments.pointer("w", weight)
    arguments.pointer("bias", bias)
    arguments.rows("y", call.outputs[0])
    arguments.constants |= {"WEIGHT": int(weight is not None), "BIAS": int(bias is not None)}
    arguments.number("eps", float_attr(call.attrs, "eps"))
    if isinstance(length, int) and length <= LONGEST:
        tile = tile_of(length, call.target)
        arguments.integer("rows", row_count(x))
        arguments.constants |= {"N": length, "BLOCK": tile.block, "ROWS": tile.rows}
        programs, function = programs_of(row_count(x), tile), "layer_norm_kernel"
    else:
        tile = tile_of(LONGEST, call.target)
        arguments.integer("length", length)
        arguments.constants["BLOCK"] = tile.block
        programs, function = row_count(x), "long_layer_norm_kernel"
    return arguments.launch("layer_norm.triton_kernel", function, tile, programs)


TRITON = row_kernels(("layer_norm",), "layer_norm", _launch, _supports)
