"""Operators that move elements or make them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fusec import symbolic
from fusec.diagnostics import InputError
from fusec.frontend.onnx_ops.base import (
    Call,
    Context,
    NotCovered,
    Results,
    Value,
    operator,
    positive_axes,
    static,
)
from fusec.frontend.onnx_ops.tensors import dtype_of
from fusec.symbolic import Dim


def _sizes(ctx: Context, value: Value, what: str) -> tuple[Dim, ...]:
    found = ctx.dims(value)
    if found is None:
        raise NotCovered(f"{what} depends on the data")
    return found


@operator("Reshape")
def _reshape(ctx: Context, call: Call) -> Results:
    x = call.operand(0)
    wanted = list(_sizes(ctx, call.operand(1), "the new shape"))
    if not call.integer("allowzero", 0):
        for index, dim in enumerate(wanted):
            if dim == 0:
                if index >= x.rank:
                    raise InputError("a `Reshape` keeps an axis that its operand has not")
                wanted[index] = x.shape[index]
    return ctx.reshape(x, filled(x.shape, wanted))


def filled(shape: tuple[Dim, ...], wanted: list[Dim]) -> tuple[Dim, ...]:
    """`wanted` with its -1 replaced by what is left of the elements of `shape`."""
    if wanted.count(-1) > 1:
        raise InputError("a `Reshape` leaves two sizes open")
    if -1 not in wanted:
        return tuple(wanted)
    have, named = list(shape), []
    for dim in wanted:
        if dim == -1:
            continue
        if dim in have:  # equal sizes cancel, so that sums of symbols need no division
            have.remove(dim)
        else:
            named.append(dim)
    divisor = symbolic.product(named)
    if divisor == 0:
        raise InputError("a `Reshape` leaves a size open where another is 0")
    rest = symbolic.floor_divide(symbolic.product(have), divisor)
    return tuple(rest if dim == -1 else dim for dim in wanted)


@operator("Transpose")
def _transpose(ctx: Context, call: Call) -> Results:
    x = call.operand(0)
    perm = call.integers("perm") or tuple(reversed(range(x.rank)))
    return ctx.transpose(x, positive_axes(perm, x.rank))


@operator("Flatten")
def _flatten(ctx: Context, call: Call) -> Results:
    x, axis = call.operand(0), call.integer("axis", 1)
    axis = axis + x.rank if axis < 0 else axis
    rows, columns = symbolic.product(x.shape[:axis]), symbolic.product(x.shape[axis:])
    return ctx.reshape(x, (rows, columns))


def _given_axes(ctx: Context, call: Call) -> tuple[int, ...] | None:
    axes = call.integers("axes")
    if axes is None and call.optional(1) is not None:
        return ctx.ints(call.optional(1), "the list of axes")
    return axes


@operator("Squeeze")
def _squeeze(ctx: Context, call: Call) -> Results:
    x, axes = call.operand(0), _given_axes(ctx, call)
    if axes is None:
        axes = tuple(index for index, dim in enumerate(x.shape) if dim == 1)
    gone = positive_axes(axes, x.rank)
    for axis in gone:
        ctx.require_equal(x.shape[axis], 1)
    return ctx.reshape(x, [dim for index, dim in enumerate(x.shape) if index not in gone])


@operator("Unsqueeze")
def _unsqueeze(ctx: Context, call: Call) -> Results:
    x, axes = call.operand(0), _given_axes(ctx, call)
    if axes is None:
        raise InputError("an `Unsqueeze` has no axes")
    rank = x.rank + len(axes)
    new, shape = positive_axes(axes, rank), list(x.shape)
    return ctx.reshape(x, [1 if index in new else shape.pop(0) for index in range(rank)])


@operator("Expand")
def _expand(ctx: Context, call: Call) -> Results:
    x = call.operand(0)
    wanted = _sizes(ctx, call.operand(1), "the new shape")
    rank = max(x.rank, len(wanted))
    have = (*(1,) * (rank - x.rank), *x.shape)
    wanted = (*(1,) * (rank - len(wanted)), *wanted)
    ctx.agree(have, wanted)
    return ctx.expand(x, [b if a == 1 else a for a, b in zip(have, wanted, strict=True)])


@operator("Concat")
def _concat(ctx: Context, call: Call) -> Results:
    parts = [call.operand(index) for index in range(len(call.inputs))]
    (axis,) = positive_axes((call.integer("axis", 0),), parts[0].rank)
    useful = [part for part in parts if part.shape[axis] != 0] or parts[:1]
    return ctx.concat(useful, axis)


@operator("Slice")
def _slice(ctx: Context, call: Call) -> Results:
    x = call.operand(0)
    starts = _sizes(ctx, call.operand(1), "the start of a slice")
    stops = _sizes(ctx, call.operand(2), "the end of a slice")
    axes = tuple(range(len(starts)))
    if call.optional(3) is not None:
        axes = positive_axes(ctx.ints(call.optional(3), "the list of axes"), x.rank)
    steps = (1,) * len(starts)
    if call.optional(4) is not None:
        steps = ctx.ints(call.optional(4), "the step of a slice")
    for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
        x = sliced(ctx, x, axis, start, stop, step)
    return x


def sliced(ctx: Context, x: Value, axis: int, start: Dim, stop: Dim, step: int) -> Value:
    """A slice with the bounds of numpy: negative from the end, clipped to the axis."""
    size = x.shape[axis]
    if step == 0:
        raise InputError("the step of a slice is 0")
    if step < 0:
        return _backwards(ctx, x, axis, start, stop, step)
    low, high = _clipped(ctx, start, size), _clipped(ctx, stop, size)
    return ctx.slice(x, axis, low, ctx.larger(low, high), step)


def _clipped(ctx: Context, bound: Dim, size: Dim) -> Dim:
    least, most = ctx.span(bound)
    if least >= 0:
        return ctx.smaller(bound, size)
    if most < 0:
        return ctx.larger(size + bound, 0)
    if ctx.span(bound + size)[0] >= 0 and isinstance(bound, symbolic.Expr):
        # Sizes minus sizes: negative only where the model would wrap around, which none means.
        return ctx.smaller(ctx.larger(bound, 0), size)
    raise NotCovered(f"the bound `{bound}` of a slice may be negative")


def _backwards(ctx: Context, x: Value, axis: int, start: Dim, stop: Dim, step: int) -> Value:
    size = x.shape[axis]
    first = size - 1 if isinstance(start, int) and start in (-1, (1 << 63) - 1) else start
    whole = first == size - 1 and isinstance(stop, int) and stop <= -(1 << 31) + 1
    if whole and step == -1:
        return ctx.emit("flip", (x,), {"axes": (axis,)})
    length = static(size, "a size that is walked backwards")
    low = static(start, "the start of a slice")
    high = static(stop, "the end of a slice")
    low = max(low, -length)  # ONNX begins at the first element where numpy finds none
    places = range(length)[slice(low, high if high >= -length else None, step)]
    if not places:
        return ctx.slice(x, axis, 0, 0)
    part = ctx.slice(x, axis, places[-1], places[0] + 1, -step)
    return ctx.emit("flip", (part,), {"axes": (axis,)})


@operator("Split")
def _split(ctx: Context, call: Call) -> Results:
    x = call.operand(0)
    (axis,) = positive_axes((call.integer("axis", 0),), x.rank)
    sizes: tuple[Dim, ...] | None = call.integers("split")
    if call.optional(1) is not None:
        sizes = _sizes(ctx, call.operand(1), "the sizes of the parts")
    if sizes is None:
        count = call.integer("num_outputs", len(call.outputs))
        piece = symbolic.ceil_divide(x.shape[axis], count)
        sizes = (*(piece,) * (count - 1), x.shape[axis] - (count - 1) * piece)
    ctx.require_equal(sum(sizes, start=0), x.shape[axis])
    results: list[Value] = []
    start: Dim = 0
    for size in sizes:
        results.append(ctx.slice(x, axis, start, start + size))
        start = start + size
    return tuple(results)


@operator("Tile")
def _tile(ctx: Context, call: Call) -> Results:
    x, repeats = call.operand(0), _sizes(ctx, call.operand(1), "the number of repeats")
    if len(repeats) != x.rank:
        raise InputError("a `Tile` has another number of repeats than axes")
    split: list[Dim] = []
    spread: list[Dim] = []
    for dim, times in zip(x.shape, repeats, strict=True):
        split += [1, dim] if times != 1 else [dim]
        spread += [times, dim] if times != 1 else [dim]
    wide = ctx.expand(ctx.reshape(x, split), spread)
    sizes = [dim * times for dim, times in zip(x.shape, repeats, strict=True)]
    return ctx.reshape(wide, sizes)


@operator("Pad")
def _pad(ctx: Context, call: Call) -> Results:
    x, mode = call.operand(0), call.text("mode", "constant")
    pads = _sizes(ctx, call.operand(1), "the padding")
    axes = tuple(range(x.rank))
    if call.optional(3) is not None:
        axes = positive_axes(ctx.ints(call.optional(3), "the list of axes"), x.rank)
    if len(pads) != 2 * len(axes):
        raise InputError("a `Pad` has another number of sizes than axes")
    low: list[Dim] = [0] * x.rank
    high: list[Dim] = [0] * x.rank
    for index, axis in enumerate(axes):
        low[axis], high[axis] = pads[index], pads[index + len(axes)]
    if mode != "constant":
        return _mirrored(ctx, x, low, high, mode)
    if not any(low) and not any(high):
        return x
    number: Any = 0.0 if x.type.element.is_float else False if x.dtype == "bool" else 0
    if call.optional(2) is not None:
        held = ctx.number(call.operand(2), "the value to pad with")
        number = type(number)(held)
    attrs = {"low": tuple(low), "high": tuple(high), "value": number}
    return ctx.emit("pad", (x,), attrs)


def _mirrored(ctx: Context, x: Value, low: list[Dim], high: list[Dim], mode: str) -> Value:
    """Padding with the operand's own elements: they are taken by constant indices."""
    modes = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}
    if mode not in modes:
        raise InputError(f"a `Pad` has the unknown mode `{mode}`")
    for axis in range(x.rank):
        if low[axis] == 0 and high[axis] == 0:
            continue
        size = static(x.shape[axis], "a size that is padded")
        before, after = static(low[axis], "the padding"), static(high[axis], "the padding")
        if before < 0 or after < 0:
            raise NotCovered("a negative padding")
        places = np.pad(np.arange(size), (before, after), mode=modes[mode])  # type: ignore[call-overload]
        x = ctx.take(x, ctx.integers(places.tolist()), axis)
    return x


