"""Operators on elements."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fusec.diagnostics import UnsupportedError
from fusec.formats import FP8, magnitudes
from fusec.frontend.onnx_ops.base import (
    Call,
    Context,
    Handler,
    NotCovered,
    Results,
    Value,
    operator,
)
from fusec.frontend.onnx_ops.tensors import dtype_of
from fusec.ir.types import Attrs

_UNARY = {
    "Abs": "abs",
    "Acos": "acos",
    "Acosh": "acosh",
    "Asin": "asin",
    "Asinh": "asinh",
    "Atan": "atan",
    "Atanh": "atanh",
    "BitwiseNot": "not",
    "Ceil": "ceil",
    "Cos": "cos",
    "Cosh": "cosh",
    "Erf": "erf",
    "Exp": "exp",
    "Floor": "floor",
    "HardSwish": "hardswish",
    "IsNaN": "isnan",
    "Log": "log",
    "Mish": "mish",
    "Neg": "neg",
    "Not": "not",
    "Reciprocal": "reciprocal",
    "Relu": "relu",
    "Round": "round",
    "Sigmoid": "sigmoid",
    "Sign": "sign",
    "Sin": "sin",
    "Sinh": "sinh",
    "Sqrt": "sqrt",
    "Tan": "tan",
    "Tanh": "tanh",
}
_BINARY = {
    "Add": "add",
    "And": "and",
    "BitwiseAnd": "and",
    "BitwiseOr": "or",
    "BitwiseXor": "xor",
    "Equal": "eq",
    "Greater": "gt",
    "GreaterOrEqual": "ge",
    "Less": "lt",
    "LessOrEqual": "le",
    "Mul": "mul",
    "Or": "or",
    "Sub": "sub",
    "Xor": "xor",
}
_EXTREMES = {"Max": "maximum", "Min": "minimum"}


def _unary(target: str) -> Handler:
    def handler(ctx: Context, call: Call) -> Results:
        return ctx.elementwise(target, call.operand(0))

    return handler


def _binary(target: str) -> Handler:
    def handler(ctx: Context, call: Call) -> Results:
        return ctx.elementwise(target, call.operand(0), call.operand(1))

    return handler


def _variadic(target: str) -> Handler:
    def handler(ctx: Context, call: Call) -> Results:
        operands = [call.operand(index) for index in range(len(call.inputs))]
        return functools.reduce(lambda a, b: ctx.elementwise(target, a, b), operands)

    return handler


for _name, _target in _UNARY.items():
    operator(_name)(_unary(_target))
for _name, _target in _BINARY.items():
    operator(_name)(_binary(_target))
operator("Sum")(_variadic("add"))


@operator(*_EXTREMES)
def _extreme(ctx: Context, call: Call) -> Results:
    """Of a value and a number it is the `clamp` that PyTorch's exporter writes so."""
    op = _EXTREMES[call.op]
    if len(call.inputs) == 2:
        for x, bound in ((0, 1), (1, 0)):
            found = _clamped(ctx, op, call.operand(x), call.operand(bound))
            if found is not None:
                return found
    return _variadic(op)(ctx, call)


def _clamped(ctx: Context, op: str, x: Value, bound: Value) -> Value | None:
    if bound.content is None or x.content is not None or not x.type.element.is_float:
        return None
    number = ctx.array(bound)
    if number is None or number.size != 1 or bound.rank > x.rank or np.isnan(number).any():
        return None
    limit = float(number.reshape(()))
    lower = op == "maximum"
    attrs: Attrs = {"min": limit if lower else None, "max": None if lower else limit}
    return ctx.emit("clamp", (x,), attrs)


@operator("Add")
def _add(ctx: Context, call: Call) -> Results:
    """A sum; a bias after a matrix product joins it."""
    a, b = call.operand(0), call.operand(1)
    for x, bias, name in ((a, b, call.proto.input[0]), (b, a, call.proto.input[1])):
        if name in ctx.single_use and (joined := _with_bias(ctx, x, bias)) is not None:
            return joined
    return ctx.elementwise("add", a, b)


