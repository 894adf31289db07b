"""Operations that move, make or select elements without arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fusec import symbolic
from fusec.diagnostics import VerifyError
from fusec.ir.ops.base import (
    Array,
    Types,
    arity,
    axis_of,
    define,
    integer_operand,
    result_array,
    same_dtype,
)
from fusec.ir.types import (
    Attr,
    Attrs,
    TensorType,
    bool_attr,
    broadcast,
    dim_attr,
    dims_attr,
    int_attr,
    ints_attr,
    str_attr,
)
from fusec.symbolic import Dim


def _infer_reshape(types: Types, attrs: Attrs) -> Types:
    arity(types, 1)
    shape = dims_attr(attrs, "shape")
    if symbolic.product(shape) != types[0].elements:
        raise VerifyError(f"`{types[0]}` cannot become {_text(shape)}: the element counts differ")
    return (types[0].with_shape(shape),)


def _infer_transpose(types: Types, attrs: Attrs) -> Types:
    arity(types, 1)
    perm = ints_attr(attrs, "perm")
    if sorted(perm) != list(range(types[0].rank)):
        raise VerifyError(f"{list(perm)} does not permute the axes of `{types[0]}`")
    return (types[0].with_shape(tuple(types[0].shape[axis] for axis in perm)),)


def _infer_expand(types: Types, attrs: Attrs) -> Types:
    arity(types, 1)
    shape = dims_attr(attrs, "shape")
    if broadcast(types[0].shape, shape) != shape:
        raise VerifyError(f"`{types[0]}` does not expand to {_text(shape)}")
    return (types[0].with_shape(shape),)


def slice_length(start: Dim, stop: Dim, step: int) -> Dim:
    """Elements that a slice with clamped bounds selects."""
    return symbolic.ceil_divide(stop - start, step)


def _slice_shape(type: TensorType, attrs: Attrs) -> tuple[Dim, ...]:
    axis = axis_of(int_attr(attrs, "axis"), type.rank)
    start, stop = dim_attr(attrs, "start"), dim_attr(attrs, "stop")
    if int_attr(attrs, "step") < 1:
        raise VerifyError("the step of a slice must be positive")
    length = slice_length(start, stop, int_attr(attrs, "step"))
    return (*type.shape[:axis], length, *type.shape[axis + 1 :])


def _infer_slice(types: Types, attrs: Attrs) -> Types:
    arity(types, 1)
    return (types[0].with_shape(_slice_shape(types[0], attrs)),)


def _infer_slice_scatter(types: Types, attrs: Attrs) -> Types:
    arity(types, 2)
    same_dtype(types)
    if types[1].shape != _slice_shape(types[0], attrs):
        raise VerifyError(f"`{types[1]}` does not fit the slice of `{types[0]}`")
    return (types[0],)


def _infer_concat(types: Types, attrs: Attrs) -> Types:
    arity(types, 1, len(types))
    dtype = same_dtype(types)
    axis = axis_of(int_attr(attrs, "axis"), types[0].rank)
    total: Dim = 0
    for type in types:
        others = (type.shape[:axis], type.shape[axis + 1 :])
        same = others == (types[0].shape[:axis], types[0].shape[axis + 1 :])
        if not same or type.rank != types[0].rank:
            raise VerifyError(f"`{type}` does not join `{types[0]}` along axis {axis}")
        total = total + type.shape[axis]
    return (TensorType(dtype, (*types[0].shape[:axis], total, *types[0].shape[axis + 1 :])),)


def _infer_pad(types: Types, attrs: Attrs) -> Types:
    arity(types, 1)
    low, high = dims_attr(attrs, "low"), dims_attr(attrs, "high")
    if not len(low) == len(high) == types[0].rank:
        raise VerifyError(f"`{types[0]}` needs {types[0].rank} sizes to pad by")
    sizes = zip(low, types[0].shape, high, strict=True)
    return (types[0].with_shape(tuple(a + size + b for a, size, b in sizes)),)


def _infer_flip(types: Types, attrs: Attrs) -> Types:
    arity(types, 1)
    for axis in ints_attr(attrs, "axes"):
        axis_of(axis, types[0].rank)
    return (types[0],)


def _infer_constant(types: Types, attrs: Attrs) -> Types:
    arity(types, 0)
    return (TensorType(str_attr(attrs, "dtype"), dims_attr(attrs, "shape")),)


def _infer_iota(types: Types, attrs: Attrs) -> Types:
    arity(types, 0)
    return (TensorType(str_attr(attrs, "dtype"), (dim_attr(attrs, "size"),)),)


def _infer_take(types: Types, attrs: Attrs) -> Types:
    arity(types, 2)
    axis = axis_of(int_attr(attrs, "axis"), types[0].rank)
    indices = integer_operand(types[1])
    shape = (*types[0].shape[:axis], *indices.shape, *types[0].shape[axis + 1 :])
    return (types[0].with_shape(shape),)


def _infer_gather(types: Types, attrs: Attrs) -> Types:
    arity(types, 2)
    axis_of(int_attr(attrs, "axis"), types[0].rank)
    if integer_operand(types[1]).rank != types[0].rank:
        raise VerifyError(f"`{types[1]}` and `{types[0]}` differ in rank")
    return (types[0].with_shape(types[1].shape),)


def _indexed_axes(types: Types, attrs: Attrs, first: int) -> tuple[int, ...]:
    axes = tuple(axis_of(axis, types[0].rank) for axis in ints_attr(attrs, "axes"))
    if list(axes) != list(range(axes[0], axes[0] + len(axes))):
        raise VerifyError(f"indexed axes {list(axes)} are not adjacent")
    if len(types) - first != len(axes):
        raise VerifyError(f"{len(axes)} axes are indexed by {len(types) - first} operands")
    return axes


def _indexed_shape(types: Types, axes: tuple[int, ...], first: int) -> tuple[Dim, ...]:
    index = broadcast(*(integer_operand(type).shape for type in types[first:]))
    return (*types[0].shape[: axes[0]], *index, *types[0].shape[axes[-1] + 1 :])


def _infer_index(types: Types, attrs: Attrs) -> Types:
    arity(types, 2, len(types))
    axes = _indexed_axes(types, attrs, 1)
    return (types[0].with_shape(_indexed_shape(types, axes, 1)),)


def _infer_index_put(types: Types, attrs: Attrs) -> Types:
    arity(types, 3, len(types))
    same_dtype(types[:2])
    axes = _indexed_axes(types, attrs, 2)
    shape = _indexed_shape(types, axes, 2)
    if broadcast(types[1].shape, shape) != shape:
        raise VerifyError(f"`{types[1]}` does not expand to {_text(shape)}")
    return (types[0],)


def _infer_scatter(types: Types, attrs: Attrs) -> Types:
    arity(types, 3)
    same_dtype((types[0], types[2]))
    axis_of(int_attr(attrs, "axis"), types[0].rank)
    if not types[0].rank == integer_operand(types[1]).rank == types[2].rank:
        raise VerifyError("the operands of a scatter differ in rank")
    if types[1].shape != types[2].shape:
        raise VerifyError(f"`{types[2]}` has not the shape of the index `{types[1]}`")
    return (types[0],)


def _text(shape: tuple[Dim, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


# --- meanings -------------------------------------------------------------------------------


def _sizes(type: TensorType) -> tuple[int, ...]:
    return tuple(symbolic.evaluate(dim, {}) for dim in type.shape)


def _reshape(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    return (arrays[0].reshape(_sizes(types[0])),)


def _transpose(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    return (arrays[0].transpose(ints_attr(attrs, "perm")),)


def _expand(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    return (np.broadcast_to(arrays[0], _sizes(types[0])),)


def _window(array: Array, attrs: Attrs) -> tuple[slice, ...]:
    axis = axis_of(int_attr(attrs, "axis"), array.ndim)
    bounds = slice(int_attr(attrs, "start"), int_attr(attrs, "stop"), int_attr(attrs, "step"))
    return (*(slice(None),) * axis, bounds)


def _slice(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    return (arrays[0][_window(arrays[0], attrs)],)


def _slice_scatter(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    result = arrays[0].copy()
    result[_window(result, attrs)] = arrays[1]
    return (result,)


def _concat(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    return (np.concatenate(arrays, axis=int_attr(attrs, "axis")),)


def _pad(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    """Negative sizes crop, as in PyTorch."""
    (x,) = arrays
    low, high = ints_attr(attrs, "low"), ints_attr(attrs, "high")
    result = np.full(_sizes(types[0]), attrs.get("value", 0), dtype=x.dtype)
    inside = tuple(
        slice(max(-a, 0), n - max(-b, 0)) for a, b, n in zip(low, high, x.shape, strict=True)
    )
    body = x[inside]
    place = tuple(slice(max(a, 0), max(a, 0) + n) for a, n in zip(low, body.shape, strict=True))
    result[place] = body
    return (result,)


def _flip(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    return (np.flip(arrays[0], ints_attr(attrs, "axes")),)


def _constant(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    def plain(value: Attr) -> object:
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    sizes = _sizes(types[0])
    values = np.zeros(sizes) if 0 in sizes else np.asarray(plain(attrs["value"]))
    return (np.broadcast_to(result_array(values, types[0]), sizes),)


def _iota(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    (size,) = _sizes(types[0])
    start, step = attrs.get("start", 0), attrs.get("step", 1)
    return (result_array(np.arange(size) * step + start, types[0]),)  # type: ignore[operator]


def _take(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    return (np.take(arrays[0], arrays[1], axis=int_attr(attrs, "axis")),)


def _gather(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    x, index = arrays
    axis = axis_of(int_attr(attrs, "axis"), x.ndim)
    return (x[_grid(index, axis)],)


def _grid(index: Array, axis: int) -> tuple[Array, ...]:
    """Coordinates of every element of `index`, with `index` itself along `axis`."""
    grid: list[Array] = list(np.indices(index.shape, sparse=True))
    grid[axis] = index
    return tuple(grid)


def _selection(arrays: Sequence[Array], attrs: Attrs, first: int) -> tuple[Any, ...]:
    axis = axis_of(ints_attr(attrs, "axes")[0], arrays[0].ndim)
    return (*(slice(None),) * axis, *arrays[first:])


def _index(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    return (arrays[0][_selection(arrays, attrs, 1)],)


def _index_put(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    result = arrays[0].copy()
    place = _selection(arrays, attrs, 2)
    if bool_attr(attrs, "accumulate"):
        np.add.at(result, place, arrays[1])
    else:
        result[place] = arrays[1]
    return (result,)


_SCATTER: dict[str, Any] = {
    "add": np.add,
    "multiply": np.multiply,
    "amax": np.maximum,
    "amin": np.minimum,
}


def _scatter(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    result = arrays[0].copy()
    place = _grid(arrays[1], axis_of(int_attr(attrs, "axis"), result.ndim))
    if attrs.get("reduce") is None:
        result[place] = arrays[2]
    else:
        _SCATTER[str_attr(attrs, "reduce")].at(result, place, arrays[2])
    return (result,)


define("reshape", _infer_reshape, _reshape)
define("transpose", _infer_transpose, _transpose)
define("expand", _infer_expand, _expand)
define("slice", _infer_slice, _slice)
define("slice_scatter", _infer_slice_scatter, _slice_scatter)
define("concat", _infer_concat, _concat)
define("pad", _infer_pad, _pad)
define("flip", _infer_flip, _flip)
define("constant", _infer_constant, _constant)
define("full", _infer_constant, _constant)
define("iota", _infer_iota, _iota)
define("take", _infer_take, _take)
define("gather", _infer_gather, _gather)
define("index", _infer_index, _index)
define("index_put", _infer_index_put, _index_put)
define("scatter", _infer_scatter, _scatter)
