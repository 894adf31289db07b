"""Arithmetic: neutral operands go, and what can be written in several ways is written in one."""

from __future__ import annotations

import math

import numpy as np

from fusec.ir import OPS, Node
from fusec.ir.ops.base import axis_of
from fusec.ir.types import Attrs, bool_attr, int_attr, ints_attr
from fusec.passes.canonical.rewriter import Rewriter, Rule

_NEUTRAL_RIGHT: dict[str, float | bool] = {
    "add": 0,
    "sub": 0,
    "mul": 1,
    "div": 1,
    "pow": 1,
    "floordiv": 1,
    "and": True,
    "or": False,
    "xor": False,
    "shl": 0,
    "shr": 0,
}
_UNDONE_BY_ITSELF = ("neg", "not")
_WITH_STEPS = (
    *("add", "sub", "mul", "div", "neg", "clamp", "minimum", "maximum"),
    *("cast", "reshape", "transpose", "slice", "expand"),
)
"""Operations after which a number just below a whole one may be made another integer."""
_NEVER_NEGATIVE = ("abs", "exp", "relu", "sigmoid", "softmax", "softplus")
_KEEPS_SIGN = (
    *("add", "mul", "div", "reduce_sum", "reduce_mean", "reduce_max", "reduce_min"),
    *("cast", "reshape", "transpose", "slice", "expand"),
)
"""Operations on numbers of which none is below 0 that give such numbers."""
_SAME_TWICE = ("abs", "floor", "ceil", "round", "trunc", "relu", "sign")


def neutral(build: Rewriter, node: Node) -> str | None:
    """x + 0, x * 1, x & true and the like are x; also with the operands exchanged."""
    wanted = _NEUTRAL_RIGHT[node.op]
    if node.op == "floordiv" and build.type(node.output).element.is_float:
        return None  # x // 1 is rounded down
    pairs = [node.inputs]
    if OPS[node.op].commutative:
        pairs.append(node.inputs[::-1])
    for x, other in pairs:
        held = build.graph.constant(other)
        if (
            held is None
            or isinstance(held, str | tuple)
            or isinstance(held, bool) != isinstance(wanted, bool)
        ):
            continue
        if held == wanted and build.type(x) == build.type(node.output):
            return x
    return None


def power(build: Rewriter, node: Node) -> str | None:
    """Powers 2, 3, 4 and -1 of a float are products and quotients, 1/2 and -1/2 roots.

    A root of minus infinity is NaN, its power is not; so the number has to be known not to be one.
    """
    x = node.inputs[0]
    exponent = build.graph.constant(node.inputs[1])
    if not isinstance(exponent, int | float) or not build.type(x).element.is_float:
        return None
    if build.type(x) != build.type(node.output):
        return None
    if exponent == -1:
        return build.value("reciprocal", [x])
    if exponent in (0.5, -0.5) and _never_negative(build, x):
        return build.value("sqrt" if exponent > 0 else "rsqrt", [x])
    if exponent not in (2, 3, 4):
        return None
    square = build.value("mul", [x, x])
    if exponent == 2:
        return square
    return build.value("mul", [square, x if exponent == 3 else square])


def _never_negative(build: Rewriter, value: str, steps: int = 8) -> bool:
    """Whether no element is below 0, as of the squares that norms add up; looks so far back."""
    held, node = build.graph.constant(value), build.graph.producer(value)
    if isinstance(held, int | float):
        return held >= 0
    if node is None or steps == 0:
        return False
    if node.op == "clamp" and isinstance(least := node.attrs["min"], int | float) and least >= 0:
        return True
    if node.op == "mul" and node.inputs[0] == node.inputs[1]:
        return True
    keeps = node.op in _KEEPS_SIGN
    return node.op in _NEVER_NEGATIVE or (
        keeps and all(_never_negative(build, each, steps - 1) for each in node.inputs)
    )


