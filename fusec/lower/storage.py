"""Views: the place of a value that is another value seen differently, when strides can say so."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fusec.diagnostics import InternalError
from fusec.ir import Attrs, TensorType
from fusec.ir.types import dim_attr, int_attr, ints_attr
from fusec.kernels.launch import Storage, dense_strides
from fusec.symbolic import Dim

VIEWS = frozenset(("reshape", "transpose", "slice", "expand", "flip"))
"""Operations that only change how memory is looked at."""


def dense(buffer: int, dtype: str, shape: tuple[Dim, ...]) -> Storage:
    """Row-major storage at the beginning of a buffer."""
    return Storage(buffer, dtype, shape, dense_strides(shape))


def of_type(buffer: int, kind: TensorType) -> Storage:
    """Row-major storage of a value, padded where it is padded."""
    return Storage(buffer, kind.dtype, kind.shape, dense_strides(kind.memory_shape))


def ordered(buffer: int, dtype: str, shape: tuple[Dim, ...], order: tuple[int, ...]) -> Storage:
    """Dense storage whose axes lie in `order`, from outermost to innermost."""
    steps = dense_strides(tuple(shape[axis] for axis in order))
    strides: list[Dim] = [0] * len(shape)
    for axis, step in zip(order, steps, strict=True):
        strides[axis] = step
    return Storage(buffer, dtype, shape, tuple(strides))


def viewed(
    storage: Storage,
    op: str,
    attrs: Attrs,
    shape: tuple[Dim, ...],
) -> Storage | None:
    """Where the result of the view `op` of `storage` lies; `None` when strides cannot say it.

    A view of nothing may begin outside of its buffer.

    Args:
        storage: of the operand.
        op: one of `VIEWS`.
        attrs: of the view.
        shape: of the result.
    """
    strides = storage.strides
    if op == "transpose":
        perm = ints_attr(attrs, "perm")
        return replace(storage, shape=shape, strides=tuple(strides[axis] for axis in perm))
    if op == "expand":
        return replace(storage, shape=shape, strides=broadcast_strides(storage, shape))
    if op == "slice":
        axis = int_attr(attrs, "axis") % len(shape)
        start, step = dim_attr(attrs, "start"), int_attr(attrs, "step")
        stepped = (*strides[:axis], strides[axis] * step, *strides[axis + 1 :])
        offset = storage.offset + start * strides[axis]
        return replace(storage, shape=shape, strides=stepped, offset=offset)
    if op == "flip":
        return _flipped(storage, ints_attr(attrs, "axes"))
    if op == "reshape":
        steps = reshaped_strides(storage.shape, strides, shape)
        return None if steps is None else replace(storage, shape=shape, strides=steps)
    raise InternalError(f"`{op}` is not a view")


def broadcast_strides(storage: Storage, shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Strides with which `storage` is read as if it had `shape`, by numpy's rule."""
    missing = len(shape) - len(storage.shape)
    strides: list[Dim] = [0] * missing
    for size, wanted, stride in zip(storage.shape, shape[missing:], storage.strides, strict=True):
        strides.append(stride if size == wanted else 0)
    return tuple(strides)


def _flipped(storage: Storage, axes: tuple[int, ...]) -> Storage:
    strides, offset = list(storage.strides), storage.offset
    for axis in {axis % len(strides) for axis in axes}:
        offset = offset + (storage.shape[axis] - 1) * strides[axis]
        strides[axis] = 0 - strides[axis]
    return replace(storage, strides=tuple(strides), offset=offset)


@dataclass(slots=True)
class _Run:
    """Neighbouring axes that are stepped along as one."""

    size: Dim
    stride: Dim


def merged_axes(
    shape: tuple[Dim, ...], new_shape: tuple[Dim, ...]
) -> tuple[tuple[int, ...], ...] | None:
    """For each axis of `new_shape`, the neighbouring axes of `shape` that it joins.

    `None` if the reshape is anything but a joining of neighbours.
    """
    axes = [axis for axis, size in enumerate(shape) if size != 1]
    result: list[tuple[int, ...]] = []
    for size in new_shape:
        joined: list[int] = []
        covered: Dim = 1
        while covered != size:
            if not axes:
                return None
            joined.append(axes.pop(0))
            covered = covered * shape[joined[-1]]
        result.append(tuple(joined))
    return None if axes else tuple(result)


def reshaped_strides(
    shape: tuple[Dim, ...], strides: tuple[Dim, ...], new_shape: tuple[Dim, ...]
) -> tuple[Dim, ...] | None:
    """Strides under which the same memory has `new_shape`, or `None` if there are none.

    Sizes are compared as expressions: what is equal only for some values of the symbols is not
    equal.
    """
    if any(dim == 0 for dim in shape):
        return dense_strides(new_shape)
    runs: list[_Run] = []
    for size, stride in zip(shape, strides, strict=True):
        if size == 1:
            continue
        if runs and runs[-1].stride == stride * size:
            runs[-1] = _Run(runs[-1].size * size, stride)
        else:
            runs.append(_Run(size, stride))
    result: list[Dim] = []
    covered: Dim = 1
    for size in reversed(new_shape):
        if size == 1:
            result.append(0)
            continue
        if not runs:
            return None
        result.append(runs[-1].stride * covered)
        covered = covered * size
        if covered == runs[-1].size:
            runs.pop()
            covered = 1
    return None if runs else tuple(reversed(result))
