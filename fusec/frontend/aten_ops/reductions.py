"""ATen reductions, scans and orderings."""

from __future__ import annotations

import math

from fusec.frontend.aten_ops.base import Axes, Builder, Number, Val, aten, numel
from fusec.frontend.aten_ops.moving import triangle
from fusec.symbolic import Dim, Expr


def _accumulator(build: Builder, x: Val) -> Val:
    """Sums of integers and flags are i64; the export recorded what comes out."""
    return build.cast(x, build.result().dtype)


@aten("sum", parts=True)
def _sum_all(build: Builder, x: Val, *, dtype: str | None = None) -> Val:
    return build.reduce("reduce_sum", _accumulator(build, x), None)


@aten("sum.dim_IntList", parts=True)
def _sum(
    build: Builder, x: Val, dim: Axes = None, keepdim: bool = False, *, dtype: str | None = None
) -> Val:
    return build.reduce("reduce_sum", _accumulator(build, x), dim, keepdim)


@aten("nansum")
def _nansum(
    build: Builder, x: Val, dim: Axes = None, keepdim: bool = False, *, dtype: str | None = None
) -> Val:
    if x.type.element.is_float:
        x = build.where(build.emit("isnan", x), 0.0, x)
    return _sum(build, x, dim, keepdim)


@aten("mean", parts=True)
def _mean_all(build: Builder, x: Val, *, dtype: str | None = None) -> Val:
    return build.reduce("reduce_mean", _accumulator(build, x), None)


@aten("mean.dim", parts=True)
def _mean(
    build: Builder, x: Val, dim: Axes = None, keepdim: bool = False, *, dtype: str | None = None
) -> Val:
    return build.reduce("reduce_mean", _accumulator(build, x), dim, keepdim)


@aten("prod")
def _prod_all(build: Builder, x: Val, *, dtype: str | None = None) -> Val:
    return build.reduce("reduce_prod", _accumulator(build, x), None)


@aten("prod.dim_int")
def _prod(
    build: Builder, x: Val, dim: int, keepdim: bool = False, *, dtype: str | None = None
) -> Val:
    return build.reduce("reduce_prod", _accumulator(build, x), (dim,), keepdim)


@aten("amax")
def _amax(build: Builder, x: Val, dim: Axes = (), keepdim: bool = False) -> Val:
    return _extreme(build, "max", x, dim, keepdim)


@aten("amin")
def _amin(build: Builder, x: Val, dim: Axes = (), keepdim: bool = False) -> Val:
    return _extreme(build, "min", x, dim, keepdim)


def _extreme(build: Builder, which: str, x: Val, dim: Axes, keepdim: bool) -> Val:
    if x.dtype == "bool":
        return build.reduce("reduce_any" if which == "max" else "reduce_all", x, dim, keepdim)
    return build.reduce(f"reduce_{which}", x, dim, keepdim)


@aten("max")
def _max(build: Builder, x: Val) -> Val:
    return _extreme(build, "max", x, None, False)


@aten("min")
def _min(build: Builder, x: Val) -> Val:
    return _extreme(build, "min", x, None, False)


@aten("aminmax")
def _aminmax(
    build: Builder, x: Val, *, dim: int | None = None, keepdim: bool = False
) -> tuple[Val, Val]:
    axes = None if dim is None else (dim,)
    return (
        _extreme(build, "min", x, axes, keepdim),
        _extreme(build, "max", x, axes, keepdim),
    )


@aten("max.dim", "min.dim")
def _extreme_dim(build: Builder, x: Val, dim: int, keepdim: bool = False) -> tuple[Val, Val]:
    which = "max" if ".max." in build.origin.op else "min"
    return (
        _extreme(build, which, x, (dim,), keepdim),
        _place(build, which, x, dim, keepdim),
    )


def _place(build: Builder, which: str, x: Val, dim: int | None, keepdim: bool) -> Val:
    if x.dtype == "bool":
        x = build.cast(x, "u8")
    if dim is None:
        flat = build.reshape(x, (x.type.elements,))
        place = build.emit(f"arg{which}", flat, axis=0, keepdims=False)
        return build.reshape(place, build.result().shape)
    if x.rank == 0:
        return build.scalar(0, "i64")
    return build.emit(f"arg{which}", x, axis=x.axis(dim), keepdims=keepdim)


@aten("argmax")
def _argmax(build: Builder, x: Val, dim: int | None = None, keepdim: bool = False) -> Val:
    return _place(build, "max", x, dim, keepdim)


@aten("argmin")
def _argmin(build: Builder, x: Val, dim: int | None = None, keepdim: bool = False) -> Val:
    return _place(build, "min", x, dim, keepdim)


