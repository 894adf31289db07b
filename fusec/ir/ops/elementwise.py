"""Operations on elements, with numpy's broadcasting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fusec.diagnostics import VerifyError
from fusec.formats import FP8, magnitudes, rounded
from fusec.ir.ops.base import (
    Array,
    Infer,
    Types,
    arity,
    define,
    float_operand,
    integer_operand,
    result_array,
    same_dtype,
)
from fusec.ir.types import Attrs, TensorType, broadcast, float_attr, str_attr

_erf = np.vectorize(math.erf, otypes=[np.float64])
_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def sigmoid(x: Array) -> Array:
    """Logistic function, without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def softplus(x: Array) -> Array:
    """log(1 + exp(x)), without overflow."""
    return np.asarray(np.logaddexp(0, x))


def gelu(x: Array, approximate: str) -> Array:
    """GELU (Hendrycks and Gimpel, 2016): exact, or with tanh."""
    if approximate == "tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    return np.asarray(0.5 * x * (1 + _erf(x / math.sqrt(2))))


def _softplus(x: Array, attrs: Attrs) -> Array:
    beta, threshold = float_attr(attrs, "beta"), float_attr(attrs, "threshold")
    return np.where(x * beta > threshold, x, softplus(x * beta) / beta)


def _elu(x: Array, attrs: Attrs) -> Array:
    return np.where(x > 0, x, float_attr(attrs, "alpha") * np.expm1(np.minimum(x, 0)))


def _clamp(x: Array, attrs: Attrs) -> Array:
    bounds = (attrs.get("min"), attrs.get("max"))
    low, high = (bound if isinstance(bound, int | float) else None for bound in bounds)
    return np.asarray(np.clip(x, low, high))


def _leaky_relu(x: Array, attrs: Attrs) -> Array:
    return np.where(x > 0, x, float_attr(attrs, "slope") * x)


