"""Sequences of tensors, as older exporters split with them: they leave no node."""

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
from fusec.ir.types import TensorType
from fusec.symbolic import Dim

_NOTHING = TensorType("bool", ())
_MAX_ITEMS = 4096


def _items(call: Call) -> tuple[Value, ...]:
    value = call.optional(0)
    if value is None or value.items is None:
        raise InputError(f"the operand of `{call.op}` is no sequence")
    return value.items


@operator("SequenceConstruct")
def _construct(ctx: Context, call: Call) -> Results:
    return Value(_NOTHING, items=tuple(call.operand(i) for i in range(len(call.inputs))))


@operator("SequenceEmpty")
def _empty(ctx: Context, call: Call) -> Results:
    return Value(_NOTHING, items=())


@operator("SequenceInsert")
def _insert(ctx: Context, call: Call) -> Results:
    items = list(_items(call))
    place = len(items)
    if call.optional(2) is not None:
        place = ctx.ints(call.optional(2), "a place in a sequence")[0]
    items.insert(place, call.operand(1))
    return Value(_NOTHING, items=tuple(items))


@operator("SequenceLength")
def _length(ctx: Context, call: Call) -> Results:
    return ctx.scalar(len(_items(call)), "i64")


@operator("SequenceAt")
def _at(ctx: Context, call: Call) -> Results:
    items = _items(call)
    place = ctx.ints(call.optional(1), "a place in a sequence")[0]
    if not -len(items) <= place < len(items):
        raise InputError(f"a sequence of {len(items)} tensors has no element {place}")
    return items[place]


@operator("SplitToSequence")
def _split(ctx: Context, call: Call) -> Results:
    x = call.operand(0)
    (axis,) = positive_axes((call.integer("axis", 0),), x.rank)
    keep = True
    if call.optional(1) is None:
        sizes: tuple[Dim, ...] = (1,) * static(x.shape[axis], "a size that is split")
        keep = bool(call.integer("keepdims", 1))
    else:
        split = ctx.dims(call.operand(1))
        if split is None:
            raise NotCovered("the sizes of the parts depend on the data")
        sizes = split if call.operand(1).rank == 1 else _equal_parts(x.shape[axis], split[0])
    if len(sizes) > _MAX_ITEMS:
        raise NotCovered(f"a sequence of {len(sizes)} tensors")
    ctx.require_equal(sum(sizes, start=0), x.shape[axis])
    parts: list[Value] = []
    start: Dim = 0
    for size in sizes:
        part = ctx.slice(x, axis, start, start + size)
        if not keep:
            part = ctx.reshape(part, (*x.shape[:axis], *x.shape[axis + 1 :]))
        parts.append(part)
        start = start + size
    return Value(_NOTHING, items=tuple(parts))


def _equal_parts(size: Dim, part: Dim) -> tuple[Dim, ...]:
    count = static(symbolic.ceil_divide(size, part), "the number of parts")
    return (*(part,) * (count - 1), size - (count - 1) * part)


@operator("ConcatFromSequence")
def _concat(ctx: Context, call: Call) -> Results:
    items = _items(call)
    if not items:
        raise InputError("an empty sequence is joined")
    axis, new = call.integer("axis", 0), bool(call.integer("new_axis", 0))
    (axis,) = positive_axes((axis,), items[0].rank + new)
    if new:
        items = tuple(
            ctx.reshape(item, (*item.shape[:axis], 1, *item.shape[axis:])) for item in items
        )
    return ctx.concat(items, axis)
