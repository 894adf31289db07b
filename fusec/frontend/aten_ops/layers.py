"""ATen operations that are whole layers: norms, attention, convolutions, pools, resampling."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Literal, TypeVar

import numpy as np

from fusec import symbolic
from fusec.frontend.aten_ops.base import (
    Builder,
    SymFloat,
    Val,
    aten,
    broadcast_shape,
    float_eps,
    numel,
    pair,
    static,
)
from fusec.frontend.aten_ops.moving import triangle
from fusec.ir.ops.base import Array
from fusec.ir.types import Attr
from fusec.symbolic import Dim

# --- norms ----------------------------------------------------------------------------------


def _rows(build: Builder, x: Val, count: int) -> Val:
    """The last `count` axes as one."""
    if count == 1:
        return x
    return build.reshape(x, (*x.shape[:-count], numel(x.shape[-count:])))


def _flat(build: Builder, weight: Val | None) -> Val | None:
    return None if weight is None else build.reshape(weight, (weight.type.elements,))


def _widened(build: Builder, x: Val) -> Val:
    """`x` in what PyTorch computes sums of its dtype in."""
    return build.cast(x, "f64" if x.dtype == "f64" else "f32")


@aten("layer_norm")
def layer_norm(
    build: Builder, x: Val, normalized_shape: Sequence[Dim], weight: Val | None = None,
    bias: Val | None = None, eps: float = 1e-5, cudnn_enable: bool = True,
) -> Val:  # fmt: skip
    rows = _rows(build, x, len(normalized_shape))
    weight, bias = _flat(build, weight), _flat(build, bias)
    operands = [rows, *(v for v in (weight, bias) if v is not None)]
    attrs: dict[str, Attr] = {
        "eps": float(eps),
        "has_weight": weight is not None,
        "has_bias": bias is not None,
    }
    return build.reshape(build.emit("layer_norm", *operands, **attrs), x.shape)


@aten("native_layer_norm")
def _native_layer_norm(
    build: Builder, x: Val, normalized_shape: Sequence[Dim], weight: Val | None,
    bias: Val | None, eps: float,
) -> tuple[Val, Val, Val]:  # fmt: skip
    axes = tuple(range(x.rank - len(normalized_shape), x.rank))
    wide = build.cast(x, build.result(1).dtype)
    mean = build.reduce("reduce_mean", wide, axes, True)
    centred = wide - mean
    variance = build.reduce("reduce_mean", centred * centred, axes, True)
    result = layer_norm(build, x, normalized_shape, weight, bias, eps)
    return result, mean, build.emit("rsqrt", variance + eps)


@aten("rms_norm", "_fused_rms_norm")
def _rms_norm(
    build: Builder, x: Val, normalized_shape: Sequence[Dim], weight: Val | None = None,
    eps: float | None = None,
) -> Val | tuple[Val, ...]:  # fmt: skip
    rows = _rows(build, x, len(normalized_shape))
    scale = _flat(build, weight)
    chosen = float_eps(x.dtype) if eps is None else float(eps)
    operands = (rows,) if scale is None else (rows, scale)
    result = build.emit(
        "rms_norm", *operands, eps=chosen, weight_offset=0, has_weight=scale is not None
    )
    result = build.reshape(result, x.shape)
    if len(build.declared) == 1:
        return result
    axes = tuple(range(x.rank - len(normalized_shape), x.rank))
    wide = build.cast(x, build.result(1).dtype)
    square = build.reduce("reduce_mean", wide * wide, axes, True)
    return result, build.emit("rsqrt", square + chosen)


@aten("_weight_norm", "_weight_norm_interface")
def _weight_norm(build: Builder, v: Val, g: Val, dim: int = 0) -> Val | tuple[Val, ...]:
    """A weight kept as a direction and a length per index of `dim`."""
    kept = v.axis(dim) if dim != -1 else -1
    axes = [axis for axis in range(v.rank) if axis != kept]
    length = build.emit("sqrt", build.reduce("reduce_sum", v * v, axes, True))
    result = v * (g / length)
    return result if len(build.declared) == 1 else (result, length)


def _per_channel(build: Builder, weight: Val, rank: int) -> Val:
    """A [C] vector against [B, C, ...]."""
    return build.reshape(weight, (weight.shape[0], *(1,) * (rank - 2)))


def _grouped_norm(
    build: Builder, x: Val, groups: int, weight: Val | None, bias: Val | None, eps: float
) -> Val:
    batch, channels = x.shape[:2]
    inner = symbolic.floor_divide(channels, groups) * numel(x.shape[2:])
    rows = build.reshape(x, (batch, groups, inner))
    normed = build.emit("layer_norm", rows, eps=float(eps), has_weight=False, has_bias=False)
    result = build.reshape(normed, x.shape)
    if weight is not None:
        result = result * _per_channel(build, weight, x.rank)
    return result if bias is None else result + _per_channel(build, bias, x.rank)


@aten("group_norm")
def _group_norm(
    build: Builder, x: Val, num_groups: int, weight: Val | None = None, bias: Val | None = None,
    eps: float = 1e-5, cudnn_enabled: bool = True,
) -> Val:  # fmt: skip
    return _grouped_norm(build, x, num_groups, weight, bias, eps)


@aten("native_group_norm")
def _native_group_norm(
    build: Builder, x: Val, weight: Val | None, bias: Val | None, n: Dim, c: Dim, hxw: Dim,
    group: int, eps: float,
) -> tuple[Val, Val, Val]:  # fmt: skip
    rows = build.reshape(x, (n, group, symbolic.floor_divide(c * hxw, group)))
    wide = build.cast(rows, build.result(1).dtype)
    mean = build.reduce("reduce_mean", wide, (2,))
    centred = wide - build.unsqueeze(mean, 2)
    variance = build.reduce("reduce_mean", centred * centred, (2,))
    result = _grouped_norm(build, x, group, weight, bias, eps)
    return result, mean, build.emit("rsqrt", variance + eps)


@aten("instance_norm")
def _instance_norm(
    build: Builder, x: Val, weight: Val | None, bias: Val | None, running_mean: Val | None,
    running_var: Val | None, use_input_stats: bool, momentum: float, eps: float,
    cudnn_enabled: bool,
) -> Val:  # fmt: skip
    if use_input_stats:
        groups = build.integer(x.shape[1], "the channels")
        return _grouped_norm(build, x, groups, weight, bias, eps)
    assert running_mean is not None
    assert running_var is not None
    return batch_norm(build, x, weight, bias, running_mean, running_var, eps)


def batch_norm(
    build: Builder, x: Val, weight: Val | None, bias: Val | None, mean: Val, variance: Val,
    eps: float,
) -> Val:  # fmt: skip
    """Normalisation by recorded statistics."""
    mean = _widened(build, mean)
    scale = build.emit("rsqrt", _widened(build, variance) + eps)
    if weight is not None:
        scale = scale * build.cast(weight, mean.dtype)
    shift = -(mean * scale)
    if bias is not None:
        shift = shift + build.cast(bias, mean.dtype)
    wide = build.cast(x, mean.dtype)
    result = wide * _per_channel(build, scale, x.rank) + _per_channel(build, shift, x.rank)
    return build.cast(result, x.dtype)


@aten("_native_batch_norm_legit.no_stats")
def _batch_norm_of_batch(
    build: Builder, x: Val, weight: Val | None, bias: Val | None, training: bool,
    momentum: float, eps: float,
) -> tuple[Val, Val, Val]:  # fmt: skip
    """Normalisation by the statistics of what comes in, as an instance norm decomposes to."""
    return _by_batch(build, x, weight, bias, eps)


def _by_batch(
    build: Builder, x: Val, weight: Val | None, bias: Val | None, eps: float
) -> tuple[Val, Val, Val]:
    axes = (0, *range(2, x.rank))
    wide = _widened(build, x)
    mean = build.reduce("reduce_mean", wide, axes)
    centred = wide - _per_channel(build, mean, x.rank)
    variance = build.reduce("reduce_mean", centred * centred, axes)
    result = batch_norm(build, x, weight, bias, mean, variance, eps)
    return result, mean, build.emit("rsqrt", variance + eps)


@aten("batch_norm")
def _batch_norm(
    build: Builder, x: Val, weight: Val | None, bias: Val | None, running_mean: Val | None,
    running_var: Val | None, training: bool, momentum: float, eps: float,
    cudnn_enabled: bool = True,
) -> Val:  # fmt: skip
    if running_mean is None or running_var is None:  # `track_running_stats=False`
        return _by_batch(build, x, weight, bias, eps)[0]
    if training:
        raise build.in_training("a batch norm is in training mode")
    return batch_norm(build, x, weight, bias, running_mean, running_var, eps)


@aten("_native_batch_norm_legit_no_training")
def _native_batch_norm(
    build: Builder, x: Val, weight: Val | None, bias: Val | None, running_mean: Val,
    running_var: Val, momentum: float, eps: float,
) -> tuple[Val | None, ...]:  # fmt: skip
    return batch_norm(build, x, weight, bias, running_mean, running_var, eps), None, None


# --- attention ------------------------------------------------------------------------------


@aten("scaled_dot_product_attention")
def attention(
    build: Builder, query: Val, key: Val, value: Val, attn_mask: Val | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, *, scale: float | SymFloat | None = None,
    enable_gqa: bool = False,
) -> Val:  # fmt: skip
    """PyTorch's `is_causal` counts from the first key, the operation's `causal` from the last."""
    if dropout_p:
        raise build.in_training("the model draws random numbers: attention with dropout")
    if isinstance(scale, SymFloat):
        query, scale = query * build.cast(scale.value, query.dtype), 1.0
    width = build.integer(query.shape[-1], "the head size")
    factor = 1 / math.sqrt(width) if scale is None else float(scale)
    lead = broadcast_shape(query.shape[:-2], key.shape[:-2]) if not enable_gqa else ()
    q, k, v = query, key, value
    if not enable_gqa:
        lead = broadcast_shape(lead, value.shape[:-2])
        q, k, v = (build.expand(x, (*lead, *x.shape[-2:])) for x in (q, k, v))
    folds = not enable_gqa and (q.rank == 3 or (q.rank > 4 and not isinstance(q.shape[-3], int)))
    q4, k4, v4 = (_rank_four(build, x, folds) for x in (q, k, v))
    rows, columns = q.shape[-2], k.shape[-2]
    causal = is_causal and rows == columns
    mask = attn_mask
    if is_causal and not causal:
        mask = triangle(build, rows, columns, 0, True)
    operands = [q4, k4, v4]
    if mask is not None:
        operands.append(_mask_for(build, mask, q, folds))
    result = build.emit(
        "attention", *operands, scale=factor, causal=causal, window=None, softcap=None,
        has_mask=mask is not None, has_sinks=False, has_key_padding=False,
    )  # fmt: skip
    return build.reshape(result, (*q.shape[:-1], v.shape[-1]))


def _rank_four(build: Builder, x: Val, folds: bool) -> Val:
    """[batch, heads, rows, width] from any number of axes in front; `folds`: all are the batch."""
    if folds:
        return build.reshape(x, (numel(x.shape[:-2]), 1, *x.shape[-2:]))
    if x.rank == 4:
        return x
    if x.rank < 4:
        return build.reshape(x, (1,) * (4 - x.rank) + x.shape)
    return build.reshape(x, (numel(x.shape[:-3]), *x.shape[-3:]))


def _mask_for(build: Builder, mask: Val, query: Val, folds: bool) -> Val:
    kept = 2 if folds else 3
    if mask.rank <= kept or (query.rank <= 4 and not folds):
        return mask
    wide = (*query.shape[:-kept], *mask.shape[-kept:])
    padded = build.reshape(mask, (1,) * (query.rank - mask.rank) + mask.shape)
    return _rank_four(build, build.expand(padded, wide), folds)


@aten("_scaled_dot_product_flash_attention_for_cpu")
def _flash_attention(
    build: Builder, query: Val, key: Val, value: Val, dropout_p: float = 0.0,
    is_causal: bool = False, *, attn_mask: Val | None = None, scale: float | None = None,
) -> tuple[Val | None, ...]:  # fmt: skip
    """The second result, for the backward pass, is not made."""
    return attention(build, query, key, value, attn_mask, dropout_p, is_causal, scale=scale), None


# --- convolution ----------------------------------------------------------------------------


def _convolve(
    build: Builder, x: Val, weight: Val, bias: Val | None, stride: int | Sequence[int],
    padding: int | Sequence[int] | str, dilation: int | Sequence[int], groups: int,
) -> Val:  # fmt: skip
    spatial = weight.rank - 2
    alone = x.rank == spatial + 1
    if alone:
        x = build.unsqueeze(x, 0)
    strides, dilations = pair(stride, spatial), pair(dilation, spatial)
    if isinstance(padding, str):
        paddings = (0,) * spatial
        if padding == "same":
            x, paddings = _same_padding(build, x, weight, dilations)
    else:
        paddings = pair(padding, spatial)
    operands = (x, weight) if bias is None else (x, weight, bias)
    result = build.emit(
        "conv", *operands, stride=strides, padding=paddings, dilation=dilations, groups=groups
    )
    return build.squeeze(result, 0) if alone else result


def _same_padding(
    build: Builder, x: Val, weight: Val, dilations: Sequence[int]
) -> tuple[Val, tuple[int, ...]]:
    """An odd rest is padded after."""
    totals = [
        dilation * (build.integer(size, "the kernel") - 1)
        for dilation, size in zip(dilations, weight.shape[2:], strict=True)
    ]
    high = (0, 0, *(total % 2 for total in totals))
    return build.pad(x, (0,) * x.rank, high, 0), tuple(total // 2 for total in totals)


@aten("conv1d", "conv2d", "conv3d", "conv1d.padding", "conv2d.padding", "conv3d.padding")
def _conv(
    build: Builder, x: Val, weight: Val, bias: Val | None = None,
    stride: int | Sequence[int] = 1, padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1, groups: int = 1,
) -> Val:  # fmt: skip
    return _convolve(build, x, weight, bias, stride, padding, dilation, groups)


@aten("convolution")
def _convolution(
    build: Builder, x: Val, weight: Val, bias: Val | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool,
    output_padding: Sequence[int], groups: int,
) -> Val:  # fmt: skip
    if transposed:
        return _transposed(
            build, x, weight, bias, stride, padding, output_padding, groups, dilation
        )
    return _convolve(build, x, weight, bias, stride, padding, dilation, groups)


@aten("conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input")
def _transposed(
    build: Builder, x: Val, weight: Val, bias: Val | None = None,
    stride: int | Sequence[int] = 1, padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0, groups: int = 1, dilation: int | Sequence[int] = 1,
) -> Val:  # fmt: skip
    """A convolution of the input spread out by `stride`, with the kernel turned round."""
    spatial = weight.rank - 2
    alone = x.rank == spatial + 1
    if alone:
        x = build.unsqueeze(x, 0)
    strides, dilations = pair(stride, spatial), pair(dilation, spatial)
    paddings, extra = pair(padding, spatial), pair(output_padding, spatial)
    for index, step in enumerate(strides):
        axis = index + 2
        if step > 1:
            size = x.shape[axis]
            wide = build.unsqueeze(x, axis + 1)
            high = tuple(step - 1 if i == axis + 1 else 0 for i in range(wide.rank))
            wide = build.pad(wide, (0,) * wide.rank, high, 0)
            x = build.reshape(wide, (*x.shape[:axis], size * step, *x.shape[axis + 1 :]))
            x = build.slice(x, axis, 0, size * step - (step - 1))
    low: list[Dim] = [0, 0]
    high_: list[Dim] = [0, 0]
    for index in range(spatial):
        reach = dilations[index] * (build.integer(weight.shape[index + 2], "the kernel") - 1)
        low.append(reach - paddings[index])
        high_.append(reach - paddings[index] + extra[index])
    x = build.pad(x, low, high_, 0)
    kernel = build.emit("flip", weight, axes=tuple(range(2, weight.rank)))
    inside, outside = build.integer(weight.shape[0], "the channels"), weight.shape[1]
    split = build.reshape(kernel, (groups, inside // groups, outside, *kernel.shape[2:]))
    kernel = build.swap(split, 1, 2)
    kernel = build.reshape(kernel, (outside * groups, inside // groups, *weight.shape[2:]))
    result = _convolve(build, x, kernel, bias, 1, 0, dilations, groups)
    return build.squeeze(result, 0) if alone else result


# --- pools ----------------------------------------------------------------------------------


def _pooled(
    build: Builder, x: Val, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], op: Literal["max", "sum"],
) -> Val:  # fmt: skip
    """The largest element or the sum of each window; one axis after the other."""
    first, out = x.rank - len(kernel), build.result().shape[-len(kernel) :]
    places: list[list[int]] = []
    high: list[Dim] = []
    for size, count, taps, step, low, spread in zip(
        x.shape[first:], out, kernel, stride, padding, dilation, strict=True
    ):
        at = [tap * spread for tap in range(taps)]
        if isinstance(size, int) and isinstance(count, int):  # without what sees padding alone
            at = [p for p in at if -(count - 1) * step <= p - low < size] or at[:1]
        places.append(at)
        high.append((count - 1) * step + at[-1] + 1 - size - low)
    around = (0,) * first
    x = build.pad(x, (*around, *padding), (*around, *high), -math.inf if op == "max" else 0.0)
    whole = []
    for index, (count, at) in enumerate(zip(out, places, strict=True)):
        axis = first + index
        if count == 1:
            x = build.slice(x, axis, at[0], at[-1] + 1, dilation[index])
            whole.append(axis)
            continue
        reach, step = (count - 1) * stride[index] + 1, stride[index]
        parts = [build.slice(x, axis, p, p + reach, step) for p in at]
        join = "maximum" if op == "max" else "add"
        x = functools.reduce(lambda a, b: build.emit(join, a, b), parts)
    return build.reduce(f"reduce_{op}", x, tuple(whole), True) if whole else x


@aten("max_pool1d", "max_pool2d", "max_pool3d")
def max_pool(
    build: Builder, x: Val, kernel_size: int | Sequence[int], stride: int | Sequence[int] = (),
    padding: int | Sequence[int] = 0, dilation: int | Sequence[int] = 1, ceil_mode: bool = False,
) -> Val:  # fmt: skip
    count = int(build.origin.op.split("pool")[1][0])
    kernel = pair(kernel_size, count)
    strides = kernel if stride == () else pair(stride, count)
    paddings, dilations = pair(padding, count), pair(dilation, count)
    return _pooled(build, x, kernel, strides, paddings, dilations, "max")


@aten("max_pool2d_with_indices", "max_pool3d_with_indices")
def _max_pool_places(build: Builder, x: Val, *how: object) -> tuple[Val | None, ...]:
    """The places, for the backward pass, are not made."""
    return max_pool(build, x, *how), None  # type: ignore[arg-type]


@aten("avg_pool1d", "avg_pool2d", "avg_pool3d")
def _avg_pool(
    build: Builder, x: Val, kernel_size: int | Sequence[int], stride: int | Sequence[int] = (),
    padding: int | Sequence[int] = 0, ceil_mode: bool = False, count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Val:  # fmt: skip
    if not x.type.element.is_float:
        raise build.unsupported(
            f"`{build.origin.op}` of {x.dtype}", "convert to a floating-point dtype before"
        )
    count = int(build.origin.op.split("pool")[1][0])
    kernel = pair(kernel_size, count)
    strides = kernel if stride == () else pair(stride, count)
    paddings = pair(padding, count)

    def total(part: Val, around: Sequence[int] = paddings) -> Val:
        return _pooled(build, part, kernel, strides, around, (1,) * count, "sum")

    wide = _widened(build, x)
    elements: Val | float = float(divisor_override or math.prod(kernel))
    if divisor_override is None and (ceil_mode or (any(paddings) and not count_include_pad)):
        ones = build.full(x.shape[-count:], 1.0, wide.dtype)
        if count_include_pad:
            elements = total(build.pad(ones, paddings, paddings, 1.0), (0,) * count)
        else:
            elements = total(ones)
    return build.cast(total(wide) / elements, x.dtype)


def _along(build: Builder, x: Val, axis: int, matrix: Array) -> Val:
    """`matrix` [out, in] times `x`, f32 or f64, along one axis."""
    held = matrix.astype(np.float64 if x.dtype == "f64" else np.float32)
    weight = build.array("resample", held, x.dtype)
    moved = build.move(x, axis, x.rank - 1)
    return build.move(build.emit("linear", moved, weight), x.rank - 1, axis)


@aten("adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d",
      "adaptive_avg_pool3d", "_adaptive_avg_pool3d")  # fmt: skip
def _adaptive_avg_pool(build: Builder, x: Val, output_size: Sequence[int]) -> Val:
    first, dtype = x.rank - len(output_size), x.dtype
    if all(size == 1 for size in output_size):
        return build.reduce("reduce_mean", x, tuple(range(first, x.rank)), True)
    x = _widened(build, x)
    for index, out in enumerate(output_size):
        axis = first + index
        size = x.shape[axis]
        if size == out:
            continue
        known = build.integer(size, "a size")
        matrix = np.zeros((out, known))
        for row in range(out):
            begin, end = row * known // out, -(-(row + 1) * known // out)
            matrix[row, begin:end] = 1 / (end - begin)
        x = _along(build, x, axis, matrix)
    return build.cast(x, dtype)


@aten("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def _adaptive_max_pool(
    build: Builder, x: Val, output_size: Sequence[int]
) -> tuple[Val | None, ...]:
    first = x.rank - len(output_size)
    for index, out in enumerate(output_size):
        axis = first + index
        size = build.integer(x.shape[axis], "a size")
        parts = []
        for row in range(out):
            begin, end = row * size // out, -(-(row + 1) * size // out)
            part = build.slice(x, axis, begin, end)
            parts.append(build.reduce("reduce_max", part, (axis,), True))
        x = build.concat(parts, axis)
    return x, None


# --- windows and resampling -----------------------------------------------------------------


@aten("im2col")
def _im2col(
    build: Builder, x: Val, kernel_size: Sequence[int], dilation: Sequence[int],
    padding: Sequence[int], stride: Sequence[int],
) -> Val:  # fmt: skip
    alone = x.rank == 3
    if alone:
        x = build.unsqueeze(x, 0)
    batch, channels = x.shape[:2]
    x = build.pad(x, (0, 0, *padding), (0, 0, *padding), 0)
    out = [
        symbolic.floor_divide(x.shape[i + 2] - dilation[i] * (kernel_size[i] - 1) - 1, stride[i])
        + 1
        for i in range(2)
    ]
    parts: list[Val] = []
    for taps in itertools.product(*map(range, kernel_size)):
        part = x
        for index, tap in enumerate(taps):
            start, step = tap * dilation[index], stride[index]
            part = build.slice(part, index + 2, start, start + (out[index] - 1) * step + 1, step)
        parts.append(part)
    stacked = build.concat([build.unsqueeze(part, 2) for part in parts], 2)
    result = build.reshape(stacked, (batch, channels * len(parts), out[0] * out[1]))
    return build.squeeze(result, 0) if alone else result


T = TypeVar("T", float, Val)

SHARPNESS = -0.75
"""The constant a of Keys' cubic convolution (1981); with antialiasing it is -0.5."""