@aten("any", "any.dim", "any.dims")
def _any(build: Builder, x: Val, dim: Axes = None, keepdim: bool = False) -> Val:
    found = build.reduce("reduce_any", build.cast(x, "bool"), dim, keepdim)
    return build.cast(found, build.result().dtype)  # of u8 it is u8


@aten("all", "all.dim", "all.dims")
def _all(build: Builder, x: Val, dim: Axes = None, keepdim: bool = False) -> Val:
    found = build.reduce("reduce_all", build.cast(x, "bool"), dim, keepdim)
    return build.cast(found, build.result().dtype)  # of u8 it is u8


@aten("count_nonzero", "count_nonzero.dim_IntList")
def _count_nonzero(build: Builder, x: Val, dim: Axes = None) -> Val:
    return build.reduce("reduce_sum", build.cast(build.cast(x, "bool"), "i64"), dim)


@aten("logsumexp", "special_logsumexp")
def _logsumexp(build: Builder, x: Val, dim: Axes, keepdim: bool = False) -> Val:
    return build.reduce("logsumexp", build.floats(x), dim, keepdim)


# --- variance and norms ---------------------------------------------------------------------


def _variance(
    build: Builder, x: Val, axes: Axes, correction: float, keepdim: bool
) -> tuple[Val, Val]:
    mean = build.reduce("reduce_mean", x, axes, True)
    centred = x - mean
    total = build.reduce("reduce_sum", centred * centred, axes, keepdim)
    count = numel([x.shape[axis] for axis in x.axes(axes)])
    if isinstance(count, int) and count > correction:
        variance = total / float(count - correction)
    else:
        many = build.cast(build.scalar(count, "i64"), x.dtype)
        variance = total / build.emit("clamp", many - float(correction), min=0.0, max=None)
    return variance, mean if keepdim else build.reduce("reduce_mean", x, axes, False)


def _spread(
    build: Builder, x: Val, axes: Axes, correction: float, keepdim: bool
) -> Val | tuple[Val, ...]:
    variance, mean = _variance(build, x, axes, correction, keepdim)
    name = build.origin.op
    result = build.emit("sqrt", variance) if ".std" in name else variance
    return (result, mean) if "_mean" in name else result


@aten("var.correction", "std.correction", "var_mean.correction", "std_mean.correction")
def _var_correction(
    build: Builder, x: Val, dim: Axes = None, *, correction: float | None = None,
    keepdim: bool = False,
) -> Val | tuple[Val, ...]:  # fmt: skip
    return _spread(build, x, dim, 1 if correction is None else correction, keepdim)


@aten("var.dim", "std.dim", "var_mean.dim", "std_mean.dim")
def _var_dim(
    build: Builder, x: Val, dim: Axes, unbiased: bool = True, keepdim: bool = False
) -> Val | tuple[Val, ...]:
    return _spread(build, x, dim, int(unbiased), keepdim)


@aten("var", "std", "var_mean", "std_mean")
def _var(build: Builder, x: Val, unbiased: bool = True) -> Val | tuple[Val, ...]:
    return _spread(build, x, None, int(unbiased), False)


def vector_norm(build: Builder, x: Val, order: float, axes: Axes, keepdim: bool) -> Val:
    """The `order`-norm over `axes`."""
    if order == 2:
        return build.emit("sqrt", build.reduce("reduce_sum", x * x, axes, keepdim))
    size = build.emit("abs", x)
    if order == 1:
        return build.reduce("reduce_sum", size, axes, keepdim)
    if math.isinf(order):
        return build.reduce("reduce_max" if order > 0 else "reduce_min", size, axes, keepdim)
    if order == 0:
        nonzero = build.cast(build.cast(x, "bool"), x.dtype)
        return build.reduce("reduce_sum", nonzero, axes, keepdim)
    powers = build.elementwise("pow", size, float(order))
    total = build.reduce("reduce_sum", powers, axes, keepdim)
    return build.elementwise("pow", total, 1 / float(order))


@aten("linalg_vector_norm")
def _linalg_vector_norm(
    build: Builder, x: Val, ord: float = 2, dim: Axes = None, keepdim: bool = False, *,
    dtype: str | None = None,
) -> Val:  # fmt: skip
    return vector_norm(build, _accumulator(build, x), ord, dim, keepdim)


