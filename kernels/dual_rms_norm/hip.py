"""The records of `kernel.hip`: two norms in one launch, and one or both brought into fp8."""

from __future__ import annotations

from fusec.formats import Scaling
from fusec.ir import Graph, Node
from fusec.ir.types import float_attr, int_attr
from fusec.kernels.hip_rows import (
    ELEMENTS,
    RowArguments,
    hip_kernel,
    lanes_of,
    same_dtypes,
    supports_rows,
)
from fusec.kernels.launch import Call, Launch
from fusec.kernels.triton_rows import row_length
from fusec.target import Target

FILE = "dual_rms_norm/kernel.hip"


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    x1, w1, x2, w2 = node.inputs
    return (
        same_dtypes(graph, (x1, x2))
        or same_dtypes(graph, (w1, w2))
        or supports_rows(graph, node, target)
    )


def _launch(call: Call) -> Launch:
    x1, w1, x2, w2 = call.inputs
    lengths = [row_length(call.input_type(index)) for index in (0, 2)]
    quantises = call.node.op.endswith("quant")
    both = call.attrs.get("quantises") == "both"
    arguments = RowArguments(call)
    arguments.rows("x1", x1)
    arguments.weight(w1)
    arguments.rows("x2", x2)
    arguments.weight(w2)
    arguments.floats |= {name: float_attr(call.attrs, name) for name in ("eps1", "eps2")}
    arguments.defines |= {
        "FUSEC_BOTH": int(both),
        "FUSEC_N": lengths[0],
        "FUSEC_N2": lengths[1],
        "FUSEC_W": ELEMENTS[w1.dtype],
        "FUSEC_WEIGHT_OFFSET": int_attr(call.attrs, "weight_offset"),
        "FUSEC_X": ELEMENTS[x1.dtype],
    }
    if not quantises:
        for name, result in zip(("y1", "y2"), call.outputs, strict=True):
            arguments.rows(name, result)
    else:
        scaling = Scaling.of(call.attrs)
        codes1, scale1, *second = call.outputs
        arguments.rows("codes1", codes1)
        arguments.scales("scale1", scale1, scaling)
        arguments.rows("codes2" if both else "y2", second[0])
        if both:
            arguments.scales("scale2", second[1], scaling)
        arguments.quantise(scaling)
    return arguments.launch(FILE, "dual_rms_norm_rows", lanes_of(max(lengths), x1.dtype), 2)


HIP = tuple(
    hip_kernel(op, FILE, _launch, _supports) for op in ("dual_rms_norm", "dual_rms_norm_quant")
)
