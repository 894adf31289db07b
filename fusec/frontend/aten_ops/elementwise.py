"""ATen operations on elements."""

from __future__ import annotations

import math
from collections.abc import Callable

from fusec.frontend.aten_ops.base import (
    TABLE,
    Builder,
    Complex,
    Number,
    SymFloat,
    Val,
    View,
    aten,
    broadcast_shape,
)
from fusec.frontend.aten_ops.views import same
from fusec.symbolic import Expr

Scalar = Number | SymFloat
Operand = Val | Number | SymFloat

FLOAT_UNARY = (
    "acos acosh asin asinh atan atanh cos cosh erf erfc exp exp2 expm1 log log1p log2 reciprocal "
    "rsqrt sigmoid sin sinh sqrt tan tanh"
).split()
SAME_UNARY = "ceil floor neg relu round trunc".split()
FLOAT_ONLY = "log_sigmoid mish silu".split()


def _register_unary() -> None:
    def floats(op: str) -> Callable[[Builder, Val], Val]:
        return lambda build, x: build.emit(op, build.floats(x))

    def kept(op: str) -> Callable[[Builder, Val], Val]:
        def translate(build: Builder, x: Val) -> Val:
            if x.dtype == "bool" or (x.type.element.is_integer and op in _ROUNDING):
                return x
            return build.emit(op, x)

        return translate

    for name in FLOAT_UNARY:
        aten(name)(floats(name))
    for name in SAME_UNARY:
        aten(name, parts=name == "neg")(kept(name))
    for name in FLOAT_ONLY:
        aten(name)(floats(name))
    for alias, name in {
        "negative": "neg", "arccos": "acos", "arccosh": "acosh", "arcsin": "asin",
        "arcsinh": "asinh", "arctan": "atan", "arctanh": "atanh", "special_erf": "erf",
        "special_erfc": "erfc", "special_exp2": "exp2", "special_expm1": "expm1",
        "special_expit": "sigmoid", "special_log1p": "log1p",
        "fix": "trunc",
    }.items():  # fmt: skip
        aten(alias)(TABLE[f"aten.{name}.default"])


_ROUNDING = frozenset({"ceil", "floor", "round", "trunc"})
_register_unary()


@aten("round.decimals", "special_round")
def _round_decimals(build: Builder, x: Val, *, decimals: int = 0) -> Val:
    factor = 10.0**decimals
    return build.emit("round", x * factor) / factor


@aten("sign", "sgn")
def _sign(build: Builder, x: Val) -> Val:
    """0 for NaN, which `sign` itself keeps."""
    if x.dtype == "bool":
        return x
    signs = build.emit("sign", x)
    return build.where(build.emit("isnan", x), 0.0, signs) if x.type.element.is_float else signs


@aten("abs", "absolute", both=True)
def _abs(build: Builder, x: Val | Complex) -> Val:
    if isinstance(x, Complex):
        return build.emit("sqrt", x.real * x.real + x.imag * x.imag)
    return x if x.dtype == "bool" else build.emit("abs", x)


# --- arithmetic -----------------------------------------------------------------------------


def _as_complex(build: Builder, x: Operand | Complex | complex, dtype: str) -> Complex:
    if isinstance(x, Complex):
        return Complex(build.cast(x.real, dtype), build.cast(x.imag, dtype))
    if isinstance(x, complex):
        return Complex(build.scalar(x.real, dtype), build.scalar(x.imag, dtype))
    real = build.operand(x, dtype)
    return Complex(real, build.scalar(0.0, dtype))


def _is_complex(*operands: object) -> bool:
    return any(isinstance(x, Complex | complex) for x in operands)


def _parts_dtype(build: Builder) -> str:
    return build.result().dtype


def scaled(build: Builder, x: Operand, alpha: Scalar, dtype: str) -> Operand:
    """`alpha x` in `dtype`."""
    if isinstance(alpha, int | float) and alpha == 1:
        return x
    product = "and" if dtype == "bool" else "mul"
    return build.emit(product, build.operand(x, dtype), build.operand(alpha, dtype))


