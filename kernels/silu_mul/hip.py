"""The records of `kernel.hip`: gated activations, and the same brought into fp8."""

from __future__ import annotations

from fusec import symbolic
from fusec.formats import Scaling
from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr, float_attr, str_attr
from fusec.kernels.hip_rows import (
    ELEMENTS,
    RowArguments,
    hip_kernel,
    lanes_of,
    same_dtypes,
    supports_rows,
    vector_of,
)
from fusec.kernels.launch import Call, Launch
from fusec.kernels.triton_rows import row_length
from fusec.target import Target

FILE = "silu_mul/kernel.hip"

PART = 256
"""Vectors of a row that one group computes where a scale is not the whole row's."""

ACTIVATIONS = {"silu_mul": 0, "gelu_mul": 1, "swiglu_oai": 3}
"""The codes of `Activation` in the source; GELU with tanh is 2."""


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    if bool_attr(node.attrs, "with_plain"):
        return "it does not give the result before it is quantised"
    return same_dtypes(graph, node.inputs[:2]) or supports_rows(graph, node, target)


def _activation(call: Call) -> int:
    base = call.node.op.removesuffix("_quant")
    tanh = base == "gelu_mul" and str_attr(call.attrs, "approximate") == "tanh"
    return 2 if tanh else ACTIVATIONS[base]


def _launch(call: Call) -> Launch:
    gate, up = call.inputs[:2]
    scaling = Scaling.of(call.attrs) if call.node.op.endswith("quant") else None
    row = row_length(call.input_type(0))
    whole = scaling is not None and scaling.granularity == "token"
    length = row if whole else min(row, PART * vector_of(gate.dtype))
    clamped = call.node.op.startswith("swiglu_oai")
    arguments = RowArguments(call)
    arguments.rows("gate", gate)
    arguments.rows("up", up)
    arguments.floats |= {
        "alpha": float_attr(call.attrs, "alpha") if clamped else 0.0,
        "bound": float_attr(call.attrs, "limit") if clamped else 0.0,
    }
    arguments.defines |= {
        "FUSEC_ACTIVATION": _activation(call),
        "FUSEC_N": length,
        "FUSEC_ROW": row,
        "FUSEC_X": ELEMENTS[gate.dtype],
    }
    if scaling is None:
        arguments.rows("y", call.outputs[0])
    else:
        arguments.rows("codes", call.outputs[0])
        static = bool_attr(call.attrs, "has_scale")
        arguments.scales("scale", call.inputs[2] if static else call.outputs[1], scaling)
        arguments.quantise(scaling)
    columns = symbolic.ceil_divide(row, length)
    return arguments.launch(FILE, "gated_activation_rows", lanes_of(length, gate.dtype), columns)


HIP = tuple(
    hip_kernel(f"{op}{suffix}", FILE, _launch, _supports)
    for op in ACTIVATIONS
    for suffix in ("", "_quant")
)
