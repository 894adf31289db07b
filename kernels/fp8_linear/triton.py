"""Records of the Triton kernels: f32 scales by the 8-bit matrix units, e8m0 scales by scaled ones.

Both choose their tiles by how many rows there are, as `triton_gemm` says.
"""

from __future__ import annotations

from fusec.formats import MX_GROUP, Scaling
from fusec.ir import Graph, Node
from fusec.ir.ops.quantised import has_scaled_rows, weight_block
from fusec.kernels.launch import Call, Launch
from fusec.kernels.mxfp4_linear.triton import launch_scaled, scaled_refusal
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

LEAST_DEPTH = 32
"""Elements along K that the 8-bit matrix units take at least."""

FEW = {
    "amdgpu": Tile(rows=32, columns=64, depth=256, warps=4, stages=2, options=MFMA_16),
    "nvidia": Tile(rows=64, columns=128, depth=128, warps=4, stages=4),
}
SOME = {
    "amdgpu": Tile(rows=64, columns=128, depth=128, warps=4, stages=2, options=MFMA_16),
    "nvidia": Tile(rows=64, columns=128, depth=128, warps=4, stages=4),
}
MANY = {
    "amdgpu": Tile(rows=128, columns=128, depth=128, warps=8, stages=2, options=MFMA_16),
    "nvidia": Tile(rows=128, columns=128, depth=128, warps=8, stages=4),
}


def _supports_f32_scales(graph: Graph, node: Node, target: Target) -> str | None:
    if not has_scaled_rows(node.attrs):
        return "scales: it takes x as codes with scales"
    x, x_scale, weight, weight_scale = map(graph.type, node.inputs[:4])
    if x.dtype != target.fp8:
        return f"fp8.arch: the matrix units of {target.name} take {target.fp8}, not {x.dtype}"
    if {x_scale.dtype, weight_scale.dtype} != {"f32"}:
        return f"scales: it takes f32, not {x_scale.dtype} and {weight_scale.dtype}"
    refusal = weight_refusal(weight) or floats_refusal(graph, (*node.inputs[4:], node.output))
    if refusal is not None:
        return refusal
    for group in (Scaling.of(node.attrs).group, weight_block(node.attrs)[1]):
        if 0 < group < known(weight.shape[1]) and _depth(group) < LEAST_DEPTH:
            return f"scales: a scale for each {group} along K, no multiple of {LEAST_DEPTH}"
    return None


def _depth(group: int) -> int:
    """The largest power of two that divides `group`."""
    return group & -group


def _launch_f32_scales(call: Call) -> tuple[Launch, ...]:
    x, x_scale, weight, weight_scale = call.inputs[:4]
    scaling = Scaling.of(call.attrs)
    rows, columns = weight_block(call.attrs)
    n, k = map(known, call.input_type(2).shape)
    x_scale_row, x_scale_group = scale_steps(x_scale, scaling)
    operands = {"x": x, "x_scale": x_scale, "w": weight, "w_scale": weight_scale}
    product = Product(
        call,
        module="fp8_linear",
        function="fp8_linear_kernel",
        rows=row_count(call.outputs[0]),
        columns=n,
        length=k,
        operands={**operands, **bias_operand(call)},
        strides={
            "x_stride": row_stride(x),
            "x_scale_row": x_scale_row,
            "x_scale_group": x_scale_group,
        },
        constants={
            "W_STRIDE": known(row_stride(weight)),
            "W_SCALE_STRIDE": known(row_stride(weight_scale)),
            "X_GROUP": scaling.group,
            "W_ROWS": rows,
            "W_COLUMNS": columns,
        },
    )
    depths = [_depth(group) for group in (scaling.group, columns) if 0 < group < k]
    tiles = (tier[call.target.family] for tier in (FEW, SOME, MANY))
    few, some, many = (tile.at_most(min((tile.depth, *depths))) for tile in tiles)
    return product.launches(((FEW_OR_SEVERAL_ROWS, few), (SOME_ROWS, some)), many)


def _supports_e8m0_scales(graph: Graph, node: Node, target: Target) -> str | None:
    if not has_scaled_rows(node.attrs):
        return "scales: it takes x as codes with scales"
    x, x_scale, weight, weight_scale = map(graph.type, node.inputs[:4])
    if {x_scale.dtype, weight_scale.dtype} != {"e8m0"}:
        return f"scales: it takes e8m0, not {x_scale.dtype} and {weight_scale.dtype}"
    if weight_block(node.attrs) != (1, MX_GROUP) or Scaling.of(node.attrs).group != MX_GROUP:
        return f"scales: the matrix units take one for each {MX_GROUP} along K"
    return (
        scaled_refusal("mxfp8.arch", target, x.dtype)
        or weight_refusal(weight)
        or floats_refusal(graph, (*node.inputs[4:], node.output))
    )


F32_SCALES = product_kernel(
    "fp8_linear", "triton", "fp8_linear", _supports_f32_scales, _launch_f32_scales
)

E8M0_SCALES = product_kernel(
    "fp8_linear", "triton_scaled", "mxfp4_linear", _supports_e8m0_scales, launch_scaled
)
