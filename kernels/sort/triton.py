"""sort and topk on a GPU: the records of `triton_kernel.py`."""

from __future__ import annotations

from dataclasses import replace

from fusec import symbolic
from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr, int_attr
from fusec.kernels.cpu import FLOATS, INTEGERS, axis_last, strided_layouts
from fusec.kernels.launch import Call, Launch, Storage
from fusec.kernels.triton_index import Walk, index_kernel, index_launch, refused_dims, walk
from fusec.kernels.triton_rows import power_above
from fusec.symbolic import Dim, product
from fusec.target import Target

DTYPES = (*FLOATS, "f64", *INTEGERS, "bool")

RUN = 2048
"""Elements that are compared each with each; rows that may be longer have several runs."""

BLOCK = 64
"""Elements of a program."""

OTHERS = 32
"""Elements that it compares them with at once: of more, the masks do not fit scalar registers."""

STORAGES = ("x", "values", "indices")


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    x = graph.type(node.inputs[0])
    if x.dtype not in DTYPES:
        return f"dtype: it orders {', '.join(DTYPES)}, not {x.dtype}"
    if not x.shape:
        return "shape: it orders elements along an axis, and there is none"
    axis = int_attr(node.attrs, "axis") % x.rank
    return refused_dims((*x.shape[:axis], *x.shape[axis + 1 :]))


def order_launches(
    call: Call, x: Storage, values: Storage, indices: Storage, *, descending: bool
) -> tuple[Launch, ...]:
    """What puts rows in order.

    Args:
        call: gives scratch.
        x: rows, along the last axis.
        values: the first elements of each row in order; as many as there is room for.
        indices: i64; where they were.
        descending: whether the largest come first.
    """
    rows, n = product(x.shape[:-1]), x.shape[-1]
    x, values = (_without_bool(storage) for storage in (x, values))
    axes = {
        "n": n,
        "k": values.shape[-1],
        "x_axis": x.strides[-1],
        "values_axis": values.strides[-1],
        "indices_axis": indices.strides[-1],
    }
    walked = walk(x.shape[:-1], *(storage.strides[:-1] for storage in (x, values, indices)))
    constants = {"DESCENDING": int(descending), "RUN": 0}
    operands = {"p_x": x, "p_values": values, "p_indices": indices}
    longest = symbolic.bounds(n, call.graph.symbols)[1]
    if longest <= 2 * RUN:
        block = min(BLOCK, power_above(int(max(longest, 1)), least=16))
        return (_rank(operands, axes, {**constants, "BLOCK": block}, walked, rows),)
    key_dtype = "i64" if x.dtype in ("i64", "f64") else "i32"
    keys, order = (call.scratch(dtype, (rows, n)) for dtype in (key_dtype, "i64"))
    runs = _rank(
        {"p_x": x, "p_values": keys, "p_indices": order},
        axes,
        {**constants, "RUN": RUN, "BLOCK": BLOCK},
        walk(x.shape[:-1], x.strides[:-1]),
        rows,
    )
    merge = index_launch(
        "sort.triton_kernel",
        "merge_kernel",
        {"p_x": x, "p_keys": keys, "p_order": order, "p_values": values, "p_indices": indices},
        axes,
        {"RUN": RUN, "HALVES": RUN.bit_length(), "BLOCK": 4 * BLOCK},
        walked,
        STORAGES,
        programs=rows * symbolic.ceil_divide(n, 4 * BLOCK),
    )
    return runs, merge


def _rank(
    operands: dict[str, Storage],
    axes: dict[str, Dim],
    constants: dict[str, int],
    walked: Walk,
    rows: Dim,
) -> Launch:
    block = constants["BLOCK"]
    return index_launch(
        "sort.triton_kernel",
        "rank_kernel",
        operands,
        axes,
        {**constants, "OTHERS": min(block, OTHERS)},
        walked,
        STORAGES,
        programs=rows * symbolic.ceil_divide(axes["n"], block),
        warps=max(1, block // 16),
    )


def _without_bool(storage: Storage) -> Storage:
    """The storage, with elements that Triton compares as numbers."""
    return replace(storage, dtype="u8") if storage.dtype == "bool" else storage


def _launch(call: Call, descending: bool) -> tuple[Launch, ...]:
    axis = int_attr(call.attrs, "axis") % len(call.inputs[0].shape)
    x, values, indices = (axis_last(storage, axis) for storage in (call.inputs[0], *call.outputs))
    return order_launches(call, x, values, indices, descending=descending)


def _sort(call: Call) -> tuple[Launch, ...]:
    return _launch(call, bool_attr(call.attrs, "descending"))


def _topk(call: Call) -> tuple[Launch, ...]:
    return _launch(call, bool_attr(call.attrs, "largest"))


TRITON = (
    index_kernel("sort", _sort, _supports, strided_layouts, "sort"),
    index_kernel("topk", _topk, _supports, strided_layouts, "sort"),
)
