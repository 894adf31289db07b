"""`conv` on the CPU against the reference of the operation, in f64."""

from __future__ import annotations

import numpy as np
import pytest
from cpu_library import DTYPES, ULP, Module, assert_close, blank, decode, matrices, random

from fusec.ir.ops.linear_algebra import convolve

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
    plain = matrices.call(f"fusec_conv_{dtype}", [x, weight, out], [*params, 0])[-1]
    assert_close(decode(plain, dtype) / scale, expected / scale, tolerance)
    expected = expected + decode(bias, dtype).reshape(-1, *(1,) * len(spatial))
    shifted = matrices.call(f"fusec_conv_{dtype}", [x, weight, bias, out], [*params, 1])[-1]
    assert_close(decode(shifted, dtype) / scale, expected / scale, tolerance)