@operator("ConstantOfShape")
def _constant_of_shape(ctx: Context, call: Call) -> Results:
    from onnx import numpy_helper

    shape = _sizes(ctx, call.operand(0), "the shape")
    tensor = call.attrs.get("value")
    if tensor is None:
        return ctx.full(0.0, shape, "f32")
    dtype = dtype_of(tensor.data_type, "the value of `ConstantOfShape`")
    number = numpy_helper.to_array(tensor).reshape(-1)[0]
    plain = bool(number) if dtype == "bool" else number.item()
    if not isinstance(plain, int | float):
        plain = float(plain)
    return ctx.full(plain, shape, dtype)


@operator("Range")
def _range(ctx: Context, call: Call) -> Results:
    """Counting; sizes may be expressions."""
    start, stop, step = (call.operand(index) for index in range(3))
    dtype = start.dtype
    if start.type.element.is_float:
        first, end, delta = (ctx.number(v, "a bound of `Range`") for v in (start, stop, step))
        count = max(math.ceil((end - first) / delta), 0)
        return ctx.iota(count, dtype, first, delta)
    bounds = [ctx.dims(value) for value in (start, stop, step)]
    if any(bound is None or len(bound) != 1 for bound in bounds):
        raise NotCovered("a bound of `Range` depends on the data")
    low, high, by = (bound[0] for bound in bounds if bound is not None)
    delta_known = static(by, "the step of `Range`")
    if delta_known == 0:
        raise InputError("the step of a `Range` is 0")
    length = high - low if delta_known > 0 else low - high
    size = symbolic.ceil_divide(length, abs(delta_known))
    return ctx.iota(ctx.larger(size, 0), dtype, low, delta_known)