def _near(x: T, a: float) -> T:
    """The weight of Keys' cubic convolution up to a distance `x` of 1."""
    return (x * (a + 2) - (a + 3)) * x * x + 1.0


def _far(x: T, a: float) -> T:
    """The same from a distance of 1 to 2."""
    return ((x * a - 5 * a) * x + 8 * a) * x - 4 * a


def _scale_of(size: int, out: int, align: bool, scale: float | None) -> float:
    if align:
        return (size - 1) / (out - 1) if out > 1 else 0.0
    return 1 / scale if scale else size / out


def _linear_matrix(size: int, out: int, align: bool, scale: float | None) -> Array:
    ratio = _scale_of(size, out, align, scale)
    matrix = np.zeros((out, size))
    for row in range(out):
        place = row * ratio if align else max((row + 0.5) * ratio - 0.5, 0.0)
        low = min(int(place), size - 1)
        share = place - low
        matrix[row, low] += 1 - share
        matrix[row, min(low + 1, size - 1)] += share
    return matrix


def _cubic_matrix(size: int, out: int, align: bool, scale: float | None) -> Array:
    ratio = _scale_of(size, out, align, scale)
    matrix = np.zeros((out, size))
    for row in range(out):
        place = row * ratio if align else (row + 0.5) * ratio - 0.5
        low = math.floor(place)
        for tap in range(-1, 3):
            x = abs(place - (low + tap))
            weight = _near(x, SHARPNESS) if x <= 1 else _far(x, SHARPNESS)
            matrix[row, min(max(low + tap, 0), size - 1)] += weight
    return matrix


