"""Quantised tensors: weights are dequantised when they are written, activations in the graph."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusec.diagnostics import InputError
from fusec.dtypes import DTYPES, bf16_to_f32, f32_to_bf16
from fusec.formats import FP8
from fusec.frontend.onnx_ops.base import (
    MICROSOFT,
    Call,
    Context,
    NotCovered,
    Results,
    Value,
    operator,
    positive_axes,
    static,
)
from fusec.frontend.onnx_ops.elementwise import saturated
from fusec.frontend.onnx_ops.tensors import INT4, UINT4, dtype_of
from fusec.ir.types import TensorType
from fusec.ir.weights import Bits, Weight, digest, from_array
from fusec.symbolic import Dim

_LIMITS = {"u8": (0, 255), "i8": (-128, 127), "i16": (-32768, 32767)}
_FOUR_BITS = {"u8": (0, 15), "i8": (-8, 7)}


def per_axis(ctx: Context, value: Value, shape: tuple[Dim, ...], axis: int, block: int) -> Value:
    """A scale or zero point, ready to broadcast over a tensor of `shape`."""
    if value.type.elements == 1 and value.rank <= 1:
        return ctx.reshape(value, ())
    if block:
        split = (*value.shape[: axis + 1], 1, *value.shape[axis + 1 :])
        spread = (*value.shape[: axis + 1], block, *value.shape[axis + 1 :])
        joined = (*value.shape[:axis], value.shape[axis] * block, *value.shape[axis + 1 :])
        wide = ctx.reshape(ctx.expand(ctx.reshape(value, split), spread), joined)
        return ctx.slice(wide, axis, 0, shape[axis])
    return ctx.reshape(value, (value.shape[0], *(1,) * (len(shape) - 1 - axis)))


@operator("DequantizeLinear")
@operator("DequantizeLinear", domain=MICROSOFT)
def _dequantize(ctx: Context, call: Call) -> Results:
    x, scale, zero = call.operand(0), call.operand(1), call.optional(2)
    axis, block = call.integer("axis", 1), call.integer("block_size", 0)
    single = scale.type.elements == 1 and scale.rank <= 1
    axis = 0 if single else positive_axes((axis,), x.rank)[0]
    folded = dequantized_weight(x, scale, zero, axis, 0 if single else block)
    if folded is not None:
        return ctx.parameter(folded)
    wide = ctx.cast(x, scale.dtype)
    if zero is not None:
        zero = ctx.cast(per_axis(ctx, zero, x.shape, axis, block), scale.dtype)
        wide = ctx.elementwise("sub", wide, zero)
    return ctx.elementwise("mul", wide, per_axis(ctx, scale, x.shape, axis, block))


def dequantized_weight(
    x: Value, scale: Value, zero: Value | None, axis: int, block: int
) -> Weight | None:
    """(x - zero) * scale where all are tensors of the file."""
    tensors = [value.weight for value in (x, scale, zero) if value is not None]
    known = [weight for weight in tensors if weight is not None]
    if len(known) != len(tensors) or scale.dtype not in ("f32", "f16", "bf16"):
        return None
    if not (x.type.element.is_integer or x.dtype.startswith("f8")):
        return None
    weight, dtype = known[0], scale.dtype
    if x.dtype.startswith("f8"):
        return None  # the graph widens 8-bit floats: their conversion is the kernels' business
    kind = TensorType(dtype, weight.type.shape)
    shape = weight.shape

    def read() -> Bits:
        values = known[0].load().astype(np.float32)
        factor = wide_bits(known[1])
        spread = _spread(factor, shape, axis, block)
        if len(known) > 2:
            values = values - _spread(wide_bits(known[2]), shape, axis, block)
        return narrow_bits(values * spread, dtype)

    how = digest("dequantize", str(axis), str(block), str(kind), *(w.identity for w in known))
    present = all(part.read is not None for part in known)
    return Weight(weight.name, kind, read if present else None, how)


def _spread(
    array: NDArray[np.float32], shape: tuple[int, ...], axis: int, block: int
) -> NDArray[Any]:
    if array.size == 1:
        return array.reshape(())
    if block:
        wide = np.repeat(array, block, axis=axis)
        index: list[Any] = [slice(None)] * len(shape)
        index[axis] = slice(0, shape[axis])
        spread: NDArray[Any] = wide[tuple(index)]
        return spread
    return array.reshape(-1, *(1,) * (len(shape) - 1 - axis))


def wide_bits(weight: Weight) -> NDArray[np.float32]:
    """The elements of a weight as float32."""
    bits = weight.load()
    if weight.type.dtype == "bf16":
        return bf16_to_f32(bits.astype(np.uint16))
    return bits.astype(np.float32)


def narrow_bits(array: NDArray[Any], dtype: str) -> Bits:
    """Floats in the storage of `dtype`."""
    if dtype == "bf16":
        return f32_to_bf16(array.astype(np.float32))
    return array.astype(DTYPES[dtype].numpy)


@operator("QuantizeLinear")
@operator("QuantizeLinear", domain=MICROSOFT)
def _quantize(ctx: Context, call: Call) -> Results:
    """Rounds to nearest even and clips; 8-bit floats round by themselves."""
    x, scale, zero = call.operand(0), call.operand(1), call.optional(2)
    axis, block = call.integer("axis", 1), call.integer("block_size", 0)
    single = scale.type.elements == 1 and scale.rank <= 1
    axis = 0 if single else positive_axes((axis,), x.rank)[0]
    dtype, four_bits = "u8", False
    element = call.integer("output_dtype", 0)
    if zero is not None:
        dtype, four_bits = zero.dtype, zero.four_bits
    elif element in (UINT4, INT4):
        dtype, four_bits = "u8" if element == UINT4 else "i8", True
    elif element:
        dtype = dtype_of(element, "the result of `QuantizeLinear`")
    if dtype not in _LIMITS and dtype not in FP8:
        raise NotCovered(f"quantisation to `{dtype}`")
    factor = ctx.cast(per_axis(ctx, scale, x.shape, axis, block), x.dtype)
    if dtype in FP8:  # their zero point is always 0
        steps = ctx.elementwise("div", x, factor)
        saturate = call.integer("saturate", 1)
        return saturated(ctx, steps, dtype) if saturate else ctx.cast(steps, dtype)
    if zero is not None:
        zero = per_axis(ctx, zero, x.shape, axis, block)
    low, high = _FOUR_BITS[dtype] if four_bits else _LIMITS[dtype]
    result = ctx.cast(_steps(ctx, x, factor, zero, low, high), dtype)
    result.four_bits = four_bits
    return result


def quantized(ctx: Context, x: Value, scale: Value, zero: Value) -> Value:
    """`x` in steps of `scale` from `zero`, in the 8 bits that `zero` has; all three broadcast."""
    return ctx.cast(_steps(ctx, x, scale, zero, *_LIMITS[zero.dtype]), zero.dtype)


def _steps(ctx: Context, x: Value, scale: Value, zero: Value | None, low: int, high: int) -> Value:
    steps = ctx.emit("round", (ctx.elementwise("div", x, scale),))
    if zero is not None:
        steps = ctx.elementwise("add", steps, ctx.cast(zero, x.dtype))
    return ctx.emit("clamp", (steps,), {"min": float(low), "max": float(high)})


@operator("DynamicQuantizeLinear")
def _dynamic_quantize(ctx: Context, call: Call) -> Results:
    return quantized_by_extremes(ctx, call.operand(0))


def quantized_by_extremes(ctx: Context, x: Value) -> tuple[Value, Value, Value]:
    """`x` in 8 bits, with a scale and a zero point from the extremes of the whole tensor."""
    axes = tuple(range(x.rank))
    zero = ctx.scalar(0.0, x.dtype)
    low = ctx.elementwise("minimum", ctx.reduce("reduce_min", x, axes, False), zero)
    high = ctx.elementwise("maximum", ctx.reduce("reduce_max", x, axes, False), zero)
    spread = ctx.elementwise("sub", high, low)
    scale = ctx.elementwise("div", spread, ctx.scalar(255.0, x.dtype))
    flat = ctx.elementwise("eq", spread, zero)
    scale = ctx.elementwise("where", flat, ctx.scalar(1.0, x.dtype), scale)
    shift = ctx.elementwise("sub", zero, ctx.elementwise("div", low, scale))
    limits = {"min": 0.0, "max": 255.0}
    point = ctx.emit("round", (ctx.emit("clamp", (shift,), limits),))
    steps = ctx.emit("round", (ctx.elementwise("div", x, scale),))
    moved = ctx.emit("clamp", (ctx.elementwise("add", steps, point),), limits)
    return ctx.cast(moved, "u8"), scale, ctx.cast(point, "u8")


@operator("MatMulNBits", domain=MICROSOFT)
def _matmul_nbits(ctx: Context, call: Call) -> Results:
    """A, packed B [N, blocks, bytes], scales, zero points, group index, bias."""
    x, packed, scales = call.operand(0), call.operand(1), call.operand(2)
    zeros, groups, bias = call.optional(3), call.optional(4), call.optional(5)
    columns, rows = call.integer("K", 0), call.integer("N", 0)
    bits, block = call.integer("bits", 4), call.integer("block_size", 0)
    if bits not in (4, 8):
        raise NotCovered(f"weights of {bits} bits")
    if groups is not None and groups.type.elements != 0:
        raise NotCovered("`MatMulNBits` with a group index")
    tensors = [value.weight for value in (packed, scales, zeros) if value is not None]
    known = [weight for weight in tensors if weight is not None]
    if len(known) != len(tensors):
        raise NotCovered("`MatMulNBits` with weights that are computed")
    if block < 16 or columns <= 0 or rows <= 0:
        raise InputError("a `MatMulNBits` has impossible sizes")
    ctx.require_equal(x.shape[-1], columns)
    blocks = math.ceil(columns / block)
    expected = rows * blocks * (block * bits // 8)
    if packed.type.elements != expected or scales.type.elements != rows * blocks:
        raise InputError("the packed weights of a `MatMulNBits` do not fit its sizes")
    weight = _unpacked(known, x.dtype, (rows, columns), bits, block)
    operands = [x, ctx.parameter(weight)]
    if bias is not None:
        operands.append(bias)
    return ctx.emit("linear", operands)


def _unpacked(
    parts: list[Weight], dtype: str, shape: tuple[int, int], bits: int, block: int
) -> Weight:
    """The weight of a `MatMulNBits`, dequantised when it is written."""
    rows, columns = shape
    blocks = math.ceil(columns / block)
    kind = TensorType(dtype, shape)

    def read() -> Bits:
        levels = _levels(parts[0].load(), bits).reshape(rows, blocks, block)
        scales = wide_bits(parts[1]).reshape(rows, blocks, 1)
        if len(parts) < 3:
            points: NDArray[np.float32] = np.full((rows, blocks), 1 << (bits - 1), np.float32)
        elif parts[2].type.dtype == "u8":
            loaded = parts[2].load().reshape(rows, -1)
            points = _levels(loaded, bits).reshape(rows, -1)[:, :blocks]
        else:
            points = wide_bits(parts[2]).reshape(rows, blocks)
        values = (levels - points[:, :, None]) * scales
        return narrow_bits(values.reshape(rows, blocks * block)[:, :columns], dtype)

    how = digest("nbits", str(kind), str(bits), str(block), *(w.identity for w in parts))
    present = all(part.read is not None for part in parts)
    return Weight(parts[0].name, kind, read if present else None, how)


def _levels(packed: Bits, bits: int) -> NDArray[np.float32]:
    """Unsigned levels, the low half of a byte first."""
    if bits == 8:
        return packed.astype(np.float32)
    both = np.stack((packed & 15, packed >> 4), axis=-1)  # type: ignore[operator]
    return both.astype(np.float32)


@operator("GatherBlockQuantized", domain=MICROSOFT)
def _gather_block_quantized(ctx: Context, call: Call) -> Results:
    """Rows of a table that is dequantised when it is written.

    Bytes may hold two levels each, along the last axis; their zero point is in the middle unless it
    is given, that of 4-bit integers is 0.
    """
    data, indices, scales = call.operand(0), call.operand(1), call.operand(2)
    zero, bits = call.optional(3), call.integer("bits", 4)
    axis = positive_axes((call.integer("gather_axis", 0),), data.rank)[0]
    if bits not in (4, 8):
        raise NotCovered(f"a table of {bits} bits")
    if data.dtype == "u8" and not data.four_bits:
        if zero is None:
            middle = np.array(1 << (bits - 1), np.uint8)
            zero = ctx.parameter(from_array("zero", "u8", middle))
        elif bits == 4:
            zero = _widened(ctx, zero, scales.shape)
        if bits == 4:
            data = _widened(ctx, data, (*data.shape[:-1], 2 * data.shape[-1]))
    along = positive_axes((call.integer("quantize_axis", data.rank - 1),), data.rank)[0]
    static(data.shape[along], "the size of a table")
    table = dequantized_weight(data, scales, zero, along, call.integer("block_size", 128))
    if table is None:
        raise NotCovered("a quantised table that is computed")
    return ctx.take(ctx.parameter(table), indices, axis)


def _widened(ctx: Context, packed: Value, shape: tuple[Dim, ...]) -> Value:
    """Levels [..., n] of bytes [..., n / 2, rounded up], one in a byte."""
    if packed.weight is None:
        raise NotCovered("a quantised table that is computed")
    sizes = tuple(static(dim, "the size of a table") for dim in shape)

    def read(bits: Bits) -> Bits:
        both = _levels(bits, 4).astype(np.uint8).reshape(*sizes[:-1], -1)
        return both[..., : sizes[-1]]

    weight = packed.weight
    kind = TensorType("u8", sizes)
    return ctx.parameter(weight.derive(weight.name, kind, "two levels a byte", read))
