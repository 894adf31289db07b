"""Records of the Triton kernels: codes by the scaled matrix units, or a weight that becomes bf16.

Both choose their tiles by how many rows there are, as `triton_gemm` says.
"""

from __future__ import annotations

from fusec.formats import MX_GROUP, Scaling
from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr
from fusec.kernels.launch import Call, Launch
from fusec.kernels.triton_gemm import (
    FEW_OR_SEVERAL_ROWS,
    MFMA_16,
    SOME_ROWS,
    Product,
    Tile,
    bias_operand,
    floats_refusal,
    known,
    product_kernel,
    weight_refusal,
)
from fusec.kernels.triton_rows import row_count, row_stride, scale_steps
from fusec.target import Target

SCALED_FEW = Tile(rows=32, columns=64, depth=256, warps=4, stages=2, options=MFMA_16)
SCALED_SOME = {
    "f8e4m3fn": Tile(rows=64, columns=128, depth=128, warps=4, stages=2),
    "f4e2m1x2": Tile(rows=64, columns=128, depth=256, warps=4, stages=2),
}
SCALED_MANY = {
    "f8e4m3fn": Tile(rows=128, columns=128, depth=128, warps=4, stages=2),
    "f4e2m1x2": Tile(rows=128, columns=128, depth=256, warps=4, stages=2),
}
"""By the codes of x: two work groups fit into a compute unit's shared memory."""

W_FIRST = (("W_FIRST", 1),)
"""The product is computed transposed; see the kernel."""

DEQUANT_FEW = {
    "amdgpu": Tile(rows=32, columns=64, depth=128, warps=4, stages=2, options=MFMA_16),
    "nvidia": Tile(rows=64, columns=128, depth=128, warps=4, stages=3),
}
DEQUANT_SOME = {
    "amdgpu": Tile(rows=128, columns=64, depth=64, warps=4, stages=2),
    "nvidia": Tile(rows=128, columns=128, depth=64, warps=8, stages=3, constants=W_FIRST),
}
DEQUANT_MANY = {
    "amdgpu": Tile(rows=256, columns=128, depth=64, warps=8, stages=2),
    "nvidia": Tile(rows=256, columns=128, depth=64, warps=8, stages=3, constants=W_FIRST),
}
"""Many rows to a tile, for each tile makes bf16 of its part of the weight once more."""

X_PARTS = {"bf16": 1, "f16": 2, "f32": 3}
"""Numbers of bf16 whose sum is an element exactly (8 bits each; f16 has 11, f32 has 24)."""


def scaled_refusal(code: str, target: Target, x_dtype: str) -> str | None:
    """Why the matrix units cannot multiply codes `x_dtype` by their e8m0 scales; begins `code`."""
    if not target.native_mxfp4:
        return f"{code}: native scaled MFMA needs gfx950; this is {target.name}"
    if x_dtype not in ("f8e4m3fn", "f4e2m1x2"):
        return f"{code}: scaled products are of f8e4m3fn and f4e2m1x2, not {x_dtype}"
    return None


def launch_scaled(call: Call) -> tuple[Launch, ...]:
    """A product by the scaled matrix units of x, x_scale, weight, weight_scale and perhaps bias."""
    x, x_scale, weight, weight_scale = call.inputs[:4]
    scaling = Scaling.of(call.attrs)
    kind = call.input_type(2)
    packed = 2 if kind.dtype == "f4e2m1x2" else 1
    x_scale_row, x_scale_group = scale_steps(x_scale, scaling)
    operands = {"x": x, "x_scale": x_scale, "w": weight, "w_scale": weight_scale}
    product = Product(
        call,
        module="mxfp4_linear",
        function="mx_scaled_kernel",
        rows=row_count(call.outputs[0]),
        columns=known(kind.shape[0]),
        length=known(kind.shape[1]) * packed,
        operands={**operands, **bias_operand(call)},
        strides={
            "x_stride": row_stride(x),
            "x_scale_row": x_scale_row,
            "x_scale_group": x_scale_group,
        },
        constants={
            "K_MEMORY": known(kind.memory_shape[1]) * packed,
            "W_STRIDE": known(row_stride(weight)),
            "W_SCALE_STRIDE": known(row_stride(weight_scale)),
            "X_PACK": 2 if scaling.packed else 1,
            "W_PACK": packed,
        },
    )
    some, many = SCALED_SOME[scaling.dtype], SCALED_MANY[scaling.dtype]
    return product.launches(((FEW_OR_SEVERAL_ROWS, SCALED_FEW), (SOME_ROWS, some)), many)


def _supports_scaled(graph: Graph, node: Node, target: Target) -> str | None:
    if not bool_attr(node.attrs, "has_x_scale"):
        return "scales: it takes x as codes with scales"
    x, x_scale, weight = map(graph.type, node.inputs[:3])
    if x_scale.dtype != "e8m0" or Scaling.of(node.attrs).group != MX_GROUP:
        return f"scales: the matrix units take an e8m0 scale for each {MX_GROUP} along K"
    return (
        scaled_refusal("mxfp4.arch", target, x.dtype)
        or weight_refusal(weight)
        or floats_refusal(graph, (*node.inputs[4:], node.output))
    )


def _supports_dequant(graph: Graph, node: Node, target: Target) -> str | None:
    if bool_attr(node.attrs, "has_x_scale"):
        return "scales: it takes x as floats, without scales"
    floats = (node.inputs[0], *node.inputs[3:], node.output)
    return weight_refusal(graph.type(node.inputs[1])) or floats_refusal(graph, floats)


def _launch_dequant(call: Call) -> tuple[Launch, ...]:
    x, weight, weight_scale = call.inputs[:3]
    kind = call.input_type(1)
    operands = {"x": x, "w": weight, "w_scale": weight_scale}
    product = Product(
        call,
        module="mxfp4_linear",
        function="mxfp4_dequant_kernel",
        rows=row_count(call.outputs[0]),
        columns=known(kind.shape[0]),
        length=known(kind.shape[1]) * 2,
        operands={**operands, **bias_operand(call)},
        strides={"x_stride": row_stride(x)},
        constants={
            "K_MEMORY": known(kind.memory_shape[1]) * 2,
            "W_STRIDE": known(row_stride(weight)),
            "W_SCALE_STRIDE": known(row_stride(weight_scale)),
            "X_PARTS": X_PARTS[x.dtype],
            "W_FIRST": 0,
            "AHEAD": int(call.target.family == "amdgpu"),
        },
    )
    tiers = (DEQUANT_FEW, DEQUANT_SOME, DEQUANT_MANY)
    few, some, many = (tier[call.target.family] for tier in tiers)
    return product.launches(((FEW_OR_SEVERAL_ROWS, few), (SOME_ROWS, some)), many)


SCALED = product_kernel(
    "mxfp4_linear", "triton_scaled", "mxfp4_linear", _supports_scaled, launch_scaled
)

DEQUANT = product_kernel(
    "mxfp4_linear", "triton_dequant", "mxfp4_linear", _supports_dequant, _launch_dequant
)
