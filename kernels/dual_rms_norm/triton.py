"""The records of `triton_kernel.py`."""

from __future__ import annotations

from fusec.formats import Scaling
from fusec.ir import Graph, Node
from fusec.ir.types import float_attr, int_attr
from fusec.kernels.launch import Call, Launch, Storage
from fusec.kernels.triton_rows import (
    RowArguments,
    group_of,
    programs_of,
    row_count,
    row_kernels,
    row_length,
    supports_rows,
    tile_of,
)
from fusec.target import Target


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    if node.attrs.get("granularity") == "tensor":
        return "scales: one scale for the tensor is not among its operands"
    return supports_rows(graph, node, target)


def _launch(call: Call) -> Launch:
    quantises = call.node.op.endswith("quant")
    scaling = Scaling.of(call.attrs) if quantises else None
    x1, weight1, x2, weight2 = call.inputs
    outputs = list(call.outputs)
    lengths = {name: row_length(call.input_type(index)) for name, index in (("1", 0), ("2", 2))}
    tiles = {
        name: tile_of(length, call.target, narrow=quantises) for name, length in lengths.items()
    }
    arguments = RowArguments()
    arguments.rows("x1", x1)
    arguments.pointer("w1", weight1)
    arguments.rows("x2", x2)
    arguments.pointer("w2", weight2)
    for name, length in lengths.items():
        narrow = quantises and (name == "1" or call.attrs["quantises"] == "both")
        plain: Storage | None = None if narrow else outputs.pop(0)
        codes, scale = (outputs.pop(0), outputs.pop(0)) if narrow else (None, None)
        arguments.rows(f"y{name}", plain)
        arguments.codes(codes, scale, scaling, name)
        arguments.constants |= {
            f"N{name}": length,
            f"BLOCK{name}": tiles[name].block,
            f"ROWS{name}": tiles[name].rows,
            f"QUANTISED{name}": int(narrow),
            f"GROUP{name}": group_of(scaling, length),
        }
    arguments.integer("rows", row_count(x1))
    for name in ("eps1", "eps2"):
        arguments.number(name, float_attr(call.attrs, name))
    arguments.scaling(scaling)
    arguments.constants["WEIGHT_OFFSET"] = int_attr(call.attrs, "weight_offset")
    first, second = sorted(tiles.values(), key=lambda tile: tile.warps, reverse=True)
    programs = programs_of(row_count(x1), first) + programs_of(row_count(x1), second)
    return arguments.launch("dual_rms_norm.triton_kernel", "dual_rms_norm_kernel", first, programs)


TRITON = row_kernels(("dual_rms_norm", "dual_rms_norm_quant"), "dual_rms_norm", _launch, _supports)