@aten("linalg_norm")
def _linalg_norm(
    build: Builder, x: Val, ord: float | None = None, dim: Axes = None, keepdim: bool = False, *,
    dtype: str | None = None,
) -> Val:  # fmt: skip
    """With an order and two axes it is the norm of a matrix, not of its elements."""
    x = _accumulator(build, x)
    axes = tuple(range(x.rank)) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    if ord is None or len(axes) != 2:
        return vector_norm(build, x, 2 if ord is None else ord, axes, keepdim)
    rows, columns = (x.axis(axis) for axis in axes)
    if abs(ord) not in (1, math.inf):
        raise build.unsupported(
            f"`linalg.norm` of a matrix with `ord={ord}` needs its singular values",
            "use the norm of its elements, `torch.linalg.vector_norm`",
        )
    summed, kept = (rows, columns) if abs(ord) == 1 else (columns, rows)
    sums = build.reduce("reduce_sum", build.emit("abs", x), (summed,), True)
    norm = build.reduce("reduce_max" if ord > 0 else "reduce_min", sums, (kept,), True)
    return norm if keepdim else build.reshape(norm, build.result().shape)


@aten("norm.ScalarOpt_dim", "norm.ScalarOpt_dim_dtype")
def _norm_dim(
    build: Builder, x: Val, p: float | None = None, dim: Axes = None, keepdim: bool = False, *,
    dtype: str | None = None,
) -> Val:  # fmt: skip
    return vector_norm(build, _accumulator(build, x), 2 if p is None else p, dim, keepdim)


@aten("norm.Scalar")
def _norm_scalar(build: Builder, x: Val, p: float = 2) -> Val:
    return vector_norm(build, x, p, None, False)


@aten("frobenius_norm.dim")
def _frobenius(build: Builder, x: Val, dim: Axes, keepdim: bool = False) -> Val:
    return vector_norm(build, x, 2, dim, keepdim)


@aten("dist")
def _dist(build: Builder, x: Val, y: Val, p: float = 2) -> Val:
    return vector_norm(build, x - y, p, None, False)


# --- scans, softmax, order ------------------------------------------------------------------


@aten("cumsum", parts=True)
def _cumsum(build: Builder, x: Val, dim: int, *, dtype: str | None = None) -> Val:
    return build.along("cumsum", _accumulator(build, x), dim)[0]


@aten("cumprod")
def _cumprod(build: Builder, x: Val, dim: int, *, dtype: str | None = None) -> Val:
    return build.along("cumprod", _accumulator(build, x), dim)[0]


@aten("logcumsumexp")
def _logcumsumexp(build: Builder, x: Val, dim: int) -> Val:
    """Of each element and those before it: a running sum of exponentials would lose small ones."""
    if not x.rank:
        return x
    axis = x.axis(dim)
    each, seen = _each_up_to(build, build.swap(x, axis, -1))
    result = build.reduce("logsumexp", build.where(seen, each, -math.inf), (-1,))
    return build.swap(result, axis, -1)


@aten("cummax", "cummin")
def _cumulative_extreme(build: Builder, x: Val, dim: int) -> tuple[Val, Val]:
    """Where several elements are the extreme one, the last counts, and so does the last NaN."""
    if not x.rank:
        return x, build.scalar(0, "i64")
    which = "max" if "cummax" in build.origin.op else "min"
    axis = x.axis(dim)
    last = build.swap(x, axis, -1)
    each, seen = _each_up_to(build, last)
    first = build.slice(each, -1, 0, 1)
    found = _extreme(build, which, build.where(seen, each, first), (-1,), True)
    extreme = build.emit("eq", each, found)
    if x.type.element.is_float:
        extreme = build.emit("or", extreme, build.emit("isnan", each))
    place = build.where(build.emit("and", seen, extreme), build.iota(last.shape[-1]), 0)
    places = build.reduce("reduce_max", place, (-1,))
    return build.swap(build.squeeze(found, -1), axis, -1), build.swap(places, axis, -1)


def _each_up_to(build: Builder, x: Val) -> tuple[Val, Val]:
    """[..., n, n]: for each element of the last axis all of them; [n, n]: which are up to it."""
    size = x.shape[-1]
    each = build.expand(build.unsqueeze(x, -2), (*x.shape, size))
    return each, triangle(build, size, size, 0, lower=True)


@aten("softmax.int", "special_softmax")
def softmax(build: Builder, x: Val, dim: int, dtype: str | None = None) -> Val:
    return build.along("softmax", _accumulator(build, x), dim)[0]


@aten("_softmax", "_safe_softmax")
def _softmax(build: Builder, x: Val, dim: int, half_to_float: object = False) -> Val:
    x = _accumulator(build, x)
    (result,) = build.along("softmax", x, dim)
    if "_safe_softmax" not in build.origin.op:
        return result
    none = build.elementwise("eq", x, -math.inf)
    return build.where(build.reduce("reduce_all", none, (dim,), True), 0.0, result)


@aten("log_softmax.int", "special_log_softmax")
def _log_softmax(build: Builder, x: Val, dim: int, dtype: str | None = None) -> Val:
    return build.along("log_softmax", _accumulator(build, x), dim)[0]


@aten("_log_softmax")
def _log_softmax_half(build: Builder, x: Val, dim: int, half_to_float: bool) -> Val:
    return build.along("log_softmax", _accumulator(build, x), dim)[0]