def _with_bias(ctx: Context, x: Value, bias: Value) -> Value | None:
    if x.name is None or bias.weight is None or bias.rank != 1:
        return None
    node = ctx.graph.producer(x.name)
    if node is None or node.op != "linear" or len(node.inputs) != 2:
        return None
    if bias.shape != x.shape[-1:] or ctx.graph.users(x.name):
        return None
    operands = [Value(ctx.graph.type(name), name) for name in node.inputs]
    return ctx.emit("linear", (*operands, bias))


def _made_by(ctx: Context, value: Value, op: str) -> str | None:
    """The operand of the `op` that made `value`."""
    node = None if value.name is None else ctx.graph.producer(value.name)
    return node.inputs[0] if node is not None and node.op == op else None


@operator("Mul")
def _mul(ctx: Context, call: Call) -> Results:
    """A product; x * sigmoid(x) is `silu`."""
    a, b = call.operand(0), call.operand(1)
    for x, gate in ((a, b), (b, a)):
        if x.name is not None and _made_by(ctx, gate, "sigmoid") == x.name:
            return ctx.emit("silu", (x,))
    return ctx.elementwise("mul", a, b)


@operator("Reciprocal")
def _reciprocal(ctx: Context, call: Call) -> Results:
    """1 / x; of a square root it is `rsqrt`."""
    x = call.operand(0)
    square = _made_by(ctx, x, "sqrt")
    if square is not None:
        return ctx.emit("rsqrt", (Value(ctx.graph.type(square), square),))
    return ctx.elementwise("reciprocal", x)


@operator("Mean")
def _mean(ctx: Context, call: Call) -> Results:
    total = _variadic("add")(ctx, call)
    assert isinstance(total, Value)
    return ctx.elementwise("div", total, ctx.scalar(float(len(call.inputs)), total.dtype))


@operator("Div")
def _div(ctx: Context, call: Call) -> Results:
    """Division; of integers towards zero."""
    a, b = call.operand(0), call.operand(1)
    if a.type.element.is_float:
        return ctx.elementwise("div", a, b)
    if a.dtype != "u8":
        a = ctx.elementwise("sub", a, ctx.elementwise("fmod", a, b))
    return ctx.elementwise("floordiv", a, b)


@operator("Mod")
def _mod(ctx: Context, call: Call) -> Results:
    """`fmod` takes the sign of the dividend; otherwise the divisor's."""
    target = "fmod" if call.integer("fmod", 0) else "mod"
    return ctx.elementwise(target, call.operand(0), call.operand(1))


@operator("Pow")
def _pow(ctx: Context, call: Call) -> Results:
    base, exponent = call.operand(0), call.operand(1)
    if base.dtype == exponent.dtype:
        return ctx.elementwise("pow", base, exponent)
    array = ctx.array(exponent)
    whole = array is not None and array.size == 1 and float(array.ravel()[0]).is_integer()
    if base.type.element.is_float or exponent.type.element.is_integer:
        return ctx.elementwise("pow", base, ctx.cast(exponent, base.dtype))
    if whole and array is not None and array.ravel()[0] >= 0:
        constant = ctx.scalar(int(array.ravel()[0]), base.dtype)
        return ctx.elementwise("pow", base, constant)
    power = ctx.elementwise("pow", ctx.cast(base, exponent.dtype), exponent)
    return ctx.cast(power, base.dtype)


@operator("BitShift")
def _bit_shift(ctx: Context, call: Call) -> Results:
    target = "shl" if call.text("direction", "") == "LEFT" else "shr"
    return ctx.elementwise(target, call.operand(0), call.operand(1))


@operator("IsInf")
def _is_inf(ctx: Context, call: Call) -> Results:
    x = call.operand(0)
    negative, positive = call.integer("detect_negative", 1), call.integer("detect_positive", 1)
    if negative and positive:
        return ctx.elementwise("isinf", x)
    if not (negative or positive):
        return ctx.full(False, x.shape, "bool")
    return ctx.elementwise("eq", x, ctx.scalar(-math.inf if negative else math.inf, x.dtype))


@operator("Where")
def _where(ctx: Context, call: Call) -> Results:
    return ctx.elementwise("where", call.operand(0), call.operand(1), call.operand(2))


