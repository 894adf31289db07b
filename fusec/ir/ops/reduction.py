"""Reductions, scans, softmax and ordering."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fusec.diagnostics import VerifyError
from fusec.ir.ops.base import (
    Array,
    Types,
    arity,
    axis_of,
    define,
    float_operand,
    result_array,
)
from fusec.ir.types import (
    Attrs,
    TensorType,
    bool_attr,
    dim_attr,
    float_attr,
    int_attr,
    ints_attr,
)
from fusec.symbolic import Dim


def _axes(attrs: Attrs, rank: int) -> tuple[int, ...]:
    return tuple(sorted({axis_of(axis, rank) for axis in ints_attr(attrs, "axes")}))


def _reduced(type: TensorType, axes: tuple[int, ...], keepdims: bool) -> tuple[Dim, ...]:
    if keepdims:
        return tuple(1 if axis in axes else dim for axis, dim in enumerate(type.shape))
    return tuple(dim for axis, dim in enumerate(type.shape) if axis not in axes)


def _infer_reduce(types: Types, attrs: Attrs) -> Types:
    arity(types, 1)
    axes = _axes(attrs, types[0].rank)
    return (types[0].with_shape(_reduced(types[0], axes, bool_attr(attrs, "keepdims"))),)


def _infer_arg(types: Types, attrs: Attrs) -> Types:
    arity(types, 1)
    axis = axis_of(int_attr(attrs, "axis"), types[0].rank)
    return (TensorType("i64", _reduced(types[0], (axis,), bool_attr(attrs, "keepdims"))),)


def _infer_scan(types: Types, attrs: Attrs) -> Types:
    arity(types, 1)
    axis_of(int_attr(attrs, "axis"), types[0].rank)
    return (types[0],)


def _infer_softmax(types: Types, attrs: Attrs) -> Types:
    float_operand(types[0])
    return _infer_scan(types, attrs)


def _infer_topk(types: Types, attrs: Attrs) -> Types:
    arity(types, 1)
    axis = axis_of(int_attr(attrs, "axis"), types[0].rank)
    k = dim_attr(attrs, "k")
    shape = tuple(k if index == axis else dim for index, dim in enumerate(types[0].shape))
    return types[0].with_shape(shape), TensorType("i64", shape)


def _infer_sort(types: Types, attrs: Attrs) -> Types:
    (kind,) = _infer_scan(types, attrs)
    return kind, TensorType("i64", kind.shape)


def _infer_histogram(types: Types, attrs: Attrs) -> Types:
    arity(types, 1)
    if float_attr(attrs, "high") <= float_attr(attrs, "low"):
        raise VerifyError("`high` must be above `low`")
    return (types[0].with_shape((int_attr(attrs, "bins"),)),)


def _reduction(function: Callable[..., Any]) -> Callable[..., tuple[Array, ...]]:
    def reference(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
        (x,) = arrays
        keep = bool_attr(attrs, "keepdims")
        return (result_array(function(x, axis=_axes(attrs, x.ndim), keepdims=keep), types[0]),)

    return reference


def _arg(function: Callable[..., Any]) -> Callable[..., tuple[Array, ...]]:
    def reference(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
        keep = bool_attr(attrs, "keepdims")
        return (np.asarray(function(arrays[0], axis=int_attr(attrs, "axis"), keepdims=keep)),)

    return reference


def _scan(function: Callable[..., Any]) -> Callable[..., tuple[Array, ...]]:
    def reference(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
        return (result_array(function(arrays[0], axis=int_attr(attrs, "axis")), types[0]),)

    return reference


def _mean(x: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    """NaN where there are no elements, without numpy's warning."""
    count = np.float64(math.prod(x.shape[i] for i in axis))
    with np.errstate(invalid="ignore"):
        return np.asarray(np.sum(x, axis=axis, keepdims=keepdims) / count)


def logsumexp(x: Array, axis: Any, keepdims: bool) -> Array:
    """log(sum(exp(x))), without overflow; minus infinity for a row of minus infinities."""
    top = np.max(x, axis=axis, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        total = np.log(np.sum(np.exp(x - top), axis=axis, keepdims=True)) + top
    return np.asarray(total if keepdims else np.squeeze(total, axis=axis))


def softmax(x: Array, axis: int) -> Array:
    """exp(x) over its sum along `axis`."""
    powers = np.exp(x - np.max(x, axis=axis, keepdims=True, initial=-np.inf))
    return np.asarray(powers / np.sum(powers, axis=axis, keepdims=True))


def _log_softmax(x: Array, axis: int) -> Array:
    return np.asarray(x - logsumexp(x, axis, True))


def _order(x: Array, axis: int, descending: bool) -> Array:
    """Positions of `x` in order; NaN is above every number, and equal elements keep their order."""
    if not descending:
        return np.argsort(x, axis=axis, kind="stable")
    backwards = np.flip(np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)
    return np.asarray(x.shape[axis] - 1 - backwards)


def _topk(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    (x,) = arrays
    axis, k = int_attr(attrs, "axis"), int_attr(attrs, "k")
    indices = np.take(_order(x, axis, bool_attr(attrs, "largest")), np.arange(k), axis=axis)
    return np.take_along_axis(x, indices, axis), indices


def _sort(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    (x,) = arrays
    axis = int_attr(attrs, "axis")
    order = _order(x, axis, bool_attr(attrs, "descending"))
    return np.take_along_axis(x, order, axis), order


def _histogram(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    bounds = (float_attr(attrs, "low"), float_attr(attrs, "high"))
    counts, _ = np.histogram(arrays[0], bins=int_attr(attrs, "bins"), range=bounds)
    return (result_array(counts, types[0]),)


def _extreme(function: Callable[..., Any], of_none: float) -> Callable[..., Any]:
    """`function` over floats, `of_none` where there are none; integers have to be some."""

    def extreme(x: Array, **how: Any) -> Any:
        return function(x, **how, initial=of_none) if x.dtype.kind == "f" else function(x, **how)

    return extreme


_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "reduce_sum": np.sum,
    "reduce_mean": _mean,
    "reduce_max": _extreme(np.max, -np.inf),
    "reduce_min": _extreme(np.min, np.inf),
    "reduce_prod": np.prod,
    "reduce_any": np.any,
    "reduce_all": np.all,
    "logsumexp": logsumexp,
}
for _name, _function in _REDUCTIONS.items():
    define(_name, _infer_reduce, _reduction(_function))
define("argmax", _infer_arg, _arg(np.argmax))
define("argmin", _infer_arg, _arg(np.argmin))
define("cumsum", _infer_scan, _scan(np.cumsum))
define("cumprod", _infer_scan, _scan(np.cumprod))
define("softmax", _infer_softmax, _scan(softmax))
define("log_softmax", _infer_softmax, _scan(_log_softmax))
define("topk", _infer_topk, _topk)
define("sort", _infer_sort, _sort)
define("histogram", _infer_histogram, _histogram)
