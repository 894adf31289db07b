"""The records of `triton_kernel.py`."""

from __future__ import annotations

from fusec.formats import Scaling
from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr
from fusec.kernels.launch import Call, Launch
from fusec.kernels.triton_rows import (
    FLOATS,
    RowArguments,
    column_tile_of,
    columns_of,
    group_of,
    programs_of,
    refused_scaling,
    row_count,
    row_kernels,
    row_length,
    supports_rows,
    tile_of,
)
from fusec.target import Target


def _quantize(call: Call) -> Launch:
    scaling = Scaling.of(call.attrs)
    x, *rest = call.inputs
    codes, *results = call.outputs
    scale = rest[0] if bool_attr(call.attrs, "has_scale") else results[0]
    length = row_length(call.input_type(0))
    group = group_of(scaling, length)
    if group == length:
        tile = tile_of(length, call.target, narrow=True)
    else:
        tile = column_tile_of(length, call.target, narrow=scaling.packed, group=group)
    arguments = RowArguments()
    arguments.rows("x", x)
    arguments.codes(codes, scale, scaling)
    arguments.integer("rows", row_count(x))
    arguments.scaling(scaling)
    arguments.constants |= {"N": length, "BLOCK": tile.block, "ROWS": tile.rows, "GROUP": group}
    columns = 1 if group == length else columns_of(length, tile)
    programs = programs_of(row_count(x), tile)
    module = "quantize.triton_kernel"
    return arguments.launch(module, "quantize_kernel", tile, programs, columns)


def _supports_dequantize(graph: Graph, node: Node, target: Target) -> str | None:
    kind = graph.type(node.output)
    if kind.dtype not in FLOATS:
        return f"`%{node.output}` is {kind.dtype}, not one of {', '.join(FLOATS)}"
    if not isinstance(kind.shape[-1], int):
        return f"the rows of `%{node.output}: {kind}` have no length known at compile time"
    return refused_scaling(Scaling.of(node.attrs), target, static=True)


def _dequantize(call: Call) -> Launch:
    scaling = Scaling.of(call.attrs)
    codes, scale = call.inputs
    y = call.outputs[0]
    length = row_length(call.output_type())
    group = group_of(scaling, length)
    tile = column_tile_of(length, call.target, group=1 if group == length else group)
    arguments = RowArguments()
    arguments.codes(codes, scale, scaling)
    arguments.rows("y", y)
    arguments.integer("rows", row_count(y))
    arguments.constants |= {"N": length, "BLOCK": tile.block, "ROWS": tile.rows, "GROUP": group}
    programs = programs_of(row_count(y), tile)
    columns = columns_of(length, tile)
    module = "quantize.triton_kernel"
    return arguments.launch(module, "dequantize_kernel", tile, programs, columns)


TRITON = (
    *row_kernels(("quantize",), "quantize", _quantize, supports_rows),
    *row_kernels(("dequantize",), "quantize", _dequantize, _supports_dequantize),
)