def _antialias_matrix(cubic: bool) -> Callable[[int, int, bool, float | None], Array]:
    def matrix_of(size: int, out: int, align: bool, scale: float | None) -> Array:
        ratio = _scale_of(size, out, align, scale)
        stretch = max(ratio, 1.0)
        support = (2.0 if cubic else 1.0) * stretch
        matrix = np.zeros((out, size))
        for row in range(out):
            centre = ratio * (row + 0.5)
            begin = max(int(centre - support + 0.5), 0)
            end = min(int(centre + support + 0.5), size)
            for place in range(begin, end):
                matrix[row, place] = _filter((place - centre + 0.5) / stretch, cubic)
            matrix[row] /= matrix[row].sum()
        return matrix

    return matrix_of


def _filter(x: float, cubic: bool) -> float:
    x = abs(x)
    if not cubic:
        return max(1 - x, 0.0)
    if x < 1:
        return _near(x, -0.5)
    return _far(x, -0.5) if x < 2 else 0.0


def _place(
    build: Builder, size: Dim, out: Dim, align: bool, scale: float | None
) -> tuple[Dim, Dim, Dim]:
    """`times`, `more` and `by`: row r of the result lies at (r*times + more)/by of the operand."""
    if align:
        return size - 1, 0, symbolic.maximum(out - 1, 1)
    times, by = size, out
    if scale is not None:
        ratio = Fraction(scale).limit_denominator(1 << 15)
        if float(ratio) != scale:
            raise build.unsupported(f"`{build.origin.op}` of a size that is not fixed by {scale}")
        by, times = ratio.as_integer_ratio()
    return 2 * times, times - by, 2 * by


