"""ATen operations that read and write elements by index."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fusec.dtypes import DTYPES
from fusec.frontend.aten_ops.base import Builder, Number, SymFloat, Val, aten, broadcast_shape
from fusec.frontend.aten_ops.elementwise import scaled
from fusec.ir.types import Attr
from fusec.symbolic import Dim

Indices = Sequence[Val | None]


@aten("embedding")
def _embedding(
    build: Builder, weight: Val, indices: Val, padding_idx: int = -1,
    scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Val:  # fmt: skip
    return build.emit("take", weight, indices, axis=0)


@aten("embedding_bag.padding_idx", "embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")
def _embedding_bag(
    build: Builder, weight: Val, indices: Val, offsets: Val, scale_grad_by_freq: bool = False,
    mode: int = 0, sparse: bool = False, per_sample_weights: Val | None = None,
    include_last_offset: bool = False, padding_idx: int | None = None,
) -> tuple[Val | None, ...]:  # fmt: skip
    """Sums, means or maxima of rows; a bag goes from its offset to the next, an empty one is zero.

    The other results, for the backward pass, are not made.
    """
    if padding_idx is not None and padding_idx != -1:
        raise build.unsupported("an embedding bag with rows that it leaves out, its `padding_idx`")
    bags = offsets.shape[0]  # where the last offset is an end, what comes after it is one more
    rows = build.emit("take", weight, indices, axis=0)
    count = rows.shape[0]
    if per_sample_weights is not None:
        rows = rows * build.unsqueeze(per_sample_weights, 1)
    starts = build.cast(offsets, "i64")
    begun = build.emit("le", starts, build.unsqueeze(build.iota(count), 1))
    bag = build.reduce("reduce_sum", build.cast(begun, "i64"), (1,)) - 1
    if mode == 2:
        least = build.full((bags, *rows.shape[1:]), -math.inf, rows.dtype)
        place = build.expand(build.unsqueeze(bag, 1), rows.shape)
        most = build.emit("scatter", least, place, rows, axis=0, reduce="amax")
        result = build.where(build.elementwise("eq", most, -math.inf), 0.0, most)
        return build.slice(result, 0, 0, build.result().shape[0]), None, None, None

    def total(values: Val) -> Val:
        zeros = build.full((bags, *values.shape[1:]), 0, values.dtype)
        return _put_along(build, zeros, 0, bag, values, accumulate=True)

    result = total(rows)
    if mode == 1:
        size = total(build.full((count, 1), 1, rows.dtype))
        result = result / build.emit("clamp", size, min=1.0, max=None)
    return build.slice(result, 0, 0, build.result().shape[0]), None, None, None


@aten("index_select", parts=True)
def _index_select(build: Builder, x: Val, dim: int, index: Val) -> Val:
    places = build.reshape(index, (index.type.elements,))
    if x.rank == 0:
        return build.reshape(build.expand(x, places.shape), build.result().shape)
    return build.emit("take", x, places, axis=x.axis(dim))


@aten("gather", parts=True)
def _gather(build: Builder, x: Val, dim: int, index: Val, *, sparse_grad: bool = False) -> Val:
    if x.rank == 0:
        return build.expand(x, index.shape)
    if x.rank != index.rank:  # PyTorch takes that where nothing is gathered
        return build.full(index.shape, 0, x.dtype)
    return build.emit("gather", x, index, axis=x.axis(dim))


@aten("take_along_dim")
def _take_along_dim(build: Builder, x: Val, indices: Val, dim: int | None = None) -> Val:
    if dim is None:
        flat = build.reshape(x, (x.type.elements,))
        return build.emit("take", flat, build.reshape(indices, (indices.type.elements,)), axis=0)
    axis = x.axis(dim)
    others = broadcast_shape(
        (*x.shape[:axis], 1, *x.shape[axis + 1 :]),
        (*indices.shape[:axis], 1, *indices.shape[axis + 1 :]),
    )
    wide = build.expand(x, (*others[:axis], x.shape[axis], *others[axis + 1 :]))
    place = build.expand(indices, (*others[:axis], indices.shape[axis], *others[axis + 1 :]))
    return build.emit("gather", wide, place, axis=axis)


@aten("take")
def _take(build: Builder, x: Val, index: Val) -> Val:
    return build.emit("take", build.reshape(x, (x.type.elements,)), index, axis=0)


# --- advanced indexing ----------------------------------------------------------------------


def _placed(build: Builder, x: Val, indices: Indices) -> tuple[tuple[int, ...], list[Val]]:
    axes: list[int] = []
    places: list[Val] = []
    axis = 0
    for index in indices:
        if index is None:
            axis += 1
            continue
        if index.dtype in ("bool", "u8"):
            raise build.unsupported(
                f"`{build.origin.op}` selects by a mask: its size depends on data",
                "multiply by the mask, or use `torch.where`",
            )
        axes.append(axis)
        places.append(index)
        axis += 1
    return tuple(axes), places


def _adjacent(axes: tuple[int, ...]) -> bool:
    return axes == tuple(range(axes[0], axes[0] + len(axes)))


@aten("index.Tensor", "_unsafe_index.Tensor", parts=True)
def _index(build: Builder, x: Val, indices: Indices) -> Val:
    axes, places = _placed(build, x, indices)
    if not axes:
        return x
    if not _adjacent(axes):
        rest = [axis for axis in range(x.rank) if axis not in axes]
        x = build.transpose(x, (*axes, *rest))
        axes = tuple(range(len(axes)))
    if len(axes) == 1:
        return build.emit("take", x, places[0], axis=axes[0])
    return build.emit_all("index", (x, *places), {"axes": axes})[0]


@aten("index_put", "_unsafe_index_put", "_index_put_impl")
def _index_put(
    build: Builder, x: Val, indices: Indices, values: Val, accumulate: bool = False,
    unsafe: bool = False,
) -> Val:  # fmt: skip
    values = build.cast(values, x.dtype)
    flags = [index for index in indices if index is not None]
    if len(flags) == 1 and flags[0].dtype == "bool":
        return _masked_put(build, x, indices, values, accumulate)
    axes, places = _placed(build, x, indices)
    attrs: Mapping[str, Attr] = {"accumulate": accumulate}
    if _adjacent(axes):
        return build.emit_all("index_put", (x, values, *places), {"axes": axes, **attrs})[0]
    rest = [axis for axis in range(x.rank) if axis not in axes]
    perm = (*axes, *rest)
    back = tuple(sorted(range(x.rank), key=lambda axis: perm[axis]))
    moved = build.transpose(x, perm)
    first = tuple(range(len(axes)))
    done = build.emit_all("index_put", (moved, values, *places), {"axes": first, **attrs})[0]
    return build.transpose(done, back)


def _masked_put(build: Builder, x: Val, indices: Indices, values: Val, accumulate: bool) -> Val:
    """A mask selects unknown places, but one value for all of them needs no places."""
    axis = next(i for i, index in enumerate(indices) if index is not None)
    mask = indices[axis]
    assert mask is not None
    tail = x.shape[axis + mask.rank :]
    if values.rank > len(tail) and values.shape[: values.rank - len(tail)] != (1,):
        raise build.unsupported(
            "a mask is assigned a value for each selected element",
            "use `torch.where` with a tensor of the full shape",
        )
    values = build.reshape(values, values.shape[max(values.rank - len(tail), 0) :])
    wide = build.reshape(mask, (*mask.shape, *(1,) * len(tail)))
    added = "or" if x.dtype == "bool" else "add"
    new = build.emit(added, x, values) if accumulate else values
    return build.emit("where", wide, new, x)


def _put_along(build: Builder, x: Val, dim: int, index: Val, values: Val, accumulate: bool) -> Val:
    """`values` written at places of one axis; a scalar counts as having one axis."""
    line = build.reshape(x, x.shape or (1,))
    attrs: Mapping[str, Attr] = {"axes": (x.axis(dim),), "accumulate": accumulate}
    places = build.reshape(index, (index.type.elements,))
    written = build.emit_all("index_put", (line, values, places), attrs)[0]
    return build.reshape(written, x.shape)


@aten("index_copy")
def _index_copy(build: Builder, x: Val, dim: int, index: Val, source: Val) -> Val:
    return _put_along(build, x, dim, index, source, accumulate=False)


@aten("index_add")
def _index_add(
    build: Builder, x: Val, dim: int, index: Val, source: Val, *, alpha: Number = 1
) -> Val:
    added = build.operand(scaled(build, source, alpha, x.dtype), x.dtype)
    return _put_along(build, x, dim, index, added, accumulate=True)


@aten("index_fill.int_Scalar", "index_fill.int_Tensor")
def _index_fill(build: Builder, x: Val, dim: int, index: Val, value: Val | Number) -> Val:
    return _put_along(build, x, dim, index, build.operand(value, x.dtype), accumulate=False)


# --- scatter --------------------------------------------------------------------------------

_REDUCE = {
    "sum": "add",
    "add": "add",
    "prod": "multiply",
    "multiply": "multiply",
    "amax": "amax",
    "amin": "amin",
}


def _scattered(
    build: Builder, x: Val, dim: int, index: Val, src: Val | Number | SymFloat, reduce: str | None
) -> Val:
    if isinstance(src, Val) and src.rank:
        for axis, size in enumerate(index.shape):
            src = build.slice(src, axis, 0, size)
        values = build.cast(src, x.dtype)
    else:
        values = build.expand(build.operand(src, x.dtype), index.shape)
    if x.rank == 0:  # counts as having one axis, and so may its index
        one = (1,)
        line, index, values = (build.reshape(v, v.shape or one) for v in (x, index, values))
        made = build.emit("scatter", line, index, values, axis=0, reduce=reduce)
        return build.reshape(made, ())
    return build.emit("scatter", x, index, values, axis=x.axis(dim), reduce=reduce)


@aten("scatter.src", "scatter.value")
def _scatter(build: Builder, x: Val, dim: int, index: Val, src: Val | Number) -> Val:
    return _scattered(build, x, dim, index, src, None)


@aten("scatter.reduce", "scatter.value_reduce")
def _scatter_with(
    build: Builder, x: Val, dim: int, index: Val, src: Val | Number, *, reduce: str
) -> Val:
    return _scattered(build, x, dim, index, src, _REDUCE[reduce])


@aten("scatter_add")
def _scatter_add(build: Builder, x: Val, dim: int, index: Val, src: Val) -> Val:
    return _scattered(build, x, dim, index, src, "add")


@aten("scatter_reduce.two")
def _scatter_reduce(
    build: Builder, x: Val, dim: int, index: Val, src: Val, reduce: str, *,
    include_self: bool = True,
) -> Val:  # fmt: skip
    start = x
    if not include_self:
        start = _scattered(build, x, dim, index, _neutral(x.dtype, reduce), None)
    if reduce != "mean":
        return _scattered(build, start, dim, index, src, _REDUCE[reduce])
    total = _scattered(build, start, dim, index, src, "add")
    ones = build.full(x.shape, 1, x.dtype)
    if not include_self:
        ones = _scattered(build, ones, dim, index, 0, None)
    count = _scattered(build, ones, dim, index, 1, "add")
    if not include_self:
        count = build.elementwise("maximum", count, 1)
    return build.emit("div" if x.type.element.is_float else "floordiv", total, count)


def _neutral(dtype: str, reduce: str) -> Number:
    """The value that a reduction begins with."""
    if reduce not in ("amax", "amin"):
        return 1 if reduce == "prod" else 0
    if dtype == "bool":
        return reduce == "amin"
    if DTYPES[dtype].is_float:
        return -math.inf if reduce == "amax" else math.inf
    limits = np.iinfo(np.dtype(DTYPES[dtype].numpy).name)
    return int(limits.min if reduce == "amax" else limits.max)


@aten("masked_scatter")
def _masked_scatter(build: Builder, x: Val, mask: Val, source: Val) -> Val:
    """Elements of `source`, in order, take the places that the mask marks, in order."""
    x = build.expand(x, build.result().shape)
    wide = build.expand(build.cast(mask, "bool"), x.shape)
    flat = build.reshape(wide, (x.type.elements,))
    order = build.emit("cumsum", build.cast(flat, "i64"), axis=0) - 1
    count = source.type.elements
    last: Dim = count - 1
    place = build.emit("minimum", order, build.scalar(last, "i64"))
    place = build.emit("clamp", place, min=0, max=None)
    values = build.emit("take", build.reshape(source, (count,)), place, axis=0)
    return build.emit("where", wide, build.reshape(values, x.shape), x)
