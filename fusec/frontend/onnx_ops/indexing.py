"""Operators that select or replace elements by index."""

from __future__ import annotations

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
from fusec.ir.types import Attrs


@operator("Gather")
def _gather(ctx: Context, call: Call) -> Results:
    x, indices = call.operand(0), call.operand(1)
    (axis,) = positive_axes((call.integer("axis", 0),), x.rank)
    places = ctx.dims(indices)
    if indices.rank == 0 and places is not None:
        place, size = places[0], x.shape[axis]
        if ctx.span(place)[1] < 0:
            place = size + place
        if ctx.span(place)[0] >= 0:
            part = ctx.slice(x, axis, place, place + 1)
            return ctx.reshape(part, (*x.shape[:axis], *x.shape[axis + 1 :]))
    return ctx.take(x, indices, axis)


@operator("GatherElements")
def _gather_elements(ctx: Context, call: Call) -> Results:
    x = call.operand(0)
    (axis,) = positive_axes((call.integer("axis", 0),), x.rank)
    return ctx.emit("gather", (x, call.operand(1)), {"axis": axis})


def _coordinates(ctx: Context, indices: Value) -> list[Value]:
    """One operand an axis, from indices whose last axis lists coordinates."""
    count = static(indices.shape[-1], "the number of coordinates")
    parts = _joined(ctx, indices, count)
    result: list[Value] = []
    for axis in range(count):
        part = parts[axis] if parts else ctx.slice(indices, -1, axis, axis + 1)
        result.append(ctx.reshape(part, indices.shape[:-1]))
    return result


def _joined(ctx: Context, indices: Value, count: int) -> list[Value] | None:
    """The operands of the `concat` that made `indices`, if each is one coordinate."""
    node = None if indices.name is None else ctx.graph.producer(indices.name)
    if node is None or node.op != "concat" or len(node.inputs) != count:
        return None
    if node.attrs["axis"] != indices.rank - 1:
        return None
    return [Value(ctx.graph.type(name), name) for name in node.inputs]


@operator("GatherND")
def _gather_nd(ctx: Context, call: Call) -> Results:
    x, indices = call.operand(0), call.operand(1)
    batch = call.integer("batch_dims", 0)
    coordinates = _coordinates(ctx, indices)
    grid: list[Value] = []
    for axis in range(batch):
        places = ctx.iota(x.shape[axis])
        dims = [x.shape[axis] if index == axis else 1 for index in range(indices.rank - 1)]
        grid.append(ctx.reshape(places, dims))
    operands = (*grid, *coordinates)
    return ctx.emit("index", (x, *operands), {"axes": tuple(range(len(operands)))})


@operator("ScatterND")
def _scatter_nd(ctx: Context, call: Call) -> Results:
    x, indices, updates = (call.operand(index) for index in range(3))
    reduction = call.text("reduction", "none")
    if reduction not in ("none", "add"):
        raise NotCovered(f"`ScatterND` with the reduction `{reduction}`")
    coordinates = _coordinates(ctx, indices)
    attrs: Attrs = {"axes": tuple(range(len(coordinates))), "accumulate": reduction == "add"}
    return ctx.emit("index_put", (x, updates, *coordinates), attrs)


_REDUCTIONS = {"none": None, "add": "add", "mul": "multiply", "max": "amax", "min": "amin"}


@operator("ScatterElements", "Scatter")
def _scatter_elements(ctx: Context, call: Call) -> Results:
    x, indices, updates = (call.operand(index) for index in range(3))
    (axis,) = positive_axes((call.integer("axis", 0),), x.rank)
    reduction = call.text("reduction", "none")
    if reduction not in _REDUCTIONS:
        raise InputError(f"`ScatterElements` with the unknown reduction `{reduction}`")
    for a, b in zip(indices.shape, updates.shape, strict=True):
        ctx.require_equal(a, b)
    attrs: Attrs = {"axis": axis, "reduce": _REDUCTIONS[reduction]}
    return ctx.emit("scatter", (x, indices, updates), attrs)


