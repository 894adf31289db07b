"""Operations on narrow formats: quantising, fused norms and activations, and scaled products.

Every operation that quantises has the attributes of `fusec.formats.Scaling`.  In references a value
of an 8-bit float or an e8m0 scale is the number it stands for; two 4-bit floats are one byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fusec import symbolic
from fusec.diagnostics import VerifyError
from fusec.formats import (
    FP8,
    MX_GROUP,
    Scaling,
    expand_blocks,
    pack_e2m1,
    unpack_e2m1,
)
from fusec.ir.ops.base import Array, OpDef, Types, arity, define, float_operand, op_named
from fusec.ir.ops.raised import expert_activation
from fusec.ir.types import (
    Attrs,
    TensorType,
    bool_attr,
    dims_attr,
    int_attr,
    ints_attr,
    str_attr,
)
from fusec.symbolic import Dim


def scaling_of(attrs: Attrs) -> Scaling:
    """The scaling that `attrs` describe.

    Raises:
        VerifyError: an attribute is missing or has no meaning.
    """
    if attrs.get("quant_dtype") not in (*FP8, "f4e2m1x2"):
        raise VerifyError(f"`{attrs.get('quant_dtype')}` is no format that is quantised to")
    if attrs.get("granularity") not in ("tensor", "token", "group"):
        raise VerifyError(f"unknown granularity `{attrs.get('granularity')}`")
    if attrs.get("scale_rounding") not in ("none", "up", "even", "down"):
        raise VerifyError(f"unknown rounding of scales `{attrs.get('scale_rounding')}`")
    if attrs.get("scale_layout") not in ("row", "column"):
        raise VerifyError(f"unknown layout of scales `{attrs.get('scale_layout')}`")
    if attrs.get("scale_dtype") not in ("f32", "e8m0"):
        raise VerifyError(f"scales are f32 or e8m0, not `{attrs.get('scale_dtype')}`")
    return Scaling.of(attrs)


def quantised_types(x: TensorType, scaling: Scaling) -> tuple[TensorType, TensorType]:
    """The types of codes and scales of rows `x` [..., K]."""
    float_operand(x)
    length = x.shape[-1]
    if scaling.packed and symbolic.modulo(length, 2) != 0:
        raise VerifyError(f"the rows of `{x}` are not whole pairs")
    codes = (*x.shape[:-1], symbolic.floor_divide(length, 2) if scaling.packed else length)
    return TensorType(scaling.dtype, codes), TensorType(
        scaling.scale_dtype, _scale_shape(x.shape, scaling)
    )


def _scale_shape(shape: tuple[Dim, ...], scaling: Scaling) -> tuple[Dim, ...]:
    if scaling.granularity == "tensor":
        return (1,)
    groups: Dim = 1
    if scaling.granularity == "group":
        groups = symbolic.ceil_divide(shape[-1], scaling.group)
    if scaling.layout == "column":
        return (groups, symbolic.product(shape[:-1]))
    return (*shape[:-1], groups)


def quantised(x: Array, scaling: Scaling, scale: Array | None = None) -> tuple[Array, Array]:
    """Codes and scales of rows `x`, as a reference gives them."""
    codes, scales = scaling.quantise(x, scale)
    if scaling.packed:
        codes = pack_e2m1(codes).astype(np.int64)
    return codes, stored_scale(scales, scaling)


def stored_scale(scale: Array, scaling: Scaling) -> Array:
    """Scales in row layout as `scaling` lays them out."""
    if scaling.layout == "row" or scaling.granularity == "tensor":
        return scale
    return scale.reshape(-1, scale.shape[-1]).T


def dequantised(codes: Array, scale: Array, scaling: Scaling) -> Array:
    """The numbers [..., K] that codes and scales stand for."""
    values = unpack_e2m1(codes) if scaling.packed else codes
    if scaling.layout == "column" and scaling.granularity != "tensor":
        scale = scale.T.reshape(*values.shape[:-1], -1)
    return np.asarray(values * scaling.expanded(scale, values.shape))


# --- quantise and dequantise ----------------------------------------------------------------


def _infer_quantize(types: Types, attrs: Attrs) -> Types:
    """x [..., K], scale f32 [1] if `has_scale`: codes, and the scales unless they were given.

    Codes are [..., K], two a byte ([..., K/2]) for f4e2m1x2.  Scales are [1], [..., 1] or
    [..., ceil(K/group)]; [ceil(K/group), rows] in the `column` layout.
    """
    static = bool_attr(attrs, "has_scale")
    arity(types, 2 if static else 1)
    scaling = scaling_of(attrs)
    if static and (scaling.granularity != "tensor" or types[1] != TensorType("f32", (1,))):
        raise VerifyError(f"`{types[1]}` is not the scale of a tensor")
    codes, scale = quantised_types(types[0], scaling)
    return (codes,) if static else (codes, scale)


def _quantize(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    static = bool_attr(attrs, "has_scale")
    codes, scale = quantised(arrays[0], Scaling.of(attrs), arrays[1] if static else None)
    return (codes,) if static else (codes, scale)


def _infer_dequantize(types: Types, attrs: Attrs) -> Types:
    """Codes and their scales: the numbers [..., K] in `dtype`."""
    arity(types, 2)
    codes = types[0]
    last = codes.shape[-1] * 2 if codes.dtype == "f4e2m1x2" else codes.shape[-1]
    x = TensorType(str_attr(attrs, "dtype"), (*codes.shape[:-1], last))
    if quantised_types(x, scaling_of(attrs)) != types:
        raise VerifyError(f"`{types[0]}` and `{types[1]}` are not codes and scales")
    return (x,)


def _dequantize(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    return (dequantised(arrays[0], arrays[1], Scaling.of(attrs)),)


# --- norms and activations that quantise their result ---------------------------------------


def _define_quantising(base: str) -> None:
    """Define `<base>_quant`: the operation `base` with its first result quantised.

    Operands: those of `base`, then scale f32 [1] if `has_scale`.  Results: codes; scales unless
    they were given; the result itself if `with_plain`; then the further results of `base`.  With
    `shape`, the result is seen in that shape, of the same elements in order, before it is quantised
    (heads of a row side by side).
    """
    inner = op_named(base)

    def infer(types: Types, attrs: Attrs) -> Types:
        static = bool_attr(attrs, "has_scale")
        results = inner.infer(types[:-1] if static else types, attrs)
        plain = _seen(results[0], attrs)
        given = (plain, types[-1]) if static else (plain,)
        kept = (plain,) if bool_attr(attrs, "with_plain") else ()
        return (*_infer_quantize(given, attrs), *kept, *results[1:])

    def reference(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
        static = bool_attr(attrs, "has_scale")
        operands = arrays[:-1] if static else arrays
        results = inner.reference(operands, attrs, _plain_types(inner, attrs, types))
        plain = results[0]
        if attrs.get("shape") is not None:
            plain = plain.reshape(ints_attr(attrs, "shape"))
        given = (plain, arrays[-1]) if static else (plain,)
        kept = (plain,) if bool_attr(attrs, "with_plain") else ()
        return (*_quantize(given, attrs, types), *kept, *results[1:])

    define(f"{base}_quant", infer, reference)


def _seen(plain: TensorType, attrs: Attrs) -> TensorType:
    if attrs.get("shape") is None:
        return plain
    shape = dims_attr(attrs, "shape")
    if symbolic.product(shape) != plain.elements:
        raise VerifyError(f"`{plain}` has not as many elements as {list(shape)}")
    return plain.with_shape(shape)


def _plain_types(inner: OpDef, attrs: Attrs, types: Types) -> Types:
    """The results of `inner` among those of the operation that quantises; dtypes play no part."""
    begin = 1 if bool_attr(attrs, "has_scale") else 2
    rest = types[begin + bool_attr(attrs, "with_plain") :]
    return (types[0], *rest)


def _infer_dual_rms_norm_quant(types: Types, attrs: Attrs) -> Types:
    """Two norms as `dual_rms_norm`: codes1, scale1, then codes2, scale2 or, plain, the second.

    `quantises` is `first` or `both`.
    """
    first, second = op_named("dual_rms_norm").infer(types, attrs)
    scaling = scaling_of(attrs)
    if str_attr(attrs, "quantises") not in ("first", "both"):
        raise VerifyError(f"`quantises` is `{attrs['quantises']}`")
    if attrs["quantises"] == "first":
        return (*quantised_types(first, scaling), second)
    return (*quantised_types(first, scaling), *quantised_types(second, scaling))


def _dual_rms_norm_quant(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    first, second = op_named("dual_rms_norm").reference(arrays, attrs, types)
    scaling = Scaling.of(attrs)
    if attrs["quantises"] == "first":
        return (*quantised(first, scaling), second)
    return (*quantised(first, scaling), *quantised(second, scaling))


# --- scaled products ------------------------------------------------------------------------


def _scales_fit(scale: TensorType, weight: tuple[Dim, ...], block: tuple[int, ...]) -> None:
    blocks = tuple(
        symbolic.ceil_divide(size, step) for size, step in zip(weight[-2:], block, strict=True)
    )
    if scale.shape != (*weight[:-2], *blocks):
        raise VerifyError(f"`{scale}` is not one scale for each block {list(block)} of the weight")


def weight_block(attrs: Attrs) -> tuple[int, int]:
    """Rows and columns of an fp8 weight that share a scale."""
    rows, columns = ints_attr(attrs, "weight_block")
    return rows, columns


def _infer_fp8_linear(types: Types, attrs: Attrs) -> Types:
    """x [..., K] codes, x_scale, weight [N, K] codes, weight_scale, bias [N] if `has_bias`.

    The attributes of `Scaling` say how x was quantised; without them x is float, and there is no
    x_scale.  `weight_block` (rows, columns): weight elements that share a scale f32
    [ceil(N/rows), ceil(K/columns)]; (1, K) is one for each output, (N, K) one for all.  Gives
    [..., N] in `dtype`; sums are in f32.
    """
    scaled = has_scaled_rows(attrs)
    arity(types, 3 + scaled + bool_attr(attrs, "has_bias"))
    x, (weight, weight_scale, *bias) = types[0], types[1 + scaled :]
    if weight.rank != 2 or x.shape[-1] != weight.shape[1]:
        raise VerifyError(f"`{x}` does not multiply weight `{weight}`")
    if scaled:
        scaling = scaling_of(attrs)
        if weight.dtype != x.dtype or x.dtype != scaling.dtype or scaling.packed:
            raise VerifyError(f"`{x}` and weight `{weight}` are of two formats")
        if types[1].shape != _scale_shape(x.shape, scaling):
            raise VerifyError(f"`{types[1]}` are not the scales of `{x}`")
    else:
        float_operand(x)
    _scales_fit(weight_scale, weight.shape, weight_block(attrs))
    _bias_fits(bias, weight.shape[0])
    return (TensorType(str_attr(attrs, "dtype"), (*x.shape[:-1], weight.shape[0])),)


def has_scaled_rows(attrs: Attrs) -> bool:
    """Whether an `fp8_linear` or `moe_fp8` multiplies codes, not floats."""
    return "granularity" in attrs


def _fp8_linear(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    scaled = has_scaled_rows(attrs)
    x = dequantised(arrays[0], arrays[1], Scaling.of(attrs)) if scaled else arrays[0]
    weight, weight_scale, *bias = arrays[1 + scaled :]
    wide = weight * expand_blocks(weight_scale, weight_block(attrs), weight.shape)
    result = x @ wide.T
    return (result + bias[0] if bias else result,)


def _bias_fits(bias: Sequence[TensorType], rows: Dim) -> None:
    if bias and bias[0].shape != (rows,):
        raise VerifyError(f"bias `{bias[0]}` does not fit {rows} outputs")


def _plain_rows(types: Types, attrs: Attrs) -> TensorType:
    """The float rows [..., K] that x is, or that x and x_scale stand for if `has_x_scale`.

    Raises:
        VerifyError: x is no float, or x and x_scale are not codes and scales.
    """
    x = types[0]
    if not bool_attr(attrs, "has_x_scale"):
        return float_operand(x)
    scaling = scaling_of(attrs)
    length = x.shape[-1] * 2 if scaling.packed else x.shape[-1]
    rows = TensorType("f32", (*x.shape[:-1], length))
    if quantised_types(rows, scaling) != types[:2]:
        raise VerifyError(f"`{x}` and `{types[1]}` are not codes and scales")
    return rows


def _plain_values(arrays: Sequence[Array], attrs: Attrs) -> tuple[Array, Scaling | None]:
    """The numbers [..., K] of x, and how they were quantised if `has_x_scale`."""
    if not bool_attr(attrs, "has_x_scale"):
        return arrays[0], None
    scaling = Scaling.of(attrs)
    return dequantised(arrays[0], arrays[1], scaling), scaling


def _infer_mxfp4_linear(types: Types, attrs: Attrs) -> Types:
    """A product with a weight of 4-bit floats.

    x [..., K], x_scale if `has_x_scale`, weight f4e2m1x2 [N, K/2], weight_scale e8m0 [N, K/32],
    bias [N] if `has_bias`: [..., N] in `dtype`.

    With `has_x_scale` x holds codes, and the attributes of `Scaling` say which; else it is float.
    """
    scaled = bool_attr(attrs, "has_x_scale")
    arity(types, 3 + scaled + bool_attr(attrs, "has_bias"))
    x, length = types[0], _plain_rows(types, attrs).shape[-1]
    weight, weight_scale, *bias = types[1 + scaled :]
    if weight.dtype != "f4e2m1x2" or weight.rank != 2 or weight.shape[1] * 2 != length:
        raise VerifyError(f"`{x}` does not multiply weight `{weight}`")
    _scales_fit(weight_scale, (weight.shape[0], length), (1, MX_GROUP))
    _bias_fits(bias, weight.shape[0])
    return (TensorType(str_attr(attrs, "dtype"), (*x.shape[:-1], weight.shape[0])),)


def _mxfp4_linear(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    x, scaling = _plain_values(arrays, attrs)
    weight, weight_scale, *bias = arrays[1 if scaling is None else 2 :]
    result = x @ mxfp4_values(weight, weight_scale).swapaxes(-1, -2)
    return (result + bias[0] if bias else result,)


def mxfp4_values(codes: Array, scale: Array) -> Array:
    """The numbers [..., N, K] of codes [..., N, K/2] and scales [..., N, K/32]."""
    values = unpack_e2m1(codes)
    return np.asarray(values * expand_blocks(scale, (1, MX_GROUP), values.shape))


# --- experts --------------------------------------------------------------------------------


def _infer_moe_fp8(types: Types, attrs: Attrs) -> Types:
    """Experts of 8-bit floats.

    x [T, H], x_scale, weights [T, k], experts [T, k], gate_up [E, 2I, H] codes,
    gate_up_scale, down [E, H, I] codes, down_scale; with `has_bias` gate_up_bias [E, 2I] and
    down_bias [E, H]: the weighted sum [T, H] in `dtype`.

    The attributes of `moe` (never `transposed`) and of `Scaling`: x was quantised by it, and the
    activated rows are quantised by it before the second product.  Without those of `Scaling` x is
    float, there is no x_scale, and both products take floats.  `weight_block` as in `fp8_linear`.
    """
    scaled = has_scaled_rows(attrs)
    arity(types, 7 + scaled + 2 * bool_attr(attrs, "has_bias"))
    x, (weights, experts, gate_up, gate_up_scale, down, down_scale, *biases) = (
        types[0],
        types[1 + scaled :],
    )
    if scaled:
        scaling = scaling_of(attrs)
        if types[1].shape != _scale_shape(x.shape, scaling):
            raise VerifyError(f"`{types[1]}` are not the scales of `{x}`")
        if {x.dtype, gate_up.dtype, down.dtype} != {scaling.dtype}:
            raise VerifyError(f"`{x}`, `{gate_up}` and `{down}` are not all {scaling.dtype}")
    else:
        float_operand(x)
    plain = (x, weights, experts, gate_up, down, *biases)
    op_named("moe").infer(plain, {**attrs, "transposed": False})
    _scales_fit(gate_up_scale, gate_up.shape, weight_block(attrs))
    _scales_fit(down_scale, down.shape, weight_block(attrs))
    return (TensorType(str_attr(attrs, "dtype"), x.shape),)


def _moe_fp8(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    scaling = Scaling.of(attrs) if has_scaled_rows(attrs) else None
    x = arrays[0] if scaling is None else dequantised(arrays[0], arrays[1], scaling)
    rest = arrays[1 if scaling is None else 2 :]
    weights, experts, gate_up, gate_up_scale, down, down_scale, *biases = rest
    block = weight_block(attrs)
    return (
        _experts(
            x,
            (weights, experts),
            gate_up * expand_blocks(gate_up_scale, block, gate_up.shape),
            down * expand_blocks(down_scale, block, down.shape),
            biases,
            attrs,
            scaling,
        ),
    )


def _infer_moe_mxfp4(types: Types, attrs: Attrs) -> Types:
    """Experts of 4-bit floats.

    x [T, H], x_scale if `has_x_scale`, weights [T, k], experts [T, k], gate_up f4e2m1x2
    [E, 2I, H/2], gate_up_scale e8m0 [E, 2I, H/32], down [E, H, I/2], down_scale [E, H, I/32]; with
    `has_bias` gate_up_bias [E, 2I] and down_bias [E, H]: the weighted sum [T, H] in `dtype`.

    The attributes of `moe` (never `transposed`).  With `has_x_scale` x holds codes of the scaling
    that the attributes of `Scaling` describe, and the activated rows are quantised by it before the
    second product; else both products take floats.  `hidden_pad` and `intermediate_pad` say how
    many columns of H and I the weights have in memory beyond the logical ones.
    """
    scaled = bool_attr(attrs, "has_x_scale")
    arity(types, 7 + scaled + 2 * bool_attr(attrs, "has_bias"))
    rows = _plain_rows(types, attrs)
    weights, experts, gate_up, gate_up_scale, down, down_scale, *biases = types[1 + scaled :]
    wide = [kind.with_shape((*kind.shape[:-1], kind.shape[-1] * 2)) for kind in (gate_up, down)]
    plain = (rows, weights, experts, *wide, *biases)
    op_named("moe").infer(plain, {**attrs, "transposed": False})
    _scales_fit(gate_up_scale, wide[0].shape, (1, MX_GROUP))
    _scales_fit(down_scale, wide[1].shape, (1, MX_GROUP))
    for pad in ("hidden_pad", "intermediate_pad"):
        int_attr(attrs, pad)
    return (TensorType(str_attr(attrs, "dtype"), rows.shape),)


def _moe_mxfp4(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    x, scaling = _plain_values(arrays, attrs)
    rest = arrays[1 if scaling is None else 2 :]
    weights, experts, gate_up, gate_up_scale, down, down_scale, *biases = rest
    return (
        _experts(
            x,
            (weights, experts),
            mxfp4_values(gate_up, gate_up_scale),
            mxfp4_values(down, down_scale),
            biases,
            attrs,
            scaling,
        ),
    )


def _experts(
    x: Array,
    routes: tuple[Array, Array],
    gate_up: Array,
    down: Array,
    biases: Sequence[Array],
    attrs: Attrs,
    scaling: Scaling | None,
) -> Array:
    """The weighted sum of experts, their activated rows quantised by `scaling` if there is one."""
    weights, experts = routes
    result = np.zeros_like(x)
    for expert in range(gate_up.shape[0]):
        token, slot = np.nonzero(experts == expert)
        hidden: Any = x[token] @ gate_up[expert].T
        if biases:
            hidden = hidden + biases[0][expert]
        hidden = expert_activation(hidden, attrs)
        if scaling is not None and len(token):
            codes, scale = scaling.quantise(hidden)
            hidden = codes * scaling.expanded(scale, hidden.shape)
        out = hidden @ down[expert].T
        if biases:
            out = out + biases[1][expert]
        np.add.at(result, token, out * weights[token, slot, None])
    return result


define("quantize", _infer_quantize, _quantize)
define("dequantize", _infer_dequantize, _dequantize)
for _base in (
    "rms_norm",
    "add_rms_norm",
    "gated_rms_norm",
    "silu_mul",
    "gelu_mul",
    "swiglu_oai",
):
    _define_quantising(_base)
define("dual_rms_norm_quant", _infer_dual_rms_norm_quant, _dual_rms_norm_quant)
define("fp8_linear", _infer_fp8_linear, _fp8_linear)
define("mxfp4_linear", _infer_mxfp4_linear, _mxfp4_linear)
define("moe_fp8", _infer_moe_fp8, _moe_fp8)
define("moe_mxfp4", _infer_moe_mxfp4, _moe_mxfp4)
