"""moe on the CPU, with the experts' weights packed when the artifact is written."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fusec.ir import Graph, Node, TensorType, Weight
from fusec.ir.types import Attrs, bool_attr, float_attr, str_attr
from fusec.ir.weights import Bits
from fusec.kernels.cpu import (
    ACTIVATIONS,
    cpp_kernel,
    flags,
    float_kernel,
    operands,
    pack_panels,
    pack_transposed_weight,
    pack_weight,
    packed_size,
)
from fusec.kernels.launch import Call, Launch, Layout
from fusec.kernels.registry import Packing
from fusec.target import Target


def pack_gate_up(weight: Bits, dtype: str, *, layout: str, gated: bool, transposed: bool) -> Bits:
    """Gate and up columns of each panel next to each other: `moe/kernel.cpp` has the layout.

    Args:
        weight: [E, 2I, H], [E, I, H] unless `gated`; with `transposed` the last two swapped.
        dtype: of the weight, which is in storage form.
        layout: `split` (gate rows first) or `interleaved`.
        gated: whether there are gate and up rows.
        transposed: whether rows and columns are swapped.
    """
    rows = weight.swapaxes(-1, -2) if transposed else weight
    if not gated:
        return pack_panels(rows, dtype)
    half = rows.shape[1] // 2
    split = (rows[:, :half], rows[:, half:])
    gate, up = (rows[:, ::2], rows[:, 1::2]) if layout == "interleaved" else split
    return np.stack((pack_panels(gate, dtype), pack_panels(up, dtype)), axis=2)


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    x, weights, indices = (graph.type(value).dtype for value in node.inputs[:3])
    if any(value not in graph.parameters for value in node.inputs[3:5]):
        return "it packs the experts ahead of time, and these are computed at run time"
    if any(graph.type(value).dtype != x for value in node.inputs[3:]):
        return f"its experts are of the dtype of the tokens, `{x}`"
    if weights not in ("f32", x):
        return f"its routing weights are f32 or `{x}`, not `{weights}`"
    if indices not in ("i32", "i64"):
        return f"its expert indices are i32 or i64, not `{indices}`"
    return float_kernel(graph, node, target)


def _layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    rows: Layout = "rows"
    dense: Layout = "contiguous"
    return (rows, rows, rows, *(dense,) * (len(node.inputs) - 3), rows)


def _packing(graph: Graph, node: Node, target: Target) -> Mapping[int, Packing]:
    attrs = node.attrs
    pack_down = pack_transposed_weight if bool_attr(attrs, "transposed") else pack_weight
    return {3: lambda weight: _packed_gate_up(weight, attrs), 4: pack_down}


def _packed_gate_up(weight: Weight, attrs: Attrs) -> Weight:
    gated, transposed = bool_attr(attrs, "gated"), bool_attr(attrs, "transposed")
    layout = str_attr(attrs, "gate_up_layout")
    dtype = weight.type.dtype
    experts, rows, depth = weight.shape
    if transposed:
        rows, depth = depth, rows
    parts = 2 if gated else 1
    size = experts * parts * packed_size(dtype, rows // parts, depth)
    return weight.derive(
        f"{weight.name}.panels",
        TensorType(dtype, (size,)),
        f"gate_up panels {layout} {gated} {transposed}",
        lambda bits: pack_gate_up(
            bits, dtype, layout=layout, gated=gated, transposed=transposed
        ).reshape(-1),
    )


def _moe(call: Call) -> Launch:
    x, weights, indices = call.inputs[:3]
    gate_up, down = call.input_type(3), call.input_type(4)
    attrs, out = call.attrs, call.outputs[0]
    inner = down.shape[1] if bool_attr(attrs, "transposed") else down.shape[2]
    activation = str_attr(attrs, "activation")
    oai = activation == "swiglu_oai"
    gated = bool_attr(attrs, "gated")
    params = (
        *(x.shape[0], x.shape[1], inner, gate_up.shape[0], weights.shape[1]),
        *(storage.strides[0] for storage in (x, out, weights, indices)),
        2 if weights.dtype == "f32" else 1,
        8 if indices.dtype == "i64" else 4,
        ACTIVATIONS[activation],
        float_attr(attrs, "alpha") if oai else 0.0,
        float_attr(attrs, "limit") if oai else 0.0,
        *flags(gated, bool_attr(attrs, "has_bias")),
        *flags(gated and str_attr(attrs, "gate_up_layout") == "interleaved"),
    )
    return Launch(f"fusec_moe_{x.dtype}", operands(call), params)


KERNELS = (cpp_kernel("moe", _moe, supports=_supports, layouts=_layouts, packing=_packing),)
