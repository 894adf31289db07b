"""Arithmetic on values that are known: the sizes that dynamic models compute from `Shape`.

Each rule gives the elements of the result, or `None` where they cannot be told, for instance
because a comparison depends on a symbol; the operator is then translated as any other.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from fusec import symbolic
from fusec.diagnostics import InputError
from fusec.dtypes import DTYPES
from fusec.frontend.onnx_ops.base import (
    FOLD_LIMIT,
    Call,
    Contents,
    Context,
    Ratio,
    Value,
    known,
    objects,
)
from fusec.frontend.onnx_ops.tensors import DTYPE_OF
from fusec.ir.types import TensorType
from fusec.symbolic import Dim, Expr

MAX_RANK = 2


class Unknown(Exception):
    """The result depends on a symbol in a way that no expression tells."""


def fold(ctx: Context, call: Call) -> Value | tuple[Value, ...] | None:
    """The results of `call` if they can be computed now."""
    if call.domain != "":
        return None
    if call.op == "Shape":
        return _shape(call)
    if call.op == "Size":
        total = call.operand(0).type.elements
        return known(objects([total], ()), "i64")
    rule = _RULES.get(call.op)
    if rule is None or not call.inputs:
        return None
    contents: list[Contents | None] = []
    read = call.inputs[:1] if call.op == "CastLike" else call.inputs
    for value in read:
        if value is not None and (value.content is None or value.items is not None):
            return None
        contents.append(None if value is None else value.content)
    try:
        result = rule(ctx, call, contents)
    except Unknown:
        return None
    dtype = _result_dtype(call)
    if isinstance(result, list):
        return tuple(known(_wrapped(part, dtype), dtype) for part in result)
    return known(_wrapped(result, dtype), dtype) if result is not None else None


def _integers(dtype: str) -> range:
    """The numbers that an integer type holds."""
    kind = DTYPES[dtype]
    span = 1 << kind.bits
    return range(span) if kind.kind == "uint" else range(-span // 2, span // 2)


def _wrapped(content: Contents, dtype: str) -> Contents:
    """Elements as `dtype` stores them: integers beyond its range wrap around."""
    if not DTYPES[dtype].is_integer:
        return content
    held = _integers(dtype)
    items = [
        (item - held.start) % (held.stop - held.start) + held.start
        if isinstance(item, int)
        else item
        for item in content.ravel().tolist()
    ]
    return objects(items, content.shape)


_FLAGS = frozenset(
    ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor", "Not")
)


def _result_dtype(call: Call) -> str:
    if call.op in _FLAGS:
        return "bool"
    if call.op == "Cast":
        return DTYPE_OF.get(call.integer("to", 0), "")
    if call.op == "ConstantOfShape":
        return _fill(call)[1]
    if call.op == "NonZero":
        return "i64"
    if call.op in ("Where", "CastLike"):
        return call.operand(1).dtype
    return call.operand(0).dtype


def _shape(call: Call) -> Value:
    shape = call.operand(0).shape
    start = call.integer("start", 0)
    stop = call.integer("end", len(shape))
    dims = shape[slice(start, stop)]
    return Value(TensorType("i64", (len(dims),)), content=objects(dims, (len(dims),)))


def _sized(content: Contents) -> Contents:
    if content.size > FOLD_LIMIT or content.ndim > MAX_RANK:
        raise Unknown
    return content


def _each(function: Callable[..., Any]) -> Callable[..., Contents]:
    """A rule for an elementwise operator; `function` takes the context, then the elements."""

    def rule(ctx: Context, call: Call, contents: list[Contents | None]) -> Contents:
        operands = [content for content in contents if content is not None]
        try:
            spread = np.broadcast_arrays(*operands)
        except ValueError as error:
            raise InputError(f"the operands of `{call.op}` do not broadcast") from error
        _sized(spread[0])
        columns = [array.ravel().tolist() for array in spread]
        results = [function(ctx, *row) for row in zip(*columns, strict=True)]
        if call.operand(0).type.element.is_integer:
            results = [int(item) if isinstance(item, bool) else item for item in results]
        return objects(results, spread[0].shape)

    return rule


def _flag(function: Callable[[Context, Any, Any], bool]) -> Callable[..., Contents]:
    def rule(ctx: Context, call: Call, contents: list[Contents | None]) -> Contents:
        made = _each(function)(ctx, call, contents)
        return objects([bool(item) for item in made.ravel().tolist()], made.shape)

    return rule


def _is_size(item: Any) -> bool:
    return isinstance(item, int | Expr) and not isinstance(item, bool)


def _arithmetic(function: Callable[[Any, Any], Any]) -> Callable[[Context, Any, Any], Any]:
    def apply(ctx: Context, a: Any, b: Any) -> Any:
        if isinstance(a, Ratio) or isinstance(b, Ratio):
            raise Unknown
        symbolic_operand = isinstance(a, Expr) or isinstance(b, Expr)
        if symbolic_operand and (isinstance(a, float) or isinstance(b, float)):
            a, b = _whole(a), _whole(b)
        return function(a, b)

    return apply


def _whole(item: Any) -> Any:
    """A float that is a whole number, as an integer."""
    if isinstance(item, float):
        if not item.is_integer():
            raise Unknown
        return int(item)
    return item


def _multiply(ctx: Context, a: Any, b: Any) -> Any:
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Expr | Ratio) and isinstance(other, float):
            numerator, denominator = _fraction(other)
            over = one.over if isinstance(one, Ratio) else one
            under = one.under if isinstance(one, Ratio) else 1
            return _ratio(over * numerator, under * denominator)
        if isinstance(one, Ratio):
            return _ratio(one.over * _dim(other), one.under)
    return a * b


def _fraction(number: float) -> tuple[int, int]:
    """A float as a fraction of small integers, exactly."""
    if not math.isfinite(number):
        raise Unknown
    numerator, denominator = number.as_integer_ratio()
    if max(abs(numerator), denominator) > 1 << 20:
        raise Unknown
    return numerator, denominator


def _dim(item: Any) -> Dim:
    if not _is_size(item):
        raise Unknown
    return item  # type: ignore[no-any-return]


def _ratio(over: Dim, under: Dim) -> Any:
    if under == 1:
        return over
    quotient = symbolic.floor_divide(over, under)
    return quotient if quotient * under == over else Ratio(over, under)


def _divide(ctx: Context, call: Call, contents: list[Contents | None]) -> Contents:
    integer = call.operand(0).type.element.is_integer

    def apply(ctx: Context, a: Any, b: Any) -> Any:
        if isinstance(a, Ratio) or isinstance(b, Ratio):
            raise Unknown
        if integer:
            return _truncated(ctx, a, b)
        if isinstance(a, Expr) or isinstance(b, Expr):
            return _ratio(_dim(_whole(a)), _dim(_whole(b)))
        if b == 0:
            raise Unknown
        return float(a) / float(b)

    return _each(apply)(ctx, call, contents)


def _truncated(ctx: Context, a: Any, b: Any) -> Any:
    """Integer division towards zero."""
    if b == 0:
        raise Unknown
    if isinstance(a, int) and isinstance(b, int):
        quotient = abs(a) // abs(b)
        return quotient if (a < 0) == (b < 0) else -quotient
    if ctx.span(a)[0] < 0 or ctx.span(b)[0] < 0:
        raise Unknown
    return symbolic.floor_divide(a, b)


def _modulo(ctx: Context, call: Call, contents: list[Contents | None]) -> Contents:
    def apply(ctx: Context, a: Any, b: Any) -> Any:
        if b == 0 or isinstance(a, float | Ratio) or isinstance(b, float | Ratio):
            raise Unknown
        if call.integer("fmod", 0):
            if not (isinstance(a, int) and isinstance(b, int)):
                raise Unknown
            return int(math.fmod(a, b))
        return symbolic.modulo(a, b)

    return _each(apply)(ctx, call, contents)


def _extreme(which: str) -> Callable[..., Contents]:
    def apply(ctx: Context, *items: Any) -> Any:
        if any(isinstance(item, Ratio) for item in items):
            raise Unknown
        if any(isinstance(item, Expr) for item in items):
            items = tuple(_whole(item) for item in items)
            choose = ctx.smaller if which == "min" else ctx.larger
            result = items[0]
            for item in items[1:]:
                result = choose(result, item)
            return result
        return min(items) if which == "min" else max(items)

    return _each(apply)


def _power(ctx: Context, a: Any, b: Any) -> Any:
    if isinstance(a, Ratio) or not isinstance(b, int | float):
        raise Unknown
    if isinstance(a, Expr):
        exponent = _whole(b)
        if not 0 <= exponent <= 4:
            raise Unknown
        return symbolic.product([a] * exponent)
    try:
        result = a**b
    except (ZeroDivisionError, OverflowError):
        raise Unknown from None
    if isinstance(result, complex):
        raise Unknown
    return int(result) if isinstance(a, int) else float(result)


def _real(function: Callable[[float], float]) -> Callable[..., Contents]:
    def apply(ctx: Context, item: Any) -> Any:
        if not isinstance(item, int | float):
            raise Unknown
        try:
            return float(function(item))
        except (ValueError, OverflowError, ZeroDivisionError):
            raise Unknown from None

    return _each(apply)


def _rounded(up: bool) -> Callable[..., Contents]:
    def apply(ctx: Context, item: Any) -> Any:
        if isinstance(item, Ratio):
            divide = symbolic.ceil_divide if up else symbolic.floor_divide
            return divide(item.over, item.under)
        if isinstance(item, float) and math.isfinite(item):
            return float(math.ceil(item) if up else math.floor(item))
        return item

    return _each(apply)


def _cast(ctx: Context, call: Call, contents: list[Contents | None]) -> Contents:
    if call.op == "CastLike":
        target: str | None = call.operand(1).dtype
    else:
        target = DTYPE_OF.get(call.integer("to", 0))
    if target is None or target.startswith("f8") or target in ("e8m0", "f4e2m1x2"):
        raise Unknown

    def apply(ctx: Context, item: Any) -> Any:
        if target == "bool":
            if isinstance(item, Ratio):
                raise Unknown
            return _decided(ctx, item, 0, "ne") if isinstance(item, Expr) else bool(item)
        if target in ("f64", "f32", "f16", "bf16"):
            return item if isinstance(item, Expr | Ratio) else float(item)
        if isinstance(item, Ratio):
            if ctx.span(item.over)[0] < 0 or ctx.span(item.under)[0] < 0:
                raise Unknown
            return symbolic.floor_divide(item.over, item.under)
        if isinstance(item, float) and not (math.isfinite(item) and int(item) in _integers(target)):
            raise Unknown  # the target machine decides
        return item if isinstance(item, Expr) else int(item)

    return _each(apply)(ctx, call, contents[:1])


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}


def _decided(ctx: Context, a: Any, b: Any, how: str) -> bool:
    """A comparison, from the ranges of the symbols if need be."""
    if isinstance(a, Ratio) or isinstance(b, Ratio):
        raise Unknown
    if not (isinstance(a, Expr) or isinstance(b, Expr)):
        return _COMPARE[how](a, b)
    low, high = ctx.span(_dim(_whole(a)) - _dim(_whole(b)))
    if low == high:
        return _COMPARE[how](low, 0)
    never_equal = low > 0 or high < 0
    if how in ("eq", "ne") and never_equal:
        return how == "ne"
    if how in ("lt", "ge") and (high < 0 or low >= 0):
        return (high < 0) == (how == "lt")
    if how in ("gt", "le") and (low > 0 or high <= 0):
        return (low > 0) == (how == "gt")
    raise Unknown


def _compare(how: str) -> Callable[..., Contents]:
    return _flag(lambda ctx, a, b: _decided(ctx, a, b, how))


def _where(ctx: Context, condition: Any, a: Any, b: Any) -> Any:
    return a if condition else b


def _gather(ctx: Context, call: Call, contents: list[Contents | None]) -> Contents:
    data, indices = _both(contents)
    axis = call.integer("axis", 0)
    places = [_place(item) for item in indices.ravel().tolist()]
    try:
        result = np.take(data, np.array(places, dtype=np.int64).reshape(indices.shape), axis=axis)
    except (IndexError, ValueError):
        raise InputError("an index of `Gather` is outside its data") from None
    if not isinstance(result, np.ndarray):
        result = objects([result], ())
    return _sized(result)


def _both(contents: list[Contents | None]) -> tuple[Contents, Contents]:
    first, second = contents[0], contents[1]
    if first is None or second is None:
        raise Unknown
    return first, second


def _place(item: Any) -> int:
    if not isinstance(item, int):
        raise Unknown
    return int(item)


def _places(content: Contents | None) -> list[int] | None:
    return None if content is None else [_place(item) for item in content.ravel().tolist()]


def _optional(contents: list[Contents | None], index: int) -> list[int] | None:
    return _places(contents[index]) if index < len(contents) else None


def _first(contents: list[Contents | None]) -> Contents:
    if contents[0] is None:
        raise Unknown
    return contents[0]


def _concat(ctx: Context, call: Call, contents: list[Contents | None]) -> Contents:
    parts = [part for part in contents if part is not None]
    try:
        return _sized(np.concatenate(parts, axis=call.integer("axis", 0)))
    except ValueError:
        raise InputError("the operands of `Concat` do not fit") from None


def _slice(ctx: Context, call: Call, contents: list[Contents | None]) -> Contents:
    data = _first(contents)
    starts, stops = _optional(contents, 1), _optional(contents, 2)
    if starts is None or stops is None:
        raise Unknown
    axes = _optional(contents, 3) or list(range(len(starts)))
    steps = _optional(contents, 4) or [1] * len(starts)
    window: list[slice] = [slice(None)] * data.ndim
    for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
        if step == 0 or not -data.ndim <= axis < data.ndim:
            raise InputError("a `Slice` has an impossible step or axis")
        size = data.shape[axis]
        low = start + size if start < 0 else start
        high = stop + size if stop < 0 else stop
        if step > 0:
            window[axis] = slice(min(max(low, 0), size), min(max(high, 0), size), step)
        else:
            last = min(max(high, -1), size - 1)
            window[axis] = slice(min(max(low, 0), size - 1), None if last < 0 else last, step)
    return data[tuple(window)]


def _unsqueeze(ctx: Context, call: Call, contents: list[Contents | None]) -> Contents:
    data = _first(contents)
    axes = call.integers("axes") or _optional(contents, 1)
    if axes is None:
        raise Unknown
    rank = data.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        data = np.expand_dims(data, axis)
    return _sized(data)


def _squeeze(ctx: Context, call: Call, contents: list[Contents | None]) -> Contents:
    data = _first(contents)
    axes = call.integers("axes") or _optional(contents, 1)
    if axes is None:
        axes = [axis for axis, size in enumerate(data.shape) if size == 1]
    kept = {axis % max(data.ndim, 1) for axis in axes}
    shape = tuple(size for axis, size in enumerate(data.shape) if axis not in kept)
    if math.prod(shape) != data.size:
        raise InputError("`Squeeze` removes an axis whose size is not 1")
    return data.reshape(shape)


def _reshape(ctx: Context, call: Call, contents: list[Contents | None]) -> Contents:
    data = _first(contents)
    shape = _optional(contents, 1)
    if shape is None:
        raise Unknown
    if not call.integer("allowzero", 0):
        shape = [data.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    try:
        return _sized(data.reshape(shape))
    except ValueError:
        raise InputError(f"{list(data.shape)} does not reshape to {shape}") from None


def _fill(call: Call) -> tuple[Any, str]:
    import onnx.numpy_helper

    tensor = call.attrs.get("value")
    if tensor is None:
        return 0.0, "f32"
    dtype = DTYPE_OF.get(tensor.data_type)
    if dtype is None or dtype in ("f8e4m3fn", "f8e4m3fnuz", "f8e5m2", "e8m0"):
        raise Unknown
    array = onnx.numpy_helper.to_array(tensor).astype(
        np.float64 if dtype in ("f64", "f32", "f16", "bf16") else object
    )
    return array.ravel().tolist()[0], dtype


def _constant_of_shape(ctx: Context, call: Call, contents: list[Contents | None]) -> Contents:
    sizes = _places(contents[0]) or []
    number, dtype = _fill(call)
    if len(sizes) > 1 or math.prod(sizes) > FOLD_LIMIT or dtype in ("f64", "f32", "f16", "bf16"):
        raise Unknown
    return objects([number] * math.prod(sizes), sizes)


def _expand(ctx: Context, call: Call, contents: list[Contents | None]) -> Contents:
    data = _first(contents)
    sizes = _optional(contents, 1)
    if sizes is None or math.prod(sizes) > FOLD_LIMIT:
        raise Unknown
    try:
        shape = np.broadcast_shapes(data.shape, tuple(sizes))
    except ValueError:
        raise InputError(f"{list(data.shape)} does not expand to {sizes}") from None
    if len(shape) > 1 or math.prod(shape) > FOLD_LIMIT:
        raise Unknown
    return np.broadcast_to(data, shape).copy()


def _transpose(ctx: Context, call: Call, contents: list[Contents | None]) -> Contents:
    return np.transpose(_first(contents), call.integers("perm"))


def _split(ctx: Context, call: Call, contents: list[Contents | None]) -> list[Contents]:
    data = _first(contents)
    axis = call.integer("axis", 0)
    sizes = _optional(contents, 1) or call.integers("split")
    if sizes is None:
        count = len(call.outputs)
        piece = -(-data.shape[axis] // count)
        sizes = [min(piece, data.shape[axis] - i * piece) for i in range(count)]
    edges = np.cumsum(sizes)[:-1]
    return list(np.split(data, edges.tolist(), axis=axis))


def _reduce(function: Callable[[list[Any]], Any]) -> Callable[..., Contents]:
    def rule(ctx: Context, call: Call, contents: list[Contents | None]) -> Contents:
        data = _first(contents)
        axes = call.integers("axes") or _optional(contents, 1)
        whole = axes is None or sorted(axis % max(data.ndim, 1) for axis in axes) == [0]
        items = data.ravel().tolist()
        if data.ndim != 1 or not whole or not all(_is_size(item) for item in items):
            raise Unknown
        return objects([function(items)], (1,) if call.integer("keepdims", 1) else ())

    return rule


def _total(items: list[Any]) -> Any:
    total: Dim = 0
    for item in items:
        total = total + item
    return total


def _identity(ctx: Context, call: Call, contents: list[Contents | None]) -> Contents:
    return _first(contents)


def _tile(ctx: Context, call: Call, contents: list[Contents | None]) -> Contents:
    repeats = _optional(contents, 1)
    data = _first(contents)
    if repeats is None or math.prod(repeats) * data.size > FOLD_LIMIT:
        raise Unknown
    return _sized(np.tile(data, repeats))


def _scatter_nd(ctx: Context, call: Call, contents: list[Contents | None]) -> Contents:
    data, indices, updates = contents[0], contents[1], contents[2]
    if data is None or indices is None or updates is None or data.ndim != 1:
        raise Unknown
    if call.text("reduction", "none") != "none":
        raise Unknown
    result = data.copy()
    places = _places(indices) or []
    for place, item in zip(places, updates.ravel().tolist(), strict=True):
        if not -data.size <= place < data.size:
            raise InputError("an index of `ScatterND` is outside its data")
        result[place] = item
    return result


def _negated(ctx: Context, item: Any) -> Any:
    return Ratio(0 - item.over, item.under) if isinstance(item, Ratio) else 0 - item


def _absolute(ctx: Context, item: Any) -> Any:
    if isinstance(item, Ratio):
        raise Unknown
    if isinstance(item, Expr):
        if ctx.span(item)[0] < 0:
            raise Unknown
        return item
    return abs(item)


def _non_zero(ctx: Context, call: Call, contents: list[Contents | None]) -> Contents:
    data = _first(contents)
    flags = [_decided(ctx, item, 0, "ne") for item in data.ravel().tolist()]
    found = np.nonzero(np.array(flags, dtype=bool).reshape(data.shape or (1,)))
    return objects([int(i) for i in np.stack(found).ravel()], (len(found), len(found[0])))


_RULES: dict[str, Callable[..., Any]] = {
    "Abs": _each(_absolute),
    "Add": _each(_arithmetic(operator.add)),
    "And": _flag(lambda ctx, a, b: a and b),
    "Cast": _cast,
    "CastLike": _cast,
    "Ceil": _rounded(True),
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _divide,
    "Equal": _compare("eq"),
    "Expand": _expand,
    "Floor": _rounded(False),
    "Gather": _gather,
    "Greater": _compare("gt"),
    "GreaterOrEqual": _compare("ge"),
    "Identity": _identity,
    "Less": _compare("lt"),
    "LessOrEqual": _compare("le"),
    "Max": _extreme("max"),
    "Min": _extreme("min"),
    "Mod": _modulo,
    "Mul": _each(_multiply),
    "Neg": _each(_negated),
    "NonZero": _non_zero,
    "Not": _each(lambda ctx, a: not a),
    "Or": _flag(lambda ctx, a, b: a or b),
    "Pow": _each(_power),
    "Reciprocal": _real(lambda item: 1 / item),
    "ReduceMax": _reduce(lambda items: symbolic.maximum(*items)),
    "ReduceMin": _reduce(lambda items: symbolic.minimum(*items)),
    "ReduceProd": _reduce(symbolic.product),
    "ReduceSum": _reduce(_total),
    "Reshape": _reshape,
    "ScatterND": _scatter_nd,
    "Slice": _slice,
    "Split": _split,
    "Sqrt": _real(math.sqrt),
    "Squeeze": _squeeze,
    "Sub": _each(_arithmetic(operator.sub)),
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _each(_where),
    "Xor": _flag(lambda ctx, a, b: a != b),
}
