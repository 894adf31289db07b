"""router on the CPU."""

from __future__ import annotations

from fusec.ir import Graph, Node
from fusec.ir.ops.router import SCORES
from fusec.ir.types import bool_attr, float_attr, int_attr, str_attr
from fusec.kernels.cpu import FLOATS, cpp_kernel, flags, float_kernel, operands, weight_kind
from fusec.kernels.launch import Call, Launch
from fusec.target import Target


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    for value in (*node.inputs[1:], node.outputs[0]):
        if graph.type(value).dtype not in FLOATS:
            return f"`%{value}` is {graph.type(value).dtype}, not one of {', '.join(FLOATS)}"
    return float_kernel(graph, node, target)


def _router(call: Call) -> Launch:
    logits, attrs = call.inputs[0], call.attrs
    weights, experts = call.outputs
    bias = call.input_type(1) if bool_attr(attrs, "has_bias") else None
    params = (
        *(*logits.shape, int_attr(attrs, "k")),
        *(storage.strides[0] for storage in (logits, weights, experts)),
        SCORES.index(str_attr(attrs, "scores")),
        *(int_attr(attrs, name) for name in ("groups", "groups_kept", "group_best")),
        *(float_attr(attrs, name) for name in ("fill", "eps", "least", "scale")),
        *flags(bool_attr(attrs, "fill_weighs"), bool_attr(attrs, "renormalise")),
        weight_kind(bias, call.input_type(0)),
        weight_kind(call.output_type(), call.input_type(0)),
    )
    return Launch(f"fusec_router_{logits.dtype}", operands(call), params)


KERNELS = (cpp_kernel("router", _router, supports=_supports),)
