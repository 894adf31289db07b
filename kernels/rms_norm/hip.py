"""The records of `kernel.hip`: `rms_norm` and `add_rms_norm`, and both brought into fp8."""

from __future__ import annotations

from fusec.formats import Scaling
from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr, float_attr, int_attr
from fusec.kernels.hip_rows import ELEMENTS, RowArguments, hip_kernel, lanes_of, supports_rows
from fusec.kernels.launch import Call, Launch
from fusec.kernels.triton_rows import row_length
from fusec.target import Target

FILE = "rms_norm/kernel.hip"


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    if node.op.startswith("rms_norm") and not node.attrs.get("has_weight"):
        return "it needs a weight"
    return supports_rows(graph, node, target)


def _launch(call: Call) -> Launch:
    adds, quantises = call.node.op.startswith("add"), call.node.op.endswith("quant")
    scaling = Scaling.of(call.attrs) if quantises else None
    inputs, outputs = list(call.inputs), list(call.outputs)
    x, length = inputs.pop(0), row_length(call.input_type(0))
    arguments = RowArguments(call)
    arguments.rows("x", x)
    if adds:
        arguments.rows("residual", inputs.pop(0))
    weight = inputs.pop(0)
    arguments.weight(weight)
    if adds:
        arguments.rows("sum", outputs.pop())
    arguments.floats["eps"] = float_attr(call.attrs, "eps")
    arguments.defines |= {
        "FUSEC_ADD": int(adds),
        "FUSEC_N": length,
        "FUSEC_W": ELEMENTS[weight.dtype],
        "FUSEC_WEIGHT_OFFSET": int_attr(call.attrs, "weight_offset"),
        "FUSEC_WITH_PLAIN": int(bool_attr(call.attrs, "with_plain")),
        "FUSEC_X": ELEMENTS[x.dtype],
    }
    if scaling is None:
        arguments.rows("y", outputs.pop(0))
    else:
        arguments.rows("codes", outputs.pop(0))
        scales = inputs.pop(0) if bool_attr(call.attrs, "has_scale") else outputs.pop(0)
        arguments.scales("scale", scales, scaling)
        if outputs:
            arguments.rows("y", outputs.pop(0))
        arguments.quantise(scaling)
    return arguments.launch(FILE, "rms_norm_rows", lanes_of(length, x.dtype))


HIP = tuple(
    hip_kernel(op, FILE, _launch, _supports)
    for op in ("rms_norm", "add_rms_norm", "rms_norm_quant", "add_rms_norm_quant")
)
