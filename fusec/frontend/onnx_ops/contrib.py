"""Activations and experts of ONNX Runtime's own domain."""

from __future__ import annotations

import math

from fusec import symbolic
from fusec.frontend.onnx_ops.base import (
    MICROSOFT,
    Call,
    Context,
    NotCovered,
    Results,
    Value,
    operator,
)
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


@operator("QMoE", domain=MICROSOFT)
def _quantised_moe(ctx: Context, call: Call) -> Results:
    raise NotCovered("the order of its weights depends on the device that they were packed for")


@operator("MoE", domain=MICROSOFT)
def _moe(ctx: Context, call: Call) -> Results:
    """input, router logits, fc1, bias, fc2, bias, fc3, bias: softmax over all, then the best k.

    fc1 is [E, I, H], fc2 [E, H, I]; with fc3 the hidden layer is act(fc1 x) * (fc3 x).  `swiglu`
    may have both in fc1, one below the other or in turn.
    """
    x, logits = call.operand(0), call.operand(1)
    first, second, third = call.operand(2), call.operand(4), call.optional(6)
    biases = [call.optional(index) for index in (3, 5, 7)]
    if call.integer("use_sparse_mixer", 0):
        raise NotCovered("`MoE` with a sparse mixer")
    joined = call.integer("swiglu_fusion", 0) if third is None else 0
    activation = _expert_activation(call, gated=third is not None or joined > 0)
    rows = symbolic.product(x.shape[:-1])
    flat = ctx.reshape(x, (rows, x.shape[-1]))
    logits = ctx.reshape(logits, (rows, logits.shape[-1]))
    shares = ctx.emit("softmax", (logits,), {"axis": 1})
    attrs: Attrs = {"k": call.integer("k", 1), "axis": 1, "largest": True}
    weights, experts = ctx.emit_all("topk", (shares,), attrs)
    if call.integer("normalize_routing_weights", 0):
        weights = ctx.elementwise("div", weights, ctx.reduce("reduce_sum", weights, (1,), True))
    operands = [flat, weights, experts, _joined(ctx, first, third), second]
    biased = any(bias is not None for bias in biases)
    if biased:
        tables = (first, second, third)
        held = [
            ctx.full(0.0, table.shape[:2], x.dtype) if bias is None and table is not None else bias
            for bias, table in zip(biases, tables, strict=True)
        ]
        assert held[0] is not None and held[1] is not None
        operands += [_joined(ctx, held[0], held[2]), held[1]]
    attrs = {
        **activation,
        "gate_up_layout": "interleaved" if joined == 1 else "split",
        "transposed": False,
        "has_bias": biased,
        "gated": third is not None or joined > 0,
    }
    result = ctx.emit("moe", operands, attrs)
    return ctx.reshape(result, x.shape)


def _expert_activation(call: Call, gated: bool) -> Attrs:
    """G * sigmoid(alpha * G) * (L + beta) of the clamped halves has a name where beta is 0 or 1."""
    name = call.text("activation_type", "relu")
    if name in ("silu", "gelu", "relu"):
        return {"activation": name}
    alpha, beta = call.number("activation_alpha", 1.0), call.number("activation_beta", 0.0)
    limit = call.number("swiglu_limit", math.inf)
    if name == "swiglu" and gated and beta == 1.0:
        return {"activation": "swiglu_oai", "alpha": alpha, "limit": limit}
    if name == "swiglu" and gated and (alpha, beta) == (1.0, 0.0):
        limited: Attrs = {"activation": "swiglu_limit", "limit": limit}
        return {"activation": "silu"} if math.isinf(limit) else limited
    raise NotCovered(f"`MoE` with the activation `{name}` ({alpha:g}, {beta:g}, {limit:g})")


def _joined(ctx: Context, gate: Value, up: Value | None) -> Value:
    """The rows of gate, and behind them those of up, of each expert."""
    if up is None:
        return gate
    if gate.weight is not None and up.weight is not None:
        name = f"{gate.weight.name}_and_up"
        return ctx.parameter(concatenated(name, (gate.weight, up.weight), 1))
    return ctx.concat((gate, up), 1)