def _by_position(
    build: Builder, x: Val, axis: int, out: Dim, place: tuple[Dim, Dim, Dim], cubic: bool
) -> Val:
    """Resample an axis of `x`, f32 or f64, of unknown sizes: rows are taken and weighed."""
    times, more, by = place
    steps = build.scalar(by, "i64")
    at = build.iota(out) * times + more
    if not cubic:
        at = build.emit("maximum", at, build.scalar(0, "i64"))
    low = build.emit("floordiv", at, steps)
    share = build.cast(at - low * by, x.dtype) / build.cast(steps, x.dtype)
    rest = -share + 1.0
    weights = {0: rest, 1: share}
    if cubic:
        weights = {
            -1: _far(share + 1.0, SHARPNESS),
            0: _near(share, SHARPNESS),
            1: _near(rest, SHARPNESS),
            2: _far(rest + 1.0, SHARPNESS),
        }
    first, last = build.scalar(0, "i64"), build.scalar(x.shape[axis] - 1, "i64")
    total: Val | None = None
    for offset, weight in weights.items():
        row = build.emit("minimum", build.emit("maximum", low + offset, first), last)
        taken = build.emit("take", x, row, axis=axis)
        part = taken * build.reshape(weight, (out, *(1 for _ in x.shape[axis + 1 :])))
        total = part if total is None else total + part
    assert total is not None
    return total


