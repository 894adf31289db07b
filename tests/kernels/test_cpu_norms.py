"""The norms on the CPU against numpy in f64."""

from __future__ import annotations

import numpy as np
import pytest
from cpu_library import (
    DTYPES,
    ULP,
    Module,
    assert_close,
    bits,
    blank,
    cpu_library,
    decode,
    random,
)

module = cpu_library("rms_norm", "layer_norm", "l2_norm")

SIZES = (1, 7, 16, 33, 128, 1000)
EPS = 1e-5


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


def rms(x: np.ndarray, weight: np.ndarray | float) -> np.ndarray:
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * weight)


def weight_of(
    rng: np.random.Generator, n: int, dtype: str, kind: int
) -> tuple[list[np.ndarray], np.ndarray | float]:
    if kind == 0:
        return [], 1.0
    stored = {1: dtype, 2: "f32", 3: "bf16"}[kind]
    weight = random(rng, (n,), stored)
    return [weight], decode(weight, stored)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("kind", "offset"), [(0, 0), (1, 0), (2, 1), (3, 1)])
def test_rms_norm_of_a_strided_slice(
    module: Module, dtype: str, n: int, kind: int, offset: int
) -> None:
    rng = np.random.default_rng(n)
    x = random(rng, (3, 5, 2, n + 4), dtype)
    weights, factor = weight_of(rng, n, dtype, kind)
    # Rows [a, c, b] of x[a, b, c, 3:3+n]: a transposed head split, no copy.
    width = n + 4
    outer = [1, 3, 2, 5, 0, 10 * width, width, 2 * width, 0, 10 * n, 5 * n, n]
    out = module.call(
        f"fusec_rms_norm_{dtype}",
        [x.reshape(-1)[3:], *weights, blank((3, 2, 5, n), dtype)],
        [*outer, n, bits(EPS), kind, offset],
    )[-1]
    expected = rms(
        decode(x, dtype)[..., 3 : 3 + n].swapaxes(1, 2), factor + (offset if kind else 0)
    )
    assert_close(decode(out, dtype), expected, 1.01 * ULP[dtype] + 4e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_add_rms_norm(module: Module, dtype: str, n: int) -> None:
    rng = np.random.default_rng(n)
    x, residual = random(rng, (37, n), dtype), random(rng, (37, n + 1), dtype)
    weights, factor = weight_of(rng, n, dtype, 1)
    rows = [1, 1, 1, 37]
    buffers = [x, residual, *weights, blank((37, n), dtype), blank((37, n), dtype)]
    strides = [0, 0, 0, n, 0, 0, 0, n + 1, 0, 0, 0, n, 0, 0, 0, n]
    params = [*rows, *strides, n, bits(EPS), 1, 0]
    *_, out, total = module.call(f"fusec_add_rms_norm_{dtype}", buffers, params)
    expected = decode(x, dtype) + decode(residual, dtype)[:, :n]
    assert_close(decode(total, dtype), expected, 1.01 * ULP[dtype])
    assert_close(decode(out, dtype), rms(expected, factor), 1.01 * ULP[dtype] + 4e-7)
    module.threads(1)
    again = module.call(f"fusec_add_rms_norm_{dtype}", buffers, params)
    assert again[-2].tobytes() == out.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", [1, 6])
def test_gated_rms_norm(
    module: Module, dtype: str, n: int, norm_first: bool, activation: int
) -> None:
    rng = np.random.default_rng(n)
    x, gate = random(rng, (11, n), dtype), random(rng, (11, n), dtype)
    weights, factor = weight_of(rng, n, dtype, 2)
    strides = [0, 0, 0, n] * 3
    out = module.call(
        f"fusec_gated_rms_norm_{dtype}",
        [x, *weights, gate, blank((11, n), dtype)],
        [1, 1, 1, 11, *strides, n, bits(EPS), 2, 0, activation, int(norm_first)],
    )[-1]
    wide, factor_of_gate = decode(x, dtype), sigmoid(decode(gate, dtype))
    if activation == 1:
        factor_of_gate = factor_of_gate * decode(gate, dtype)
    expected = (
        rms(wide, factor) * factor_of_gate if norm_first else rms(wide * factor_of_gate, factor)
    )
    assert_close(decode(out, dtype), expected, 1.01 * ULP[dtype] + 6e-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dual_rms_norm(module: Module, dtype: str) -> None:
    rng = np.random.default_rng(3)
    a, b = random(rng, (9, 160), dtype), random(rng, (9, 33), dtype)
    weight_a, factor_a = weight_of(rng, 96, dtype, 1)
    buffers = [a, *weight_a, blank((9, 96), dtype), b, blank((9, 33), dtype)]
    first = [1, 1, 1, 9, 0, 0, 0, 160, 0, 0, 0, 96, 96, bits(EPS), 1, 0]
    second = [1, 1, 1, 9, 0, 0, 0, 33, 0, 0, 0, 33, 33, bits(EPS), 0, 0]
    after = module.call(f"fusec_dual_rms_norm_{dtype}", buffers, first + second)
    assert_close(
        decode(after[2], dtype), rms(decode(a, dtype)[:, :96], factor_a), 1.01 * ULP[dtype] + 4e-7
    )
    assert_close(decode(after[4], dtype), rms(decode(b, dtype), 1.0), 1.01 * ULP[dtype] + 4e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kinds", [(0, 0), (1, 2), (2, 1)])
def test_layer_norm(module: Module, dtype: str, n: int, kinds: tuple[int, int]) -> None:
    rng = np.random.default_rng(n)
    x = random(rng, (6, n), dtype)
    weights, factor = weight_of(rng, n, dtype, kinds[0])
    biases, shift = weight_of(rng, n, dtype, kinds[1])
    out = module.call(
        f"fusec_layer_norm_{dtype}",
        [x, *weights, *biases, blank((6, n), dtype)],
        [1, 1, 1, 6, 0, 0, 0, n, 0, 0, 0, n, n, bits(EPS), *kinds],
    )[-1]
    wide = decode(x, dtype)
    centred = wide - wide.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS) * factor
    if kinds[1]:
        expected = expected + shift
    assert_close(decode(out, dtype), expected, 1.01 * ULP[dtype] + 1e-6)


def test_layer_norm_of_a_large_mean(module: Module) -> None:
    x = (1e4 + np.random.default_rng(0).standard_normal((4, 512))).astype(np.float32)
    out = module.call(
        "fusec_layer_norm_f32",
        [x, blank((4, 512), "f32")],
        [1, 1, 1, 4, 0, 0, 0, 512, 0, 0, 0, 512, 512, bits(EPS), 0, 0],
    )[-1]
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    assert_close(out, centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS), 5e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("use_max", [False, True])
def test_l2_norm(module: Module, dtype: str, n: int, use_max: bool) -> None:
    rng = np.random.default_rng(n)
    x = random(rng, (5, n), dtype)
    x[2] = 0
    out = module.call(
        f"fusec_l2_norm_{dtype}",
        [x, blank((5, n), dtype)],
        [1, 1, 1, 5, 0, 0, 0, n, 0, 0, 0, n, n, bits(EPS), int(use_max)],
    )[-1]
    wide = decode(x, dtype)
    squares = (wide**2).sum(-1, keepdims=True)
    length = np.maximum(np.sqrt(squares), EPS) if use_max else np.sqrt(squares + EPS)
    assert_close(decode(out, dtype), wide / length, 1.01 * ULP[dtype] + 4e-7)