@aten("add.Tensor", "add.Scalar", both=True)
def add(
    build: Builder, x: Operand | Complex, y: Operand | Complex, alpha: Scalar = 1
) -> Val | Complex:
    return _sum(build, "add", x, y, alpha)


@aten("sub.Tensor", "sub.Scalar", "subtract.Tensor", "subtract.Scalar", both=True)
def sub(
    build: Builder, x: Operand | Complex, y: Operand | Complex, alpha: Scalar = 1
) -> Val | Complex:
    return _sum(build, "sub", x, y, alpha)


@aten("rsub.Tensor", "rsub.Scalar", both=True)
def _rsub(
    build: Builder, x: Operand | Complex, y: Operand | Complex, alpha: Scalar = 1
) -> Val | Complex:
    return _sum(build, "sub", y, x, alpha)


def _sum(
    build: Builder, op: str, x: Operand | Complex, y: Operand | Complex, alpha: Scalar
) -> Val | Complex:
    if _is_complex(x, y):
        dtype = _parts_dtype(build)
        y = y if alpha == 1 else mul(build, y, alpha)
        a, b = _as_complex(build, x, dtype), _as_complex(build, y, dtype)
        return Complex(build.emit(op, a.real, b.real), build.emit(op, a.imag, b.imag))
    assert not isinstance(x, Complex)
    assert not isinstance(y, Complex)
    dtype = build.common(x, y)
    if dtype == "bool" and op == "add":
        return build.elementwise("or", x, y)
    return build.elementwise(op, x, scaled(build, y, alpha, dtype), dtype=dtype)


@aten("mul.Tensor", "mul.Scalar", "multiply.Tensor", "multiply.Scalar", both=True)
def mul(build: Builder, x: Operand | Complex, y: Operand | Complex) -> Val | Complex:
    if _is_complex(x, y):
        dtype = _parts_dtype(build)
        if isinstance(x, Complex) and not _is_complex(y):
            factor = build.operand(y, dtype)  # type: ignore[arg-type]
            return Complex(build.emit("mul", x.real, factor), build.emit("mul", x.imag, factor))
        a, b = _as_complex(build, x, dtype), _as_complex(build, y, dtype)
        return Complex(a.real * b.real - a.imag * b.imag, a.real * b.imag + a.imag * b.real)
    assert not isinstance(x, Complex)
    assert not isinstance(y, Complex)
    dtype = build.common(x, y)
    return build.elementwise("and" if dtype == "bool" else "mul", x, y, dtype=dtype)


@aten("div.Tensor", "div.Scalar", "true_divide.Tensor", "true_divide.Scalar", "divide.Tensor",
      "divide.Scalar", both=True)  # fmt: skip
def div(build: Builder, x: Operand | Complex, y: Operand | Complex) -> Val | Complex:
    if isinstance(x, Complex) and not _is_complex(y):
        divisor = build.operand(y, x.real.dtype)  # type: ignore[arg-type]
        return Complex(build.emit("div", x.real, divisor), build.emit("div", x.imag, divisor))
    if _is_complex(x, y):
        dtype = _parts_dtype(build)
        a, b = _as_complex(build, x, dtype), _as_complex(build, y, dtype)
        scale = b.real * b.real + b.imag * b.imag
        real = (a.real * b.real + a.imag * b.imag) / scale
        return Complex(real, (a.imag * b.real - a.real * b.imag) / scale)
    return build.elementwise("div", x, y, dtype=build.result().dtype)  # type: ignore[arg-type]


@aten("div.Tensor_mode", "div.Scalar_mode", "divide.Tensor_mode", "divide.Scalar_mode")
def _div_mode(
    build: Builder, x: Operand, y: Operand, *, rounding_mode: str | None = None
) -> Val | Complex:
    if rounding_mode is None:
        return div(build, x, y)
    if rounding_mode == "floor":
        return build.elementwise("floordiv", x, y)
    return _truncated_quotient(build, x, y)


def _truncated_quotient(build: Builder, x: Operand, y: Operand) -> Val:
    dtype = build.common(x, y)
    a, b = build.operand(x, dtype), build.operand(y, dtype)
    if a.type.element.is_float:
        return build.emit("trunc", a / b)
    # Not by magnitudes: the least integer has none.
    return build.emit("floordiv", a - build.emit("fmod", a, b), b)