def _by_filter(
    build: Builder, x: Val, axis: int, out: Dim, align: bool, scale: float | None, cubic: bool
) -> Val:
    """Resample an axis of `x`, f32 or f64: `_antialias_matrix` is computed when it runs."""
    wide, size = x.dtype, x.shape[axis]

    def number(value: Dim) -> Val:
        return build.cast(build.scalar(value, "i64"), wide)

    def places(count: Dim) -> Val:
        return build.cast(build.iota(count), wide) + 0.5

    if align:
        ratio = number(size - 1) / number(symbolic.maximum(out - 1, 1))
    else:
        ratio = build.scalar(1 / scale, wide) if scale else number(size) / number(out)
    stretch = build.emit("maximum", ratio, number(1))
    offset = build.unsqueeze(places(size), 1) - build.unsqueeze(places(out), 0) * ratio
    distance = build.emit("abs", offset / stretch)
    one = number(1)
    if cubic:
        beyond = build.emit("minimum", build.emit("maximum", distance, one), number(2))
        matrix = _near(build.emit("minimum", distance, one), -0.5) + _far(beyond, -0.5)
    else:
        matrix = build.emit("maximum", -distance + 1.0, number(0))
    matrix = matrix / build.reduce("reduce_sum", matrix, (0,), True)
    moved = build.move(x, axis, x.rank - 1)
    product = build.emit("matmul", moved, matrix)
    return build.move(product, x.rank - 1, axis)


