"""Convolution, pooling and resizing over spatial axes."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

from fusec import symbolic
from fusec.diagnostics import InputError
from fusec.frontend.onnx_ops.base import (
    Call,
    Context,
    NotCovered,
    Results,
    Value,
    known,
    objects,
    operator,
    positive_axes,
    static,
)
from fusec.ir.types import Attrs
from fusec.symbolic import Dim

MAX_TAPS = 128


def _pads(
    call: Call,
    x: Value,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding before and after each spatial axis."""
    spatial = x.rank - 2
    mode = call.text("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        pads = call.integers("pads") or (0,) * (2 * spatial)
        if len(pads) != 2 * spatial:
            raise InputError(f"a `{call.op}` pads {len(pads)} sides of {spatial} axes")
        return pads[:spatial], pads[spatial:]
    if mode == "VALID":
        return (0,) * spatial, (0,) * spatial
    low: list[int] = []
    high: list[int] = []
    for axis in range(spatial):
        size = static(x.shape[axis + 2], "a size that is padded to fit")
        reach = (kernel[axis] - 1) * dilation[axis] + 1
        total = max((math.ceil(size / stride[axis]) - 1) * stride[axis] + reach - size, 0)
        small, large = total // 2, total - total // 2
        low.append(small if mode == "SAME_UPPER" else large)
        high.append(large if mode == "SAME_UPPER" else small)
    return tuple(low), tuple(high)


@operator("Conv")
def _conv(ctx: Context, call: Call) -> Results:
    x, weight, bias = call.operand(0), call.operand(1), call.optional(2)
    spatial = x.rank - 2
    kernel = tuple(static(dim, "the size of a filter") for dim in weight.shape[2:])
    stride = call.integers("strides") or (1,) * spatial
    dilation = call.integers("dilations") or (1,) * spatial
    low, high = _pads(call, x, kernel, stride, dilation)
    if low != high or any(size < 0 for size in low):
        attrs: Attrs = {"low": (0, 0, *low), "high": (0, 0, *high), "value": 0.0}
        x = ctx.emit("pad", (x,), attrs)
        low = (0,) * spatial
    operands = [value for value in (x, weight, bias) if value is not None]
    attrs = {
        "stride": stride,
        "padding": low,
        "dilation": dilation,
        "groups": call.integer("group", 1),
    }
    return ctx.emit("conv", operands, attrs)


@operator("MaxPool", "AveragePool", "LpPool")
def _pool(ctx: Context, call: Call) -> Results:
    """A chain over the taps of the window: small windows only."""
    x = call.operand(0)
    spatial = x.rank - 2
    kernel = call.integers("kernel_shape")
    if kernel is None or len(kernel) != spatial:
        raise InputError(f"a `{call.op}` does not say how large its window is")
    stride = call.integers("strides") or (1,) * spatial
    dilation = call.integers("dilations") or (1,) * spatial
    if call.wants(1):
        raise NotCovered("the places of the maxima as a result")
    if math.prod(kernel) > MAX_TAPS:
        raise NotCovered(f"a window of {math.prod(kernel)} elements")
    low, high = _pads(call, x, kernel, stride, dilation)
    ceil = bool(call.integer("ceil_mode", 0))
    sizes, room = _pooled(x, kernel, stride, dilation, low, high, ceil)
    p = call.integer("p", 2)
    if call.op == "LpPool":
        x = ctx.emit("abs", (x,))
        x = ctx.elementwise("pow", x, ctx.scalar(float(p), x.dtype))
    fill = -math.inf if call.op == "MaxPool" else 0.0
    if call.op == "MaxPool" and not x.type.element.is_float:
        fill = 0.0 if x.dtype == "u8" else -(2.0 ** (x.type.element.bits - 1))
    wide = _widened(ctx, x, low, room, fill)
    op = "maximum" if call.op == "MaxPool" else "add"
    total = _window(ctx, wide, kernel, stride, dilation, sizes, op)
    if call.op == "LpPool":
        return ctx.elementwise("pow", total, ctx.scalar(1.0 / p, x.dtype))
    if call.op == "MaxPool":
        return total
    count = float(math.prod(kernel))
    padded = any(low) or any(high) or ceil
    if not padded or (call.integer("count_include_pad", 0) and not ceil):
        return ctx.elementwise("div", total, ctx.scalar(count, x.dtype))
    # How many elements each window covers: the same sum over ones.
    ones = ctx.full(1.0, (1, 1, *x.shape[2:]), x.dtype)
    if call.integer("count_include_pad", 0):
        ones = _widened(ctx, ones, low, high, 1.0)
        rest = tuple(size - after for size, after in zip(room, high, strict=True))
        ones = _widened(ctx, ones, (0,) * spatial, rest, 0.0)
    else:
        ones = _widened(ctx, ones, low, room, 0.0)
    return ctx.elementwise("div", total, _window(ctx, ones, kernel, stride, dilation, sizes, "add"))


def _pooled(
    x: Value,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    low: tuple[int, ...],
    high: tuple[int, ...],
    ceil: bool,
) -> tuple[list[Dim], tuple[Dim, ...]]:
    """Sizes of the result, and padding after each axis so that every window is whole."""
    sizes: list[Dim] = []
    room: list[Dim] = []
    for axis in range(x.rank - 2):
        reach = (kernel[axis] - 1) * dilation[axis] + 1
        span = x.shape[axis + 2] + low[axis] + high[axis] - reach
        if not ceil:
            sizes.append(symbolic.floor_divide(span, stride[axis]) + 1)
            room.append(high[axis])
            continue
        length = static(span, "a size that is rounded up")
        size = -(-length // stride[axis]) + 1
        begin = (size - 1) * stride[axis]
        if begin >= static(x.shape[axis + 2], "a size that is rounded up") + low[axis]:
            size -= 1
        sizes.append(size)
        needed = (size - 1) * stride[axis] + reach
        have = static(x.shape[axis + 2], "a size that is rounded up") + low[axis]
        room.append(max(needed - have, high[axis]))
    return sizes, tuple(room)


def _widened(
    ctx: Context, x: Value, low: tuple[int, ...], high: tuple[Dim, ...], fill: float
) -> Value:
    if not any(low) and not any(high):
        return x
    value = fill if x.type.element.is_float else int(fill)
    return ctx.emit("pad", (x,), {"low": (0, 0, *low), "high": (0, 0, *high), "value": value})


def _window(
    ctx: Context,
    x: Value,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    sizes: list[Dim],
    op: str,
) -> Value:
    """`op` over the elements of each window; one axis after the other."""
    for axis, size in enumerate(sizes):
        total: Value | None = None
        for tap in range(kernel[axis]):
            start = tap * dilation[axis]
            stop = (size - 1) * stride[axis] + start + 1
            part = ctx.slice(x, axis + 2, start, stop, stride[axis])
            total = part if total is None else ctx.elementwise(op, total, part)
        if total is not None:
            x = total
    return x


@operator("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(ctx: Context, call: Call) -> Results:
    x = call.operand(0)
    op = "reduce_mean" if call.op == "GlobalAveragePool" else "reduce_max"
    return ctx.reduce(op, x, range(2, x.rank), True)


# --- resizing -------------------------------------------------------------------------------


@operator("Resize", "Upsample")
def _resize(ctx: Context, call: Call) -> Results:
    """Nearest and linear (also cubic's neighbours by weights), of sizes known while importing."""
    x, mode = call.operand(0), call.text("mode", "nearest")
    if mode not in ("nearest", "linear"):
        raise NotCovered(f"`{call.op}` with the mode `{mode}`")
    if call.integer("antialias", 0):
        raise NotCovered(f"`{call.op}` with antialiasing")
    axes = positive_axes(call.integers("axes") or tuple(range(x.rank)), x.rank)
    if call.op == "Upsample":
        scales, sizes, transform = ctx.array(call.operand(1)), None, "asymmetric"
    else:
        transform = call.text("coordinate_transformation_mode", "half_pixel")
        scales, sizes = ctx.array(call.optional(2)), ctx.dims(call.optional(3))
    if call.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise NotCovered("`Resize` that keeps the aspect ratio")
    if transform == "tf_crop_and_resize":
        raise NotCovered("`Resize` that crops")
    given = scales is not None and scales.size > 0
    for place, axis in enumerate(axes):
        wanted = None if given or sizes is None else sizes[place]
        if not given and wanted is None:
            raise NotCovered("the size depends on the data")
        if wanted == x.shape[axis]:
            continue
        if given and scales is not None and float(scales.reshape(-1)[place]) == 1.0:
            continue
        size = static(x.shape[axis], "a size that is resized")
        if given and scales is not None:
            scale = float(scales.reshape(-1)[place])
            length = math.floor(size * scale)
        else:
            length = static(wanted if wanted is not None else size, "a size to resize to")
            scale = length / size
        at = _source_places(transform, length, size, scale)
        if mode == "nearest":
            rounding = call.text("nearest_mode", "round_prefer_floor")
            if call.op == "Upsample":
                rounding = "floor"
            index = np.clip(_rounded(at, rounding), 0, size - 1)
            x = ctx.take(x, ctx.integers(index.astype(int).tolist()), axis)
        else:
            x = _interpolated(ctx, x, axis, at, size)
    return x


def _source_places(transform: str, length: int, size: int, scale: float) -> NDArray[np.float64]:
    """Where in the operand each element of the result comes from."""
    index = np.arange(length, dtype=np.float64)
    if transform == "asymmetric":
        return index / scale
    if transform == "align_corners":
        return index * (size - 1) / (length - 1) if length > 1 else index * 0
    if transform == "pytorch_half_pixel" and length == 1:
        return index * 0
    if transform == "half_pixel_symmetric":
        adjustment = length / (size * scale)
        centre = size / 2
        return centre * (1 - adjustment) + (index + 0.5) / scale - 0.5
    if transform in ("half_pixel", "pytorch_half_pixel"):
        return (index + 0.5) / scale - 0.5
    raise InputError(f"a `Resize` has the unknown coordinates `{transform}`")


def _rounded(at: NDArray[np.float64], how: str) -> NDArray[np.float64]:
    if how == "floor":
        return np.floor(at)
    if how == "ceil":
        return np.ceil(at)
    if how == "round_prefer_ceil":
        return np.floor(at + 0.5)
    if how == "round_prefer_floor":
        return np.ceil(at - 0.5)
    raise InputError(f"a `Resize` has the unknown rounding `{how}`")


def _interpolated(ctx: Context, x: Value, axis: int, at: NDArray[np.float64], size: int) -> Value:
    at = np.clip(at, 0, size - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, size - 1)
    share = at - low
    shape = [len(at) if index == axis else 1 for index in range(x.rank)]
    parts: list[Value] = []
    for index, weight in ((low, 1 - share), (high, share)):
        part = ctx.take(x, ctx.integers(index.tolist()), axis)
        factor = known(objects(weight.tolist(), shape), x.dtype)
        parts.append(ctx.elementwise("mul", part, factor))
    return ctx.elementwise("add", parts[0], parts[1])


@operator("ConvTranspose")
def _conv_transpose(ctx: Context, call: Call) -> Results:
    """A window no larger than the stride: each element makes a block of its own, as in DPT."""
    x, weight, bias = call.operand(0), call.operand(1), call.optional(2)
    spatial = x.rank - 2
    kernel = tuple(static(dim, "the size of a filter") for dim in weight.shape[2:])
    stride = call.integers("strides") or (1,) * spatial
    plain = (
        kernel == stride
        and call.integer("group", 1) == 1
        and not any(call.integers("pads") or ())
        and not any(call.integers("output_padding") or ())
        and set(call.integers("dilations") or (1,)) == {1}
        and call.text("auto_pad", "NOTSET") in ("NOTSET", "VALID")
        and call.integers("output_shape") is None
    )
    if not plain:
        raise NotCovered("a transposed convolution whose windows overlap")
    channels = weight.shape[1]
    taps = math.prod(kernel)
    matrix = ctx.reshape(weight, (weight.shape[0], channels * taps))
    moved = ctx.transpose(x, (0, *range(2, x.rank), 1))
    if weight.weight is not None:
        blocks = ctx.emit("linear", (moved, ctx.transpose(matrix, (1, 0))))
    else:
        blocks = ctx.emit("matmul", (moved, matrix))
    split = ctx.reshape(blocks, (*moved.shape[:-1], channels, *kernel))
    perm = [0, spatial + 1]
    for axis in range(spatial):
        perm += [axis + 1, spatial + 2 + axis]
    woven = ctx.transpose(split, perm)
    sizes = [x.shape[axis + 2] * kernel[axis] for axis in range(spatial)]
    result = ctx.reshape(woven, (x.shape[0], channels, *sizes))
    if bias is None:
        return result
    return ctx.elementwise(
        "add", result, ctx.reshape(bias, (bias.shape[0], *itertools.repeat(1, spatial)))
    )