def _binary(op: str) -> Callable[[Builder, Operand, Operand], Val]:
    def translate(build: Builder, x: Operand, y: Operand) -> Val:
        dtype = build.common(x, y)
        return build.elementwise(_OF_FLAGS.get(op, op) if dtype == "bool" else op, x, y)

    return translate


_OF_FLAGS = {"maximum": "or", "minimum": "and"}


for _op, _targets in {
    "floordiv": "floor_divide floor_divide.Tensor floor_divide.Scalar",
    "mod": "remainder.Tensor remainder.Scalar remainder.Scalar_Tensor",
    "fmod": "fmod.Tensor fmod.Scalar",
    "minimum": "minimum min.other",
    "maximum": "maximum max.other",
    "shl": "bitwise_left_shift.Tensor bitwise_left_shift.Tensor_Scalar __lshift__.Tensor "
    "__lshift__.Scalar",
    "shr": "bitwise_right_shift.Tensor bitwise_right_shift.Tensor_Scalar __rshift__.Tensor "
    "__rshift__.Scalar",
    "and": "bitwise_and.Tensor bitwise_and.Scalar bitwise_and.Scalar_Tensor __and__.Tensor "
    "__and__.Scalar",
    "or": "bitwise_or.Tensor bitwise_or.Scalar bitwise_or.Scalar_Tensor __or__.Tensor "
    "__or__.Scalar",
    "xor": "bitwise_xor.Tensor bitwise_xor.Scalar bitwise_xor.Scalar_Tensor __xor__.Tensor "
    "__xor__.Scalar",
    "eq": "eq.Tensor eq.Scalar",
    "ne": "ne.Tensor ne.Scalar not_equal.Tensor not_equal.Scalar",
    "lt": "lt.Tensor lt.Scalar less.Tensor less.Scalar",
    "le": "le.Tensor le.Scalar less_equal.Tensor less_equal.Scalar",
    "gt": "gt.Tensor gt.Scalar greater.Tensor greater.Scalar",
    "ge": "ge.Tensor ge.Scalar greater_equal.Tensor greater_equal.Scalar",
}.items():
    aten(*_targets.split())(_binary(_op))


def _numeric(op: str) -> Callable[[Builder, Val, Val], Val]:
    """The extreme of two elements; of a number and NaN the number."""

    def translate(build: Builder, x: Val, y: Val) -> Val:
        extreme = _binary(op)(build, x, y)
        if not extreme.type.element.is_float:
            return extreme
        a, b = build.cast(x, extreme.dtype), build.cast(y, extreme.dtype)
        return build.where(isnan(build, a), b, build.where(isnan(build, b), a, extreme))

    return translate


aten("fmax")(_numeric("maximum"))
aten("fmin")(_numeric("minimum"))


@aten("copysign.Tensor", "copysign.Scalar")
def _copysign(build: Builder, x: Val, sign: Operand) -> Val:
    dtype = build.result().dtype
    size = build.emit("abs", build.cast(x, dtype))
    return build.where(signbit(build, build.operand(sign, dtype)), -size, size)


@aten("ldexp.Tensor")
def _ldexp(build: Builder, x: Val, exponent: Val) -> Val:
    dtype = build.result().dtype
    power = build.elementwise("pow", build.scalar(2.0, dtype), exponent, dtype=dtype)
    return build.elementwise("mul", x, power, dtype=dtype)


@aten("atan2", "arctan2")
def _atan2(build: Builder, x: Val, y: Val) -> Val:
    return build.elementwise("atan2", x, y, dtype=build.result().dtype)


@aten("logaddexp")
def _logaddexp(build: Builder, x: Val, y: Val) -> Val:
    top = build.elementwise("maximum", x, y)
    # Two infinities that are the same have no difference that is a number.
    apart = build.where(build.elementwise("eq", x, y), 0.0, x - y)
    return top + build.emit("log1p", build.emit("exp", -build.emit("abs", apart)))


