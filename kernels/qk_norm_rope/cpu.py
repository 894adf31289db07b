"""qk_norm_rope on the CPU."""

from __future__ import annotations

from dataclasses import replace

from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr, float_attr, int_attr
from fusec.kernels.cpu import (
    OUTER_DIMS,
    any_float_kernel,
    cpp_kernel,
    flags,
    operands,
    outer_params,
    weight_kind,
)
from fusec.kernels.launch import Call, Launch, Layout, Param, Storage
from fusec.kernels.rope.cpu import broadcast_table, refused_tables, rotation_params
from fusec.kernels.rope.triton import Axes, axes_of
from fusec.symbolic import Dim
from fusec.target import Target


def _axes(graph: Graph, node: Node) -> Axes:
    kinds = [graph.type(value) for value in node.inputs]
    return axes_of(kinds[:2], kinds[-2:])


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    q, k, *_, cos, sin = (graph.type(value) for value in node.inputs)
    if q.dtype != k.dtype:
        return f"its queries and keys are of one dtype, not `{q.dtype}` and `{k.dtype}`"
    tokens = _axes(graph, node).tokens
    if any(q.shape[axis] != k.shape[axis] for axis in tokens):
        return f"the heads of `{q}` and `{k}` are not known at compile time"
    if len(tokens) > OUTER_DIMS:
        return f"it has {OUTER_DIMS} axes of tokens, not {len(tokens)}"
    return refused_tables(q, cos, sin, node) or any_float_kernel(graph, node, target)


def _layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    rows: Layout = "rows"
    return (rows,) * (len(node.inputs) + len(node.outputs))


def _qk_norm_rope(call: Call) -> Launch:
    (q, k), weights, tables = call.inputs[:2], call.inputs[2:-2], call.inputs[-2:]
    axes = _axes(call.graph, call.node)
    rows = (q, k, *call.outputs)

    def tokens(storage: Storage) -> Storage:
        """The storage without the axis of heads, and those that axes of size 1 are."""
        return replace(
            storage,
            shape=(*(storage.shape[axis] for axis in axes.tokens), storage.shape[-1]),
            strides=(*(storage.strides[axis] for axis in axes.tokens), 1),
        )

    def heads(values: tuple[Dim, ...], otherwise: int) -> Dim:
        return otherwise if axes.head is None else values[axes.head]

    kinds: list[Param] = [0, 0]
    if weights:
        types = (call.input_type(index) for index in (2, 3))
        kinds = [weight_kind(weight, call.input_type(0)) for weight in types]
    angles = [tokens(broadcast_table(table, q.shape)) for table in tables]
    walked = (*angles, *map(tokens, rows))
    has_norm = bool_attr(call.attrs, "has_norm")
    params = (
        *outer_params(*walked),
        *(heads(storage.shape, 1) for storage in (q, k)),
        *(heads(storage.strides, 0) for storage in rows),
        *rotation_params(call, q, tables[0]),
        *flags(has_norm),
        *kinds,
        float_attr(call.attrs, "eps"),
        int_attr(call.attrs, "weight_offset"),
    )
    return Launch(f"fusec_qk_norm_rope_{q.dtype}", operands(call), params)


KERNELS = (cpp_kernel("qk_norm_rope", _qk_norm_rope, supports=_supports, layouts=_layouts),)