def division(build: Rewriter, node: Node) -> str | None:
    """x / sqrt(y) is x * rsqrt(y), 1 / x is reciprocal(x), x / constant is x * (1 / constant).

    A quotient by a constant that is made an integer stays: the product may fall short of it.
    """
    x, y = node.inputs
    if (root := build.producer(y, "sqrt")) is not None:
        return build.value("mul", [x, build.value("rsqrt", root.inputs)])
    if build.graph.constant(x) == 1 and build.type(y) == build.type(node.output):
        return build.value("reciprocal", [y])
    divisor = build.graph.constant(y)
    if not isinstance(divisor, int | float) or divisor == 0:
        return None
    if not _is_normal(1 / divisor, build.type(y).dtype):
        return None
    exact = math.frexp(divisor)[0] in (0.5, -0.5)
    if not exact and _becomes_integer(build, node.output):
        return None
    inverse = build.constant(1 / divisor, build.type(y).dtype, build.type(y).shape)
    return build.value("mul", [x, inverse])


def _becomes_integer(build: Rewriter, value: str) -> bool:
    """Whether `value` is made an integer, maybe after a view or arithmetic with a constant."""
    return any(
        _makes_integer(build, user)
        or (_keeps_steps(build, user, value) and _becomes_integer(build, user.output))
        for user in build.graph.users(value)
    )


def _keeps_steps(build: Rewriter, node: Node, value: str) -> bool:
    others = [each for each in node.inputs if each != value]
    if node.op not in _WITH_STEPS or any(build.graph.constant(each) is None for each in others):
        return False
    return build.type(node.output).element.is_float


def _makes_integer(build: Rewriter, node: Node) -> bool:
    if node.op == "cast":
        return not build.type(node.output).element.is_float
    return node.op in ("floor", "ceil", "round", "trunc")


def reciprocal(build: Rewriter, node: Node) -> str | None:
    """One over a root is rsqrt."""
    root = build.producer(node.inputs[0], "sqrt")
    return None if root is None else build.value("rsqrt", root.inputs)


def subtraction(build: Rewriter, node: Node) -> str | None:
    """x - constant of floats is x + (-constant)."""
    x, y = node.inputs
    held = build.graph.constant(y)
    if isinstance(held, bool) or not isinstance(held, int | float):
        return None
    if not build.type(y).element.is_float or build.graph.constant(x) is not None:
        return None
    return build.value("add", [x, build.constant(-held, build.type(y).dtype, build.type(y).shape)])


def product(build: Rewriter, node: Node) -> str | None:
    """(x * constant) * constant is one product; sum * (1 / count) is a mean."""
    for x, other in (node.inputs, node.inputs[::-1]):
        factor = build.graph.constant(other)
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            continue
        if not build.type(x).element.is_float or build.type(other).rank:
            continue
        if (mean := _mean(build, x, factor)) is not None:
            return mean
        if (inner := build.producer(x, "mul")) is None:
            continue
        for y, second in (inner.inputs, inner.inputs[::-1]):
            held = build.graph.constant(second)
            if isinstance(held, int | float) and build.type(second).rank == 0:
                dtype = build.type(y).dtype
                if build.graph.constant(y) is None and _is_normal(held * factor, dtype):
                    return build.value("mul", [y, build.constant(held * factor, dtype)])
    return None


def _is_normal(number: float, dtype: str) -> bool:
    """Whether arithmetic on `dtype`, which is at least that of f32, holds `number` in full."""
    limits = np.finfo(np.float64 if dtype == "f64" else np.float32)
    return float(limits.tiny) <= abs(number) <= float(limits.max)


def twice(build: Rewriter, node: Node) -> str | None:
    """neg(neg(x)) is x; abs(abs(x)) is abs(x)."""
    inner = build.producer(node.inputs[0], node.op)
    if inner is None:
        return None
    return inner.inputs[0] if node.op in _UNDONE_BY_ITSELF else inner.output