@aten("erfinv", "special_erfinv")
def _erfinv(build: Builder, x: Val) -> Val:
    """Winitzki's approximation, brought to full precision by Newton's method."""
    x = build.floats(x)
    curvature = 0.147
    log = build.emit("log1p", -(x * x))
    middle = log * 0.5 + 2 / (math.pi * curvature)
    apart = build.emit("sqrt", middle * middle - log * (1 / curvature)) - middle
    first = build.emit("sign", x) * build.emit("sqrt", build.emit("relu", apart))
    y = first
    for _ in range(3):
        slope = build.emit("exp", y * y) * (math.sqrt(math.pi) / 2)
        y = y - (build.emit("erf", y) - x) * slope
    # At -1 and 1 the step has no value, and the approximation is the infinity already.
    return build.where(build.elementwise("lt", build.emit("abs", x), 1), y, first)


@aten("hypot")
def _hypot(build: Builder, x: Val, y: Val) -> Val:
    # Squares of numbers that f32 has are neither too large nor too small for f64.
    a, b = build.cast(x, "f64"), build.cast(y, "f64")
    return build.cast(build.emit("sqrt", a * a + b * b), build.common(x, y))


@aten("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "float_power.Tensor_Scalar",
      "float_power.Tensor_Tensor", "float_power.Scalar", "pow.Tensor",
      "float_power.Tensor")  # fmt: skip
def power(build: Builder, x: Operand, exponent: Operand) -> Val:
    dtype = build.result().dtype
    base = build.operand(x, dtype)
    if isinstance(exponent, int | float) and isinstance(x, Val):
        if exponent == 0:
            return build.full(base.shape, 1, dtype)
        if exponent == 1:
            return base
        if exponent == 2:
            return base * base
        if exponent == 3:
            return base * base * base
        if base.type.element.is_float and exponent in _ROOTS:
            return build.emit(_ROOTS[exponent], base)
    return build.emit("pow", base, build.operand(exponent, dtype))


_ROOTS: dict[float, str] = {0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}


@aten("square")
def _square(build: Builder, x: Val) -> Val:
    x = build.cast(x, build.result().dtype)
    return x * x


@aten("addcmul")
def _addcmul(build: Builder, x: Val, a: Val, b: Val, *, value: Scalar = 1) -> Val:
    dtype = build.common(x, a, b)
    product = build.elementwise("mul", a, b, dtype=dtype)
    return build.elementwise("add", x, scaled(build, product, value, dtype), dtype=dtype)


@aten("addcdiv")
def _addcdiv(build: Builder, x: Val, a: Val, b: Val, *, value: Scalar = 1) -> Val:
    dtype = build.common(x, a, b)
    quotient = build.elementwise("div", a, b, dtype=dtype)
    return build.elementwise("add", x, scaled(build, quotient, value, dtype), dtype=dtype)


@aten("lerp.Scalar", "lerp.Tensor")
def _lerp(build: Builder, x: Val, end: Val, weight: Operand) -> Val:
    return x + build.emit("mul", end - x, build.operand(weight, x.dtype))


@aten("cross")
def _first_cross(build: Builder, x: Val, y: Val, dim: int | None = None) -> Val:
    """Without `dim`, along the first axis of size 3."""
    return _cross(build, x, y, build.result().shape.index(3) if dim is None else dim)


@aten("linalg_cross")
def _cross(build: Builder, x: Val, y: Val, dim: int = -1) -> Val:
    axis = x.axis(dim)
    a = [build.slice(x, axis, i, i + 1) for i in range(3)]
    b = [build.slice(y, axis, i, i + 1) for i in range(3)]
    order = ((1, 2), (2, 0), (0, 1))
    return build.concat([a[i] * b[j] - a[j] * b[i] for i, j in order], axis)


# --- flags ----------------------------------------------------------------------------------


def flag(build: Builder, x: Val) -> Val:
    """Whether elements are not zero."""
    return build.cast(x, "bool")


@aten("bitwise_not", "logical_not")
def _not(build: Builder, x: Val) -> Val:
    wanted = build.result().dtype
    return build.emit("not", flag(build, x) if wanted == "bool" else x)


def _logical(op: str) -> Callable[[Builder, Val, Val], Val]:
    return lambda build, x, y: build.emit(op, flag(build, x), flag(build, y))