@operator("Cast")
def _cast(ctx: Context, call: Call) -> Results:
    x = call.operand(0)
    dtype = dtype_of(call.integer("to", 0), "the result of `Cast`")
    return _converted(ctx, call, x, dtype)


@operator("CastLike")
def _cast_like(ctx: Context, call: Call) -> Results:
    x, like = call.operand(0), call.operand(1)
    if like.four_bits:
        raise UnsupportedError("`CastLike` to 4-bit integers, which only `DequantizeLinear` reads")
    return _converted(ctx, call, x, like.dtype)


def _converted(ctx: Context, call: Call, x: Value, dtype: str) -> Value:
    if dtype in FP8 and x.dtype != dtype and call.integer("saturate", 1):
        return saturated(ctx, x, dtype)
    source = _made_by(ctx, x, "cast")
    if source in ctx.whole and x.dtype == "i32":
        x = Value(ctx.graph.type(source), source)
    return cast_weight(ctx, x, dtype) or ctx.cast(x, dtype)


def saturated(ctx: Context, x: Value, dtype: str) -> Value:
    """`x` as 8-bit floats; what is beyond them, infinities too, becomes the largest of them."""
    if not x.type.element.is_float or x.type.element.bits < 16:
        x = ctx.cast(x, "f32")
    most = float(magnitudes(dtype)[-1])
    return ctx.cast(ctx.emit("clamp", (x,), {"min": -most, "max": most}), dtype)


def cast_weight(ctx: Context, x: Value, dtype: str) -> Value | None:
    """A tensor of the file with another float type, converted when it is written."""
    import numpy as np

    from fusec.dtypes import DTYPES, bf16_to_f32, f32_to_bf16

    weight = x.weight
    kinds = ("f64", "f32", "f16", "bf16")
    if weight is None or x.dtype not in kinds or dtype not in kinds or x.dtype == dtype:
        return None
    source = x.dtype

    def change(bits: Any) -> Any:
        wide = bf16_to_f32(bits.astype(np.uint16)) if source == "bf16" else bits
        if dtype == "bf16":
            return f32_to_bf16(wide.astype(np.float32))
        return wide.astype(DTYPES[dtype].numpy)

    kind = weight.type.with_dtype(dtype)
    derived = weight.derive(weight.name, kind, f"cast-{dtype}", change)
    return Value(kind, content=x.content, weight=derived)


@operator("Clip")
def _clip(ctx: Context, call: Call) -> Results:
    x = call.operand(0)
    bounds: dict[str, Any] = {}
    rest: list[tuple[str, Value]] = []
    for index, (name, target) in enumerate((("min", "maximum"), ("max", "minimum")), start=1):
        value = call.optional(index)
        array = ctx.array(value)
        if value is not None and (array is None or array.size != 1):
            rest.append((target, value))
        elif array is not None:
            number = array.reshape(()).item()
            bounds[name] = float(number) if x.type.element.is_float else int(number)
    if bounds:
        attrs: Attrs = {"min": bounds.get("min"), "max": bounds.get("max")}
        x = ctx.emit("clamp", (x,), attrs)
    for target, value in rest:
        x = ctx.elementwise(target, x, value)
    return x


# --- activations ----------------------------------------------------------------------------


def _with_attrs(target: str, attrs_of: Callable[[Call], Attrs]) -> Handler:
    def handler(ctx: Context, call: Call) -> Results:
        return ctx.emit(target, (call.operand(0),), attrs_of(call))

    return handler


operator("LeakyRelu")(_with_attrs("leaky_relu", lambda c: {"slope": c.number("alpha", 0.01)}))
operator("Elu")(_with_attrs("elu", lambda c: {"alpha": c.number("alpha", 1.0)}))
operator("Gelu")(_with_attrs("gelu", lambda c: {"approximate": c.text("approximate", "none")}))
operator("Softplus")(_with_attrs("softplus", lambda c: {"beta": 1.0, "threshold": 20.0}))


@operator("Swish")
def _swish(ctx: Context, call: Call) -> Results:
    return swish(ctx, call.operand(0), call.number("alpha", 1.0))


