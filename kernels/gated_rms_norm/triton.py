"""The records of `triton_kernel.py`."""

from __future__ import annotations

from fusec import symbolic
from fusec.formats import Scaling
from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr, float_attr, int_attr
from fusec.kernels.launch import Call, Launch
from fusec.kernels.triton_rows import (
    LONGEST,
    RowArguments,
    Tile,
    group_of,
    is_power_of_two,
    power_above,
    row_count,
    row_kernels,
    row_length,
    supports_rows,
    tile_of,
)
from fusec.target import Target

LARGEST_HEAD = 256
"""Elements of a head whose result is quantised, at most."""


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    refused = supports_rows(graph, node, target)
    if refused is not None:
        return refused
    head = row_length(graph.type(node.inputs[0]))
    if node.op == "gated_rms_norm":
        return f"a row has {head} elements, more than {LONGEST}" if head > LONGEST else None
    if not is_power_of_two(head) or head > LARGEST_HEAD:
        return f"gdn.head-dim: {head} is not a power of two up to {LARGEST_HEAD}"
    kind = graph.type(node.outputs[0])
    scaling = Scaling.of(node.attrs)
    length = kind.shape[-1]
    if not isinstance(length, int):
        return f"the rows of `{kind}` have no length known at compile time"
    length *= 2 if scaling.packed else 1
    if length % head:
        return f"shape: a row of {length} elements is not whole heads of {head}"
    if scaling.granularity == "group" and length % scaling.group:
        return f"scales: a row of {length} elements is not whole groups of {scaling.group}"
    if scaling.granularity == "token" and power_above(length) > LONGEST:
        return f"the heads of a token have {length} elements, more than {LONGEST}"
    return None


def _launch(call: Call) -> Launch:
    quantises = call.node.op.endswith("quant")
    scaling = Scaling.of(call.attrs) if quantises else None
    head = row_length(call.input_type(0))
    x, weight, gate, *rest = call.inputs
    outputs = list(call.outputs)
    codes = scale = None
    heads = 1
    if scaling is not None:
        codes = outputs.pop(0)
        scale = rest.pop(0) if bool_attr(call.attrs, "has_scale") else outputs.pop(0)
        heads = row_length(call.output_type(0)) * (2 if scaling.packed else 1) // head
    plain = outputs.pop(0) if outputs else None
    tile, step = _tile(head, heads, scaling, call.target)
    arguments = RowArguments()
    arguments.rows("x", x)
    arguments.pointer("w", weight)
    arguments.rows("gate", gate)
    arguments.rows("y", plain)
    arguments.codes(codes, scale, scaling)
    arguments.integer("rows", row_count(x))
    arguments.number("eps", float_attr(call.attrs, "eps"))
    arguments.scaling(scaling)
    arguments.constants |= {
        "N": head,
        "BLOCK": tile.block,
        "ROWS": tile.rows,
        "STEP": step,
        "HEADS": heads,
        "WEIGHT_OFFSET": int_attr(call.attrs, "weight_offset"),
        "SILU": int(call.attrs["activation"] == "silu"),
        "NORM_BEFORE_GATE": int(bool_attr(call.attrs, "norm_before_gate")),
        "PLAIN": int(plain is not None),
        "QUANTISED": int(quantises),
        "GROUP": group_of(scaling, heads * head),
    }
    programs = symbolic.ceil_divide(row_count(x), step)
    return arguments.launch("gated_rms_norm.triton_kernel", "gated_rms_norm_kernel", tile, programs)


def _tile(head: int, heads: int, scaling: Scaling | None, target: Target) -> tuple[Tile, int]:
    """The tile of heads, and how many of them are those of one program.

    The heads of a group are in one program.
    """
    if scaling is None:
        tile = tile_of(head, target)
        return tile, tile.rows
    group = group_of(scaling, heads * head)
    together = max(1, group // head)
    whole = together == heads
    tile = tile_of(head, target, narrow=whole, least=head, together=power_above(together, 1))
    return tile, tile.rows if is_power_of_two(together) else heads


TRITON = row_kernels(
    ("gated_rms_norm", "gated_rms_norm_quant"), "gated_rms_norm", _launch, _supports
)