_FLOAT_UNARY: dict[str, Callable[[Array], Any]] = {
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log2": np.log2,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "reciprocal": lambda x: 1 / x,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "erf": _erf,
    "erfc": _erfc,
    "sigmoid": sigmoid,
    "log_sigmoid": lambda x: -softplus(-x),
    "silu": lambda x: x * sigmoid(x),
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "hardsigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "mish": lambda x: x * np.tanh(softplus(x)),
}
_FLOAT_UNARY_ATTRS: dict[str, Callable[[Array, Attrs], Array]] = {
    "softplus": _softplus,
    "gelu": lambda x, attrs: gelu(x, str_attr(attrs, "approximate")),
    "leaky_relu": _leaky_relu,
    "elu": _elu,
}
_NUMBER_UNARY: dict[str, Callable[[Array], Any]] = {
    "neg": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.round,
    "trunc": np.trunc,
    "relu": lambda x: np.maximum(x, 0),
}
_NUMBER_BINARY: dict[str, tuple[Callable[[Array, Array], Any], bool]] = {
    "add": (np.add, True),
    "sub": (np.subtract, False),
    "mul": (np.multiply, True),
    "floordiv": (np.floor_divide, False),
    "mod": (np.mod, False),
    "fmod": (np.fmod, False),
    "pow": (np.power, False),
    "minimum": (np.minimum, True),
    "maximum": (np.maximum, True),
}
_COMPARISON: dict[str, tuple[Callable[[Array, Array], Any], bool]] = {
    "eq": (np.equal, True),
    "ne": (np.not_equal, True),
    "lt": (np.less, False),
    "le": (np.less_equal, False),
    "gt": (np.greater, False),
    "ge": (np.greater_equal, False),
}
_BITWISE: dict[str, Callable[[Array, Array], Any]] = {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def _unary(check: Callable[[TensorType], TensorType]) -> Infer:
    def infer(types: Types, attrs: Attrs) -> Types:
        arity(types, 1)
        return (TensorType(check(types[0]).dtype, types[0].shape),)

    return infer


def _number(type: TensorType) -> TensorType:
    if not (type.element.is_float or type.element.is_integer):
        raise VerifyError(f"expected a number, got `{type}`")
    return type


def _binary(
    check: Callable[[TensorType], TensorType], dtype: str | None = None, operands: int = 2
) -> Infer:
    def infer(types: Types, attrs: Attrs) -> Types:
        arity(types, operands)
        shared = same_dtype(types)
        check(types[0])
        return (TensorType(dtype or shared, broadcast(*(type.shape for type in types))),)

    return infer


def _any_type(type: TensorType) -> TensorType:
    return type


def _not_float(type: TensorType) -> TensorType:
    if type.element.is_float:
        raise VerifyError(f"expected integers or flags, got `{type}`")
    return type


def _infer_flag(types: Types, attrs: Attrs) -> Types:
    arity(types, 1)
    return (TensorType("bool", float_operand(types[0]).shape),)


def _infer_where(types: Types, attrs: Attrs) -> Types:
    arity(types, 3)
    if types[0].dtype != "bool":
        raise VerifyError(f"the condition is `{types[0]}`, not bool")
    return (TensorType(same_dtype(types[1:]), broadcast(*(type.shape for type in types))),)


def _infer_cast(types: Types, attrs: Attrs) -> Types:
    arity(types, 1)
    return (types[0].with_dtype(str_attr(attrs, "dtype")),)


def _infer_clamp(types: Types, attrs: Attrs) -> Types:
    arity(types, 1)
    for name in ("min", "max"):
        if attrs.get(name) is not None:
            float_attr(attrs, name)
    return (_number(types[0]),)


def _cast(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    (x,) = arrays
    if types[0].element.is_integer and x.dtype == np.float64:
        x = np.trunc(x)
    if types[0].dtype in FP8 and x.dtype == np.float64:
        x = np.where(np.abs(x) <= magnitudes(types[0].dtype)[-1], rounded(x, types[0].dtype), x)
    return (result_array(x, types[0]),)


def _of_one(function: Callable[[Array], Any]) -> Callable[..., tuple[Array, ...]]:
    def reference(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
        return (result_array(function(arrays[0]), types[0]),)

    return reference


def _of_one_attrs(function: Callable[[Array, Attrs], Any]) -> Callable[..., tuple[Array, ...]]:
    def reference(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
        return (result_array(function(arrays[0], attrs), types[0]),)

    return reference


def _of_two(function: Callable[[Array, Array], Any]) -> Callable[..., tuple[Array, ...]]:
    def reference(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
        return (result_array(function(arrays[0], arrays[1]), types[0]),)

    return reference


def _where(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    return (result_array(np.where(*arrays), types[0]),)


for _name, _function in _FLOAT_UNARY.items():
    define(_name, _unary(float_operand), _of_one(_function), elementwise=True)
for _name, _with_attrs in _FLOAT_UNARY_ATTRS.items():
    define(_name, _unary(float_operand), _of_one_attrs(_with_attrs), elementwise=True)
for _name, _function in _NUMBER_UNARY.items():
    define(_name, _unary(_number), _of_one(_function), elementwise=True)
for _name, (_pair, _commutes) in _NUMBER_BINARY.items():
    define(_name, _binary(_number), _of_two(_pair), elementwise=True, commutative=_commutes)
for _name, (_pair, _commutes) in _COMPARISON.items():
    define(
        _name, _binary(_any_type, "bool"), _of_two(_pair), elementwise=True, commutative=_commutes
    )
for _name, _pair in _BITWISE.items():
    define(_name, _binary(_not_float), _of_two(_pair), elementwise=True, commutative=True)
define("div", _binary(float_operand), _of_two(np.divide), elementwise=True)
define("atan2", _binary(float_operand), _of_two(np.arctan2), elementwise=True)
define("shl", _binary(integer_operand), _of_two(np.left_shift), elementwise=True)
define("shr", _binary(integer_operand), _of_two(np.right_shift), elementwise=True)
define("not", _unary(_not_float), _of_one(np.invert), elementwise=True)
define("isnan", _infer_flag, _of_one(np.isnan), elementwise=True)
define("isinf", _infer_flag, _of_one(np.isinf), elementwise=True)
define("clamp", _infer_clamp, _of_one_attrs(_clamp), elementwise=True)
define("cast", _infer_cast, _cast, elementwise=True)
define("where", _infer_where, _where, elementwise=True)
