"""Products of 8-bit integers, computed in f32: sums up to 2**24 are exact.

The factors are within -255 to 255, so that a kernel that multiplies in narrower floats and adds in
f32 is exact, too.  Larger sums are rounded, as they are where models convert them to f32.
"""

from __future__ import annotations

import numpy as np

from fusec.frontend.onnx_ops.base import (
    MICROSOFT,
    Call,
    Context,
    NotCovered,
    Results,
    Value,
    operator,
)
from fusec.frontend.onnx_ops.convolution import convolution
from fusec.frontend.onnx_ops.linear import product
from fusec.frontend.onnx_ops.quantisation import (
    dequantized_weight,
    per_axis,
    quantized,
    quantized_by_extremes,
)
from fusec.ir.weights import from_array

_ONE = from_array("one", "f32", np.ones((), np.float32))


def _centred(ctx: Context, x: Value, zero: Value | None, axis: int) -> Value:
    """`x` less its zero point, in f32; a tensor of the file stays one."""
    if zero is None or zero.rank < 2:
        held = dequantized_weight(x, ctx.parameter(_ONE), zero, axis % x.rank, 0)
        if held is not None:
            return ctx.parameter(held)
    wide = ctx.cast(x, "f32")
    if zero is None:
        return wide
    return ctx.elementwise("sub", wide, ctx.cast(_spread(ctx, zero, x, axis), "f32"))


def _spread(ctx: Context, value: Value, x: Value, axis: int) -> Value:
    """A scale or zero point, ready to broadcast over `x`."""
    return value if value.rank > 1 else per_axis(ctx, value, x.shape, axis % x.rank, 0)


def _integer_product(ctx: Context, call: Call, places: tuple[int, int, int, int]) -> Value:
    """The product of the operands at `places`: a, b and their zero points."""
    a, b = call.operand(places[0]), call.operand(places[1])
    left = _centred(ctx, a, call.optional(places[2]), max(a.rank - 2, 0))
    return product(ctx, left, _centred(ctx, b, call.optional(places[3]), -1))


def _whole(ctx: Context, x: Value) -> Value:
    """`x`, which holds whole numbers, as integers."""
    assert x.name is not None
    ctx.whole.add(x.name)
    return ctx.cast(x, "i32")


@operator("MatMulInteger")
def _matmul_integer(ctx: Context, call: Call) -> Results:
    """a, b, zero point of a by row, zero point of b by column."""
    return _whole(ctx, _integer_product(ctx, call, (0, 1, 2, 3)))


@operator("QLinearMatMul")
def _quantized_matmul(ctx: Context, call: Call) -> Results:
    """a, its scale and zero point, b, its own, and those of the result."""
    result = _integer_product(ctx, call, (0, 3, 2, 5))
    row = max(result.rank - 2, 0)
    scales = [_spread(ctx, call.operand(i), result, axis) for i, axis in ((1, row), (4, -1))]
    factor = ctx.elementwise("mul", *scales)
    scale, zero = (_spread(ctx, call.operand(i), result, row) for i in (6, 7))
    scaled = ctx.elementwise("mul", result, ctx.cast(factor, "f32"))
    return quantized(ctx, scaled, ctx.cast(scale, "f32"), zero)


def _float_result(
    ctx: Context, result: Value, factors: tuple[Value, Value], bias: Value | None
) -> Value:
    """A product of integers with its two scales, the second by column, and its bias."""
    a, b = factors[0], _spread(ctx, factors[1], result, -1)
    scaled = ctx.elementwise("mul", result, ctx.elementwise("mul", ctx.reshape(a, ()), b))
    return scaled if bias is None else ctx.elementwise("add", scaled, bias)


@operator("MatMulIntegerToFloat", domain=MICROSOFT)
def _matmul_integer_to_float(ctx: Context, call: Call) -> Results:
    """a, b, their scales, their zero points, bias."""
    scales = call.operand(2), call.operand(3)
    return _float_result(ctx, _integer_product(ctx, call, (0, 1, 4, 5)), scales, call.optional(6))


@operator("DynamicQuantizeMatMul", domain=MICROSOFT)
def _dynamic_matmul(ctx: Context, call: Call) -> Results:
    """a, b, its scale, its zero point, bias: `a` is quantised by its own extremes."""
    levels, scale, zero = quantized_by_extremes(ctx, call.operand(0))
    left = _centred(ctx, levels, zero, 0)
    result = product(ctx, left, _centred(ctx, call.operand(1), call.optional(3), -1))
    return _float_result(ctx, result, (scale, call.operand(2)), call.optional(4))


