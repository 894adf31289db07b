"""ATen operations that join, repeat, pad and reorder elements."""

from __future__ import annotations

from collections.abc import Sequence

from fusec import symbolic
from fusec.frontend.aten_ops.base import Builder, Complex, Number, Val, aten, broadcast_shape
from fusec.symbolic import Dim


@aten("cat", "concat", "concatenate", parts=True)
def cat(build: Builder, tensors: Sequence[Val], dim: int = 0) -> Val:
    """Operands of shape [0] are left out, as PyTorch does."""
    dtype = build.result().dtype
    rank = build.result().rank
    kept = [build.cast(x, dtype) for x in tensors if x.rank == rank]
    kept = [x for x in kept if x.shape != (0,) or rank != 1] or kept[:1]
    return build.concat(kept, dim)


@aten("stack", parts=True)
def stack(build: Builder, tensors: Sequence[Val], dim: int = 0) -> Val:
    axis = dim + tensors[0].rank + 1 if dim < 0 else dim
    dtype = build.result().dtype
    return build.concat([build.unsqueeze(build.cast(x, dtype), axis) for x in tensors], axis)


@aten("hstack", parts=True)
def _hstack(build: Builder, tensors: Sequence[Val]) -> Val:
    parts = [build.reshape(x, (1,)) if x.rank == 0 else x for x in tensors]
    return cat(build, parts, 0 if parts[0].rank == 1 else 1)


@aten("vstack", "row_stack", parts=True)
def _vstack(build: Builder, tensors: Sequence[Val]) -> Val:
    return cat(build, [build.reshape(x, (1, *x.shape)) if x.rank < 2 else x for x in tensors], 0)


@aten("column_stack", parts=True)
def _column_stack(build: Builder, tensors: Sequence[Val]) -> Val:
    parts = [build.reshape(x, (x.type.elements, 1)) if x.rank < 2 else x for x in tensors]
    return cat(build, parts, 1)


@aten("repeat", "tile", parts=True)
def _repeat(build: Builder, x: Val, repeats: Sequence[Dim]) -> Val:
    counts = (1,) * (x.rank - len(repeats)) + tuple(repeats)
    x = build.reshape(x, (1,) * (len(counts) - x.rank) + x.shape)
    spread: list[Dim] = []
    wide: list[Dim] = []
    for count, size in zip(counts, x.shape, strict=True):
        if count != 1:
            spread.append(1)
            wide.append(count)
        spread.append(size)
        wide.append(size)
    final = tuple(count * size for count, size in zip(counts, x.shape, strict=True))
    return build.reshape(build.expand(build.reshape(x, spread), wide), final)


@aten("repeat_interleave.self_int", parts=True)
def repeat_interleave(
    build: Builder, x: Val, repeats: Dim, dim: int | None = None, *, output_size: Dim | None = None
) -> Val:
    if dim is None:
        x, dim = build.reshape(x, (x.type.elements,)), 0
    axis = x.axis(dim)
    wide = build.unsqueeze(x, axis + 1)
    shape = (*wide.shape[: axis + 1], repeats, *wide.shape[axis + 2 :])
    final = (*x.shape[:axis], x.shape[axis] * repeats, *x.shape[axis + 1 :])
    return build.reshape(build.expand(wide, shape), final)


@aten("flip", "fliplr", "flipud", parts=True)
def _flip(build: Builder, x: Val, dims: Sequence[int] | None = None) -> Val:
    if dims is None:
        dims = (1,) if "fliplr" in build.origin.op else (0,)
    if not dims or not x.rank:
        return x
    return build.emit("flip", x, axes=tuple(x.axis(axis) for axis in dims))


@aten("roll", parts=True)
def _roll(
    build: Builder, x: Val, shifts: int | Sequence[Dim], dims: int | Sequence[int] = ()
) -> Val:
    amounts: Sequence[Dim] = (shifts,) if not isinstance(shifts, Sequence) else shifts
    axes = (dims,) if isinstance(dims, int) else tuple(dims)
    if not axes:
        flat = build.reshape(x, (x.type.elements,))
        return build.reshape(_rolled(build, flat, amounts[0], 0), x.shape)
    for amount, axis in zip(amounts, axes, strict=True):
        x = _rolled(build, x, amount, x.axis(axis))
    return x


def _rolled(build: Builder, x: Val, amount: Dim, axis: int) -> Val:
    size = x.shape[axis]
    if amount == 0 or size == 0:
        return x
    if build.bounds(amount)[1] <= 0 and build.bounds(amount + size)[0] >= 0:
        amount = amount + size
    if build.bounds(amount)[0] < 0 or build.bounds(size - amount)[0] < 0:
        amount = symbolic.modulo(amount, size)
    if amount in (0, size):
        return x
    cut = size - amount
    return build.concat([build.slice(x, axis, cut, size), build.slice(x, axis, 0, cut)], axis)