for _op, _target in {"and": "logical_and", "or": "logical_or", "xor": "logical_xor"}.items():
    aten(_target)(_logical(_op))


@aten("isnan")
def isnan(build: Builder, x: Val) -> Val:
    return build.emit("isnan", build.floats(x))


@aten("isinf")
def isinf(build: Builder, x: Val) -> Val:
    return build.emit("isinf", build.floats(x))


@aten("isfinite")
def _isfinite(build: Builder, x: Val) -> Val:
    return build.emit("not", build.emit("or", isnan(build, x), isinf(build, x)))


@aten("isneginf")
def _isneginf(build: Builder, x: Val) -> Val:
    return build.elementwise("eq", build.floats(x), -math.inf)


@aten("isposinf")
def _isposinf(build: Builder, x: Val) -> Val:
    return build.elementwise("eq", build.floats(x), math.inf)


@aten("signbit")
def signbit(build: Builder, x: Val) -> Val:
    """Whether elements are below zero, or minus zero."""
    negative = build.elementwise("lt", x, 0)
    if not x.type.element.is_float:
        return negative
    # The reciprocal of minus zero is below zero as well.
    return build.emit("or", negative, build.elementwise("lt", build.elementwise("div", 1.0, x), 0))


@aten("isin.Tensor_Tensor")
def _isin(
    build: Builder, x: Val, tests: Val, *, assume_unique: bool = False, invert: bool = False
) -> Val:
    flat = build.reshape(tests, (tests.type.elements,))
    equal = build.elementwise("eq", build.unsqueeze(x, x.rank), flat)
    found = build.reduce("reduce_any", equal, (x.rank,))
    return build.emit("not", found) if invert else found


