"""Activations and experts of ONNX Runtime's own domain."""

from __future__ import annotations

from fusec import symbolic
from fusec.frontend.onnx_ops.base import MICROSOFT, Call, Context, NotCovered, Results, operator
from fusec.frontend.onnx_ops.elementwise import swish
from fusec.ir.types import Attrs
from fusec.ir.weights import concatenated


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


@operator("MoE", domain=MICROSOFT)
def _moe(ctx: Context, call: Call) -> Results:
    """input, router logits, fc1, bias, fc2, bias, fc3, bias: softmax over all, then the best k.

    fc1 is [E, I, H], fc2 [E, H, I]; with fc3 the hidden layer is act(fc1 x) * (fc3 x).
    """
    x, logits = call.operand(0), call.operand(1)
    first, second, third = call.operand(2), call.operand(4), call.optional(6)
    biased = any(call.optional(index) is not None for index in (3, 5, 7))
    activation = call.text("activation_type", "relu")
    if biased or call.integer("use_sparse_mixer", 0) or activation not in ("silu", "gelu", "relu"):
        raise NotCovered(f"`MoE` with a bias, a sparse mixer or the activation `{activation}`")
    rows = symbolic.product(x.shape[:-1])
    flat = ctx.reshape(x, (rows, x.shape[-1]))
    logits = ctx.reshape(logits, (rows, logits.shape[-1]))
    shares = ctx.emit("softmax", (logits,), {"axis": 1})
    attrs: Attrs = {"k": call.integer("k", 1), "axis": 1, "largest": True}
    weights, experts = ctx.emit_all("topk", (shares,), attrs)
    if call.integer("normalize_routing_weights", 0):
        weights = ctx.elementwise("div", weights, ctx.reduce("reduce_sum", weights, (1,), True))
    if third is None:
        gate_up = first
    elif first.weight is not None and third.weight is not None:
        name = f"{first.weight.name}_and_up"
        gate_up = ctx.parameter(concatenated(name, (first.weight, third.weight), 1))
    else:
        gate_up = ctx.concat((first, third), 1)
    attrs = {
        "activation": activation,
        "gate_up_layout": "split",
        "transposed": False,
        "has_bias": False,
        "gated": third is not None,
    }
    result = ctx.emit("moe", (flat, weights, experts, gate_up, second), attrs)
    return ctx.reshape(result, x.shape)