Resampler = Callable[[int, int, bool, float | None], Array]


def _resample(
    build: Builder, x: Val, align: bool, scales: Sequence[float | None], make: Resampler
) -> Val:
    out, dtype = build.result().shape, x.dtype
    x = _widened(build, x)
    for axis in reversed(range(2, x.rank)):
        sizes = static((x.shape[axis], out[axis]))
        scale = scales[axis - 2] if axis - 2 < len(scales) else None
        cubic = "cubic" in build.origin.op
        if sizes is None and "_aa" in build.origin.op:
            x = _by_filter(build, x, axis, out[axis], align, scale, cubic)
        elif sizes is None:
            place = _place(build, x.shape[axis], out[axis], align, scale)
            x = _by_position(build, x, axis, out[axis], place, cubic)
        elif sizes[0] != sizes[1] or (scale is not None and scale != 1):
            x = _along(build, x, axis, make(sizes[0], sizes[1], align, scale))
        if dtype == "u8":  # after each axis, as PyTorch does
            x = build.emit("maximum", build.emit("floor", x + 0.5), build.scalar(0.0, x.dtype))
            x = build.emit("minimum", x, build.scalar(255.0, x.dtype))
    return build.cast(x, dtype)


@aten("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d",
      "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")  # fmt: skip
def _upsample(
    build: Builder, x: Val, output_size: Sequence[Dim], align_corners: bool,
    *scales: float | None, scales_h: float | None = None, scales_w: float | None = None,
) -> Val:  # fmt: skip
    return _resample(build, x, align_corners, scales or (scales_h, scales_w), _resampler(build))


