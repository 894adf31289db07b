"""Activations of ONNX Runtime's own domain."""

from __future__ import annotations

from fusec.frontend.onnx_ops.base import MICROSOFT, Call, Context, Results, operator
from fusec.frontend.onnx_ops.elementwise import swish


@operator("Gelu", domain=MICROSOFT)
def _gelu(ctx: Context, call: Call) -> Results:
    return ctx.emit("gelu", (call.operand(0),), {"approximate": "none"})


@operator("BiasGelu", domain=MICROSOFT)
def _bias_gelu(ctx: Context, call: Call) -> Results:
    x = ctx.elementwise("add", call.operand(0), call.operand(1))
    return ctx.emit("gelu", (x,), {"approximate": "none"})


@operator("FastGelu", domain=MICROSOFT)
def _fast_gelu(ctx: Context, call: Call) -> Results:
    x, bias = call.operand(0), call.optional(1)
    if bias is not None:
        x = ctx.elementwise("add", x, bias)
    return ctx.emit("gelu", (x,), {"approximate": "tanh"})


@operator("QuickGelu", domain=MICROSOFT)
def _quick_gelu(ctx: Context, call: Call) -> Results:
    return swish(ctx, call.operand(0), call.number("alpha", 1.702))


@operator("BiasAdd", domain=MICROSOFT)
def _bias_add(ctx: Context, call: Call) -> Results:
    x = ctx.elementwise("add", call.operand(0), call.operand(1))
    return ctx.elementwise("add", x, call.operand(2))


@operator("BiasSplitGelu", domain=MICROSOFT)
def _bias_split_gelu(ctx: Context, call: Call) -> Results:
    """The first half times the GELU of the second."""
    x = ctx.elementwise("add", call.operand(0), call.operand(1))
    size = x.shape[-1]
    half = size // 2
    gate = ctx.emit("gelu", (ctx.slice(x, -1, half, size),), {"approximate": "none"})
    return ctx.elementwise("mul", ctx.slice(x, -1, 0, half), gate)
