"""solve_triangular on the CPU."""

from __future__ import annotations

from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr
from fusec.kernels.cpu import OUTER_DIMS, cpp_kernel, expanded_strides, flags, leading, operands
from fusec.kernels.launch import Call, Launch, Layout
from fusec.target import Target


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    out = graph.type(node.outputs[0])
    if out.dtype not in ("f32", "f64"):
        return f"it solves in f32 and f64, not {out.dtype}"
    if out.rank - 2 > OUTER_DIMS:
        return f"it takes up to {OUTER_DIMS} batch dims, not {out.rank - 2}"
    if node.attrs.get("left") is False:
        return "it solves A X = B, not X A = B"
    return None


def _layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    return ("strided", "strided", "rows")


def _solve(call: Call) -> Launch:
    a, b = call.inputs
    out = call.outputs[0]
    batch = leading(out.shape[:-2], OUTER_DIMS, 1)
    rank = len(out.shape)
    steps = [
        leading(expanded_strides(storage, out.shape)[: rank - 2], OUTER_DIMS, 0)
        for storage in (a, b, out)
    ]
    params = (
        *batch,
        *(step for strides in steps for step in strides),
        *out.shape[-2:],
        *a.strides[-2:],
        *b.strides[-2:],
        out.strides[-2],
        *flags(bool_attr(call.attrs, "upper"), bool_attr(call.attrs, "unit_diagonal")),
    )
    return Launch(f"fusec_solve_triangular_{out.dtype}", operands(call), params)


KERNELS = (cpp_kernel("solve_triangular", _solve, supports=_supports, layouts=_layouts),)
