"""The records of `triton_kernel.py`: one function serves every gated activation."""

from __future__ import annotations

from fusec import symbolic
from fusec.ir.types import str_attr
from fusec.kernels.launch import Call, Launch
from fusec.kernels.registry import Kernel
from fusec.kernels.triton_rows import (
    FAMILIES,
    block_of,
    launch_rows,
    row_count,
    row_layouts,
    row_length,
    row_stride,
    supports_rows,
)

BLOCK = 2048
"""Elements that one program computes: eight for each lane of four waves."""


def _activation(call: Call) -> int:
    if call.node.op == "silu_mul":
        return 0
    if call.node.op == "gelu_mul":
        return 1 if str_attr(call.attrs, "approximate") == "none" else 2
    return 3


def _number(call: Call, name: str) -> float:
    value = call.attrs.get(name, 0.0)
    return float(value) if isinstance(value, int | float) else 0.0


def _launch(call: Call) -> Launch:
    gate, up = call.inputs
    (y,) = call.outputs
    length = row_length(call.output_type()) or 0
    block = block_of(length, BLOCK)
    return launch_rows(
        call,
        "silu_mul",
        "gated_activation_kernel",
        pointers=[("p_gate", gate), ("p_up", up), ("p_y", y)],
        integers=[
            ("gate_stride", row_stride(gate)),
            ("up_stride", row_stride(up)),
            ("y_stride", row_stride(y)),
        ],
        floats=[("alpha", _number(call, "alpha")), ("limit", _number(call, "limit"))],
        constants={"N": length, "BLOCK": block, "ACTIVATION": _activation(call)},
        grid=(row_count(y), symbolic.ceil_divide(length, block), 1),
        block=block,
    )


def _record(op: str) -> Kernel:
    return Kernel(
        op=op,
        name=f"{op}.triton",
        provider="triton",
        families=FAMILIES,
        source="silu_mul/triton_kernel.py",
        supports=supports_rows,
        launch=_launch,
        layouts=row_layouts,
    )


TRITON = _record("silu_mul")
GELU_MUL_TRITON = _record("gelu_mul")
SWIGLU_OAI_TRITON = _record("swiglu_oai")
