"""softmax, log_softmax and logsumexp on the CPU: all from `softmax/kernel.cpp`."""

from __future__ import annotations

from dataclasses import replace

from fusec.ir import Graph, Node
from fusec.ir.types import int_attr, ints_attr
from fusec.kernels.cpu import FLOATS, OUTER_DIMS, cpp_kernel, operands, outer_params
from fusec.kernels.launch import Call, Launch, Layout, Storage
from fusec.target import Target


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    x = graph.type(node.inputs[0])
    if x.dtype not in (*FLOATS, "f64"):
        return f"it computes {', '.join(FLOATS)} and f64, not {x.dtype}"
    if x.rank > OUTER_DIMS + 1:
        return f"it takes operands of rank up to {OUTER_DIMS + 1}, not {x.rank}"
    if node.op == "logsumexp" and len(ints_attr(node.attrs, "axes")) != 1:
        return "it reduces one axis"
    return None


def _layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    return ("strided", "strided")


def _last(storage: Storage, axis: int) -> Storage:
    """The storage seen with `axis` moved to the end."""
    shape, strides = list(storage.shape), list(storage.strides)
    shape.append(shape.pop(axis))
    strides.append(strides.pop(axis))
    return replace(storage, shape=tuple(shape), strides=tuple(strides))


def _softmax(call: Call) -> Launch:
    x, out = call.inputs[0], call.outputs[0]
    axis = int_attr(call.attrs, "axis") % len(x.shape)
    x, out = _last(x, axis), _last(out, axis)
    steps = (x.strides[-1], out.strides[-1])
    params = (*outer_params(x, out), x.shape[-1], *steps)
    return Launch(f"fusec_{call.node.op}_{x.dtype}", operands(call), params)


def _logsumexp(call: Call) -> Launch:
    x, out = call.inputs[0], call.outputs[0]
    axis = ints_attr(call.attrs, "axes")[0] % len(x.shape)
    if len(out.shape) == len(x.shape):
        out = _last(out, axis)
    else:
        out = replace(out, shape=(*out.shape, 1), strides=(*out.strides, 1))
    x = _last(x, axis)
    params = (*outer_params(x, out), x.shape[-1], x.strides[-1], 1)
    return Launch(f"fusec_logsumexp_{x.dtype}", operands(call), params)


KERNELS = (
    cpp_kernel("softmax", _softmax, supports=_supports, layouts=_layouts),
    cpp_kernel("log_softmax", _softmax, supports=_supports, layouts=_layouts, source="softmax"),
    cpp_kernel("logsumexp", _logsumexp, supports=_supports, layouts=_layouts, source="softmax"),
)
