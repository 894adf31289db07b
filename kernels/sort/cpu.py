"""sort, topk, argmax and argmin on the CPU: all from `sort/kernel.cpp`."""

from __future__ import annotations

from dataclasses import replace

from fusec.ir.types import bool_attr, int_attr
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

DTYPES = (*FLOATS, "f64", *INTEGERS, "bool")


def _order(call: Call, descending: bool) -> Launch:
    axis = int_attr(call.attrs, "axis") % len(call.inputs[0].shape)
    x, values, indices = (axis_last(storage, axis) for storage in (call.inputs[0], *call.outputs))
    params = (
        *outer_params(x, values, indices),
        *(x.shape[-1], values.shape[-1]),
        *flags(descending),
        *(storage.strides[-1] for storage in (x, values, indices)),
    )
    return Launch(f"fusec_topk_{x.dtype}", operands(call), params)


def _topk(call: Call) -> Launch:
    return _order(call, bool_attr(call.attrs, "largest"))


def _sort(call: Call) -> Launch:
    return _order(call, bool_attr(call.attrs, "descending"))


def _arg(call: Call) -> Launch:
    x, out = call.inputs[0], call.outputs[0]
    axis = int_attr(call.attrs, "axis") % len(x.shape)
    if len(out.shape) == len(x.shape):
        out = axis_last(out, axis)
    else:
        out = replace(out, shape=(*out.shape, 1), strides=(*out.strides, 1))
    x = axis_last(x, axis)
    smallest = flags(call.node.op == "argmin")
    params = (*outer_params(x, out), x.shape[-1], x.strides[-1], *smallest)
    return Launch(f"fusec_arg_{x.dtype}", operands(call), params)


KERNELS = tuple(
    cpp_kernel(op, launch, supports=one_axis(*DTYPES), layouts=strided_layouts, source="sort")
    for op, launch in (("sort", _sort), ("topk", _topk), ("argmax", _arg), ("argmin", _arg))
)
