"""ATen's special functions, written with elementary ones in f64: exact to f32, close in f64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fusec.frontend.aten_ops.base import Builder, Val, aten

_STIRLING = (
    1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400,
)  # fmt: skip
"""Of log(gamma(x)) in 1/x, 1/x^3, ... (Abramowitz and Stegun, 6.1.41)."""

_LARGE = 10
"""From where on these eight terms are exact in f64."""


def _wide(build: Builder, x: Val) -> Val:
    return build.cast(build.floats(x), "f64")


def _result(build: Builder, x: Val) -> Val:
    return build.cast(x, build.result().dtype)


@aten("lgamma", "special_gammaln")
def _lgamma(build: Builder, x: Val) -> Val:
    x = _wide(build, x)
    mirrored = build.elementwise("le", x, 0)
    y = build.where(mirrored, -x + 1.0, x)
    # gamma(y) = gamma(y + 10) / (y (y + 1) ... (y + 9))
    small = build.elementwise("lt", y, _LARGE)
    inner = build.where(small, y, 0.0)
    product = inner
    for step in range(1, _LARGE):
        product = product * (inner + step)
    z = build.where(small, y + _LARGE, y)
    inverse = build.emit("reciprocal", z)
    series = _polynomial(_STIRLING, inverse * inverse) * inverse
    large = (z - 0.5) * (build.emit("log", z) - 1) + series + (math.log(2 * math.pi) - 1) / 2
    right = large - build.emit("log", build.where(small, product, 1.0))
    # gamma(x) gamma(1 - x) = pi / sin(pi x)
    sine = build.emit("abs", build.emit("sin", (x - build.emit("round", x)) * math.pi))
    left = -build.emit("log", sine) - right + math.log(math.pi)
    result = build.where(mirrored, left, right)
    return _result(build, build.where(build.emit("isinf", x), math.inf, result))


@aten("digamma", "special_digamma", "special_psi")
def _digamma(build: Builder, x: Val) -> Val:
    x = _wide(build, x)
    mirrored = build.elementwise("le", x, 0)
    y = build.where(mirrored, -x + 1.0, x)
    # psi(y) = psi(y + 10) - 1/y - 1/(y + 1) - ... - 1/(y + 9)
    small = build.elementwise("lt", y, _LARGE)
    steps = build.emit("reciprocal", y)
    for step in range(1, _LARGE):
        steps = steps + build.emit("reciprocal", y + step)
    z = build.where(small, y + _LARGE, y)
    inverse = build.emit("reciprocal", z)
    square = inverse * inverse
    slopes = [(2 * place + 1) * term for place, term in enumerate(_STIRLING)]
    large = build.emit("log", z) - inverse * 0.5 - _polynomial(slopes, square) * square
    right = large - build.where(small, steps, 0.0)
    # psi(1 - x) - psi(x) = pi / tan(pi x)
    turn = x - build.emit("round", x)
    left = right - build.emit("reciprocal", build.emit("tan", turn * math.pi)) * math.pi
    pole = build.where(build.elementwise("eq", x, 0), -build.emit("reciprocal", x), math.nan)
    left = build.where(build.elementwise("eq", turn, 0), pole, left)
    return _result(build, build.where(mirrored, left, right))


def _polynomial(terms: Sequence[float], x: Val) -> Val:
    """`terms[0] + terms[1] x + ...`, by Horner's rule."""
    result = x * terms[-1]
    for term in terms[-2:0:-1]:
        result = (result + term) * x
    return result + terms[0]


@aten("i0", "special_i0")
def _i0(build: Builder, x: Val) -> Val:
    return _bessel(build, x, "cosh", 0)


@aten("special_i1")
def _i1(build: Builder, x: Val) -> Val:
    return _bessel(build, x, "sinh", 1)


def _bessel(build: Builder, x: Val, function: str, order: int) -> Val:
    """The mean over angles t of `cos(t)**order * function(x cos(t))`.

    Of a periodic function a mean over few points is exact: these are enough up to where the result
    is infinite.
    """
    points = 60 if x.dtype == "f64" else 21
    angles = math.pi * (2 * np.arange(points) + 1) / (4 * points)
    cosines = build.array("cosines", np.cos(angles), "f64")
    each = build.emit(function, build.unsqueeze(_wide(build, x), -1) * cosines)
    if order:
        each = each * cosines
    return _result(build, build.reduce("reduce_mean", each, (-1,)))