@operator("OneHot")
def _one_hot(ctx: Context, call: Call) -> Results:
    """Indices from -depth to depth - 1; others leave a row of the off value."""
    indices, values = call.operand(0), call.operand(2)
    depth_known = ctx.array(call.operand(1))
    depth = None if depth_known is None else int(depth_known.reshape(-1)[0])
    dims = ctx.dims(call.operand(1))
    size = depth if depth is not None else dims[0] if dims else None
    if size is None:
        raise NotCovered("the depth of `OneHot` depends on the data")
    axis = call.integer("axis", -1)
    axis = axis + indices.rank + 1 if axis < 0 else axis
    if indices.type.element.is_float:
        indices = ctx.cast(indices, "i64")
    zero = ctx.scalar(0, indices.dtype)
    wrapped = ctx.elementwise("add", indices, ctx.scalar(size, indices.dtype))
    negative = ctx.elementwise("lt", indices, zero)
    places = ctx.elementwise("where", negative, wrapped, indices)
    places = ctx.reshape(places, (*indices.shape[:axis], 1, *indices.shape[axis:]))
    row = ctx.iota(size, indices.dtype)
    row = ctx.reshape(row, (size, *(1,) * (indices.rank - axis)))
    hit = ctx.elementwise("eq", places, row)
    array = ctx.array(values)
    if array is not None:
        off, on = (ctx.scalar(item, values.dtype) for item in array.reshape(-1).tolist())
    else:
        off, on = (ctx.reshape(ctx.slice(values, 0, i, i + 1), ()) for i in range(2))
    return ctx.elementwise("where", hit, on, off)


@operator("ReverseSequence")
def _reverse_sequence(ctx: Context, call: Call) -> Results:
    """Reverses the first `lengths[b]` elements of each row."""
    x, lengths = call.operand(0), call.operand(1)
    time, batch = call.integer("time_axis", 0), call.integer("batch_axis", 1)
    place_shape = [x.shape[axis] if axis == time else 1 for axis in range(x.rank)]
    length_shape = [x.shape[axis] if axis == batch else 1 for axis in range(x.rank)]
    place = ctx.reshape(ctx.iota(x.shape[time]), place_shape)
    length = ctx.reshape(ctx.cast(lengths, "i64"), length_shape)
    inside = ctx.elementwise("lt", place, length)
    last = ctx.elementwise("sub", length, ctx.scalar(1, "i64"))
    turned = ctx.elementwise("sub", last, place)
    index = ctx.expand(ctx.elementwise("where", inside, turned, place), x.shape)
    return ctx.emit("gather", (x, index), {"axis": time})


@operator("Compress")
def _compress(ctx: Context, call: Call) -> Results:
    """With a constant condition only: otherwise the size of the result depends on the data."""
    x, condition = call.operand(0), ctx.array(call.operand(1))
    if condition is None:
        raise NotCovered("the size of the result depends on the data")
    if call.attrs.get("axis") is None:
        x = ctx.reshape(x, (symbolic.product(x.shape),))
    (axis,) = positive_axes((call.integer("axis", 0),), x.rank)
    places = [index for index, keep in enumerate(condition.reshape(-1).tolist()) if keep]
    return ctx.take(x, ctx.integers(places), axis)


@operator("TensorScatter")
def _tensor_scatter(ctx: Context, call: Call) -> Results:
    """A cache, what is new, and where in each row of the batch it begins."""
    cache, update, begin = call.operand(0), call.operand(1), call.optional(2)
    (axis,) = positive_axes((call.integer("axis", -2),), cache.rank)
    for index, (a, b) in enumerate(zip(cache.shape, update.shape, strict=True)):
        if index != axis:
            ctx.require_equal(a, b)
    size = update.shape[axis]
    place = ctx.reshape(ctx.iota(size), (size, *(1,) * (cache.rank - 1 - axis)))
    if begin is not None:
        rows = ctx.reshape(begin, (cache.shape[0], *(1,) * (cache.rank - 1)))
        place = ctx.elementwise("add", rows, place)
    if call.text("mode", "linear") == "circular":
        place = ctx.elementwise("mod", place, ctx.scalar(cache.shape[axis], "i64"))
    place = ctx.expand(place, update.shape)
    return ctx.emit("scatter", (cache, place, update), {"axis": axis, "reduce": None})
