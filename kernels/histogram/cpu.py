"""histogram on the CPU."""

from __future__ import annotations

from fusec.ir import Graph, Node
from fusec.ir.types import float_attr, int_attr
from fusec.kernels.cpu import FLOATS, INTEGERS, cpp_kernel, operands
from fusec.kernels.launch import Call, Launch
from fusec.kernels.registry import all_contiguous
from fusec.symbolic import product
from fusec.target import Target

DTYPES = (*FLOATS, "f64", *INTEGERS)


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    dtype = graph.type(node.inputs[0]).dtype
    return None if dtype in DTYPES else f"it counts {', '.join(DTYPES)}, not {dtype}"


def _histogram(call: Call) -> Launch:
    x = call.inputs[0]
    bounds = (float_attr(call.attrs, "low"), float_attr(call.attrs, "high"))
    params = (product(x.shape), int_attr(call.attrs, "bins"), *bounds)
    return Launch(f"fusec_histogram_{x.dtype}", operands(call), params)


KERNELS = (cpp_kernel("histogram", _histogram, supports=_supports, layouts=all_contiguous),)
