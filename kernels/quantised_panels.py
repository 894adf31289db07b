"""Weights in few bits as the C++ kernels read them; `include/fusec/quantised.h` has the layout.

Codes and scales are packed apart, for they are two operands.  Experts are packed as one weight
after the other.
"""

from __future__ import annotations

import numpy as np

from fusec.ir import Graph, Node, TensorType, Weight
from fusec.ir.types import bool_attr
from fusec.ir.weights import Bits
from fusec.kernels.cpu import FLOATS, PANEL, operands, outer_params
from fusec.kernels.launch import Call, Launch
from fusec.symbolic import Dim

DEPTH = 32
"""What K is padded to."""

CODE_BITS = {"f4e2m1x2": 4, "f8e4m3fn": 8}
"""Bits of a code, by the dtype of a weight."""

ONE = 0x7F
"""The e8m0 byte of the scale 1, for columns that are padding."""


def float_rows_refusal(graph: Graph, node: Node) -> str | None:
    """Why x, codes, scales and perhaps bias are not what the kernels of linears take."""
    x, out = graph.type(node.inputs[0]).dtype, graph.type(node.output).dtype
    if x not in FLOATS or out not in (x, "f32"):
        return f"it computes {', '.join(FLOATS)}, not {out} of {x}"
    for value in node.inputs[3:]:
        if graph.type(value).dtype != x:
            return f"the bias is {graph.type(value).dtype}, the rows are {x}"
    for value in node.inputs[1:3]:
        if value not in graph.parameters:
            return "it packs the weight ahead of time, and this one is computed at run time"
    return None


def linear_launch(call: Call, op: str, params: tuple[Dim, ...]) -> Launch:
    """A linear of x, codes, scales and perhaps bias; `params` begin with N and K."""
    x, out = call.inputs[0], call.outputs[0]
    wide = "" if out.dtype == x.dtype else f"_{out.dtype}"
    has_bias = int(bool_attr(call.attrs, "has_bias"))
    return Launch(
        f"fusec_{op}_{x.dtype}{wide}",
        operands(call),
        (*outer_params(x, out), *params, has_bias),
    )


def _up_to(size: int, step: int) -> int:
    return -(-size // step) * step


def codes_size(rows: int, depth: int, bits: int) -> int:
    """Bytes of the packed codes of a weight [rows, depth]."""
    return _up_to(rows, PANEL) * _up_to(depth, DEPTH) * bits // 8


def pack_code_panels(codes: Bits, bits: int) -> Bits:
    """Codes as panels of 32 columns.

    Args:
        codes: u8 [..., N, K], a code each; of 4-bit floats [..., N, K/2], the even one in the low
            bits.
        bits: 4 or 8.

    Returns:
        u8 [..., bytes], `codes_size` of them.
    """
    plain = codes.astype(np.uint8, copy=False)
    if bits == 4:
        *outer, rows, pairs = plain.shape
        plain = np.stack((plain & 15, plain >> 4), axis=-1).reshape(*outer, rows, 2 * pairs)
    *batch, rows, depth = plain.shape
    panels, padded = -(-rows // PANEL), _up_to(depth, DEPTH)
    blocks = np.zeros((*batch, panels * PANEL, padded), np.uint16)
    blocks[..., :rows, :depth] = plain
    places = 16 // bits
    grouped = blocks.reshape(*batch, panels, PANEL, padded // (2 * places), places, 2)
    words = np.zeros((*grouped.shape[:-2], 2), np.uint16)
    for place in range(places):
        words |= grouped[..., place, :] << np.uint16(bits * place)
    ordered = np.ascontiguousarray(np.moveaxis(words, -3, -2), dtype="<u2")
    return ordered.reshape(*batch, codes_size(rows, depth, bits) // 2).view(np.uint8)


def pack_scale_panels(scale: Bits, block: tuple[int, int], rows: int) -> Bits:
    """Scales as panels of 32 columns.

    Args:
        scale: [..., ceil(N/block rows), groups along K].
        block: rows and columns of the weight that share a scale.
        rows: N.

    Returns:
        [..., ceil(N/32), groups, 32]; padded columns have the scale 1 as e8m0, else 0.
    """
    panels = -(-rows // PANEL)
    *batch, _, groups = scale.shape
    fill = ONE if scale.dtype == np.uint8 else 0
    columns = np.full((*batch, panels * PANEL, groups), fill, scale.dtype)
    columns[..., :rows, :] = scale[..., np.arange(rows) // block[0], :]
    shaped = columns.reshape(*batch, panels, PANEL, groups)
    return np.ascontiguousarray(shaped.swapaxes(-1, -2))


def pack_codes(weight: Weight) -> Weight:
    """The codes [..., N, K] or [..., N, K/2] of a weight, in panels."""
    bits = CODE_BITS[weight.type.dtype]
    *batch, rows, columns = weight.shape
    depth = columns * 8 // bits
    size = int(np.prod(batch, dtype=np.int64)) * codes_size(rows, depth, bits)
    return weight.derive(
        f"{weight.name}.panels",
        TensorType("u8", (size,)),
        "code panels",
        lambda held: pack_code_panels(held, bits).reshape(-1),
    )


def pack_scales(weight: Weight, block: tuple[int, int], rows: int) -> Weight:
    """The scales [..., ceil(N/block rows), groups] of a weight [..., N, K], in panels."""
    *batch, _, groups = weight.shape
    size = int(np.prod(batch, dtype=np.int64)) * _up_to(rows, PANEL) * groups
    return weight.derive(
        f"{weight.name}.panels",
        TensorType(weight.type.dtype, (size,)),
        f"scale panels of {rows} rows in blocks of {block[0]}x{block[1]}",
        lambda held: pack_scale_panels(held, block, rows).reshape(-1),
    )