@aten("rot90")
def _rot90(build: Builder, x: Val, k: int = 1, dims: Sequence[int] = (0, 1)) -> Val:
    a, b = (x.axis(axis) for axis in dims)
    for _ in range(k % 4):
        x = build.swap(build.emit("flip", x, axes=(b,)), a, b)
    return x


# --- padding --------------------------------------------------------------------------------


def _sides(x: Val, pad: Sequence[Dim]) -> list[tuple[int, Dim, Dim]]:
    """Axis, size before, size after: PyTorch lists them from the last axis on."""
    return [(x.rank - 1 - i, pad[2 * i], pad[2 * i + 1]) for i in range(len(pad) // 2)]


@aten("constant_pad_nd", both=True)
def _constant_pad(
    build: Builder, x: Val | Complex, pad: Sequence[Dim], value: Number = 0
) -> Val | Complex:
    if isinstance(x, Complex):
        return Complex(_padded_with(build, x.real, pad, value), _padded_with(build, x.imag, pad, 0))
    return _padded_with(build, x, pad, value)


def _padded_with(build: Builder, x: Val, pad: Sequence[Dim], value: Number) -> Val:
    low: list[Dim] = [0] * x.rank
    high: list[Dim] = [0] * x.rank
    for axis, before, after in _sides(x, pad):
        low[axis], high[axis] = before, after
    return build.pad(x, low, high, value)


@aten("pad", both=True)
def _pad(
    build: Builder, x: Val | Complex, pad: Sequence[Dim], mode: str = "constant",
    value: float | None = None,
) -> Val | Complex:  # fmt: skip
    if mode == "constant":
        return _constant_pad(build, x, pad, 0 if value is None else value)
    if isinstance(x, Complex):
        return Complex(*(_padded_from(build, part, pad, mode) for part in (x.real, x.imag)))
    return _padded_from(build, x, pad, mode)


def _padded_from(build: Builder, x: Val, pad: Sequence[Dim], mode: str) -> Val:
    """`x` with elements of its own around it."""
    for axis, before, after in _sides(x, pad):
        low, high = (min(s, 0) if isinstance(s, int) else 0 for s in (before, after))
        around = (before if low == 0 else 0, after if high == 0 else 0)
        if mode != "circular":  # elements that are cropped may still be repeated at the other end
            x = _extended(build, x, axis, *around, mode)
        x = build.slice(x, axis, -low, x.shape[axis] + high)
        if mode == "circular":
            x = _extended(build, x, axis, *around, mode)
    return x


def _extended(build: Builder, x: Val, axis: int, before: Dim, after: Dim, mode: str) -> Val:
    size = x.shape[axis]
    parts: list[Val] = []
    if before != 0:
        if mode == "reflect":
            parts.append(build.emit("flip", build.slice(x, axis, 1, before + 1), axes=(axis,)))
        elif mode == "circular":
            parts.append(build.slice(x, axis, size - before, size))
        else:
            edge = build.slice(x, axis, 0, 1)
            parts.append(build.expand(edge, (*x.shape[:axis], before, *x.shape[axis + 1 :])))
    parts.append(x)
    if after != 0:
        if mode == "reflect":
            inner = build.slice(x, axis, size - 1 - after, size - 1)
            parts.append(build.emit("flip", inner, axes=(axis,)))
        elif mode == "circular":
            parts.append(build.slice(x, axis, 0, after))
        else:
            edge = build.slice(x, axis, size - 1, size)
            parts.append(build.expand(edge, (*x.shape[:axis], after, *x.shape[axis + 1 :])))
    return build.concat(parts, axis)


@aten("reflection_pad1d", "reflection_pad2d", "reflection_pad3d", parts=True)
def _reflection_pad(build: Builder, x: Val, padding: Sequence[Dim]) -> Val:
    return _padded_from(build, x, padding, "reflect")


@aten("replication_pad1d", "replication_pad2d", "replication_pad3d", parts=True)
def _replication_pad(build: Builder, x: Val, padding: Sequence[Dim]) -> Val:
    return _padded_from(build, x, padding, "replicate")


# --- others ---------------------------------------------------------------------------------


@aten("diff")
def _diff(
    build: Builder, x: Val, n: int = 1, dim: int = -1, prepend: Val | None = None,
    append: Val | None = None,
) -> Val:  # fmt: skip
    if n == 0:  # PyTorch then leaves out what is to come before and after
        return x
    axis = x.axis(dim)
    parts = [part for part in (prepend, x, append) if part is not None]
    dtype = build.result().dtype
    x = build.concat([build.cast(part, dtype) for part in parts], axis)
    for _ in range(n):
        size = x.shape[axis]
        if size == 0:
            break
        late, early = build.slice(x, axis, 1, size), build.slice(x, axis, 0, size - 1)
        x = build.emit("xor" if dtype == "bool" else "sub", late, early)
    return x


@aten("meshgrid", "meshgrid.indexing")
def _meshgrid(build: Builder, tensors: Sequence[Val], *, indexing: str = "ij") -> tuple[Val, ...]:
    count = len(tensors)
    flat = [build.reshape(x, (x.type.elements,)) for x in tensors]
    order = list(range(count))
    if indexing == "xy" and count > 1:
        order[:2] = [1, 0]
    shape = tuple(flat[index].shape[0] for index in order)
    results = []
    for index, x in enumerate(flat):
        axis = order.index(index)
        spread = build.reshape(x, tuple(x.shape[0] if i == axis else 1 for i in range(count)))
        results.append(build.expand(spread, shape))
    return tuple(results)


@aten("broadcast_tensors")
def _broadcast_tensors(build: Builder, tensors: Sequence[Val]) -> tuple[Val, ...]:
    shape = broadcast_shape(*(x.shape for x in tensors))
    return tuple(build.expand(x, shape) for x in tensors)


@aten("tril", "triu")
def _triangle(build: Builder, x: Val, diagonal: Dim = 0) -> Val:
    keep = triangle(build, x.shape[-2], x.shape[-1], diagonal, "tril" in build.origin.op)
    return build.where(keep, x, False if x.dtype == "bool" else 0)


def triangle(build: Builder, rows: Dim, columns: Dim, diagonal: Dim, lower: bool) -> Val:
    """bool [rows, columns]: at or below (above) the diagonal."""
    row = build.unsqueeze(build.iota(rows, start=diagonal), 1)
    return build.emit("ge" if lower else "le", row, build.iota(columns))


@aten("diag", "diag_embed")
def _diag(build: Builder, x: Val, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Val:
    if x.rank == 2 and "diag_embed" not in build.origin.op:
        length = build.result().shape[0]
        places = (
            build.iota(length, start=max(-offset, 0)),
            build.iota(length, start=max(offset, 0)),
        )
        return build.emit("index", x, *places, axes=(0, 1))
    rank = x.rank + 1
    size = x.shape[-1] + abs(offset)
    row = build.unsqueeze(build.iota(size, start=offset), 1)
    on_diagonal = build.emit("eq", row, build.iota(size))
    low = (*(0,) * (x.rank - 1), max(-offset, 0))
    high = (*(0,) * (x.rank - 1), max(offset, 0))
    wide = build.unsqueeze(build.pad(x, low, high, 0), x.rank)
    result = build.where(on_diagonal, wide, False if x.dtype == "bool" else 0)
    a, b = dim1 % rank, dim2 % rank
    perm: list[int] = []
    rest = iter(range(rank - 2))
    for axis in range(rank):
        perm.append(rank - 2 if axis == a else rank - 1 if axis == b else next(rest))
    return build.transpose(result, perm)


@aten("trace")
def _trace(build: Builder, x: Val) -> Val:
    rows, columns = x.shape
    keep = build.emit("eq", build.unsqueeze(build.iota(rows), 1), build.iota(columns))
    return build.reduce("reduce_sum", build.where(keep, x, 0), (0, 1))


@aten("pixel_shuffle")
def _pixel_shuffle(build: Builder, x: Val, upscale_factor: int) -> Val:
    r = upscale_factor
    *lead, channels, height, width = x.shape
    split = build.reshape(x, (*lead, channels // (r * r), r, r, height, width))
    n = len(lead)
    moved = build.transpose(split, (*range(n), n, n + 3, n + 1, n + 4, n + 2))
    return build.reshape(moved, build.result().shape)


@aten("pixel_unshuffle")
def _pixel_unshuffle(build: Builder, x: Val, downscale_factor: int) -> Val:
    r = downscale_factor
    *lead, channels, height, width = x.shape
    split = build.reshape(x, (*lead, channels, height // r, r, width // r, r))
    n = len(lead)
    moved = build.transpose(split, (*range(n), n, n + 2, n + 4, n + 1, n + 3))
    return build.reshape(moved, build.result().shape)


@aten("channel_shuffle")
def _channel_shuffle(build: Builder, x: Val, groups: int) -> Val:
    batch, channels, *rest = x.shape
    split = build.reshape(x, (batch, groups, channels // groups, *rest))
    return build.reshape(build.swap(split, 1, 2), x.shape)
