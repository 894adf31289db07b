"""The two products of routed experts: what one launch of `moe_product_kernel` is told."""

from __future__ import annotations

from dataclasses import dataclass

from fusec import symbolic
from fusec.formats import MX_GROUP, Scaling
from fusec.ir.ops.quantised import weight_block
from fusec.ir.types import float_attr, str_attr
from fusec.kernels.launch import Launch, Storage
from fusec.kernels.moe.operands import (
    FP8,
    MXFP4_NATIVE,
    MXFP4_WIDENED,
    PLAIN,
    Experts,
    Order,
    even_groups,
    launch,
    scale_limits,
)
from fusec.kernels.triton_gemm import known
from fusec.kernels.triton_rows import ROUNDINGS, is_divisible, scale_steps
from fusec.symbolic import Dim

ACTIVATIONS = {
    "silu": 0,
    "gelu": 1,
    "gelu_tanh": 2,
    "quick_gelu": 3,
    "relu": 4,
    "relu2": 5,
    "swiglu_oai": 6,
    "swiglu_limit": 7,
}
"""Numbers of the activations in `triton_activation_kernel.py`."""

CODE_BITS = {"f8e4m3fn": (3, 8), "f8e4m3fnuz": (3, 7)}
"""Bits of mantissa, and the exponent of the largest value, of formats that are quantised to."""


@dataclass(frozen=True, slots=True)
class Product:
    """One of the two products.

    Attributes:
        first: whether it is the one with gate_up.
        a: its rows.
        a_scale: their scales, or `None`.
        weight: [E, N, K], or [E, K, N] where transposed.
        scale: of the weight, or `None`.
        y: where its results lie.
        y_scale: where their scales lie, if it makes any.
        depth: K.
        width: N.
    """

    first: bool
    a: Storage
    a_scale: Storage | None
    weight: Storage
    scale: Storage | None
    y: Storage
    y_scale: Storage | None
    depth: int
    width: int


