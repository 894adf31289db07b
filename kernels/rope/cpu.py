"""rope on the CPU."""

from __future__ import annotations

from dataclasses import replace

from fusec.ir import Graph, Node, TensorType
from fusec.ir.types import bool_attr, int_attr, str_attr
from fusec.kernels.cpu import (
    OUTER_DIMS,
    any_float_kernel,
    cpp_kernel,
    expanded_strides,
    flags,
    operands,
    outer_params,
)
from fusec.kernels.launch import Call, Launch, Param, Storage
from fusec.symbolic import Dim
from fusec.target import Target


def refused_tables(x: TensorType, cos: TensorType, sin: TensorType, node: Node) -> str | None:
    """Why rows of `x` are not rotated by these tables, or `None`."""
    if cos.dtype != sin.dtype or cos.dtype not in ("f32", x.dtype):
        return f"its tables are f32 or `{x.dtype}`, not `{cos.dtype}` and `{sin.dtype}`"
    if int_attr(node.attrs, "rotary_dim") % 2:
        return "it turns pairs, and `rotary_dim` is odd"
    return None


def broadcast_table(table: Storage, shape: tuple[Dim, ...]) -> Storage:
    """The table with the outer sizes of x: stride 0 where it has size 1 or no axis."""
    outer = replace(table, shape=table.shape[:-1], strides=table.strides[:-1])
    strides = (*expanded_strides(outer, shape[:-1]), 1)
    return replace(table, shape=(*shape[:-1], table.shape[-1]), strides=strides)


def rotation_params(call: Call, x: Storage, table: Storage) -> tuple[Param, ...]:
    """The fields of `fusec::Rotation` in `include/fusec/rotation.h`."""
    rotary = int_attr(call.attrs, "rotary_dim")
    interleaved = str_attr(call.attrs, "style") == "interleaved"
    deinterleave = interleaved and bool_attr(call.attrs, "deinterleave")
    twice = table.shape[-1] == rotary and interleaved and not deinterleave
    return (
        x.shape[-1],
        rotary,
        *flags(interleaved, deinterleave),
        2 if twice else 1,
        1 if table.dtype == x.dtype else 2,
    )


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    x, cos, sin = (graph.type(value) for value in node.inputs)
    if x.rank > OUTER_DIMS + 1:
        return f"it takes operands of rank up to {OUTER_DIMS + 1}, not {x.rank}"
    return refused_tables(x, cos, sin, node) or any_float_kernel(graph, node, target)


def _heads_inside(storages: tuple[Storage, ...], table: Storage) -> list[Storage]:
    """The storages with the last axis along which the table does not change inside the others.

    Rows may be walked in any order, and so the angles of a token are read once for all heads.
    """
    rank = len(table.shape)
    heads = [axis for axis in range(rank - 1) if table.strides[axis] == 0][-1:]
    axes = [axis for axis in range(rank - 1) if axis not in heads] + heads
    return [
        replace(
            storage,
            shape=tuple(storage.shape[axis] for axis in (*axes, rank - 1)),
            strides=tuple(storage.strides[axis] for axis in (*axes, rank - 1)),
        )
        for storage in storages
    ]


def _rope(call: Call) -> Launch:
    x, cos, sin = call.inputs
    out = call.outputs[0]
    tables = (broadcast_table(cos, x.shape), broadcast_table(sin, x.shape))
    params = (
        *outer_params(*_heads_inside((x, *tables, out), tables[0])),
        *rotation_params(call, x, cos),
    )
    return Launch(f"fusec_rope_{x.dtype}", operands(call), params)


KERNELS = (cpp_kernel("rope", _rope, supports=_supports),)
