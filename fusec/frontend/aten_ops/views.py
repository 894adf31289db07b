"""ATen operations whose results share memory with their argument, and their copying twins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fusec.frontend.aten_ops.base import (
    END,
    TABLE,
    Builder,
    Val,
    View,
    aten,
    contiguous,
    static,
    viewable,
)
from fusec.ir.ops.shape import slice_length
from fusec.ir.types import Attr
from fusec.symbolic import Dim


def same() -> View:
    """The argument itself."""
    return View(lambda v: v, lambda base, new: new)


def reshaped(build: Builder, x: Val, shape: Sequence[Dim]) -> View:
    """`x` with other sizes."""
    old, new = x.shape, tuple(shape)
    return View(lambda v: build.reshape(v, new), lambda base, part: build.reshape(part, old))


def transposed(build: Builder, perm: Sequence[int]) -> View:
    """The axes in another order."""
    back = tuple(sorted(range(len(perm)), key=lambda axis: perm[axis]))
    return View(lambda v: build.transpose(v, perm), lambda base, part: build.transpose(part, back))


def swapped(build: Builder, x: Val, a: int, b: int) -> View:
    """Two axes exchanged."""
    perm = list(range(x.rank))
    if perm:
        a, b = x.axis(a), x.axis(b)
        perm[a], perm[b] = perm[b], perm[a]
    return transposed(build, perm)


def sliced(build: Builder, x: Val, axis: int, start: Dim, stop: Dim, step: int = 1) -> View:
    """A slice with bounds inside the size."""
    axis = x.axis(axis)
    return View(
        lambda v: build.slice(v, axis, start, stop, step),
        lambda base, part: build.slice_scatter(base, part, axis, start, stop, step),
    )


def selected(build: Builder, x: Val, axis: int, index: Dim) -> View:
    """One index of an axis, which disappears."""
    axis = x.axis(axis)
    return View(
        lambda v: build.select(v, axis, index),
        lambda base, part: build.slice_scatter(
            base, build.unsqueeze(part, axis), axis, index, index + 1
        ),
    )


# --- the same elements ----------------------------------------------------------------------


@aten("alias", "detach", "lift", "lift_fresh", "positive", "dropout", "feature_dropout",
      "alpha_dropout", "feature_alpha_dropout", "requires_grad", parts=True)  # fmt: skip
def _alias(build: Builder, x: Val, p: float | bool = 0.0, train: bool = False) -> View:
    if train and p != 0.0 and "dropout" in build.origin.op:
        raise build.in_training("the model draws random numbers: dropout is in training mode")
    return same()


@aten("native_dropout")
def _native_dropout(
    build: Builder, x: Val, p: float, train: bool | None
) -> tuple[Val | View | None, ...]:
    if train and p != 0.0:
        raise build.in_training("the model draws random numbers: dropout is in training mode")
    return x, build.full(x.shape, True, "bool")


@aten("contiguous", parts=True)
def _contiguous(build: Builder, x: Val, *, memory_format: str | None = None) -> Val | View:
    return same() if _is_contiguous(build) else x


def _is_contiguous(build: Builder) -> bool:
    record = build.source
    return record is not None and (
        record.strides is not None and contiguous(record.shape, record.strides)
    )


@aten("view", "_unsafe_view", "_reshape_alias", parts=True)
def _view(build: Builder, x: Val, size: object, stride: object = None) -> View:
    return reshaped(build, x, build.result().shape)


@aten("view_as", parts=True)
def _view_as(build: Builder, x: Val, other: Val) -> View:
    return reshaped(build, x, build.result().shape)


@aten("view.dtype")
def _view_dtype(build: Builder, x: Val, dtype: str) -> View:
    if build.result().dtype != x.dtype:
        raise build.unsupported(f"`{x.dtype}` is read as the bits of `{build.result().dtype}`")
    return same()


@aten("reshape", "flatten.using_ints", "reshape_as", "ravel", parts=True)
def _reshape(build: Builder, x: Val, *how: object, **named: object) -> Val | View:
    shape = build.result().shape
    record, target = build.source, build.target
    if record is None or target is None or record.strides is None:
        view = reshaped(build, x, shape)
        return View(view.forward, view.backward, certain=shape == x.shape)
    if viewable(record.shape, record.strides, target.shape):
        return reshaped(build, x, shape)
    return build.reshape(x, shape)


@aten("view_copy", "_reshape_copy", parts=True)
def _view_copy(build: Builder, x: Val, size: object) -> Val:
    return build.reshape(x, build.result().shape)


@aten("squeeze", "squeeze.dim", "squeeze.dims", "unflatten.int", parts=True)
def _squeeze(build: Builder, x: Val, dim: object = None, sizes: object = None) -> View:
    return reshaped(build, x, build.result().shape)


@aten("atleast_1d", "atleast_2d", "atleast_3d", parts=True)
def _at_least(build: Builder, x: Val) -> View:
    return reshaped(build, x, build.result().shape)


@aten("unsqueeze", parts=True)
def _unsqueeze(build: Builder, x: Val, dim: int) -> View:
    axis = dim + x.rank + 1 if dim < 0 else dim
    return reshaped(build, x, (*x.shape[:axis], 1, *x.shape[axis:]))


# --- axes -----------------------------------------------------------------------------------


@aten("transpose.int", "transpose", "swapaxes", "swapdims", parts=True)
def _transpose(build: Builder, x: Val, dim0: int, dim1: int) -> View:
    return swapped(build, x, dim0, dim1)


@aten("adjoint", "matrix_H", "mH")
def _adjoint(build: Builder, x: Val) -> View:
    """Of a real matrix; a complex one is refused."""
    return _t(build, x)


@aten("t", "numpy_T", "mT", parts=True)
def _t(build: Builder, x: Val) -> View:
    if x.rank < 2:
        return same()
    if "numpy_T" in build.origin.op:
        return transposed(build, tuple(reversed(range(x.rank))))
    return swapped(build, x, -2, -1)


@aten("permute", parts=True)
def _permute(build: Builder, x: Val, dims: Sequence[int]) -> View:
    return transposed(build, tuple(x.axis(axis) for axis in dims))


@aten("movedim.int", "movedim.intlist", "moveaxis.int", "moveaxis.intlist", parts=True)
def _movedim(
    build: Builder, x: Val, source: int | Sequence[int], destination: int | Sequence[int]
) -> View:
    sources = [source] if isinstance(source, int) else list(source)
    targets = [destination] if isinstance(destination, int) else list(destination)
    placed = {x.axis(to): x.axis(start) for start, to in zip(sources, targets, strict=True)}
    rest = iter(axis for axis in range(x.rank) if axis not in placed.values())
    return transposed(build, [placed[i] if i in placed else next(rest) for i in range(x.rank)])


@aten("expand", "expand_as", parts=True)
def _expand(build: Builder, x: Val, size: object, *, implicit: bool = False) -> View:
    shape = build.result().shape
    return View(lambda v: build.expand(v, shape), None)


@aten("broadcast_to", parts=True)
def _broadcast_to(build: Builder, x: Val, size: object) -> View:
    return _expand(build, x, size)


# --- parts ----------------------------------------------------------------------------------


def slice_bounds(
    build: Builder, x: Val, axis: int, start: Dim | None, end: Dim | None, step: int, length: Dim
) -> tuple[Dim, Dim]:
    """Bounds inside the size; `length`, which the export recorded, settles what is symbolic."""
    size = x.shape[axis]
    first = 0 if start is None else start
    to_end = end is None or (isinstance(end, int) and end >= END)
    if step == 1 and to_end:
        return size - length, size
    begin = build.clamped(first, size)
    if step == 1:
        return begin, begin + length
    stop = size if end is None else build.clamped(end, size)
    if slice_length(begin, stop, step) != length:
        stop = begin + (length - 1) * step + 1
    return begin, stop


@aten("slice.Tensor", parts=True)
def _slice(
    build: Builder, x: Val, dim: int = 0, start: Dim | None = None, end: Dim | None = None,
    step: int = 1,
) -> View:  # fmt: skip
    axis = x.axis(dim)
    length = build.result().shape[axis]
    begin, stop = slice_bounds(build, x, axis, start, end, step, length)
    return sliced(build, x, axis, begin, stop, step)


@aten("narrow", parts=True)
def _narrow(build: Builder, x: Val, dim: int, start: Dim, length: Dim) -> View:
    begin = build.clamped(start, x.shape[x.axis(dim)])
    return sliced(build, x, dim, begin, begin + length)


@aten("select.int", parts=True)
def _select(build: Builder, x: Val, dim: int, index: Dim) -> View:
    axis = x.axis(dim)
    if build.bounds(index)[1] < 0:
        index = index + x.shape[axis]
    return selected(build, x, axis, index)


@aten("split.Tensor", "split_with_sizes", "split.sizes", "chunk", "tensor_split.sections",
      "tensor_split.indices", "unsafe_split.Tensor", "unsafe_split_with_sizes", "unsafe_chunk",
      "hsplit.int", "vsplit.int", "dsplit.int", "hsplit.array", "vsplit.array", "dsplit.array",
      parts=True)  # fmt: skip
def _split(build: Builder, x: Val, how: object, dim: int = 0) -> tuple[View, ...]:
    name = build.origin.op
    if "hsplit" in name:
        dim = 0 if x.rank == 1 else 1
    axis = 2 if "dsplit" in name else x.axis(dim)
    parts: list[View] = []
    start: Dim = 0
    for index in range(len(build.declared)):
        length = build.result(index).shape[axis]
        parts.append(sliced(build, x, axis, start, start + length))
        start = start + length
    return tuple(parts)


@aten("split_with_sizes_copy", "split_copy.Tensor", parts=True)
def _split_copy(build: Builder, x: Val, how: object, dim: int = 0) -> tuple[Val, ...]:
    return tuple(view.forward(x) for view in _split(build, x, how, dim))


@aten("unbind.int", parts=True)
def _unbind(build: Builder, x: Val, dim: int = 0) -> tuple[View, ...]:
    return tuple(selected(build, x, dim, index) for index in range(len(build.declared)))


@aten("diagonal", parts=True)
def _diagonal(build: Builder, x: Val, offset: int = 0, dim1: int = 0, dim2: int = 1) -> View:
    a, b = x.axis(dim1), x.axis(dim2)
    rest = [axis for axis in range(x.rank) if axis not in (a, b)]
    perm = (*rest, a, b)
    back = tuple(sorted(range(x.rank), key=lambda axis: perm[axis]))
    length = build.result().shape[-1]

    def places() -> tuple[Val, Val]:
        return (
            build.iota(length, start=max(-offset, 0)),
            build.iota(length, start=max(offset, 0)),
        )

    def forward(v: Val) -> Val:
        v = build.transpose(v, perm)
        axes = (x.rank - 2, x.rank - 1)
        return build.emit_all("index", (v, *places()), {"axes": axes})[0]

    def backward(base: Val, part: Val) -> Val:
        base = build.transpose(base, perm)
        attrs: Mapping[str, Attr] = {"axes": (x.rank - 2, x.rank - 1), "accumulate": False}
        return build.transpose(build.emit_all("index_put", (base, part, *places()), attrs)[0], back)

    return View(forward, backward)


@aten("unfold")
def _unfold(build: Builder, x: Val, dimension: int, size: int, step: int) -> View:
    """Windows along an axis: `[..., windows, ..., size]`; of a scalar `[size]`."""
    if x.rank == 0:
        return View(lambda v: build.slice(build.reshape(v, (1,)), 0, 0, size), None)
    axis = x.axis(dimension)
    count = build.result().shape[axis]

    def forward(v: Val) -> Val:
        if step == size and static((v.shape[axis],)) and v.shape[axis] == count * size:
            split = build.reshape(v, (*v.shape[:axis], count, size, *v.shape[axis + 1 :]))
        else:
            starts = build.unsqueeze(build.iota(count, step=step), 1)
            places = starts + build.iota(size)
            split = build.emit("take", v, places, axis=axis)
        return build.move(split, axis + 1, split.rank - 1)

    return View(forward, None)


@aten("as_strided")
def _as_strided(
    build: Builder,
    x: Val,
    size: Sequence[Dim],
    stride: Sequence[Dim],
    storage_offset: Dim | None = None,
) -> View:
    """Only of a tensor laid out row by row that is all of its memory, which offsets count from."""
    record = build.source
    if record is None or record.strides is None or not contiguous(record.shape, record.strides):
        raise build.unsupported("`as_strided` of a tensor that is not laid out row by row")
    if not build.source_is_all:
        raise build.unsupported(
            "`as_strided` of a part of a tensor", "call `.clone()` on the part first"
        )

    def places() -> Val:
        result = build.scalar(storage_offset or 0, "i64")
        for axis, (count, step) in enumerate(zip(size, stride, strict=True)):
            offsets = build.iota(count) * step
            result = result + build.reshape(offsets, (count, *(1,) * (len(size) - axis - 1)))
        return result

    def forward(v: Val) -> Val:
        return build.emit("take", build.reshape(v, (v.type.elements,)), places(), axis=0)

    def backward(base: Val, part: Val) -> Val:
        flat = build.reshape(base, (base.type.elements,))
        attrs: Mapping[str, Attr] = {"axes": (0,), "accumulate": False}
        return build.reshape(build.emit_all("index_put", (flat, part, places()), attrs)[0], x.shape)

    return View(forward, backward)


def _register_copies() -> None:
    """`slice_copy` and its like give the same as `slice`, in memory of its own."""

    def copying(name: str) -> Callable[..., Val | tuple[Val, ...]]:
        viewing = TABLE[f"aten.{name}"]

        def translate(build: Builder, x: Val, *args: object, **kwargs: object) -> Val:
            view = viewing(build, x, *args, **kwargs)
            assert isinstance(view, View)
            copied: Val = view.forward(x)
            return copied

        return translate

    for name in ("slice.Tensor", "select.int", "expand.default", "permute.default",
                 "transpose.int", "unsqueeze.default", "squeeze.default", "squeeze.dim",
                 "squeeze.dims", "t.default", "unfold.default", "narrow.default",
                 "as_strided.default"):  # fmt: skip
        base, overload = name.split(".")
        aten(f"{base}_copy.{overload}", parts=True)(copying(name))


_register_copies()


@aten("slice_scatter")
def _slice_scatter(
    build: Builder, x: Val, src: Val, dim: int = 0, start: Dim | None = None,
    end: Dim | None = None, step: int = 1,
) -> Val:  # fmt: skip
    axis = x.axis(dim)
    if src.rank == x.rank:
        length = src.shape[axis]
    else:
        length = slice_length(start or 0, x.shape[axis] if end is None else end, step)
    begin, stop = slice_bounds(build, x, axis, start, end, step, length)
    return build.slice_scatter(x, build.cast(src, x.dtype), axis, begin, stop, step)


@aten("select_scatter")
def _select_scatter(build: Builder, x: Val, src: Val, dim: int, index: Dim) -> Val:
    axis = x.axis(dim)
    if build.bounds(index)[1] < 0:
        index = index + x.shape[axis]
    backward = selected(build, x, axis, index).backward
    assert backward is not None
    replaced: Val = backward(x, build.cast(src, x.dtype))
    return replaced


@aten("diagonal_scatter")
def _diagonal_scatter(
    build: Builder, x: Val, src: Val, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> Val:
    a, b = x.axis(dim1), x.axis(dim2)
    length = src.shape[-1]
    rest = [axis for axis in range(x.rank) if axis not in (a, b)]
    perm = (*rest, a, b)
    back = tuple(sorted(range(x.rank), key=lambda axis: perm[axis]))
    places = (
        build.iota(length, start=max(-offset, 0)),
        build.iota(length, start=max(offset, 0)),
    )
    attrs: Mapping[str, Attr] = {"axes": (x.rank - 2, x.rank - 1), "accumulate": False}
    moved = build.transpose(x, perm)
    return build.transpose(build.emit_all("index_put", (moved, src, *places), attrs)[0], back)
