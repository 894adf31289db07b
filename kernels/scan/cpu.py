"""cumsum and cumprod on the CPU: both from `scan/kernel.cpp`."""

from __future__ import annotations

from fusec.ir.types import int_attr
from fusec.kernels.cpu import (
    FLOATS,
    INTEGERS,
    axis_last,
    cpp_kernel,
    flags,
    one_axis,
    operands,
    outer_params,
    strided_layouts,
)
from fusec.kernels.launch import Call, Launch


def _scan(call: Call) -> Launch:
    axis = int_attr(call.attrs, "axis") % len(call.inputs[0].shape)
    x, out = axis_last(call.inputs[0], axis), axis_last(call.outputs[0], axis)
    steps = (x.strides[-1], out.strides[-1])
    multiply = flags(call.node.op == "cumprod")
    params = (*outer_params(x, out), x.shape[-1], *steps, *multiply)
    return Launch(f"fusec_scan_{x.dtype}", operands(call), params)


KERNELS = tuple(
    cpp_kernel(
        op,
        _scan,
        supports=one_axis(*FLOATS, "f64", *INTEGERS),
        layouts=strided_layouts,
        source="scan",
    )
    for op in ("cumsum", "cumprod")
)
