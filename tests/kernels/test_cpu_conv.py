"""`conv` and its epilogue on the CPU against the references of the operations, in f64."""

from __future__ import annotations

import numpy as np
import pytest
from cpu_library import DTYPES, ULP, Module, assert_close, blank, decode, matrices, random

from fusec.ir.ops.linear_algebra import convolve
from fusec.ir.ops.raised import ACTIVATIONS
from fusec.kernels.cpu import ACTIVATIONS as NUMBERS

__all__ = ["matrices"]

# input spatial, channels, filters, groups, kernel, stride, padding, dilation
Sizes = tuple[int, ...]

CASES: list[tuple[Sizes, int, int, int, Sizes, Sizes, Sizes, Sizes]] = [
    ((37,), 3, 5, 1, (4,), (1,), (2,), (1,)),
    ((12, 17), 4, 40, 2, (3, 2), (2, 1), (1, 1), (1, 2)),
    ((9, 40), 6, 6, 6, (3, 3), (1, 1), (1, 1), (1, 1)),
    ((9, 10), 6, 12, 6, (3, 3), (2, 2), (0, 2), (1, 1)),
    ((4, 5, 6), 2, 3, 1, (2, 3, 1), (1, 2, 1), (1, 0, 0), (2, 1, 1)),
    ((3,), 2, 4, 1, (3,), (1,), (5,), (1,)),
    ((16, 16), 3, 150, 1, (16, 16), (16, 16), (0, 0), (1, 1)),
    # More than one stretch of the depth, block of filters and panel.
    ((10, 11), 60, 100, 1, (3, 3), (1, 1), (1, 1), (1, 1)),
    # Planes that no tap reads, two that lie apart, and several channels to add up.
    ((9, 10), 4, 4, 4, (1, 2), (3, 2), (1, 1), (1, 3)),
    ((7, 5), 12, 4, 2, (3, 3), (2, 1), (0, 1), (2, 1)),
    ((1, 1), 70, 6, 2, (1, 1), (1, 1), (0, 0), (1, 1)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_conv(
    matrices: Module, dtype: str, case: tuple[Sizes, int, int, int, Sizes, Sizes, Sizes, Sizes]
) -> None:
    spatial, channels, filters, groups, kernel, stride, padding, dilation = case
    rng = np.random.default_rng(channels)
    # Channels last in memory.
    x = random(rng, (2, *spatial, channels), dtype)
    weight = random(rng, (filters, channels // groups, *kernel), dtype)
    bias = random(rng, (filters,), dtype)
    view = np.moveaxis(x, -1, 1)
    expected = convolve(
        decode(view, dtype), decode(weight, dtype), stride, padding, dilation, groups
    )
    missing = 3 - len(spatial)

    def three(values: tuple[int, ...], fill: int) -> list[int]:
        return [fill] * missing + list(values)

    strides = [step // x.itemsize for step in view.strides]
    params = [2, channels, filters, groups, *three(spatial, 1), *three(expected.shape[2:], 1)]
    params += [*three(kernel, 1), *three(stride, 1), *three(padding, 0), *three(dilation, 1)]
    params += [*strides[:2], *three(tuple(strides[2:]), 0)]
    scale = np.sqrt(weight[0].size)
    tolerance = 2 * ULP[dtype] + 1e-6
    out = blank(expected.shape, dtype)
    plain = matrices.call(f"fusec_conv_{dtype}", [x, weight, out], [*params, 0, 0, 0, 0])[-1]
    assert_close(decode(plain, dtype) / scale, expected / scale, tolerance)
    per_filter = (-1, *(1,) * len(spatial))
    shifted = matrices.call(f"fusec_conv_{dtype}", [x, weight, bias, out], [*params, 1, 0, 0, 0])[
        -1
    ]
    wanted = expected + decode(bias, dtype).reshape(per_filter)
    assert_close(decode(shifted, dtype) / scale, wanted / scale, tolerance)

    factor, addend = (rng.standard_normal(filters, np.float32) for _ in range(2))
    residual = random(rng, expected.shape, dtype)
    scaled = expected * factor.reshape(per_filter) + addend.reshape(per_filter)
    joined = scaled + decode(residual, dtype)
    for flags, operands, sums in (
        ((2, 1, 0), (factor, addend), scaled),
        ((2, 1, 1), (factor, addend, residual), joined),
        ((0, 0, 1), (residual,), expected + decode(residual, dtype)),
    ):
        for name in ("none", "relu", "silu", "relu6", "hardswish"):
            given = [x, weight, *operands, out]
            got = matrices.call(f"fusec_conv_{dtype}", given, [*params, *flags, NUMBERS[name]])[-1]
            wanted = sums if name == "none" else ACTIVATIONS[name](sums)
            assert_close(decode(got, dtype) / scale, wanted / scale, 4 * tolerance)
