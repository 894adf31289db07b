"""The record of `triton_kernel.py`."""

from __future__ import annotations

import math

from fusec import symbolic
from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr, float_attr, int_attr
from fusec.kernels.launch import Call, Launch
from fusec.kernels.registry import Kernel
from fusec.kernels.rope.triton import (
    all_rows,
    axes_of,
    head_count,
    heads_of,
    parts_of,
    pass_strides,
    pass_tokens,
    refused_rows,
    style_constants,
    token_sizes,
    tokens_of,
    warps_of,
)
from fusec.kernels.triton_rows import FAMILIES, RowArguments, Tile, row_length, supports_rows
from fusec.target import Target


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    refused = supports_rows(graph, node, target)
    if refused is not None:
        return refused
    kinds = [graph.type(value) for value in node.inputs]
    rows, tables = kinds[:2], kinds[-2:]
    for axis in axes_of(rows, tables).tokens:
        if rows[0].shape[axis] != rows[1].shape[axis]:
            return f"the heads of `{rows[0]}` and `{rows[1]}` are not known at compile time"
    return refused_rows(rows, tables, int_attr(node.attrs, "rotary_dim"))


def _launch(call: Call) -> Launch:
    (q, k), weights, (cos, sin) = call.inputs[:2], call.inputs[2:-2], call.inputs[-2:]
    kinds = [call.input_type(index) for index in range(len(call.inputs))]
    axes = axes_of(kinds[:2], kinds[-2:])
    length = row_length(kinds[0])
    parts = parts_of(length, int_attr(call.attrs, "rotary_dim"))
    heads = [head_count(kind, axes) for kind in kinds[:2]]
    blocks = [heads_of(count, parts, call.target) for count in heads]
    tokens = min(
        tokens_of(count, block, parts, call.target)
        for count, block in zip(heads, blocks, strict=True)
    )
    arguments = RowArguments()
    arguments.pointer("q", q)
    arguments.pointer("k", k)
    for place, name in enumerate(("w_q", "w_k")):
        arguments.pointer(name, weights[place] if weights else None)
    rows = {"q": q, "k": k, "y_q": call.outputs[0], "y_k": call.outputs[1]}
    tables = {"cos": cos, "sin": sin}
    for name in ("cos", "sin"):
        arguments.pointer(name, tables[name])
    for name in ("y_q", "y_k"):
        arguments.pointer(name, rows[name])
    pass_tokens(arguments, q, axes)
    for name, storage in rows.items():
        pass_strides(arguments, name, storage, axes, kinds[0].rank, head=True)
    for name, storage in tables.items():
        pass_strides(arguments, name, storage, axes, kinds[0].rank, head=False)
    has_norm = bool_attr(call.attrs, "has_norm")
    arguments.number("eps", float_attr(call.attrs, "eps") if has_norm else None)
    arguments.constants |= {
        "N": length,
        "HALF": parts.half,
        "BLOCK": parts.block,
        "REST_BLOCK": parts.rest_block,
        "Q_HEADS": heads[0],
        "K_HEADS": heads[1],
        "Q_BLOCK": blocks[0],
        "K_BLOCK": blocks[1],
        "TOKENS": tokens,
        **style_constants(call, cos),
        "NORM": int(has_norm),
        "WEIGHT": int(bool(weights)),
        "WEIGHT_OFFSET": int_attr(call.attrs, "weight_offset"),
    }
    rows_held = max(blocks) * tokens
    tile = Tile(parts.padded, rows_held, warps_of(rows_held, parts, call.target))
    tiles = symbolic.ceil_divide(token_sizes(q, axes)[0], tokens)
    programs = sum(math.ceil(count / block) for count, block in zip(heads, blocks, strict=True))
    module = "qk_norm_rope.triton_kernel"
    return arguments.launch(module, "qk_norm_rope_kernel", tile, tiles, programs)


TRITON = (
    Kernel(
        op="qk_norm_rope",
        name="qk_norm_rope.triton",
        provider="triton",
        families=FAMILIES,
        source="qk_norm_rope/triton_kernel.py",
        supports=_supports,
        launch=_launch,
        layouts=all_rows,
    ),
)
