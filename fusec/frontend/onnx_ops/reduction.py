"""Reductions, softmax, ordering and scans."""

from __future__ import annotations

from fusec import symbolic
from fusec.frontend.onnx_ops.base import (
    Call,
    Context,
    Handler,
    NotCovered,
    Results,
    Value,
    operator,
    positive_axes,
)
from fusec.ir.types import Attrs

_PLAIN = {
    "ReduceMax": "reduce_max",
    "ReduceMean": "reduce_mean",
    "ReduceMin": "reduce_min",
    "ReduceProd": "reduce_prod",
    "ReduceSum": "reduce_sum",
    "ReduceLogSumExp": "logsumexp",
}


def _axes(ctx: Context, call: Call) -> tuple[int, ...] | None:
    """The axes of a reduction; `None` if it leaves its operand alone."""
    rank = call.operand(0).rank
    axes = call.integers("axes")
    if axes is None and call.optional(1) is not None:
        axes = ctx.ints(call.optional(1), "the list of axes")
    if not axes:
        if call.integer("noop_with_empty_axes", 0):
            return None
        return tuple(range(rank))
    return positive_axes(axes, rank)


def _reduce(name: str) -> Handler:
    def handler(ctx: Context, call: Call) -> Results:
        x, axes, keep = call.operand(0), _axes(ctx, call), bool(call.integer("keepdims", 1))
        before = _before(ctx, name, x)
        if axes is None:
            total = before
        elif not axes:
            total = before
        elif x.dtype == "bool":
            op = "reduce_any" if name == "ReduceMax" else "reduce_all"
            total = ctx.reduce(op, x, axes, keep)
        else:
            total = ctx.reduce(_PLAIN.get(name, "reduce_sum"), before, axes, keep)
        if name == "ReduceL2":
            return ctx.emit("sqrt", (total,))
        if name == "ReduceLogSum":
            return ctx.emit("log", (total,))
        return total

    return handler


def _before(ctx: Context, name: str, x: Value) -> Value:
    if name == "ReduceL1":
        return ctx.emit("abs", (x,))
    if name in ("ReduceL2", "ReduceSumSquare"):
        return ctx.elementwise("mul", x, x)
    return x


for _name in (*_PLAIN, "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum"):
    operator(_name)(_reduce(_name))


@operator("Softmax", "LogSoftmax")
def _softmax(ctx: Context, call: Call) -> Results:
    """Before version 13 all axes from `axis` on are one."""
    x = call.operand(0)
    target = "softmax" if call.op == "Softmax" else "log_softmax"
    if x.rank == 0:
        raise NotCovered("a softmax of a scalar")
    (axis,) = positive_axes((call.integer("axis", -1 if call.version >= 13 else 1),), x.rank)
    if call.version >= 13 or axis == x.rank - 1:
        return ctx.emit(target, (x,), {"axis": axis})
    rows = symbolic.product(x.shape[:axis])
    flat = ctx.reshape(x, (rows, symbolic.product(x.shape[axis:])))
    return ctx.reshape(ctx.emit(target, (flat,), {"axis": 1}), x.shape)


@operator("ArgMax", "ArgMin")
def _arg(ctx: Context, call: Call) -> Results:
    x = call.operand(0)
    (axis,) = positive_axes((call.integer("axis", 0),), x.rank)
    attrs = {"axis": axis, "keepdims": bool(call.integer("keepdims", 1))}
    target = call.op.lower()
    if not call.integer("select_last_index", 0):
        return ctx.emit(target, (x,), attrs)
    found = ctx.emit(target, (ctx.emit("flip", (x,), {"axes": (axis,)}),), attrs)
    last = ctx.scalar(x.shape[axis] - 1, "i64")
    return ctx.elementwise("sub", last, found)


@operator("TopK")
def _topk(ctx: Context, call: Call) -> Results:
    x = call.operand(0)
    count = ctx.dims(call.operand(1))
    if count is None or len(count) != 1:
        raise NotCovered("`k` is not a size known while importing")
    (axis,) = positive_axes((call.integer("axis", -1),), x.rank)
    attrs = {"k": count[0], "axis": axis, "largest": bool(call.integer("largest", 1))}
    return ctx.emit_all("topk", (x,), attrs)


@operator("CumSum", "CumProd")
def _cumulative(ctx: Context, call: Call) -> Results:
    x = call.operand(0)
    (axis,) = positive_axes(ctx.ints(call.operand(1), "the axis"), x.rank)
    reverse = bool(call.integer("reverse", 0))
    if reverse:
        x = ctx.emit("flip", (x,), {"axes": (axis,)})
    target = "cumsum" if call.op == "CumSum" else "cumprod"
    total = ctx.emit(target, (x,), {"axis": axis})
    if call.integer("exclusive", 0):
        low = tuple(1 if index == axis else 0 for index in range(x.rank))
        value = 0 if target == "cumsum" else 1
        attrs: Attrs = {"low": low, "high": (0,) * x.rank, "value": value}
        total = ctx.slice(ctx.emit("pad", (total,), attrs), axis, 0, x.shape[axis])
    return ctx.emit("flip", (total,), {"axes": (axis,)}) if reverse else total


@operator("Hardmax")
def _hardmax(ctx: Context, call: Call) -> Results:
    x = call.operand(0)
    if call.version < 13 and call.integer("axis", 1) % x.rank != x.rank - 1:
        raise NotCovered("a `Hardmax` over several axes")
    (axis,) = positive_axes((call.integer("axis", -1),), x.rank)
    found = ctx.emit("argmax", (x,), {"axis": axis, "keepdims": True})
    places = ctx.iota(x.shape[axis])
    places = ctx.reshape(places, (x.shape[axis], *(1,) * (x.rank - 1 - axis)))
    return ctx.cast(ctx.elementwise("eq", found, places), x.dtype)


@operator("LpNormalization")
def _lp_normalization(ctx: Context, call: Call) -> Results:
    x, p = call.operand(0), call.integer("p", 2)
    (axis,) = positive_axes((call.integer("axis", -1),), x.rank)
    if p not in (1, 2):
        raise NotCovered(f"a norm of order {p}")
    parts = ctx.emit("abs", (x,)) if p == 1 else ctx.elementwise("mul", x, x)
    total = ctx.reduce("reduce_sum", parts, (axis,), True)
    length = total if p == 1 else ctx.emit("sqrt", (total,))
    empty = ctx.elementwise("eq", length, ctx.scalar(0.0, x.dtype))  # rows of zeros stay so
    divisor = ctx.elementwise("where", empty, ctx.scalar(1.0, x.dtype), length)
    return ctx.elementwise("div", x, divisor)