def swish(ctx: Context, x: Value, alpha: float) -> Value:
    """x * sigmoid(alpha * x)."""
    if alpha == 1.0:
        return ctx.emit("silu", (x,))
    if abs(alpha - 1.702) < 1e-6:
        return ctx.emit("quick_gelu", (x,))
    scaled = ctx.elementwise("mul", x, ctx.scalar(alpha, x.dtype))
    return ctx.elementwise("mul", x, ctx.emit("sigmoid", (scaled,)))


@operator("HardSigmoid")
def _hard_sigmoid(ctx: Context, call: Call) -> Results:
    x = call.operand(0)
    alpha, beta = call.number("alpha", 0.2), call.number("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-7 and beta == 0.5:
        return ctx.emit("hardsigmoid", (x,))
    x = ctx.elementwise("mul", x, ctx.scalar(alpha, x.dtype))
    x = ctx.elementwise("add", x, ctx.scalar(beta, x.dtype))
    return ctx.emit("clamp", (x,), {"min": 0.0, "max": 1.0})


@operator("Selu")
def _selu(ctx: Context, call: Call) -> Results:
    x = call.operand(0)
    alpha, gamma = call.number("alpha", 1.67326319), call.number("gamma", 1.05070102)
    curve = ctx.emit("elu", (x,), {"alpha": alpha})
    return ctx.elementwise("mul", curve, ctx.scalar(gamma, x.dtype))


@operator("Celu")
def _celu(ctx: Context, call: Call) -> Results:
    """max(0, x) + min(0, alpha * (exp(x / alpha) - 1))."""
    x, alpha = call.operand(0), call.number("alpha", 1.0)
    scaled = ctx.elementwise("div", x, ctx.scalar(alpha, x.dtype))
    low = ctx.elementwise("mul", ctx.emit("expm1", (scaled,)), ctx.scalar(alpha, x.dtype))
    positive = ctx.elementwise("gt", x, ctx.scalar(0.0, x.dtype))
    return ctx.elementwise("where", positive, x, low)


@operator("PRelu")
def _prelu(ctx: Context, call: Call) -> Results:
    x, slope = call.operand(0), call.operand(1)
    positive = ctx.elementwise("gt", x, ctx.scalar(0.0, x.dtype))
    return ctx.elementwise("where", positive, x, ctx.elementwise("mul", x, slope))


@operator("ThresholdedRelu")
def _thresholded(ctx: Context, call: Call) -> Results:
    x = call.operand(0)
    above = ctx.elementwise("gt", x, ctx.scalar(call.number("alpha", 1.0), x.dtype))
    return ctx.elementwise("where", above, x, ctx.scalar(0.0, x.dtype))


@operator("Shrink")
def _shrink(ctx: Context, call: Call) -> Results:
    x = call.operand(0)
    limit, bias = call.number("lambd", 0.5), ctx.scalar(call.number("bias", 0.0), x.dtype)
    zero = ctx.scalar(0.0, x.dtype)
    below = ctx.elementwise("lt", x, ctx.scalar(-limit, x.dtype))
    above = ctx.elementwise("gt", x, ctx.scalar(limit, x.dtype))
    high = ctx.elementwise("where", above, ctx.elementwise("sub", x, bias), zero)
    return ctx.elementwise("where", below, ctx.elementwise("add", x, bias), high)


@operator("Softsign")
def _softsign(ctx: Context, call: Call) -> Results:
    x = call.operand(0)
    under = ctx.elementwise("add", ctx.emit("abs", (x,)), ctx.scalar(1.0, x.dtype))
    return ctx.elementwise("div", x, under)


@operator("Identity")
def _identity(ctx: Context, call: Call) -> Results:
    (value,) = call.inputs
    if value is None:
        raise NotCovered("`Identity` of nothing")
    return value


@operator("Dropout")
def _dropout(ctx: Context, call: Call) -> Results:
    """Nothing happens outside training."""
    x, training = call.operand(0), call.optional(2)
    if training is not None and (array := ctx.array(training)) is not None and bool(array.any()):
        raise UnsupportedError("the model drops elements at random: it was exported for training")
    if training is not None and ctx.array(training) is None:
        raise NotCovered("whether `Dropout` trains is not a constant")
    mask = ctx.full(True, x.shape, "bool") if call.wants(1) else None
    return x, mask
