"""selective_scan on the CPU."""

from __future__ import annotations

from fusec.ir import Graph, Node
from fusec.kernels.cpu import cpp_kernel, float_kernel, operands
from fusec.kernels.launch import Call, Launch, Layout
from fusec.target import Target


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    u, dt, a, b, c = (graph.type(value).dtype for value in node.inputs)
    if (dt, a, b, c) != ("f32", "f32", u, u):
        return f"its steps and decays are f32 and the rest `{u}`, not `{dt}`, `{a}`, `{b}`, `{c}`"
    return float_kernel(graph, node, target)


def _layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    return ("strided", "strided", "contiguous", "strided", "strided", "strided")


def _output_order(graph: Graph, node: Node) -> tuple[int, ...]:
    # Channels innermost: what comes after is [batch, sequence, channels].
    return (0, 2, 1)


def _selective_scan(call: Call) -> Launch:
    u, dt, a, b, c = call.inputs
    out = call.outputs[0]
    strides = (step for storage in (u, dt, b, c, out) for step in storage.strides)
    return Launch(
        f"fusec_selective_scan_{u.dtype}", operands(call), (*u.shape, a.shape[1], *strides)
    )


KERNELS = (
    cpp_kernel(
        "selective_scan",
        _selective_scan,
        supports=_supports,
        layouts=_layouts,
        output_order=_output_order,
    ),
)
