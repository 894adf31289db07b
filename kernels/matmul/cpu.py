"""matmul on the CPU, and linear where the weight cannot be packed ahead of time."""

from __future__ import annotations

from fusec.ir import Graph, Node
from fusec.kernels.cpu import FLOATS, OUTER_DIMS, cpp_kernel, operands
from fusec.kernels.launch import Call, Launch, Layout, Param, Storage
from fusec.symbolic import product
from fusec.target import Target

DTYPES = (*FLOATS, "f64", "i64", "i32")


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    x, out = graph.type(node.inputs[0]), graph.type(node.outputs[0])
    if x.dtype not in DTYPES:
        return f"it computes {', '.join(DTYPES)}, not {x.dtype}"
    if out.dtype != x.dtype and (x.dtype not in FLOATS or out.dtype != "f32"):
        return f"it does not give a product of {x.dtype} in {out.dtype}"
    if node.op == "matmul" and out.rank - 2 > OUTER_DIMS:
        return f"it takes up to {OUTER_DIMS} batch dims, not {out.rank - 2}"
    return None


def _layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    strided: Layout = "strided"
    if node.op == "linear":
        dense: Layout = "contiguous"
        return (dense, strided, *(dense,) * (len(node.inputs) - 1))
    return (strided, strided, "rows")


def _symbol(x: Storage, out: Storage) -> str:
    wide = "" if out.dtype == x.dtype else f"_{out.dtype}"
    return f"fusec_matmul_{x.dtype}{wide}"


def _batch_strides(storage: Storage) -> list[Param]:
    """Strides of the four batch dims, 0 where the operand has size 1 or no axis."""
    strides: list[Param] = [
        0 if size == 1 else step
        for size, step in zip(storage.shape[:-2], storage.strides[:-2], strict=True)
    ]
    return [0] * (OUTER_DIMS - len(strides)) + strides


def _matmul(call: Call) -> Launch:
    a, b = call.inputs
    out = call.outputs[0]
    batch = out.shape[:-2]
    params: tuple[Param, ...] = (
        *(1,) * (OUTER_DIMS - len(batch)),
        *batch,
        *(step for storage in (a, b, out) for step in _batch_strides(storage)),
        *(out.shape[-2], out.shape[-1], a.shape[-1]),
        *a.strides[-2:],
        *b.strides[-2:],
        out.strides[-2],
        0,
    )
    return Launch(_symbol(a, out), operands(call), params)


def _linear(call: Call) -> Launch:
    x, weight = call.inputs[:2]
    out = call.outputs[0]
    rows = product(x.shape[:-1])
    n, k = weight.shape
    no_batch = (1, 1, 1, 1, *(0,) * 12)
    params = (*no_batch, rows, n, k, k, 1, weight.strides[1], weight.strides[0], n)
    has_bias = int(len(call.inputs) == 3)
    return Launch(_symbol(x, out), operands(call), (*params, has_bias))


KERNELS = (
    cpp_kernel("matmul", _matmul, supports=_supports, layouts=_layouts),
    cpp_kernel(
        "linear",
        _linear,
        supports=_supports,
        layouts=_layouts,
        source="matmul",
        name="linear_unpacked.cpp",
    ),
)
