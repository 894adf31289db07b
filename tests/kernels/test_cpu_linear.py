"""`linear` and `linear_glu` on the CPU against numpy in f64."""

from __future__ import annotations

from collections.abc import Sequence
from math import erf

import numpy as np
import pytest
from cpu_library import (
    DTYPES,
    MATRIX_LEVELS,
    ULP,
    Module,
    assert_close,
    bits,
    blank,
    cpu_library,
    decode,
    encode,
    random,
)

matrices = cpu_library("linear", levels=MATRIX_LEVELS)

HIGHEST, HIGH, MEDIUM = range(3)
GATED = {"silu": 1, "gelu": 2, "gelu_tanh": 3, "swiglu_oai": 8}


def pack(weight: np.ndarray, dtype: str) -> np.ndarray:
    n, k = weight.shape
    depth = -(-k // 32) * 32 if dtype == "bf16" else k
    padded = np.zeros((-(-n // 32) * 32, depth), weight.dtype)
    padded[:n, :k] = weight
    panels = padded.reshape(-(-n // 32), 32, depth)
    if dtype == "bf16":
        return panels.reshape(len(panels), 32, depth // 2, 2).transpose(0, 2, 1, 3).copy()
    return panels.transpose(0, 2, 1).copy()


def rows_of(m: int, *strides: int) -> list[int]:
    """Sizes and strides of rows in two outer dims where they divide by 2."""
    halves = 2 if m % 2 == 0 else 1
    rows = [size for step in strides for size in (0, 0, m // halves * step, step)]
    return [1, 1, halves, m // halves, *rows]


def params_of(
    m: int,
    n: int,
    k: int,
    x: int | None = None,
    out: int | None = None,
    residual: int = 0,
    activation: int = 0,
    bias: int = 0,
    precision: int = HIGHEST,
) -> list[int]:
    """`x`, `out`, `residual` are row strides."""
    rows = rows_of(m, k if x is None else x, n if out is None else out, residual)
    return [*rows, n, k, activation, bias, int(residual > 0), precision]


def linear(
    module: Module, x: np.ndarray, weight: np.ndarray, dtype: str, precision: int = HIGHEST
) -> np.ndarray:
    """x [M, K] times weight [N, K], both in storage form, as f64."""
    m, n = len(x), len(weight)
    params = params_of(m, n, x.shape[1], precision=precision)
    buffers = [x, pack(weight, dtype), blank((m, n), dtype)]
    return decode(module.call(f"fusec_linear_{dtype}", buffers, params)[-1], dtype)


def rms_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("m", "n", "k"),
    [
        *[(1, 33, 7), (2, 64, 64), (5, 1, 1), (13, 100, 515), (301, 77, 130)],
        *[(3, 40, 0), (301, 40, 0), (0, 8, 8)],
    ],
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
    buffers = [x, packed, bias, residual, blank((m, n + 2), dtype)]
    out = matrices.call(symbol, buffers, params)[-1]
    expected = np.maximum(product + decode(bias, dtype), 0) + decode(residual, dtype)[:, :n]
    assert_close(decode(out, dtype)[:, :n] / scale, expected / scale, tolerance)
    assert np.isnan(decode(out, dtype)[:, n:]).all(), "written between the rows"

    matrices.threads(1)
    single = matrices.call(symbol, buffers, params)[-1]
    assert single.tobytes() == out.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_of_rows(matrices: Module, dtype: str) -> None:
    """Each one ends in other tiles; a row has the same sums however many there are after it."""
    rng = np.random.default_rng(7)
    n, k, most = 37, 300, 70
    x, weight = random(rng, (most, k), dtype), random(rng, (n, k), dtype)
    expected = decode(x, dtype) @ decode(weight, dtype).T
    packed, scale = pack(weight, dtype), float(np.sqrt(k))
    for m in range(1, most + 1):
        out = matrices.call(
            f"fusec_linear_{dtype}",
            [x[:m], packed, blank((m, n), dtype)],
            params_of(m, n, k),
        )[-1]
        assert_close(decode(out, dtype) / scale, expected[:m] / scale, ULP[dtype] * 2 + 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "k"), [(100, 1200), (1100, 64), (145, 2900)])
def test_blocks_of_rows(matrices: Module, dtype: str, m: int, k: int) -> None:
    """More rows than a block holds, for one, two and five threads."""
    rng = np.random.default_rng(m)
    n = 70
    x, weight = random(rng, (m, k), dtype), random(rng, (n, k), dtype)
    expected = decode(x, dtype) @ decode(weight, dtype).T
    scale = float(np.sqrt(k))
    results = []
    for threads in (1, 2, 5):
        matrices.threads(threads)
        results.append(linear(matrices, x, weight, dtype))
    assert_close(results[0] / scale, expected / scale, ULP[dtype] * 2 + 1e-6)
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])


@pytest.mark.parametrize("matrices", ["emulated", "sapphirerapids"], indirect=True)
@pytest.mark.parametrize("k", [544, 1100])
def test_ways_to_pass_by_a_panel_give_the_same_sums(matrices: Module, k: int) -> None:
    """The first products of many rows are made in several ways, to find the fastest."""
    rng = np.random.default_rng(k)
    x, panel = random(rng, (130, k), "bf16"), random(rng, (32, k), "bf16")
    expected = decode(x, "bf16") @ decode(panel, "bf16").T
    matrices.threads(1)
    out = linear(matrices, x, np.tile(panel, (40, 1)), "bf16").reshape(130, 40, 32)
    scale = float(np.sqrt(k))
    assert_close(out[:, 0] / scale, expected / scale, ULP["bf16"] * 2)
    assert (out == out[:, :1]).all()


@pytest.mark.parametrize("m", [2, 8, 64])
def test_long_sums_keep_f32_accuracy(matrices: Module, m: int) -> None:
    rng = np.random.default_rng(1)
    x, weight = random(rng, (m, 8192), "f32"), random(rng, (40, 8192), "f32")
    expected = x.astype(np.float64) @ weight.astype(np.float64).T
    assert rms_error(linear(matrices, x, weight, "f32"), expected) < 5e-7


@pytest.mark.parametrize(("precision", "most"), [(HIGHEST, 4e-7), (HIGH, 3e-5), (MEDIUM, 4e-3)])
def test_precision(matrices: Module, precision: int, most: float) -> None:
    rng = np.random.default_rng(2)
    x, weight = random(rng, (70, 1000), "f32"), random(rng, (40, 1000), "f32")
    expected = x.astype(np.float64) @ weight.astype(np.float64).T
    error = rms_error(linear(matrices, x, weight, "f32", precision), expected)
    assert error < most


@pytest.mark.parametrize("m", [3, 40])
def test_factors_of_all_sizes(matrices: Module, m: int) -> None:
    """Exponents all over the range of f32, whose products are in it."""
    rng = np.random.default_rng(3)
    exponents = rng.integers(-60, 60, (m, 200))
    x = (rng.standard_normal((m, 200)) * 2.0**exponents).astype(np.float32)
    weight = (rng.standard_normal((33, 200)) * 2.0 ** rng.integers(-60, 60, (33, 200))).astype(
        np.float32
    )
    wide_x, wide_weight = x.astype(np.float64), weight.astype(np.float64)
    expected, sizes = wide_x @ wide_weight.T, np.abs(wide_x) @ np.abs(wide_weight).T
    error = np.abs(linear(matrices, x, weight, "f32") - expected) / sizes
    assert error.max() < 1e-6


def test_f16_factors_are_exact_in_planes(matrices: Module) -> None:
    """Small subnormal numbers and the largest ones count as much as others."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    x = every[np.isfinite(every)].reshape(-1, 496)  # [128, 496]
    weight = np.eye(496, dtype=np.float16)[:64]
    np.testing.assert_array_equal(linear(matrices, x, weight, "f16"), x[:, :64].astype(np.float64))


@pytest.mark.parametrize("m", [14, 70])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_reach_only_their_rows(matrices: Module, dtype: str, m: int) -> None:
    values = np.ones((m, 40), np.float32)
    values[5, 39] = np.nan
    values[7, 3] = np.inf
    values[9, 3] = -np.inf
    values[11, 3], values[11, 4] = np.inf, -np.inf
    weight = np.full((33, 40), 1.5 if dtype == "bf16" else 1.2345, np.float32)
    x, stored = encode(values, dtype), encode(weight, dtype)
    out = linear(matrices, x, stored, dtype)
    assert np.isnan(out[5]).all()
    assert (out[7] == np.inf).all()
    assert (out[9] == -np.inf).all()
    assert np.isnan(out[11]).all()
    rest = np.delete(out, [5, 7, 9, 11], 0)
    assert_close(rest, np.full_like(rest, 40 * decode(stored, dtype)[0, 0]), ULP[dtype] * 2 + 1e-6)


@pytest.mark.parametrize("m", [2, 33])
def test_the_largest_and_smallest_f32(matrices: Module, m: int) -> None:
    """What a plane of bf16 cannot hold is as in f32, or lost where it is below 2**-126."""
    largest = np.finfo(np.float32).max
    x = np.zeros((m, 64), np.float32)
    x[0, 0], x[1, 0] = largest, -largest
    x[1, 1] = np.float32(2.0**-126)
    weight = np.zeros((34, 64), np.float32)
    weight[0, 0], weight[1, 0], weight[2, 0] = 1, 0.5, 2
    weight[3, 1] = 1
    out = linear(matrices, x, weight, "f32")
    assert out[0, :3].tolist() == [largest, largest / 2, np.inf]
    assert out[1, :3].tolist() == [-largest, -largest / 2, -np.inf]
    assert out[1, 3] in (0, 2.0**-126)
    assert (out[2:] == 0).all()


def test_nan_of_every_bit(matrices: Module) -> None:
    """A NaN whose fraction is all ones is one after rounding to bf16 as well."""
    x = np.ones((40, 33), np.float32)
    x[3, 2] = np.array(0x7FFFFFFF, np.uint32).view(np.float32)
    x[4, 2] = np.array(0xFFFFFFFF, np.uint32).view(np.float32)
    weight = np.ones((8, 33), np.float32)
    for precision in (HIGHEST, HIGH, MEDIUM):
        out = linear(matrices, x, weight, "f32", precision)
        assert np.isnan(out[3:5]).all()
        assert (np.delete(out, [3, 4], 0) == 33).all()


def gated(gate: np.ndarray, up: np.ndarray, activation: str, alpha: float, limit: float) -> object:
    """activation(gate) * up."""
    if activation == "swiglu_oai":
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
        return gate / (1 + np.exp(-alpha * gate)) * (up + 1)
    if activation == "silu":
        return gate / (1 + np.exp(-gate)) * up
    if activation == "gelu":
        return 0.5 * gate * (1 + np.vectorize(erf)(gate / np.sqrt(2))) * up
    inner = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
    return 0.5 * gate * (1 + np.tanh(inner)) * up


def pack_pairs(gate: np.ndarray, up: np.ndarray, dtype: str) -> np.ndarray:
    return np.stack((pack(gate, dtype), pack(up, dtype)), axis=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", list(GATED))
@pytest.mark.parametrize(("m", "n", "k"), [(1, 33, 40), (9, 70, 64), (75, 40, 100), (4, 8, 0)])
def test_linear_glu(matrices: Module, dtype: str, activation: str, m: int, n: int, k: int) -> None:
    rng = np.random.default_rng(n)
    x = random(rng, (m, k + 5), dtype)
    gate, up = (random(rng, (n, k), dtype) for _ in range(2))
    bias = random(rng, (2, n), dtype)
    alpha, limit = 1.7, 7.0

    # Rows of x are scaled so that the activation is not saturated.
    x = encode(decode(x, dtype) / max(1.0, float(np.sqrt(k))), dtype)

    def reference(biases: Sequence[np.ndarray | float]) -> np.ndarray:
        wide = decode(x, dtype)[:, :k]
        gates, ups = (
            wide @ decode(part, dtype).T + extra
            for part, extra in zip((gate, up), biases, strict=True)
        )
        return np.asarray(gated(gates, ups, activation, alpha, limit))

    packed = pack_pairs(gate, up, dtype)
    for has_bias in (0, 1):
        numbers = [GATED[activation], bits(alpha), bits(limit), has_bias, HIGHEST]
        params = [*rows_of(m, k + 5, n + 2), n, k, *numbers]
        buffers = [x, packed, *([bias] if has_bias else []), blank((m, n + 2), dtype)]
        out = matrices.call(f"fusec_linear_glu_{dtype}", buffers, params)[-1]
        expected = reference([*decode(bias, dtype)] if has_bias else [0.0, 0.0])
        assert_close(decode(out, dtype)[:, :n], expected, ULP[dtype] * 2 + 4e-6)
        assert np.isnan(decode(out, dtype)[:, n:]).all(), "written between the rows"


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_results_in_f32(matrices: Module, dtype: str) -> None:
    rng = np.random.default_rng(5)
    m, n, k = 50, 40, 96
    x, gate, up = (random(rng, (rows, k), dtype) for rows in (m, n, n))
    gates, ups = (decode(x, dtype) @ decode(part, dtype).T for part in (gate, up))
    out = matrices.call(
        f"fusec_linear_{dtype}_f32",
        [x, pack(gate, dtype), blank((m, n), "f32")],
        params_of(m, n, k),
    )[-1]
    assert_close(out.astype(np.float64) / 10, gates / 10, 1e-6)
    params = [*rows_of(m, k, n), n, k, GATED["silu"], 0, 0, 0, HIGHEST]
    out = matrices.call(
        f"fusec_linear_glu_{dtype}_f32",
        [x, pack_pairs(gate, up, dtype), blank((m, n), "f32")],
        params,
    )[-1]
    expected = np.asarray(gated(gates, ups, "silu", 0, 0))
    assert_close(out.astype(np.float64), expected, 2e-6)
