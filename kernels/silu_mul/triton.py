"""The records of `triton_kernel.py`: one function serves every gated activation."""

from __future__ import annotations

from fusec import symbolic
from fusec.ir.types import float_attr, str_attr
from fusec.kernels.launch import Call, Launch
from fusec.kernels.triton_rows import block_of, launch_rows, row_kernel, row_length

BLOCK = 2048
"""Elements that one program computes: eight for each lane of four waves."""


def _activation(call: Call) -> int:
    if call.node.op == "silu_mul":
        return 0
    if call.node.op == "gelu_mul":
        return 1 if str_attr(call.attrs, "approximate") == "none" else 2
    return 3


def _launch(call: Call) -> Launch:
    gate, up = call.inputs
    length = row_length(call.output_type())
    block = block_of(length, BLOCK)
    clamped = call.node.op == "swiglu_oai"
    return launch_rows(
        call,
        "gated_activation_kernel",
        {"gate": gate, "up": up, "y": call.outputs[0]},
        floats={
            name: float_attr(call.attrs, name) if clamped else 0.0 for name in ("alpha", "limit")
        },
        constants={"N": length, "BLOCK": block, "ACTIVATION": _activation(call)},
        block=block,
        columns=symbolic.ceil_divide(length, block),
    )


TRITON = tuple(row_kernel(op, _launch) for op in ("silu_mul", "gelu_mul", "swiglu_oai"))
