"""Normalisations over rows, channels and batches."""

from __future__ import annotations

import numpy as np

from fusec import symbolic
from fusec.diagnostics import InputError
from fusec.dtypes import bf16_to_f32
from fusec.frontend.onnx_ops.base import (
    MICROSOFT,
    Call,
    Context,
    NotCovered,
    Results,
    Value,
    operator,
    positive_axes,
)
from fusec.frontend.onnx_ops.quantisation import narrow_bits
from fusec.ir.types import Attrs
from fusec.ir.weights import Bits, Weight, digest
from fusec.symbolic import Dim


def layer_norm(
    ctx: Context, x: Value, weight: Value | None, bias: Value | None, eps: float
) -> Value:
    """LayerNorm over the last axis."""
    operands = [value for value in (x, weight, bias) if value is not None]
    attrs: Attrs = {"eps": eps, "has_weight": weight is not None, "has_bias": bias is not None}
    return ctx.emit("layer_norm", operands, attrs)


def rms_norm(ctx: Context, x: Value, weight: Value | None, eps: float) -> Value:
    """RMSNorm over the last axis."""
    operands = [value for value in (x, weight) if value is not None]
    attrs: Attrs = {"eps": eps, "weight_offset": 0, "has_weight": weight is not None}
    return ctx.emit("rms_norm", operands, attrs)


def _rows(ctx: Context, call: Call, x: Value) -> tuple[Value, int]:
    """`x` with the axes from `axis` on made one."""
    (axis,) = positive_axes((call.integer("axis", -1),), x.rank)
    if axis == x.rank - 1:
        return x, axis
    return ctx.reshape(x, (*x.shape[:axis], symbolic.product(x.shape[axis:]))), axis


def _scale(ctx: Context, call: Call, index: int, size: Dim) -> Value | None:
    """A scale or bias as one row; `None` if it is left out."""
    value = call.optional(index)
    if value is None:
        return None
    if value.type.elements != size:
        if value.type.elements == 1:
            return ctx.expand(ctx.reshape(value, (1,)), (size,))
        raise NotCovered("a scale of another size than the rows")
    return ctx.reshape(value, (size,))


@operator("LayerNormalization")
def _layer_normalization(ctx: Context, call: Call) -> Results:
    x, eps = call.operand(0), call.number("epsilon", 1e-5)
    rows, axis = _rows(ctx, call, x)
    size = rows.shape[-1]
    weight, bias = _scale(ctx, call, 1, size), _scale(ctx, call, 2, size)
    result = ctx.reshape(layer_norm(ctx, rows, weight, bias, eps), x.shape)
    if not (call.wants(1) or call.wants(2)):
        return result
    kept = (*x.shape[:axis], *(1,) * (x.rank - axis))
    mean = ctx.reduce("reduce_mean", rows, (-1,), True)
    centred = ctx.elementwise("sub", rows, mean)
    square = ctx.reduce("reduce_mean", ctx.elementwise("mul", centred, centred), (-1,), True)
    inverse = ctx.emit("rsqrt", (ctx.elementwise("add", square, ctx.scalar(eps, x.dtype)),))
    return result, ctx.reshape(mean, kept), ctx.reshape(inverse, kept)


@operator("RMSNormalization", "SimplifiedLayerNormalization")
@operator("SimplifiedLayerNormalization", domain=MICROSOFT)
def _rms_normalization(ctx: Context, call: Call) -> Results:
    x, eps = call.operand(0), call.number("epsilon", 1e-5)
    if call.wants(1):
        raise NotCovered("the inverse deviation as a result")
    rows, _ = _rows(ctx, call, x)
    weight = _scale(ctx, call, 1, rows.shape[-1])
    result = ctx.reshape(rms_norm(ctx, rows, weight, eps), x.shape)
    return result if weight is None else ctx.cast(result, call.operand(1).dtype)


def _skip_sum(ctx: Context, call: Call, bias: Value | None) -> Value:
    total = ctx.elementwise("add", call.operand(0), call.operand(1))
    return total if bias is None else ctx.elementwise("add", total, bias)


