"""selective_scan on the CPU."""

from __future__ import annotations

import itertools

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
    return ("rows", "strided", "contiguous", "rows", "rows", "rows")


def _selective_scan(call: Call) -> Launch:
    u, dt, a, b, c = call.inputs
    out = call.outputs[0]
    strides = (u.strides[:2], dt.strides, b.strides[:3], c.strides[:3], out.strides[:2])
    kind = "_heads" if a.shape[1] == 1 else ""
    return Launch(
        f"fusec_selective_scan{kind}_{u.dtype}",
        operands(call),
        (*u.shape, b.shape[3], dt.shape[2], b.shape[2], *itertools.chain(*strides)),
    )


KERNELS = (cpp_kernel("selective_scan", _selective_scan, supports=_supports, layouts=_layouts),)
