"""softmax, log_softmax and logsumexp on the CPU: all from `softmax/kernel.cpp`."""

from __future__ import annotations

from dataclasses import replace

from fusec.ir import Graph, Node
from fusec.ir.types import int_attr, ints_attr
from fusec.kernels.cpu import (
    FLOATS,
    axis_last,
    cpp_kernel,
    one_axis,
    operands,
    outer_params,
    strided_layouts,
)
from fusec.kernels.launch import Call, Launch
from fusec.target import Target

_along_one_axis = one_axis(*FLOATS, "f64")


def _one_reduced_axis(graph: Graph, node: Node, target: Target) -> str | None:
    if len(ints_attr(node.attrs, "axes")) != 1:
        return "it reduces one axis"
    return _along_one_axis(graph, node, target)


def _softmax(call: Call) -> Launch:
    x, out = call.inputs[0], call.outputs[0]
    axis = int_attr(call.attrs, "axis") % len(x.shape)
    x, out = axis_last(x, axis), axis_last(out, axis)
    steps = (x.strides[-1], out.strides[-1])
    params = (*outer_params(x, out), x.shape[-1], *steps)
    return Launch(f"fusec_{call.node.op}_{x.dtype}", operands(call), params)


def _logsumexp(call: Call) -> Launch:
    x, out = call.inputs[0], call.outputs[0]
    axis = ints_attr(call.attrs, "axes")[0] % len(x.shape)
    if len(out.shape) == len(x.shape):
        out = axis_last(out, axis)
    else:
        out = replace(out, shape=(*out.shape, 1), strides=(*out.strides, 1))
    x = axis_last(x, axis)
    params = (*outer_params(x, out), x.shape[-1], x.strides[-1], 1)
    return Launch(f"fusec_logsumexp_{x.dtype}", operands(call), params)


KERNELS = (
    *(
        cpp_kernel(
            op, _softmax, supports=_along_one_axis, layouts=strided_layouts, source="softmax"
        )
        for op in ("softmax", "log_softmax")
    ),
    cpp_kernel(
        "logsumexp",
        _logsumexp,
        supports=_one_reduced_axis,
        layouts=strided_layouts,
        source="softmax",
    ),
)