@operator("ConvInteger")
def _conv_integer(ctx: Context, call: Call) -> Results:
    """x, w, their zero points; padding is the zero point."""
    return _whole(ctx, _integer_convolution(ctx, call, (0, 1, 2, 3), None))


@operator("QLinearConv")
def _quantized_conv(ctx: Context, call: Call) -> Results:
    """x, its scale and zero point, w, its own, those of the result, and an integer bias."""
    bias = call.optional(8)
    held = None if bias is None else _centred(ctx, bias, None, 0)
    result = _integer_convolution(ctx, call, (0, 3, 2, 5), held)
    factor = ctx.elementwise(
        "mul",
        ctx.reshape(call.operand(1), ()),
        per_axis(ctx, call.operand(4), result.shape, 1, 0),
    )
    scale, zero = (ctx.reshape(call.operand(i), ()) for i in (6, 7))
    return quantized(ctx, ctx.elementwise("mul", result, factor), scale, zero)


def _integer_convolution(
    ctx: Context, call: Call, places: tuple[int, int, int, int], bias: Value | None
) -> Value:
    x = _centred(ctx, call.operand(places[0]), call.optional(places[2]), 1)
    weight = _centred(ctx, call.operand(places[1]), call.optional(places[3]), 0)
    return convolution(ctx, call, x, weight, bias)


def _dequantized(ctx: Context, call: Call, first: int) -> Value:
    """The operand at `first`, with its scale and zero point behind it."""
    x, scale, zero = (call.operand(first + i) for i in range(3))
    centred = _centred(ctx, x, ctx.reshape(zero, ()), 0)
    return ctx.elementwise("mul", centred, ctx.reshape(scale, ()))


@operator("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def _quantized_pair(ctx: Context, call: Call) -> Results:
    """a and b with their scales and zero points, and those of the result."""
    op = "add" if call.op == "QLinearAdd" else "mul"
    result = ctx.elementwise(op, _dequantized(ctx, call, 0), _dequantized(ctx, call, 3))
    scale, zero = (ctx.reshape(call.operand(i), ()) for i in (6, 7))
    return quantized(ctx, result, scale, zero)


@operator("QLinearSigmoid", "QLinearGlobalAveragePool", domain=MICROSOFT)
def _quantized_single(ctx: Context, call: Call) -> Results:
    """x with its scale and zero point, and those of the result."""
    x = _dequantized(ctx, call, 0)
    if call.op == "QLinearSigmoid":
        result = ctx.emit("sigmoid", (x,))
    elif call.integer("channels_last", 0):
        raise NotCovered("channels in the last axis")
    else:
        result = ctx.reduce("reduce_mean", x, range(2, x.rank), True)
    scale, zero = (ctx.reshape(call.operand(i), ()) for i in (3, 4))
    return quantized(ctx, result, scale, zero)


@operator("QLinearConcat", domain=MICROSOFT)
def _quantized_concat(ctx: Context, call: Call) -> Results:
    """Scale and zero point of the result, and then each part with its own."""
    parts = [_dequantized(ctx, call, first) for first in range(2, len(call.inputs), 3)]
    scale, zero = (ctx.reshape(call.operand(i), ()) for i in (0, 1))
    return quantized(ctx, ctx.concat(parts, call.integer("axis", 0)), scale, zero)


@operator("QGemm", domain=MICROSOFT)
def _quantized_gemm(ctx: Context, call: Call) -> Results:
    """a, its scale and zero point, b, its own, an integer bias, and those of the result if any."""
    if call.integer("transA", 0):
        raise NotCovered("`QGemm` of a transposed operand")
    a = _centred(ctx, call.operand(0), call.operand(2), 0)
    turned = bool(call.integer("transB", 0))
    b = _centred(ctx, call.operand(3), call.operand(5), 0 if turned else 1)
    result = product(ctx, a, ctx.transpose(b, (1, 0)) if turned else b)
    bias = call.optional(6)
    if bias is not None:
        result = ctx.elementwise("add", result, _centred(ctx, bias, None, 0))
    alpha = ctx.scalar(call.number("alpha", 1.0), "f32")
    result = _float_result(ctx, result, (call.operand(1), call.operand(4)), None)
    result = ctx.elementwise("mul", result, alpha)
    if call.optional(7) is None:
        return result
    scale, zero = (ctx.reshape(call.operand(i), ()) for i in (7, 8))
    return quantized(ctx, result, scale, zero)
