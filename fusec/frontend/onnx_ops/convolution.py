"""Convolution, pooling and resizing over spatial axes."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from fusec import symbolic
from fusec.diagnostics import InputError
from fusec.frontend.onnx_ops.base import (
    Call,
    Context,
    NotCovered,
    Results,
    Value,
    known,
    operator,
    positive_axes,
    static,
)
from fusec.ir.types import Attrs
from fusec.symbolic import Dim

MAX_TAPS = 128


def _pads(
    ctx: Context,
    call: Call,
    x: Value,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[tuple[Dim, ...], tuple[Dim, ...]]:
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
    low: list[Dim] = []
    high: list[Dim] = []
    for axis in range(spatial):
        size = x.shape[axis + 2]
        reach = (kernel[axis] - 1) * dilation[axis] + 1
        last = (symbolic.ceil_divide(size, stride[axis]) - 1) * stride[axis]
        total = ctx.larger(last + reach - size, 0)
        small = symbolic.floor_divide(total, 2)
        large = total - small
        low.append(small if mode == "SAME_UPPER" else large)
        high.append(large if mode == "SAME_UPPER" else small)
    return tuple(low), tuple(high)


@operator("Conv")
def _conv(ctx: Context, call: Call) -> Results:
    return convolution(ctx, call, call.operand(0), call.operand(1), call.optional(2))


def convolution(ctx: Context, call: Call, x: Value, weight: Value, bias: Value | None) -> Value:
    """x [N, C, ...], weight [O, C/groups, ...] and bias [O], with the attributes of `call`."""
    spatial = x.rank - 2
    kernel = tuple(static(dim, "the size of a filter") for dim in weight.shape[2:])
    stride = call.integers("strides") or (1,) * spatial
    dilation = call.integers("dilations") or (1,) * spatial
    low, high = _pads(ctx, call, x, kernel, stride, dilation)
    if low != high or not all(isinstance(size, int) and size >= 0 for size in low):
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
    low, high = _pads(ctx, call, x, kernel, stride, dilation)
    ceil = bool(call.integer("ceil_mode", 0))
    sizes, room = _pooled(ctx, x, kernel, stride, dilation, low, high, ceil)
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
    ctx: Context,
    x: Value,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    low: tuple[Dim, ...],
    high: tuple[Dim, ...],
    ceil: bool,
) -> tuple[list[Dim], tuple[Dim, ...]]:
    """Sizes of the result, and padding after each axis so that every window is whole."""
    sizes: list[Dim] = []
    room: list[Dim] = []
    for axis in range(x.rank - 2):
        reach = (kernel[axis] - 1) * dilation[axis] + 1
        have = x.shape[axis + 2] + low[axis]
        span = have + high[axis] - reach
        if not ceil:
            sizes.append(symbolic.floor_divide(span, stride[axis]) + 1)
            room.append(high[axis])
            continue
        begun = symbolic.ceil_divide(have, stride[axis])  # windows that begin before the padding
        size = ctx.smaller(symbolic.ceil_divide(span, stride[axis]) + 1, begun)
        sizes.append(size)
        room.append(ctx.larger((size - 1) * stride[axis] + reach - have, high[axis]))
    return sizes, tuple(room)


def _widened(
    ctx: Context, x: Value, low: tuple[Dim, ...], high: tuple[Dim, ...], fill: float
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
    """Nearest and linear, by constant scales or to sizes that follow from those of the inputs."""
    x, mode = call.operand(0), call.text("mode", "nearest")
    if mode not in ("nearest", "linear"):
        raise NotCovered(f"`{call.op}` with the mode `{mode}`")
    if mode == "linear" and not x.type.element.is_float:
        raise NotCovered(f"`{call.op}` between integers")
    if call.integer("antialias", 0):
        raise NotCovered(f"`{call.op}` with antialiasing")
    axes = positive_axes(call.integers("axes") or tuple(range(x.rank)), x.rank)
    transform = call.text("coordinate_transformation_mode", "half_pixel")
    rounding = call.text("nearest_mode", "round_prefer_floor")
    scales, sizes = ctx.array(call.optional(2)), ctx.dims(call.optional(3))
    if call.op == "Upsample":
        scales, sizes = ctx.array(call.operand(1)), None
        transform, rounding = "asymmetric", "floor"
    if call.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise NotCovered("`Resize` that keeps the aspect ratio")
    if transform == "tf_crop_and_resize":
        raise NotCovered("`Resize` that crops")
    given: list[float] | list[Dim]
    if scales is not None and scales.size > 0:
        given = scales.reshape(-1).tolist()
    elif sizes is not None:
        given = list(sizes)
    else:
        raise NotCovered("the size depends on the data")
    if len(given) != len(axes):
        raise InputError(f"a `{call.op}` gives {len(given)} sizes for {len(axes)} axes")
    for axis, wanted in zip(axes, given, strict=True):
        size = x.shape[axis]
        up, down = _fraction(wanted) if isinstance(wanted, float) else (wanted, size)
        if up == down:
            continue
        length = symbolic.floor_divide(size * up, down)
        line = _source_places(ctx, transform, length, size, up, down)
        if mode == "nearest":
            x = ctx.take(x, _nearest(ctx, line, rounding), axis)
        else:
            x = _interpolated(ctx, x, axis, line)
    return x


def _fraction(scale: float) -> tuple[int, int]:
    """A scale as the small fraction that it is in 32 bits: 7/10 rather than 0.69999999.

    Raises:
        InputError: it is not a positive number.
    """
    if not 0 < scale < math.inf:
        raise InputError(f"a `Resize` has the impossible scale {scale}")
    exact = Fraction(scale)
    small = exact.limit_denominator(1 << 12)
    meant = small if np.float32(float(small)) == np.float32(scale) else exact
    return meant.numerator, meant.denominator


@dataclass(frozen=True, slots=True)
class _Line:
    """Where the elements of a resized axis come from: `(slope * i + offset) / under`.

    Attributes:
        length: of the result.
        size: of the operand.
        slope, offset, under: integers, so that no place is rounded but where ONNX says so.
    """

    length: Dim
    size: Dim
    slope: Dim
    offset: Dim
    under: Dim

    def over(self, ctx: Context, factor: int, shift: Dim) -> Value:
        """`factor * (slope * i + offset) + shift`."""
        slope, offset = factor * self.slope, factor * self.offset + shift
        if isinstance(self.length, int) and isinstance(slope, int) and isinstance(offset, int):
            return ctx.integers([slope * index + offset for index in range(self.length)])
        return ctx.iota(self.length, start=offset, step=slope)


def _source_places(
    ctx: Context, transform: str, length: Dim, size: Dim, up: Dim, down: Dim
) -> _Line:
    if transform == "asymmetric":  # i / scale
        return _Line(length, size, down, 0, up)
    if transform == "align_corners":
        return _Line(length, size, size - 1, 0, ctx.larger(length - 1, 1))
    slope, offset = 2 * down, down - up  # (i + 1/2) / scale - 1/2
    if transform == "half_pixel_symmetric":
        offset = offset + size * up - length * down
    elif transform == "pytorch_half_pixel":
        several = ctx.smaller(length - 1, 1)
        slope, offset = slope * several, offset * several
    elif transform != "half_pixel":
        raise InputError(f"a `Resize` has the unknown coordinates `{transform}`")
    return _Line(length, size, slope, offset, 2 * up)


_INTEGER = {
    "add": np.add,
    "floordiv": np.floor_divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "mod": np.mod,
}


def _integer(ctx: Context, op: str, a: Value, b: Dim) -> Value:
    """`a op b` of integers; now, if they are known."""
    if a.content is not None and isinstance(b, int):
        return known(_INTEGER[op](a.content, b), a.dtype)
    return ctx.elementwise(op, a, ctx.scalar(b, a.dtype))


def _inside(ctx: Context, places: Value, last: Dim) -> Value:
    return _integer(ctx, "minimum", _integer(ctx, "maximum", places, 0), last)


def _nearest(ctx: Context, line: _Line, rounding: str) -> Value:
    """Places as whole numbers inside the axis."""
    rules: dict[str, tuple[int, Dim]] = {
        "floor": (1, 0),
        "ceil": (1, line.under - 1),
        "round_prefer_ceil": (2, line.under),
        "round_prefer_floor": (2, line.under - 1),
    }
    if rounding not in rules:
        raise InputError(f"a `Resize` has the unknown rounding `{rounding}`")
    factor, shift = rules[rounding]
    whole = _integer(ctx, "floordiv", line.over(ctx, factor, shift), factor * line.under)
    return _inside(ctx, whole, line.size - 1)


def _interpolated(ctx: Context, x: Value, axis: int, line: _Line) -> Value:
    last, under = line.size - 1, line.under
    over = _inside(ctx, line.over(ctx, 1, 0), last * under)
    low = _integer(ctx, "floordiv", over, under)
    high = _inside(ctx, _integer(ctx, "add", low, 1), last)
    share = _share(ctx, _integer(ctx, "mod", over, under), under, x.dtype)
    share = ctx.reshape(share, (line.length, *(1,) * (x.rank - 1 - axis)))
    first, second = ctx.take(x, low, axis), ctx.take(x, high, axis)
    change = ctx.elementwise("mul", ctx.elementwise("sub", second, first), share)
    return ctx.elementwise("add", first, change)


def _share(ctx: Context, part: Value, whole: Dim, dtype: str) -> Value:
    """`part / whole` in floating point; now, if they are known."""
    if part.content is not None and isinstance(whole, int):
        return known(np.true_divide(part.content, whole), dtype)
    wide = (ctx.cast(value, "f32") for value in (part, ctx.scalar(whole, "i64")))
    return ctx.cast(ctx.elementwise("div", *wide), dtype)


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
