"""gated_delta_rule on the CPU."""

from __future__ import annotations

from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr, float_attr
from fusec.kernels.cpu import cpp_kernel, flags, float_kernel, operands
from fusec.kernels.launch import Call, Launch, Layout
from fusec.target import Target


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    x, gate, beta = (graph.type(node.inputs[index]).dtype for index in (2, 3, 4))
    if any(graph.type(value).dtype != x for value in node.inputs[:2]):
        return "its queries, keys and values are of one dtype"
    if gate not in ("f32", x) or beta not in ("f32", x):
        return f"its gate and beta are f32 or `{x}`, not `{gate}` and `{beta}`"
    return float_kernel(graph, node, target)


def _layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    rows: Layout = "rows"
    return (rows, rows, rows, "strided", "strided", rows)


def _gated_delta_rule(call: Call) -> Launch:
    q, k, v, gate, beta = call.inputs
    out = call.outputs[0]
    batch, steps, heads, depth = v.shape
    normalise = bool_attr(call.attrs, "qk_l2_norm")
    params = (
        *(batch, steps, q.shape[2], heads, q.shape[3], depth),
        *(step for storage in (q, k, v, gate, beta, out) for step in storage.strides[:3]),
        *(1 if storage.dtype == v.dtype else 2 for storage in (gate, beta)),
        gate.strides[3] if len(gate.shape) == 4 else 0,
        float_attr(call.attrs, "scale"),
        float_attr(call.attrs, "eps") if normalise else 0.0,
        *flags(normalise),
    )
    return Launch(f"fusec_gated_delta_rule_{v.dtype}", operands(call), params)


KERNELS = (cpp_kernel("gated_delta_rule", _gated_delta_rule, supports=_supports, layouts=_layouts),)
