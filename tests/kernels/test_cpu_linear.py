"""`linear` on the CPU against numpy in f64."""

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
    encode,
    matrices,
    random,
)

__all__ = ["matrices"]


def pack(weight: np.ndarray, dtype: str) -> np.ndarray:
    n, k = weight.shape
    depth = -(-k // 32) * 32 if dtype == "bf16" else k
    padded = np.zeros((-(-n // 32) * 32, depth), weight.dtype)
    padded[:n, :k] = weight
    panels = padded.reshape(-(-n // 32), 32, depth)
    if dtype == "bf16":
        return panels.reshape(len(panels), 32, depth // 2, 2).transpose(0, 2, 1, 3).copy()
    return panels.transpose(0, 2, 1).copy()


def params_of(
    m: int,
    n: int,
    k: int,
    x: int | None = None,
    out: int | None = None,
    residual: int = 0,
    activation: int = 0,
    bias: int = 0,
) -> list[int]:
    """Rows in two outer dims where they divide by 2; `x`, `out`, `residual` are row strides."""
    halves = 2 if m % 2 == 0 else 1
    strides = [k if x is None else x, n if out is None else out, residual]
    rows = [size for step in strides for size in (0, 0, m // halves * step, step)]
    return [1, 1, halves, m // halves, *rows, n, k, activation, bias, int(residual > 0)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(1, 33, 7), (2, 64, 64), (5, 1, 1), (13, 100, 515), (301, 77, 130), (3, 40, 0), (0, 8, 8)],
)
def test_linear(matrices: Module, dtype: str, m: int, n: int, k: int) -> None:
    rng = np.random.default_rng(m * 1000 + n)
    x = random(rng, (m, k + 3), dtype)
    weight = random(rng, (n, k), dtype)
    bias = random(rng, (n,), dtype)
    residual = random(rng, (m, n + 1), dtype)
    symbol = f"fusec_linear_{dtype}"
    product = decode(x, dtype)[:, :k] @ decode(weight, dtype).T
    scale = max(1.0, float(np.sqrt(k)))
    tolerance = ULP[dtype] * 2 + 1e-6

    out = matrices.call(
        symbol, [x, pack(weight, dtype), blank((m, n), dtype)], params_of(m, n, k, x=k + 3)
    )[-1]
    assert_close(decode(out, dtype) / scale, product / scale, tolerance)

    params = params_of(m, n, k, x=k + 3, out=n + 2, residual=n + 1, activation=4, bias=1)
    packed = pack(weight, dtype)
    out = matrices.call(symbol, [x, packed, bias, residual, blank((m, n + 2), dtype)], params)[-1]
    expected = np.maximum(product + decode(bias, dtype), 0) + decode(residual, dtype)[:, :n]
    assert_close(decode(out, dtype)[:, :n] / scale, expected / scale, tolerance)
    assert np.isnan(decode(out, dtype)[:, n:]).all(), "written between the rows"

    matrices.threads(1)
    single = matrices.call(symbol, [x, packed, bias, residual, blank((m, n + 2), dtype)], params)[
        -1
    ]
    assert single.tobytes() == out.tobytes()


def test_long_sums_keep_f32_accuracy(matrices: Module) -> None:
    rng = np.random.default_rng(1)
    x, weight = random(rng, (2, 8192), "f32"), random(rng, (40, 8192), "f32")
    out = matrices.call(
        "fusec_linear_f32",
        [x, pack(weight, "f32"), blank((2, 40), "f32")],
        params_of(2, 40, 8192),
    )[-1]
    expected = x.astype(np.float64) @ weight.astype(np.float64).T
    error = np.sqrt(np.mean((out - expected) ** 2) / np.mean(expected**2))
    assert error < 5e-7


def test_nan_reaches_only_its_row(matrices: Module) -> None:
    x = np.ones((14, 40), np.float32)
    x[5, 39] = np.nan
    for dtype in DTYPES:
        out = matrices.call(
            f"fusec_linear_{dtype}",
            [
                encode(x, dtype),
                pack(encode(np.ones((33, 40)), dtype), dtype),
                blank((14, 33), dtype),
            ],
            params_of(14, 33, 40),
        )[-1]
        values = decode(out, dtype)
        assert np.isnan(values[5]).all()
        assert (np.delete(values, 5, 0) == 40).all()
