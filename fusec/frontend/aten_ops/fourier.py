"""Discrete Fourier transforms as products with their matrices, which are made of sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fusec.frontend.aten_ops.base import Builder, Complex, Val, aten
from fusec.symbolic import Dim

_NORMS = {"forward": (1.0, 0.0), "ortho": (0.5, 0.5), "backward": (0.0, 1.0), None: (0.0, 1.0)}
"""The power of 1/n that a transform, and its inverse, is scaled by."""


def _matrix(build: Builder, rows: Dim, columns: Dim, n: Dim, dtype: str) -> tuple[Val, Val]:
    """cos and sin of 2 pi i j / n; the product is reduced first, so that the angle stays exact."""
    product = build.unsqueeze(build.iota(rows), 1) * build.iota(columns)
    turn = build.cast(product % n, dtype)
    size = build.cast(build.scalar(n, "i64"), dtype)
    angle = turn * (2 * math.pi) / size
    return build.emit("cos", angle), build.emit("sin", angle)


def _scaled(build: Builder, x: Val, n: Dim, power: float) -> Val:
    if power == 0:
        return x
    size = build.cast(build.scalar(n, "i64"), x.dtype)
    return x / (build.emit("sqrt", size) if power == 0.5 else size)


def _times(build: Builder, x: Val, matrix: Val, axis: int) -> Val:
    """`matrix` [in, out] applied along `axis`."""
    moved = build.move(x, axis, x.rank - 1)
    if moved.rank == 1:
        product = build.squeeze(build.emit("matmul", build.unsqueeze(moved, 0), matrix), 0)
    else:
        product = build.emit("matmul", moved, matrix)
    return build.move(product, x.rank - 1, axis)


def _sized(build: Builder, x: Val, axis: int, n: Dim | None) -> Val:
    """`x` cut or filled with zeros to `n` along `axis`."""
    size = x.shape[axis]
    if n is None or n == size:
        return x
    if build.bounds(n - size)[1] <= 0:
        return build.slice(x, axis, 0, n)
    high = tuple(n - size if i == axis else 0 for i in range(x.rank))
    return build.pad(x, (0,) * x.rank, high, 0)


def transform(
    build: Builder, x: Val | Complex, n: Dim | None, dim: int, norm: str | None, inverse: bool
) -> Complex:
    """The transform along one axis."""
    real = x.real if isinstance(x, Complex) else build.floats(x)
    axis = real.axis(dim)
    real = _sized(build, real, axis, n)
    n = real.shape[axis]
    cos, sin = _matrix(build, n, n, n, real.dtype)
    sin = sin if inverse else -sin
    power = _NORMS[norm][1 if inverse else 0]
    a, b = _times(build, real, cos, axis), _times(build, real, sin, axis)
    if isinstance(x, Complex):
        imag = _sized(build, x.imag, axis, n)
        a = a - _times(build, imag, sin, axis)
        b = b + _times(build, imag, cos, axis)
    return Complex(_scaled(build, a, n, power), _scaled(build, b, n, power))


@aten("fft_fft", "fft_ifft", both=True)
def _fft(
    build: Builder, x: Val | Complex, n: Dim | None = None, dim: int = -1, norm: str | None = None
) -> Complex:
    return transform(build, x, n, dim, norm, "ifft" in build.origin.op)


@aten("fft_fftn", "fft_ifftn", both=True)
def _fftn(
    build: Builder, x: Val | Complex, s: Sequence[Dim] | None = None,
    dim: Sequence[int] | None = None, norm: str | None = None,
) -> Val | Complex:  # fmt: skip
    rank = x.real.rank if isinstance(x, Complex) else x.rank
    if dim is None:
        dim = range(rank) if s is None else range(rank - len(s), rank)
    for index, axis in enumerate(dim):
        size = None if s is None else s[index]
        x = transform(build, x, size, axis, norm, "ifft" in build.origin.op)
    return x


@aten("fft_fft2", "fft_ifft2", both=True)
def _fft2(
    build: Builder, x: Val | Complex, s: Sequence[Dim] | None = None,
    dim: Sequence[int] = (-2, -1), norm: str | None = None,
) -> Val | Complex:  # fmt: skip
    return _fftn(build, x, s, dim, norm)


def _by_number(number: int, inverse: bool) -> str | None:
    """PyTorch's inner operations number what to scale by: nothing, the root of n, n."""
    plain, whole = ("forward", "backward") if inverse else ("backward", "forward")
    return (plain, "ortho", whole)[number]


@aten("_fft_c2c", both=True)
def _fft_c2c(
    build: Builder, x: Complex, dim: Sequence[int], normalization: int, forward: bool
) -> Val | Complex:
    result: Val | Complex = x
    for axis in dim:
        norm = _by_number(normalization, not forward)
        result = transform(build, result, None, axis, norm, not forward)
    return result


@aten("_fft_r2c", both=True)
def _fft_r2c(
    build: Builder, x: Val, dim: Sequence[int], normalization: int, onesided: bool
) -> Val | Complex:
    norm = _by_number(normalization, False)
    result: Val | Complex = x
    for axis in dim:
        result = transform(build, result, None, axis, norm, False)
    assert isinstance(result, Complex)
    if not onesided:
        return result
    last = result.real.axis(dim[-1])
    kept = build.result().shape[last]
    return Complex(build.slice(result.real, last, 0, kept), build.slice(result.imag, last, 0, kept))


@aten("_fft_c2r", both=True)
def _fft_c2r(
    build: Builder, x: Complex, dim: Sequence[int], normalization: int, last_dim_size: Dim
) -> Val:
    norm = _by_number(normalization, True)
    result: Val | Complex = x
    for axis in dim[:-1]:
        result = transform(build, result, None, axis, norm, True)
    assert isinstance(result, Complex)
    return _irfft(build, result, last_dim_size, dim[-1], norm)


@aten("fft_rfft", both=True)
def _rfft(
    build: Builder, x: Val, n: Dim | None = None, dim: int = -1, norm: str | None = None
) -> Complex:
    axis = x.axis(dim)
    x = _sized(build, build.floats(x), axis, n)
    n = x.shape[axis]
    kept = build.result().shape[axis]
    cos, sin = _matrix(build, n, kept, n, x.dtype)
    power = _NORMS[norm][0]
    real = _scaled(build, _times(build, x, cos, axis), n, power)
    return Complex(real, _scaled(build, _times(build, x, -sin, axis), n, power))


@aten("fft_irfft", both=True)
def _irfft(
    build: Builder, x: Val | Complex, n: Dim | None = None, dim: int = -1, norm: str | None = None
) -> Val:
    """The half that is not there mirrors the one that is."""
    if isinstance(x, Val):
        x = build.floats(x)
        x = Complex(x, build.full(x.shape, 0, x.dtype))
    axis = x.real.axis(dim)
    n = build.result().shape[axis]
    kept = n // 2 + 1
    real, imag = _sized(build, x.real, axis, kept), _sized(build, x.imag, axis, kept)
    cos, sin = _matrix(build, kept, n, n, real.dtype)
    place = build.iota(kept)
    last = build.scalar(0 if isinstance(n, int) and n % 2 else n // 2, "i64")
    ends = build.emit("or", build.elementwise("eq", place, 0), build.emit("eq", place, last))
    weight = build.where(ends, 1.0, 2.0)
    weight = build.unsqueeze(build.cast(weight, real.dtype), 1)
    total = _times(build, real, cos * weight, axis) - _times(build, imag, sin * weight, axis)
    return _scaled(build, total, n, _NORMS[norm][1])