def launch_product(experts: Experts, order: Order, product: Product) -> Launch:
    """One of the two products, and what follows it in registers."""
    call, scaling = experts.call, experts.scaling
    a, weight = product.a, product.weight
    scale = product.scale if product.scale is not None else weight
    a_scale = product.a_scale if product.a_scale is not None else a
    y_scale = product.y_scale if product.y_scale is not None else product.y
    bias = experts.biases[0 if product.first else 1] if experts.biases else a
    wide = product.first and experts.interleaved
    halves = product.first and experts.gated and not wide
    width = product.width // 2 if halves else product.width
    block_n, block_k = _tile(experts, product, wide)
    row_axis, column_axis = (2, 1) if experts.transposed else (1, 2)
    mantissa, highest = CODE_BITS[scaling.dtype] if scaling is not None else (0, 0)
    a_scale_row, a_scale_group = _scale_strides(product.a_scale, scaling, product.first)
    block = weight_block(call.attrs) if experts.format == FP8 else (1, MX_GROUP)
    quantises = product.y_scale is not None and scaling is not None
    # NVIDIA GPUs widen 4-bit floats, add 8-bit ones twice and multiply f32 in registers: many for
    # four warps.
    crowded = call.target.family == "nvidia" and (experts.format != PLAIN or _is_wide(experts))
    columns = block_n // 2 if wide else block_n
    return launch(
        "triton_kernel",
        "moe_product_kernel",
        {
            "p_a": a,
            "p_a_scale": a_scale,
            "p_w": weight,
            "p_w_scale": scale,
            "p_bias": bias,
            "p_weights": experts.weights,
            **order.storages,
            "p_y": product.y,
            "p_y_scale": y_scale,
        },
        {
            "a_stride": a.strides[0],
            "a_scale_row": a_scale_row,
            "a_scale_group": a_scale_group,
            "weights_stride": experts.weights.strides[0],
            "alpha": float_attr(call.attrs, "alpha", 0.0),
            "limit": float_attr(call.attrs, "limit", 0.0),
            **scale_limits(scaling),
        },
        {
            "E": experts.count,
            "TOP_K": experts.top_k,
            "FORMAT": experts.format,
            "FIRST": int(product.first),
            "K": product.depth,
            "N": width,
            "UP": width if halves else 0,
            "WIDE": int(wide),
            "ACTIVATION": ACTIVATIONS[str_attr(call.attrs, "activation")],
            "HAS_BIAS": int(bool(experts.biases)),
            "BIAS_STRIDE": known(bias.strides[0]) if experts.biases else 0,
            "A_GROUP": scaling.group if scaling is not None else 0,
            "W_EXPERT": known(weight.strides[0]),
            "W_ROW": known(weight.strides[row_axis]),
            "W_COLUMN": known(weight.strides[column_axis]),
            "S_EXPERT": known(scale.strides[0]),
            "S_ROW": known(scale.strides[1]),
            "W_BLOCK_N": block[0],
            "W_BLOCK_K": block[1],
            "ONE_SCALE": int(block[0] % block_n == 0 and (not halves or width % block_n == 0)),
            "AHEAD": int(call.target.family == "amdgpu"),
            "Y_GROUP": scaling.group if quantises and scaling is not None else 0,
            "Y_POWER": int(scaling is not None and scaling.scale_dtype == "e8m0"),
            "Y_ROUNDING": 0 if scaling is None else ROUNDINGS[scaling.rounding],
            "Y_MANTISSA": mantissa,
            "Y_HIGHEST": highest,
            "EVEN_A": int(product.depth % block_k == 0),
            **_even(experts, product, width, block_n, block_k),
            "BLOCK_M": order.block,
            "BLOCK_N": block_n,
            "BLOCK_K": block_k,
        },
        (order.blocks, symbolic.ceil_divide(width // 2 if wide else width, columns)),
        warps=8 if crowded or _ragged(product) or block_n * (2 if halves else 1) >= 256 else 4,
    )


def _tile(experts: Experts, product: Product, wide: bool) -> tuple[int, int]:
    """Columns of the weight's rows and of K that are multiplied at a time."""
    scaling = experts.scaling
    columns = 32 if _is_wide(experts) and experts.call.target.family == "nvidia" else 64
    if scaling is not None and product.y_scale is not None:
        columns = max(columns, scaling.group)
    halves = product.first and experts.gated
    spills = experts.format == FP8 and experts.call.target.family == "nvidia"
    if columns == 64 and not halves and not spills:
        columns = 128
    block_n = columns * 2 if wide else columns
    if _ragged(product) or _is_wide(experts):
        return block_n, 32
    if experts.format in (MXFP4_NATIVE, FP8):
        return block_n, _fp8_depth(experts)
    return block_n, 64


def _is_wide(experts: Experts) -> bool:
    """Whether floats of 32 bits are multiplied, for which NVIDIA GPUs have no matrix units."""
    return experts.format == PLAIN and experts.x.dtype == "f32"


def _ragged(product: Product) -> bool:
    """Whether rows of the weight begin anywhere: its elements are loaded one by one."""
    _, row, column = product.weight.strides
    return not all(each == 1 or is_divisible(each) for each in (row, column))


def _fp8_depth(experts: Experts) -> int:
    """Columns that all have one scale, or whole groups where the hardware takes scales."""
    if experts.format == MXFP4_NATIVE:
        return 128
    return 128 if even_groups(experts.call.graph, experts.call.node, 128) else 64


def _even(
    experts: Experts, product: Product, width: int, block_n: int, block_k: int
) -> dict[str, int]:
    """Whether every tile of the weight lies within it: padding counts."""
    depth, rows = product.depth, width
    if experts.format in (MXFP4_WIDENED, MXFP4_NATIVE):
        expert, row = (known(stride) for stride in product.weight.strides[:2])
        depth, rows = row * 2, expert // row
    needed = -(-product.depth // block_k) * block_k
    last = -(-width // block_n) * block_n
    halves = product.first and experts.gated and not experts.interleaved
    covered = width % block_n == 0 if halves else last <= rows
    return {"EVEN_K": int(needed <= depth), "EVEN_N": int(covered)}


def _scale_strides(scale: Storage | None, scaling: Scaling | None, given: bool) -> tuple[Dim, Dim]:
    """Elements from a row's scales to the next row's, and from a group's to the next group's."""
    if scale is None or scaling is None:
        return 0, 0
    return scale_steps(scale, scaling) if given else (scale.strides[0], scale.strides[1])