@operator("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def _skip_rms(ctx: Context, call: Call) -> Results:
    """input, skip, gamma, bias: (norm, mean, inverse deviation, the sum)."""
    if call.wants(1) or call.wants(2):
        raise NotCovered("the mean or the inverse deviation as a result")
    total = _skip_sum(ctx, call, call.optional(3))
    normed = rms_norm(ctx, total, call.operand(2), call.number("epsilon", 1e-12))
    return normed, None, None, total


@operator("SkipLayerNormalization", domain=MICROSOFT)
def _skip_layer_norm(ctx: Context, call: Call) -> Results:
    """input, skip, gamma, beta, bias: (norm, mean, inverse deviation, the sum)."""
    if call.wants(1) or call.wants(2):
        raise NotCovered("the mean or the inverse deviation as a result")
    total = _skip_sum(ctx, call, call.optional(4))
    eps = call.number("epsilon", 1e-12)
    normed = layer_norm(ctx, total, call.operand(2), call.optional(3), eps)
    return normed, None, None, total


@operator("EmbedLayerNormalization", domain=MICROSOFT)
def _embed_layer_norm(ctx: Context, call: Call) -> Results:
    """Sum of word, position and segment embeddings, then LayerNorm."""
    ids, segments = call.operand(0), call.optional(1)
    words, positions = call.operand(2), call.operand(3)
    if call.optional(7) is not None or call.wants(1):
        if call.integer("mask_index_type", 0) or call.wants(1):
            raise NotCovered("`EmbedLayerNormalization` with a mask")
    sequence = ids.shape[1]
    total = ctx.take(words, ids, 0)
    where = call.optional(8)
    if where is None:
        length = ctx.smaller(sequence, positions.shape[0])
        ctx.require_equal(length, sequence)
        total = ctx.elementwise("add", total, ctx.slice(positions, 0, 0, sequence))
    else:
        total = ctx.elementwise("add", total, ctx.take(positions, where, 0))
    table = call.optional(4)
    if segments is not None and table is not None:
        total = ctx.elementwise("add", total, ctx.take(table, segments, 0))
    eps = call.number("epsilon", 1e-12)
    normed = layer_norm(ctx, total, call.operand(5), call.operand(6), eps)
    return normed, None, total


def _per_channel(ctx: Context, value: Value, rank: int) -> Value:
    """One number a channel, to broadcast over [batch, channel, ...]."""
    return ctx.reshape(value, (value.shape[0], *(1,) * (rank - 2)))


def _scaled(ctx: Context, x: Value, scale: Value, bias: Value) -> Value:
    x = ctx.elementwise("mul", x, _per_channel(ctx, scale, x.rank))
    return ctx.elementwise("add", x, _per_channel(ctx, bias, x.rank))


@operator("InstanceNormalization")
def _instance_norm(ctx: Context, call: Call) -> Results:
    x = call.operand(0)
    rows = ctx.reshape(x, (*x.shape[:2], symbolic.product(x.shape[2:])))
    normed = layer_norm(ctx, rows, None, None, call.number("epsilon", 1e-5))
    return _scaled(ctx, ctx.reshape(normed, x.shape), call.operand(1), call.operand(2))


@operator("GroupNormalization")
def _group_norm(ctx: Context, call: Call) -> Results:
    """From version 21 scale and bias are per channel, before that per group."""
    x, groups = call.operand(0), call.integer("num_groups", 1)
    normed = group_norm(ctx, x, groups, call.number("epsilon", 1e-5))
    scale, bias = call.operand(1), call.operand(2)
    if call.version >= 21:
        return _scaled(ctx, normed, scale, bias)
    inner = symbolic.floor_divide(x.shape[1], groups)
    split = ctx.reshape(normed, (x.shape[0], groups, inner, *x.shape[2:]))
    return ctx.reshape(_scaled(ctx, split, scale, bias), x.shape)


def group_norm(ctx: Context, x: Value, groups: int, eps: float) -> Value:
    """x [batch, channel, ...], normalised over each group of channels."""
    size = symbolic.floor_divide(x.type.elements, x.shape[0] * groups)
    rows = ctx.reshape(x, (x.shape[0], groups, size))
    return ctx.reshape(layer_norm(ctx, rows, None, None, eps), x.shape)


@operator("BatchNormalization")
def _batch_norm(ctx: Context, call: Call) -> Results:
    """Inference only: one factor and one offset a channel."""
    x = call.operand(0)
    if call.integer("training_mode", 0):
        raise InputError("a `BatchNormalization` trains: the model was not exported for inference")
    scale, bias, mean, variance = (call.operand(index) for index in range(1, 5))
    eps = call.number("epsilon", 1e-5)
    weights = tuple(value.weight for value in (scale, bias, mean, variance))
    known = [weight for weight in weights if weight is not None]
    if len(known) == 4 and len({weight.type for weight in known}) == 1:
        factor, offset = _folded(known, eps)
        return _scaled(ctx, x, ctx.parameter(factor), ctx.parameter(offset))
    inverse = ctx.emit("rsqrt", (ctx.elementwise("add", variance, ctx.scalar(eps, x.dtype)),))
    gain = ctx.elementwise("mul", ctx.cast(scale, inverse.dtype), inverse)
    shift = ctx.elementwise("sub", bias, ctx.elementwise("mul", mean, gain))
    return _scaled(ctx, x, gain, shift)


def _folded(weights: list[Weight], eps: float) -> tuple[Weight, Weight]:
    kind = weights[0].type
    identity = digest("batch-norm", repr(eps), *(weight.identity for weight in weights))

    def factor() -> Bits:
        scale, _, _, variance = (_wide(weight) for weight in weights)
        return narrow_bits(scale / np.sqrt(variance + eps), kind.dtype)

    def offset() -> Bits:
        scale, bias, mean, variance = (_wide(weight) for weight in weights)
        return narrow_bits(bias - mean * scale / np.sqrt(variance + eps), kind.dtype)

    known = all(weight.read is not None for weight in weights)
    names = weights[0].name, weights[1].name
    return (
        Weight(names[0], kind, factor if known else None, digest("factor", identity)),
        Weight(names[1], kind, offset if known else None, digest("offset", identity)),
    )


def _wide(weight: Weight) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    bits = weight.load()
    if weight.type.dtype == "bf16":
        return bf16_to_f32(bits.astype(np.uint16)).astype(np.float64)
    return bits.astype(np.float64)


@operator("MeanVarianceNormalization")
def _mean_variance(ctx: Context, call: Call) -> Results:
    x = call.operand(0)
    axes = positive_axes(call.integers("axes") or (0, 2, 3), x.rank)
    mean = ctx.reduce("reduce_mean", x, axes, True)
    centred = ctx.elementwise("sub", x, mean)
    square = ctx.reduce("reduce_mean", ctx.elementwise("mul", centred, centred), axes, True)
    deviation = ctx.elementwise("add", ctx.emit("sqrt", (square,)), ctx.scalar(1e-9, x.dtype))
    return ctx.elementwise("div", centred, deviation)