@aten("topk")
def _topk(
    build: Builder, x: Val, k: Dim, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Val, ...]:
    if x.rank == 0 and k == 0:
        raise build.unsupported("`topk` of no element of a scalar", "leave it out")
    return build.along("topk", x, dim, k=k, largest=largest)


@aten("sort")
def _sort(build: Builder, x: Val, dim: int = -1, descending: bool = False) -> tuple[Val, ...]:
    return sort(build, x, dim, descending)


@aten("sort.stable")
def _sort_stable(
    build: Builder, x: Val, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Val, ...]:
    return sort(build, x, dim, descending)


def sort(build: Builder, x: Val, dim: int, descending: bool) -> tuple[Val, ...]:
    """(values, places); always stable."""
    return build.along("sort", x, dim, descending=descending, stable=True)


@aten("argsort")
def _argsort(build: Builder, x: Val, dim: int = -1, descending: bool = False) -> Val:
    return sort(build, x, dim, descending)[1]


@aten("argsort.stable")
def _argsort_stable(
    build: Builder, x: Val, *, stable: bool, dim: int = -1, descending: bool = False
) -> Val:
    return sort(build, x, dim, descending)[1]


@aten("msort")
def _msort(build: Builder, x: Val) -> Val:
    return sort(build, x, 0, False)[0]


@aten("kthvalue")
def _kthvalue(
    build: Builder, x: Val, k: int, dim: int = -1, keepdim: bool = False
) -> tuple[Val, ...]:
    if x.rank == 0:
        return x, build.scalar(0, "i64")
    axis = x.axis(dim)
    found = sort(build, x, axis, False)
    parts = [build.slice(part, axis, k - 1, k) for part in found]
    return tuple(part if keepdim else build.squeeze(part, axis) for part in parts)


@aten("median", "nanmedian")
def _median_all(build: Builder, x: Val) -> Val:
    return _median(build, build.reshape(x, (x.type.elements,)), 0, False)[0]


@aten("median.dim", "nanmedian.dim")
def _median(build: Builder, x: Val, dim: int, keepdim: bool = False) -> tuple[Val, ...]:
    """The lower of two in the middle.  NaN, at the end when sorted, is the median or left out."""
    line = build.reshape(x, x.shape or (1,))
    axis = line.axis(dim)
    count = build.scalar(line.shape[axis], "i64")
    missing = build.cast(build.emit("isnan", build.floats(line)), "i64")
    numbers = count - build.reduce("reduce_sum", missing, (axis,), True)
    middle = build.elementwise("floordiv", numbers - 1, 2)
    if "nanmedian" not in build.origin.op:
        middle = build.where(build.emit("eq", numbers, count), middle, count - 1)
    place = build.emit("clamp", middle, min=0, max=None)
    parts = [build.emit("gather", v, place, axis=axis) for v in sort(build, line, axis, False)]
    return tuple(part if keepdim and x.rank else build.squeeze(part, axis) for part in parts)


@aten("histc")
def _histc(build: Builder, x: Val, bins: int = 100, min: Number = 0, max: Number = 0) -> Val:
    if isinstance(min, Expr) or isinstance(max, Expr) or min == max:
        raise build.unsupported("`histc` without fixed bounds")
    return build.emit("histogram", x, bins=bins, low=float(min), high=float(max))


@aten("bincount")
def _bincount(build: Builder, x: Val, weights: Val | None = None, minlength: int = 0) -> Val:
    """Only where the export knows how many there are."""
    bins = build.result().shape[0]
    zeros = build.full((bins,), 0, build.result().dtype)
    if weights is None:
        values = build.full(x.shape, 1, build.result().dtype)
    else:
        values = build.cast(weights, build.result().dtype)
    return build.emit("scatter", zeros, x, values, axis=0, reduce="add")


@aten("searchsorted.Tensor", "bucketize.Tensor")
def _search(
    build: Builder, first: Val, second: Val, *, out_int32: bool = False, right: bool = False,
    side: str | None = None, sorter: Val | None = None,
) -> Val:  # fmt: skip
    """How many boundaries lie before each value; all of them before NaN."""
    swapped = "bucketize" in build.origin.op
    values, edges = (first, second) if swapped else (second, first)
    if sorter is not None:
        raise build.unsupported("`searchsorted` with a sorter")
    if edges.rank > 1:
        edges = build.unsqueeze(edges, edges.rank - 1)
    after = right or side == "right"
    wide = build.unsqueeze(values, values.rank)
    counted = build.emit("not", build.elementwise("lt" if after else "le", wide, edges))
    total = build.reduce("reduce_sum", build.cast(counted, "i64"), (counted.rank - 1,))
    return build.cast(total, build.result().dtype)