def where(build: Rewriter, node: Node) -> str | None:
    """A choice between x and x, or by a constant, is no choice; nor one by its opposite."""
    condition, yes, no = node.inputs
    held = build.graph.constant(condition)
    chosen = yes if held is True or yes == no else no if held is False else None
    if chosen is not None and build.type(chosen) == build.type(node.output):
        return chosen
    if (opposite := build.producer(condition, "not")) is not None:
        return build.value("where", [opposite.inputs[0], no, yes])
    return None


def same_operands(build: Rewriter, node: Node) -> str | None:
    """x & x is x."""
    return node.inputs[0] if node.inputs[0] == node.inputs[1] else None


def clamp(build: Rewriter, node: Node) -> str | None:
    """A clamp without bounds goes."""
    bounds = (node.attrs.get("min"), node.attrs.get("max"))
    return node.inputs[0] if bounds == (None, None) else None


def reduction(build: Rewriter, node: Node) -> str | None:
    """Axes are sorted and count from the front; reduced axes are kept, and a reshape drops them."""
    type = build.type(node.inputs[0])
    axes = ints_attr(node.attrs, "axes")
    wanted = tuple(sorted({axis_of(axis, type.rank) for axis in axes}))
    if bool_attr(node.attrs, "keepdims") and axes == wanted:
        return None
    attrs: Attrs = {**node.attrs, "axes": wanted, "keepdims": True}
    kept = build.value(node.op, node.inputs, attrs)
    return build.reshaped(kept, build.type(node.output).shape)


def axis(build: Rewriter, node: Node) -> str | None:
    """Axes count from the front."""
    rank = build.type(node.inputs[0]).rank
    if "axis" in node.attrs:
        given = int_attr(node.attrs, "axis")
        if given >= 0:
            return None
        return build.value(node.op, node.inputs, {**node.attrs, "axis": axis_of(given, rank)})
    axes = ints_attr(node.attrs, "axes")
    if all(given >= 0 for given in axes):
        return None
    wanted = tuple(axis_of(given, rank) for given in axes)
    return build.value(node.op, node.inputs, {**node.attrs, "axes": wanted})


def _mean(build: Rewriter, x: str, factor: float) -> str | None:
    dropped = build.producer(x, "reshape")
    total = build.producer(x if dropped is None else dropped.inputs[0], "reduce_sum")
    if total is None or not bool_attr(total.attrs, "keepdims"):
        return None
    shape = build.type(total.inputs[0]).shape
    count = 1
    for index in ints_attr(total.attrs, "axes"):
        size = shape[index]
        if not isinstance(size, int):
            return None
        count *= size
    if count == 0 or not math.isclose(factor * count, 1, rel_tol=1e-6):
        return None
    mean = build.value("reduce_mean", total.inputs, total.attrs)
    return build.reshaped(mean, build.type(x).shape)


_REDUCTIONS = ("sum", "mean", "max", "min", "prod", "any", "all")
_WITH_AXIS = (
    "concat",
    "slice",
    "slice_scatter",
    "take",
    "gather",
    "scatter",
    "softmax",
    "log_softmax",
    "cumsum",
    "cumprod",
    "flip",
    "index",
    "index_put",
)

RULES: dict[str, tuple[Rule, ...]] = {
    **{op: (neutral,) for op in _NEUTRAL_RIGHT},
    **{op: (twice,) for op in (*_UNDONE_BY_ITSELF, *_SAME_TWICE)},
    **{f"reduce_{name}": (reduction,) for name in _REDUCTIONS},
    **{op: (axis,) for op in _WITH_AXIS},
    "logsumexp": (reduction,),
    "pow": (neutral, power),
    "div": (neutral, division),
    "sub": (neutral, subtraction),
    "mul": (neutral, product),
    "and": (neutral, same_operands),
    "or": (neutral, same_operands),
    "reciprocal": (reciprocal,),
    "where": (where,),
    "clamp": (clamp,),
}
"""Rules by the operation they look at."""
