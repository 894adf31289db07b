"""Routed experts on the CPU, with their weights packed when the artifact is written.

`moe` reads weights of the dtype of the tokens; `moe_mxfp4` and `moe_fp8` keep them in 4 and 8 bits
until they are used, and take tokens that are floats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from fusec.formats import MX_GROUP
from fusec.ir import Graph, Node, TensorType, Weight
from fusec.ir.ops.quantised import has_scaled_rows, weight_block
from fusec.ir.types import Attrs, bool_attr, float_attr, str_attr
from fusec.ir.weights import Bits
from fusec.kernels.cpu import (
    ACTIVATIONS,
    PANEL,
    cpp_kernel,
    flags,
    float_kernel,
    gate_and_up,
    operands,
    pack_panels,
    pack_transposed_weight,
    pack_weight,
    packed_size,
    precision_param,
)
from fusec.kernels.launch import Call, Launch, Layout, Param
from fusec.kernels.quantised_panels import (
    CODE_BITS,
    DEPTH,
    ONE,
    codes_size,
    pack_code_panels,
    pack_codes,
    pack_scale_panels,
    pack_scales,
)
from fusec.kernels.registry import Packing
from fusec.symbolic import Dim
from fusec.target import Target

# --- packing --------------------------------------------------------------------------------


def rows_in_turn(rows: Bits, layout: str, fill: int = 0) -> Bits:
    """Gate and up rows in turns of a panel.

    Args:
        rows: [..., 2I, K].
        layout: `split` (gate rows first) or `interleaved`.
        fill: what padding holds.

    Returns:
        [..., 2 * ceil(I/32) * 32, K].
    """
    *batch, count, depth = rows.shape
    half = count // 2
    panels = -(-half // PANEL)
    turns = np.full((*batch, panels, 2, PANEL, depth), fill, rows.dtype)
    for number, part in enumerate(gate_and_up(rows, layout, axis=-2)):
        padded = np.full((*batch, panels * PANEL, depth), fill, rows.dtype)
        padded[..., :half, :] = part
        turns[..., number, :, :] = padded.reshape(*batch, panels, PANEL, depth)
    return turns.reshape(*batch, 2 * panels * PANEL, depth)


def pack_gate_up(weight: Bits, dtype: str, *, layout: str, gated: bool, transposed: bool) -> Bits:
    """Gate and up columns of each panel next to each other: `moe/kernel.cpp` has the layout.

    Args:
        weight: [..., 2I, H], [..., I, H] unless `gated`; with `transposed` the last two swapped.
        dtype: of the weight, which is in storage form.
        layout: `split` (gate rows first) or `interleaved`.
        gated: whether there are gate and up rows.
        transposed: whether rows and columns are swapped.
    """
    rows = weight.swapaxes(-1, -2) if transposed else weight
    return pack_panels(rows_in_turn(rows, layout) if gated else rows, dtype)


def pack_gate_up_codes(codes: Bits, bits: int, *, layout: str, gated: bool) -> Bits:
    """Codes [..., 2I, H], or pairs of them, as `pack_gate_up` packs numbers."""
    return pack_code_panels(rows_in_turn(codes, layout) if gated else codes, bits)


def pack_gate_up_scales(
    scale: Bits, block: tuple[int, int], rows: int, *, layout: str, gated: bool
) -> Bits:
    """The scales of gate and up as `pack_gate_up_codes` packs their codes.

    Args:
        scale: [..., ceil(2I/block rows), groups along H].
        block: rows and columns that share a scale.
        rows: 2I, or I unless `gated`.
        layout: `split` (gate rows first) or `interleaved`.
        gated: whether there are gate and up rows.
    """
    if not gated:
        return pack_scale_panels(scale, block, rows)
    each = scale[..., np.arange(rows) // block[0], :]
    turns = rows_in_turn(each, layout, ONE if scale.dtype == np.uint8 else 0)
    return pack_scale_panels(turns, (1, block[1]), turns.shape[-2])


def _packed(
    weight: Weight, dtype: str, size: int, how: str, pack: Callable[[Bits], Bits]
) -> Weight:
    """A weight [E, ...] packed expert by expert, which bounds the memory that packing takes."""

    def change(bits: Bits) -> Bits:
        return np.concatenate([pack(expert).reshape(-1) for expert in bits])

    packed = TensorType(dtype, (weight.shape[0] * size,))
    return weight.derive(f"{weight.name}.panels", packed, how, change)


def _padded_rows(rows: int, attrs: Attrs) -> int:
    """Rows of packed gate_up, of which there are `rows`."""
    parts = 2 if bool_attr(attrs, "gated") else 1
    return -(-rows // parts // PANEL) * PANEL * parts


def _how(what: str, attrs: Attrs) -> str:
    layout, gated = str_attr(attrs, "gate_up_layout"), bool_attr(attrs, "gated")
    return f"gate_up {what} {layout} {gated}"


def _gate_up(weight: Weight, attrs: Attrs) -> Weight:
    transposed, dtype = bool_attr(attrs, "transposed"), weight.type.dtype
    _, rows, depth = weight.shape
    if transposed:
        rows, depth = depth, rows
    pack = partial(
        pack_gate_up,
        dtype=dtype,
        layout=str_attr(attrs, "gate_up_layout"),
        gated=bool_attr(attrs, "gated"),
        transposed=transposed,
    )
    size = packed_size(dtype, _padded_rows(rows, attrs), depth)
    return _packed(weight, dtype, size, f"{_how('panels', attrs)} {transposed}", pack)


def _gate_up_codes(weight: Weight, attrs: Attrs) -> Weight:
    bits = CODE_BITS[weight.type.dtype]
    _, rows, columns = weight.shape
    pack = partial(
        pack_gate_up_codes,
        bits=bits,
        layout=str_attr(attrs, "gate_up_layout"),
        gated=bool_attr(attrs, "gated"),
    )
    size = codes_size(_padded_rows(rows, attrs), columns * 8 // bits, bits)
    return _packed(weight, "u8", size, _how("code panels", attrs), pack)


def _gate_up_scales(weight: Weight, attrs: Attrs, block: tuple[int, int], rows: int) -> Weight:
    pack = partial(
        pack_gate_up_scales,
        block=block,
        rows=rows,
        layout=str_attr(attrs, "gate_up_layout"),
        gated=bool_attr(attrs, "gated"),
    )
    size = _padded_rows(rows, attrs) * weight.shape[2]
    how = f"{_how('scale panels', attrs)} of {rows} rows in blocks of {block[0]}x{block[1]}"
    return _packed(weight, weight.type.dtype, size, how, pack)


def _packing(graph: Graph, node: Node, target: Target) -> Mapping[int, Packing]:
    attrs = node.attrs
    pack_down = pack_transposed_weight if bool_attr(attrs, "transposed") else pack_weight
    return {3: partial(_gate_up, attrs=attrs), 4: pack_down}


def _quantised_packing(graph: Graph, node: Node, target: Target) -> Mapping[int, Packing]:
    attrs = node.attrs
    block = (1, MX_GROUP) if node.op == "moe_mxfp4" else weight_block(attrs)
    gate_up_rows, down_rows = (graph.parameters[node.inputs[at]].shape[1] for at in (3, 5))
    return {
        3: partial(_gate_up_codes, attrs=attrs),
        4: partial(_gate_up_scales, attrs=attrs, block=block, rows=gate_up_rows),
        5: pack_codes,
        6: partial(pack_scales, block=block, rows=down_rows),
    }


# --- what is refused ------------------------------------------------------------------------


def _routed(graph: Graph, node: Node, weights: Sequence[str], target: Target) -> str | None:
    """Why tokens, routes or `weights` are none that it takes."""
    x, shares, indices = (graph.type(value).dtype for value in node.inputs[:3])
    if any(value not in graph.parameters for value in weights):
        return "it packs the experts ahead of time, and these are computed at run time"
    if shares not in ("f32", x):
        return f"its routing weights are f32 or `{x}`, not `{shares}`"
    if indices not in ("i32", "i64"):
        return f"its expert indices are i32 or i64, not `{indices}`"
    return float_kernel(graph, node, target)


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    x = graph.type(node.inputs[0]).dtype
    reason = _routed(graph, node, node.inputs[3:5], target)
    if reason is None and any(graph.type(value).dtype != x for value in node.inputs[3:]):
        return f"its experts are of the dtype of the tokens, `{x}`"
    return reason


def _supports_quantised(graph: Graph, node: Node, target: Target) -> str | None:
    if bool_attr(node.attrs, "has_x_scale") or has_scaled_rows(node.attrs):
        return "it takes tokens as floats, without scales"
    x = graph.type(node.inputs[0]).dtype
    reason = _routed(graph, node, node.inputs[3:7], target)
    if reason is not None:
        return reason
    if any(graph.type(value).dtype != x for value in (*node.inputs[7:], node.output)):
        return f"its biases and its result are of the dtype of the tokens, `{x}`"
    held = [graph.type(value) for value in node.inputs[3:7]]
    if any(kind.padded is not None for kind in held):
        return "it pads weights itself"
    wanted = ("f4e2m1x2", "e8m0") if node.op == "moe_mxfp4" else ("f8e4m3fn", "f32")
    if tuple(kind.dtype for kind in held) != wanted * 2:
        return f"its experts are {wanted[0]} with {wanted[1]} scales, not {held[0]} and {held[2]}"
    if node.op == "moe_fp8" and any(group % DEPTH for group in _groups(held, node.attrs)):
        columns = weight_block(node.attrs)[1]
        return f"it takes a scale for each multiple of {DEPTH} inputs, not for each {columns}"
    return None


def _groups(held: Sequence[TensorType], attrs: Attrs) -> tuple[int, ...]:
    """Inputs of gate_up and of down that share a scale, 0 where all do."""
    columns = weight_block(attrs)[1]
    return tuple(0 if scale.shape[2] == 1 else columns for scale in (held[1], held[3]))


# --- launches -------------------------------------------------------------------------------


def _layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    rows: Layout = "rows"
    dense: Layout = "contiguous"
    return (rows, rows, rows, *(dense,) * (len(node.inputs) - 3), rows)


def _params(call: Call, inner: Dim) -> tuple[Param, ...]:
    """What all symbols take; `inner` is I."""
    x, weights, indices = call.inputs[:3]
    attrs, out = call.attrs, call.outputs[0]
    activation = str_attr(attrs, "activation")
    gated = bool_attr(attrs, "gated")
    return (
        *(x.shape[0], x.shape[1], inner, call.input_type(3).shape[0], weights.shape[1]),
        *(storage.strides[0] for storage in (x, out, weights, indices)),
        2 if weights.dtype == "f32" else 1,
        8 if indices.dtype == "i64" else 4,
        ACTIVATIONS[activation],
        float_attr(attrs, "alpha", 0.0),
        float_attr(attrs, "limit", 0.0),
        *flags(gated, bool_attr(attrs, "has_bias")),
        *flags(gated and str_attr(attrs, "gate_up_layout") == "interleaved"),
    )


def _moe(call: Call) -> Launch:
    axis = 1 if bool_attr(call.attrs, "transposed") else 2
    params = (*_params(call, call.input_type(4).shape[axis]), precision_param(call.target))
    return Launch(f"fusec_moe_{call.inputs[0].dtype}", operands(call), params)


def _moe_mxfp4(call: Call) -> Launch:
    params = _params(call, call.input_type(5).shape[2] * 2)
    return Launch(f"fusec_moe_mxfp4_{call.inputs[0].dtype}", operands(call), params)


def _moe_fp8(call: Call) -> Launch:
    held = [call.input_type(at) for at in range(3, 7)]
    params = (*_params(call, held[2].shape[2]), *_groups(held, call.attrs))
    return Launch(f"fusec_moe_fp8_{call.inputs[0].dtype}", operands(call), params)


KERNELS = (
    cpp_kernel("moe", _moe, supports=_supports, layouts=_layouts, packing=_packing),
    *(
        cpp_kernel(
            op,
            launch,
            supports=_supports_quantised,
            layouts=_layouts,
            packing=_quantised_packing,
            source="moe",
        )
        for op, launch in (("moe_mxfp4", _moe_mxfp4), ("moe_fp8", _moe_fp8))
    ),
)