def _resampler(build: Builder) -> Resampler:
    name = build.origin.op
    if "_aa" in name:
        return _antialias_matrix("cubic" in name)
    return _cubic_matrix if "cubic" in name else _linear_matrix


@aten("upsample_linear1d.vec", "upsample_bilinear2d.vec", "upsample_trilinear3d.vec",
      "upsample_bicubic2d.vec", "_upsample_bilinear2d_aa.vec",
      "_upsample_bicubic2d_aa.vec")  # fmt: skip
def _upsample_vec(
    build: Builder, x: Val, output_size: Sequence[Dim] | None, align_corners: bool,
    scale_factors: Sequence[float] | None = None,
) -> Val:  # fmt: skip
    return _resample(build, x, align_corners, scale_factors or (), _resampler(build))


@aten("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d",
      "_upsample_nearest_exact2d", "_upsample_nearest_exact3d")  # fmt: skip
def _nearest(
    build: Builder, x: Val, output_size: Sequence[Dim], *scales: float | None,
    **named: float | None,
) -> Val:  # fmt: skip
    return _nearest_by(build, x, scales)


@aten("upsample_nearest1d.vec", "upsample_nearest2d.vec", "upsample_nearest3d.vec",
      "_upsample_nearest_exact2d.vec")  # fmt: skip