@aten("isclose")
def _isclose(
    build: Builder, x: Val, y: Val, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> Val:
    a, b = build.floats(x), build.floats(y)
    gap = build.emit("abs", a - b)
    near = build.elementwise("le", gap, build.emit("abs", b) * rtol + atol)
    near = build.emit("and", near, build.emit("not", isinf(build, gap)))
    near = build.emit("or", near, build.elementwise("eq", x, y))
    if equal_nan:
        both = build.emit("and", isnan(build, x), isnan(build, y))
        near = build.emit("or", near, both)
    return near


@aten("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def _where(build: Builder, condition: Val, yes: Operand, no: Operand) -> Val:
    dtype = build.result().dtype
    return build.emit(
        "where", flag(build, condition), build.operand(yes, dtype), build.operand(no, dtype)
    )


@aten("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(build: Builder, x: Val, mask: Val, value: Operand) -> Val:
    return build.emit("where", flag(build, mask), build.operand(value, x.dtype), x)


@aten("nan_to_num")
def _nan_to_num(
    build: Builder, x: Val, nan: float | None = None, posinf: float | None = None,
    neginf: float | None = None,
) -> Val:  # fmt: skip
    if not x.type.element.is_float:
        return x
    largest = {"f16": 65504.0, "bf16": 3.3895313892515355e38, "f32": 3.4028234663852886e38,
               "f64": 1.7976931348623157e308}[x.dtype]  # fmt: skip
    x = build.where(isnan(build, x), nan or 0.0, x)
    high, low = build.scalar(math.inf, x.dtype), build.scalar(-math.inf, x.dtype)
    top = largest if posinf is None else posinf
    bottom = -largest if neginf is None else neginf
    x = build.where(build.emit("eq", x, high), top, x)
    return build.where(build.emit("eq", x, low), bottom, x)


# --- bounds ---------------------------------------------------------------------------------


@aten("clamp", "clip")
def clamp(build: Builder, x: Val, min: Scalar | None = None, max: Scalar | None = None) -> Val:
    x = build.cast(x, build.result().dtype)
    if isinstance(min, Expr | SymFloat) or isinstance(max, Expr | SymFloat):
        return _clamp_tensor(build, x, min, max)
    attrs = {"min": min, "max": max}
    if x.type.element.is_float:
        attrs = {key: None if value is None else float(value) for key, value in attrs.items()}
    return build.emit("clamp", x, **attrs)


@aten("clamp.Tensor", "clip.Tensor")
def _clamp_tensor(
    build: Builder, x: Val, min: Operand | None = None, max: Operand | None = None
) -> Val:
    dtype = build.result().dtype
    x = build.cast(x, dtype)
    if min is not None:
        x = _binary("maximum")(build, x, build.operand(min, dtype))
    return x if max is None else _binary("minimum")(build, x, build.operand(max, dtype))


@aten("clamp_min", "clamp_min.Tensor")
def _clamp_min(build: Builder, x: Val, min: Operand) -> Val:
    return _clamp_tensor(build, x, min) if isinstance(min, Val) else clamp(build, x, min)


@aten("clamp_max", "clamp_max.Tensor")
def _clamp_max(build: Builder, x: Val, max: Operand) -> Val:
    if isinstance(max, Val):
        return _clamp_tensor(build, x, None, max)
    return clamp(build, x, None, max)


@aten("hardtanh")
def _hardtanh(build: Builder, x: Val, min_val: float = -1, max_val: float = 1) -> Val:
    return clamp(build, x, min_val, max_val)


@aten("relu6")
def _relu6(build: Builder, x: Val) -> Val:
    return clamp(build, x, 0, 6)


# --- activations ----------------------------------------------------------------------------


@aten("gelu")
def _gelu(build: Builder, x: Val, *, approximate: str = "none") -> Val:
    return build.emit("gelu", x, approximate=approximate)


@aten("softplus")
def _softplus(build: Builder, x: Val, beta: float = 1, threshold: float = 20) -> Val:
    return build.emit("softplus", x, beta=float(beta), threshold=float(threshold))


@aten("leaky_relu")
def _leaky_relu(build: Builder, x: Val, negative_slope: float = 0.01) -> Val:
    return build.emit("leaky_relu", x, slope=float(negative_slope))


@aten("rrelu")
def _rrelu(
    build: Builder, x: Val, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False,
    generator: object = None,
) -> Val:  # fmt: skip
    if training:
        raise build.in_training(
            "the model draws random numbers: a randomised ReLU is in training mode"
        )
    return _leaky_relu(build, x, (lower + upper) / 2)


@aten("elu")
def _elu(build: Builder, x: Val, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Val:
    if scale == 1 and input_scale == 1:
        return build.emit("elu", x, alpha=float(alpha))
    positive = build.elementwise("gt", x, 0)
    inner = build.emit("elu", x * input_scale, alpha=float(alpha))
    return build.where(positive, x * scale, inner * scale)


@aten("celu")
def _celu(build: Builder, x: Val, alpha: float = 1) -> Val:
    return _elu(build, x, alpha, 1, 1 / alpha)


@aten("selu")
def _selu(build: Builder, x: Val) -> Val:
    return _elu(build, x, 1.6732632423543772, 1.0507009873554805)


@aten("hardswish")
def _hardswish(build: Builder, x: Val) -> Val:
    return build.emit("hardswish", x)


@aten("hardsigmoid")
def _hardsigmoid(build: Builder, x: Val) -> Val:
    return build.emit("hardsigmoid", x)


@aten("threshold")
def _threshold(build: Builder, x: Val, threshold: float, value: float) -> Val:
    return build.where(build.elementwise("le", x, threshold), value, x)


@aten("hardshrink")
def _hardshrink(build: Builder, x: Val, lambd: float = 0.5) -> Val:
    small = build.elementwise("le", build.emit("abs", x), lambd)
    return build.where(small, 0.0, x)


@aten("softshrink")
def _softshrink(build: Builder, x: Val, lambd: float = 0.5) -> Val:
    shrunk = clamp(build, build.emit("abs", x) - lambd, 0.0)
    return shrunk * build.emit("sign", x)


@aten("prelu", "_prelu_kernel")
def _prelu(build: Builder, x: Val, weight: Val) -> Val:
    if x.rank > 1 and weight.rank == 1:
        weight = build.reshape(weight, (weight.shape[0], *(1,) * (x.rank - 2)))
    return build.where(build.elementwise("gt", x, 0), x, x * weight)


@aten("glu")
def _glu(build: Builder, x: Val, dim: int = -1) -> Val:
    axis = x.axis(dim)
    half = build.result().shape[axis]
    first = build.slice(x, axis, 0, half)
    return first * build.emit("sigmoid", build.slice(x, axis, half, x.shape[axis]))


@aten("log10")
def _log10(build: Builder, x: Val) -> Val:
    return build.emit("log", build.floats(x)) * (1 / math.log(10))


@aten("logit", "special_logit")
def _logit(build: Builder, x: Val, eps: float | None = None) -> Val:
    if eps is not None:
        x = clamp(build, x, eps, 1 - eps)
    return build.emit("log", x / (-x + 1.0))


@aten("frac")
def _frac(build: Builder, x: Val) -> Val:
    return x - build.emit("trunc", x)


@aten("sinc", "special_sinc")
def _sinc(build: Builder, x: Val) -> Val:
    angle = build.floats(x) * math.pi
    zero = build.elementwise("eq", angle, 0.0)
    return build.where(zero, 1.0, build.emit("sin", angle) / angle)


@aten("xlogy.Tensor", "xlogy.Scalar_Self", "xlogy.Scalar_Other", "special_xlogy")
def _xlogy(build: Builder, x: Operand, y: Operand) -> Val:
    dtype = build.result().dtype
    a, b = build.operand(x, dtype), build.operand(y, dtype)
    zero = build.elementwise("eq", a, 0.0)
    product = build.where(zero, 0.0, a * build.emit("log", b))
    return build.where(isnan(build, b), math.nan, product)


@aten("heaviside")
def _heaviside(build: Builder, x: Val, values: Val) -> Val:
    step = build.cast(build.elementwise("gt", x, 0), x.dtype)
    return build.where(build.elementwise("eq", x, 0), values, step)


# --- dtypes and copies ----------------------------------------------------------------------


def _converted(build: Builder, x: Val | Complex, copy: bool) -> Val | View | Complex:
    wanted = build.result().dtype
    if isinstance(x, Complex):
        if build.target is not None and build.target.dtype == wanted:
            return build.cast(x.real, wanted)
        return Complex(build.cast(x.real, wanted), build.cast(x.imag, wanted))
    if build.target is not None and build.target.dtype != wanted:
        real = build.cast(x, wanted)
        return Complex(real, build.full(x.shape, 0.0, wanted))
    if x.dtype != wanted:
        return build.cast(x, wanted)
    return x if copy else View(lambda v: v, lambda base, new: new)


@aten("to.dtype", both=True)
def _to_dtype(
    build: Builder, x: Val | Complex, dtype: str, non_blocking: bool = False, copy: bool = False,
    memory_format: str | None = None,
) -> Val | View | Complex:  # fmt: skip
    return _converted(build, x, copy)


@aten("to.dtype_layout", both=True)
def _to_dtype_layout(
    build: Builder, x: Val | Complex, *, dtype: str | None = None, layout: str | None = None,
    device: str | None = None, pin_memory: bool | None = None, non_blocking: bool = False,
    copy: bool = False, memory_format: str | None = None,
) -> Val | View | Complex:  # fmt: skip
    return _converted(build, x, copy)


@aten("to.device", both=True)
def _to_device(
    build: Builder, x: Val | Complex, device: str, dtype: str, non_blocking: bool = False,
    copy: bool = False, memory_format: str | None = None,
) -> Val | View | Complex:  # fmt: skip
    return _converted(build, x, copy)


@aten("to.other", both=True)
def _to_other(
    build: Builder, x: Val | Complex, other: Val, non_blocking: bool = False, copy: bool = False,
    memory_format: str | None = None,
) -> Val | View | Complex:  # fmt: skip
    return _converted(build, x, copy)


@aten("to.prim_Device", both=True)
def _to_prim_device(
    build: Builder, x: Val | Complex, device: str | None = None, dtype: str | None = None,
    non_blocking: bool = False, copy: bool = False,
) -> Val | View | Complex:  # fmt: skip
    return _converted(build, x, copy)


@aten("_to_copy", both=True)
def _to_copy(
    build: Builder, x: Val | Complex, *, dtype: str | None = None, layout: str | None = None,
    device: str | None = None, pin_memory: bool | None = None, non_blocking: bool = False,
    memory_format: str | None = None,
) -> Val | View | Complex:  # fmt: skip
    return _converted(build, x, True)


@aten("type_as", both=True)
def _type_as(build: Builder, x: Val | Complex, other: Val) -> Val | View | Complex:
    return _converted(build, x, False)


@aten("clone", "lift_fresh_copy", "detach_copy", "alias_copy", parts=True)
def _clone(build: Builder, x: Val, *, memory_format: str | None = None) -> Val:
    return x


@aten("copy", parts=True)
def _copy(build: Builder, x: Val, source: Val, non_blocking: bool = False) -> Val:
    return build.expand(build.cast(source, x.dtype), x.shape)


@aten("fill.Scalar", "fill.Tensor")
def _fill(build: Builder, x: Val, value: Operand) -> Val:
    if isinstance(value, Val | SymFloat):
        return build.expand(build.operand(value, x.dtype), x.shape)
    return build.full(x.shape, value, x.dtype)


@aten("zero", parts=True)
def _zero(build: Builder, x: Val) -> Val:
    return build.full(x.shape, 0, x.dtype)


# --- complex numbers ------------------------------------------------------------------------


@aten("view_as_complex", both=True)
def _view_as_complex(build: Builder, x: Val) -> View:
    return View(lambda v: _from_pairs(build, v), lambda base, new: _pairs(build, new), whole=True)


def _from_pairs(build: Builder, x: Val) -> Complex:
    return Complex(build.select(x, -1, 0), build.select(x, -1, 1))


def _pairs(build: Builder, x: Complex) -> Val:
    """[..., 2]: the parts side by side."""
    rank = x.real.rank
    return build.concat([build.unsqueeze(x.real, rank), build.unsqueeze(x.imag, rank)], rank)


@aten("view_as_real", both=True)
def _view_as_real(build: Builder, x: Complex) -> View:
    return View(lambda v: _pairs(build, v), lambda base, new: _from_pairs(build, new), whole=True)


@aten("complex", both=True)
def _complex(build: Builder, real: Val, imag: Val) -> Complex:
    shape = broadcast_shape(real.shape, imag.shape)
    return Complex(build.expand(real, shape), build.expand(imag, shape))


@aten("polar", both=True)
def _polar(build: Builder, size: Val, angle: Val) -> Complex:
    return Complex(size * build.emit("cos", angle), size * build.emit("sin", angle))


@aten("real", both=True)
def _real(build: Builder, x: Val | Complex) -> View:
    if isinstance(x, Complex):
        return View(lambda v: v.real, lambda base, new: Complex(new, base.imag), whole=True)
    return same()


@aten("imag", both=True)
def _imag(build: Builder, x: Complex) -> View:
    return View(lambda v: v.imag, lambda base, new: Complex(base.real, new), whole=True)


@aten("angle", both=True)
def _angle(build: Builder, x: Val | Complex) -> Val:
    if isinstance(x, Complex):
        return build.emit("atan2", x.imag, x.real)
    x = build.cast(x, build.result().dtype)
    straight = build.operand(math.pi, x.dtype)
    result = build.where(build.elementwise("lt", x, 0), straight, build.operand(0.0, x.dtype))
    return build.where(isnan(build, x), x, result)


@aten("conj", "_conj", both=True)
def _conj(build: Builder, x: Val | Complex) -> View:
    if isinstance(x, Complex):
        return View(conjugate, lambda base, new: conjugate(new), whole=True)
    return same()


def conjugate(x: Complex) -> Complex:
    """`x` with the sign of its imaginary part changed."""
    return Complex(x.real, -x.imag)


@aten("conj_physical", "_conj_physical", both=True)
def _conj_physical(build: Builder, x: Val | Complex) -> Val | Complex:
    return conjugate(x) if isinstance(x, Complex) else x


@aten("resolve_conj", "resolve_neg", both=True)
def _resolve(build: Builder, x: Val | Complex) -> View:
    """A copy of what is conjugated, and else the tensor itself; which, the graph does not say."""
    return View(lambda v: v, None, certain=not isinstance(x, Complex), whole=True)
