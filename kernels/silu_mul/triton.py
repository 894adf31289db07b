"""The records of `triton_kernel.py`: one function serves every gated activation."""

from __future__ import annotations

from fusec.diagnostics import InternalError
from fusec.formats import Scaling
from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr, float_attr, int_attr, str_attr
from fusec.kernels.launch import Call, Launch, Layout, Storage
from fusec.kernels.triton_rows import (
    RowArguments,
    column_tile_of,
    columns_of,
    group_of,
    programs_of,
    row_count,
    row_kernels,
    row_layouts,
    row_length,
    supports_rows,
    tile_of,
)
from fusec.target import Target

OPS = ("silu_mul", "gelu_mul", "swiglu_oai")


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    if node.attrs.get("shape") is not None:
        return "shape: its result is seen in the shape of its operands"
    return supports_rows(graph, node, target)


def _takes_turns(graph: Graph, node: Node) -> bool:
    """Whether gate and up are the even and the odd columns of one dense value."""
    sources = []
    for start, value in enumerate(node.inputs[:2]):
        view = graph.producer(value)
        if view is None or view.op != "slice":
            return False
        last = len(graph.type(value).shape) - 1
        axis = int_attr(view.attrs, "axis") % (last + 1)
        if (axis, view.attrs["start"], view.attrs["step"]) != (last, start, 2):
            return False
        sources.append(view.inputs[0])
    return sources[0] == sources[1] and _is_dense(graph, sources[0])


def _is_dense(graph: Graph, value: str) -> bool:
    """Whether `value` is no view but for reshapes, so that its rows are evenly spaced."""
    source = graph.producer(value)
    while source is not None and source.op == "reshape":
        source = graph.producer(source.inputs[0])
    return source is None or source.op not in ("transpose", "slice", "expand", "flip")


def _layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    layouts = row_layouts(graph, node)
    return ("strided", "strided", *layouts[2:]) if _takes_turns(graph, node) else layouts


def _activation(call: Call) -> int:
    """`ACTIVATION` of the kernel."""
    if call.node.op.startswith("silu"):
        return 0
    if call.node.op.startswith("gelu"):
        return 1 if str_attr(call.attrs, "approximate") == "none" else 2
    return 3


def _launch(call: Call) -> Launch:
    quantises = call.node.op.endswith("quant")
    scaling = Scaling.of(call.attrs) if quantises else None
    gate, up, *rest = call.inputs
    outputs = list(call.outputs)
    length = row_length(call.input_type(0))
    codes = scale = None
    if scaling is not None:
        codes = outputs.pop(0)
        scale = rest.pop(0) if bool_attr(call.attrs, "has_scale") else outputs.pop(0)
    plain = outputs.pop(0) if outputs else None
    group = group_of(scaling, length)
    if group == length:
        tile = tile_of(length, call.target, narrow=quantises)
    else:
        tile = column_tile_of(length, call.target, narrow=_packs(scaling), group=group)
    interleaved = not gate.has_unit_rows
    if interleaved and not _are_pairs(gate, up):
        raise InternalError(f"{gate} and {up} do not take turns")
    clamped = call.node.op.startswith("swiglu_oai")
    arguments = RowArguments()
    arguments.rows("gate", gate)
    arguments.rows("up", None if interleaved else up)
    arguments.rows("y", plain)
    arguments.codes(codes, scale, scaling)
    arguments.integer("rows", row_count(gate))
    for name in ("alpha", "limit"):
        arguments.number(name, float_attr(call.attrs, name) if clamped else None)
    arguments.scaling(scaling)
    arguments.constants |= {
        "N": length,
        "BLOCK": tile.block,
        "ROWS": tile.rows,
        "ACTIVATION": _activation(call),
        "INTERLEAVED": int(interleaved),
        "PLAIN": int(plain is not None),
        "QUANTISED": int(quantises),
        "GROUP": group,
    }
    columns = 1 if group == length else columns_of(length, tile)
    programs = programs_of(row_count(gate), tile)
    module = "silu_mul.triton_kernel"
    return arguments.launch(module, "gated_activation_kernel", tile, programs, columns)


def _packs(scaling: Scaling | None) -> bool:
    return scaling is not None and scaling.packed


def _are_pairs(gate: Storage, up: Storage) -> bool:
    return (gate.buffer, gate.strides, gate.offset + 1) == (up.buffer, up.strides, up.offset) and (
        gate.strides[-1] == 2
    )


TRITON = row_kernels(
    (*OPS, *(f"{op}_quant" for op in OPS)), "silu_mul", _launch, _supports, _layouts
)
