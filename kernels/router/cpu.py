"""router on the CPU."""

from __future__ import annotations

from fusec.ir import Graph, Node
from fusec.ir.ops.router import SCORES
from fusec.ir.types import bool_attr, float_attr, int_attr, str_attr
from fusec.kernels.cpu import FLOATS, cpp_kernel, flags, float_kernel, operands, weight_kind
from fusec.kernels.launch import Call, Launch
from fusec.target import Target


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    logits, weights = graph.type(node.inputs[0]), graph.type(node.outputs[0])
    if weights.dtype not in ("f32", logits.dtype):
        return f"its weights are f32 or `{logits.dtype}`, not `{weights.dtype}`"
    if any(graph.type(value).dtype not in FLOATS for value in node.inputs):
        return f"its bias is one of {', '.join(FLOATS)}"
    return float_kernel(graph, node, target)


def _router(call: Call) -> Launch:
    logits, attrs = call.inputs[0], call.attrs
    weights, experts = call.outputs
    bias = call.input_type(1) if bool_attr(attrs, "has_bias") else None
    params = (
        *(*logits.shape, int_attr(attrs, "k")),
        *(storage.strides[0] for storage in (logits, weights, experts)),
        SCORES.index(str_attr(attrs, "scores")),
        *(int_attr(attrs, name) for name in ("groups", "groups_kept")),
        *(float_attr(attrs, name) for name in ("fill", "eps", "scale")),
        *flags(bool_attr(attrs, "renormalise")),
        weight_kind(bias, call.input_type(0)),
        2 if weights.dtype == "f32" else 1,
    )
    return Launch(f"fusec_router_{logits.dtype}", operands(call), params)


KERNELS = (cpp_kernel("router", _router, supports=_supports),)