@operator("EyeLike")
def _eye_like(ctx: Context, call: Call) -> Results:
    x = call.operand(0)
    element = call.attrs.get("dtype")
    dtype = x.dtype if element is None else dtype_of(int(element), "the result of `EyeLike`")
    rows, columns = x.shape
    row = ctx.reshape(ctx.iota(rows, start=call.integer("k", 0)), (rows, 1))
    flags = ctx.elementwise("eq", row, ctx.reshape(ctx.iota(columns), (1, columns)))
    return ctx.cast(flags, dtype)


@operator("Trilu")
def _trilu(ctx: Context, call: Call) -> Results:
    """Keeps a triangle: columns from (or up to) the row's number plus `k`."""
    x = call.operand(0)
    offset: tuple[Dim, ...] | None = (0,)
    if call.optional(1) is not None:
        offset = ctx.dims(call.operand(1))
    if offset is None:
        raise NotCovered("`k` of a triangle depends on the data")
    rows, columns = x.shape[-2:]
    row = ctx.reshape(ctx.iota(rows, start=offset[0]), (rows, 1))
    column = ctx.reshape(ctx.iota(columns), (1, columns))
    keep = ctx.elementwise("ge" if call.integer("upper", 1) else "le", column, row)
    if x.dtype == "bool":
        return ctx.elementwise("and", x, keep)
    zero = ctx.scalar(0.0 if x.type.element.is_float else 0, x.dtype)
    return ctx.elementwise("where", keep, x, zero)


@operator("DepthToSpace")
def _depth_to_space(ctx: Context, call: Call) -> Results:
    x, block = call.operand(0), call.integer("blocksize", 1)
    batch, channels, height, width = x.shape
    inner = symbolic.floor_divide(channels, block * block)
    if call.text("mode", "DCR") == "DCR":
        split: tuple[Dim, ...] = (batch, block, block, inner, height, width)
        perm = (0, 3, 4, 1, 5, 2)
    else:
        split = (batch, inner, block, block, height, width)
        perm = (0, 1, 4, 2, 5, 3)
    moved = ctx.transpose(ctx.reshape(x, split), perm)
    return ctx.reshape(moved, (batch, inner, height * block, width * block))


@operator("SpaceToDepth")
def _space_to_depth(ctx: Context, call: Call) -> Results:
    x, block = call.operand(0), call.integer("blocksize", 1)
    batch, channels, height, width = x.shape
    high, wide = symbolic.floor_divide(height, block), symbolic.floor_divide(width, block)
    split = ctx.reshape(x, (batch, channels, high, block, wide, block))
    moved = ctx.transpose(split, (0, 3, 5, 1, 2, 4))
    return ctx.reshape(moved, (batch, channels * block * block, high, wide))