def _nearest_vec(
    build: Builder, x: Val, output_size: Sequence[Dim] | None,
    scale_factors: Sequence[float] | None = None,
) -> Val:  # fmt: skip
    return _nearest_by(build, x, scale_factors or ())


def _nearest_by(build: Builder, x: Val, scales: Sequence[float | None]) -> Val:
    out = build.result().shape
    middle = 0.5 if "exact" in build.origin.op else 0.0
    for axis in range(2, x.rank):
        size, wanted = x.shape[axis], out[axis]
        scale = scales[axis - 2] if axis - 2 < len(scales) else None
        if size == wanted and (not middle or scale is None or scale == 1):
            continue
        if scale is not None and float(scale).is_integer() and wanted == size * int(scale):
            wide = build.unsqueeze(x, axis + 1)
            shape = (*wide.shape[: axis + 1], int(scale), *wide.shape[axis + 2 :])
            full = (*x.shape[:axis], wanted, *x.shape[axis + 1 :])
            x = build.reshape(build.expand(wide, shape), full)
            continue
        sizes = static((size, wanted))
        if sizes is None:
            x = build.emit("take", x, _nearest_rows(build, size, wanted, middle, scale), axis=axis)
            continue
        ratio = np.float32(1 / scale if scale else sizes[0] / sizes[1])
        rows = np.arange(sizes[1], dtype=np.float32)
        places = np.minimum(np.floor((rows + middle) * ratio), sizes[0] - 1).astype(np.int64)
        x = build.emit("take", x, build.array("nearest", places, "i64"), axis=axis)
    return x


def _nearest_rows(build: Builder, size: Dim, out: Dim, middle: float, scale: float | None) -> Val:
    """Where each row of the result lies in the operand, by numbers in f32 as PyTorch has them."""
    if scale is not None:
        ratio = build.scalar(float(np.float32(1 / scale)), "f32")
    else:
        ratio, wanted = (build.cast(build.scalar(n, "i64"), "f32") for n in (size, out))
        ratio = ratio / wanted
    places = (build.cast(build.iota(out), "f32") + middle) * ratio
    rows = build.cast(build.emit("floor", places), "i64")
    return build.emit("minimum", rows, build.scalar(size - 1, "i64"))
