"""`matmul` and `grouped_mm` on the CPU against numpy in f64."""

from __future__ import annotations

import numpy as np
import pytest
from cpu_library import (
    DTYPES,
    ULP,
    Module,
    assert_close,
    blank,
    decode,
    matrices,
    random,
)

from fusec.kernels.cpu import pack_panels

__all__ = ["matrices"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 5, 9), (13, 70, 48), (150, 33, 31), (4, 300, 64)])
def test_matmul(matrices: Module, dtype: str, transposed: bool, m: int, n: int, k: int) -> None:
    rng = np.random.default_rng(m + n)
    a = random(rng, (2, 3, m, k), dtype)
    b = random(rng, (3, n, k) if transposed else (3, k, n), dtype)
    b_strides = [1, k] if transposed else [n, 1]
    # The batch of a is walked in transposed order; b has no outer batch.
    params = [1, 1, 3, 2, 0, 0, m * k, 3 * m * k, 0, 0, n * k, 0, 0, 0, 2 * m * n, m * n]
    params += [m, n, k, k, 1, *b_strides, n, 0]
    out = matrices.call(f"fusec_matmul_{dtype}", [a, b, blank((3, 2, m, n), dtype)], params)[-1]
    wide = decode(b, dtype).swapaxes(-1, -2) if transposed else decode(b, dtype)
    expected = np.swapaxes(decode(a, dtype) @ wide, 0, 1)
    scale = np.sqrt(k)
    assert_close(decode(out, dtype) / scale, expected / scale, 2 * ULP[dtype] + 1e-6)


@pytest.mark.parametrize("dtype", ["f64", "i64", "i32"])
@pytest.mark.parametrize("transposed", [False, True])
def test_matmul_of_other_dtypes(matrices: Module, dtype: str, transposed: bool) -> None:
    rng = np.random.default_rng(2)
    kind = {"f64": np.float64, "i64": np.int64, "i32": np.int32}[dtype]
    a = (rng.standard_normal((5, 11)) * 100).astype(kind)
    b = (rng.standard_normal((7, 11) if transposed else (11, 7)) * 100).astype(kind)
    bias = np.arange(7).astype(kind)
    params = [1, 1, 1, 1, *[0] * 12, 5, 7, 11, 11, 1, *([1, 11] if transposed else [7, 1]), 7, 1]
    out = np.full((5, 7), 77, kind)
    actual = matrices.call(f"fusec_matmul_{dtype}", [a, b, bias, out], params)[-1]
    assert_close(actual, a @ (b.T if transposed else b) + bias, 1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
def test_grouped_mm(matrices: Module, dtype: str) -> None:
    rng = np.random.default_rng(5)
    x, weights = random(rng, (30, 37), dtype), random(rng, (4, 50, 37), dtype)
    ends = np.array([7, 7, 20, 28], np.int32)
    params = [30, 37, 50, 4, 37, 50, 4, 0]
    buffers = [x, pack_panels(weights, dtype), ends, blank((30, 50), dtype)]
    out = matrices.call(f"fusec_grouped_mm_{dtype}", buffers, params)[-1]
    expected, begin = np.zeros((30, 50)), 0
    for weight, end in zip(decode(weights, dtype), ends, strict=True):
        expected[begin:end] = decode(x, dtype)[begin:end] @ weight.T
        begin = end
    assert_close(decode(out, dtype), expected, 2 * ULP[dtype] + 2e-6)
    buffers[2] = np.array([7, 7, 31, 28], np.int32)
    matrices.call(f"fusec_grouped_mm_{dtype}", buffers, params)
    assert matrices.error[:3] == (1, 31, 30)


@pytest.mark.parametrize("matrices", ["emulated"], indirect=True)
def test_grouped_mm_in_fewer_planes(matrices: Module) -> None:
    """Groups of many rows have as many bits as are asked for, a group of few all of them."""
    rng = np.random.default_rng(6)
    x, weights = random(rng, (77, 100), "f32"), random(rng, (3, 40, 100), "f32")
    ends = np.array([40, 50, 77], np.int32)
    many, few = slice(0, 40), slice(40, 77)
    pairs = zip(weights, np.split(x, ends[:-1]), strict=True)
    expected = np.concatenate([rows.astype(np.float64) @ weight.T for weight, rows in pairs])
    for precision, least, most in ((0, 0, 1e-6), (1, 2e-6, 4e-5), (2, 1e-3, 1e-2)):
        params = [77, 100, 40, 3, 100, 40, 4, precision]
        buffers = [x, pack_panels(weights, "f32"), ends, blank((77, 40), "f32")]
        out = matrices.call("fusec_grouped_mm_f32", buffers, params)[-1]
        error = np.abs(out - expected) / np.abs(expected).max()
        assert least < error[many].max() < most
        assert error[few].max() < 1e-6
