"""Gated activations, rope and softmax on the CPU against numpy in f64."""

from __future__ import annotations

import math
from collections.abc import Callable

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
    encode,
    random,
)

from fusec.kernels.cpu import ACTIVATIONS

module = cpu_library("silu_mul", "rope", "softmax")


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


def erf(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.vectorize(math.erf)(x))


REFERENCES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "silu": lambda x: x * sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "sigmoid": sigmoid,
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
}


@pytest.mark.parametrize("activation", list(REFERENCES))
def test_activations_over_their_range(module: Module, activation: str) -> None:
    x = np.concatenate([np.linspace(-12, 12, 4001), [0.0, -0.0, 1e-30, -80.0, 80.0, 3e38]])
    x = x.astype(np.float32)
    n = len(x)
    up = np.ones(n, np.float32)
    rows = [1, 1, 1, 1] + [0, 0, 0, n] * 3
    params = [*rows, n, 1, 1, ACTIVATIONS[activation], 0, 0]
    out = module.call("fusec_gated_activation_f32", [x, up, blank((n,), "f32")], params)[-1]
    with np.errstate(over="ignore"):
        expected = REFERENCES[activation](x.astype(np.float64)).astype(np.float32)
    # 1 + erf and 1 + tanh cancel in the negative tail, as they do in torch.
    floor = 0.5 if "gelu" in activation else 1e-2
    error = np.abs(out[:-1] - expected[:-1]) / np.maximum(np.abs(expected[:-1]), floor)
    assert error.max() < 2e-6
    assert out[-1] == expected[-1] or np.isinf(out[-1])
    x[:] = np.nan
    assert np.isnan(module.call("fusec_gated_activation_f32", [x, up, up], params)[-1]).all()


@pytest.mark.parametrize("activation", ["silu", "quick_gelu", "gelu_tanh", "swiglu_oai"])
def test_activations_far_below_zero(module: Module, activation: str) -> None:
    """Zero, however large the number that a tail of the sigmoid is multiplied by."""
    x = np.array([-90, -104, -1e4, -1e30, -3e38, -np.inf, np.nan], np.float32)
    params = [1, 1, 1, 1, *[0, 0, 0, len(x)] * 3, len(x), 1, 1, ACTIVATIONS[activation]]
    buffers = [x, np.ones_like(x), blank(x.shape, "f32")]
    params += [bits(1.702), bits(7.0)]
    out = module.call("fusec_gated_activation_f32", buffers, params)[-1]
    assert (np.abs(out[:5]) < 1e-35).all()
    assert np.isnan(out[5:]).all()


def test_silu_is_rounded_as_a_quotient(module: Module) -> None:
    """No worse than x / (1 + e^-x) in f32 with an exponential that is exact; signs of zeros."""
    x = np.random.default_rng(5).normal(size=1 << 18).astype(np.float32)
    x[:4] = 0.0, -0.0, np.inf, 3.4e38
    params = [1, 1, 1, 1, *[0, 0, 0, len(x)] * 3, len(x), 1, 1, ACTIVATIONS["silu"], 0, 0]
    buffers = [x, np.ones_like(x), blank(x.shape, "f32")]
    out = module.call("fusec_gated_activation_f32", buffers, params)[-1]
    assert out[:4].tobytes() == x[:4].tobytes()
    x, out = x[4:], out[4:]
    wide = x.astype(np.float64)
    exact = wide / (1 + np.exp(-wide))
    e = np.exp(-wide).astype(np.float32)
    stepwise = x / (np.float32(1) + e)
    assert np.linalg.norm(out - exact) < 1.05 * np.linalg.norm(stepwise - exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("n", [1, 15, 100])
def test_swiglu_oai_of_one_buffer(module: Module, dtype: str, interleaved: bool, n: int) -> None:
    rng = np.random.default_rng(n)
    both = encode(4 * decode(random(rng, (9, 2 * n), dtype), dtype), dtype)
    flat = both.reshape(-1)
    gate, up = (flat, flat[1:]) if interleaved else (flat, flat[n:])
    # Separate guarded copies of the same rows, as the kernel gets two addresses in one buffer.
    step = 2 if interleaved else 1
    rows = [1, 1, 3, 3, 0, 0, 6 * n, 2 * n, 0, 0, 6 * n, 2 * n, 0, 0, 3 * n, n]
    params = [*rows, n, step, step, ACTIVATIONS["swiglu_oai"], bits(1.702), bits(7.0)]
    out = module.call(f"fusec_gated_activation_{dtype}", [gate, up, blank((9, n), dtype)], params)[
        -1
    ]
    wide = decode(both, dtype)
    g, u = (wide[:, ::2], wide[:, 1::2]) if interleaved else (wide[:, :n], wide[:, n:])
    g, u = np.minimum(g, 7.0), np.clip(u, -7.0, 7.0)
    assert_close(decode(out, dtype), g * sigmoid(1.702 * g) * (u + 1), 1.01 * ULP[dtype] + 5e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("style", ["half", "interleaved", "deinterleave"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("depth", "rotary"), [(64, 64), (70, 34), (6, 2)])
@pytest.mark.parametrize("table", ["same", "f32"])
def test_rope(
    module: Module, dtype: str, style: str, full: bool, depth: int, rotary: int, table: str
) -> None:
    rng = np.random.default_rng(depth)
    batch, heads, length, half = 2, 3, 7, rotary // 2
    x = random(rng, (batch, length, heads, depth), dtype)  # read as [B, H, S, D]
    table_dtype = dtype if table == "same" else "f32"
    angles = rng.random((length, half)) * 6
    cos, sin = encode(np.cos(angles), table_dtype), encode(np.sin(angles), table_dtype)
    twice = style == "interleaved"
    if full:
        spread = (lambda t: t.repeat(2, -1)) if twice else (lambda t: np.concatenate((t, t), -1))
        stored_cos, stored_sin = spread(cos), spread(sin)
    else:
        stored_cos, stored_sin = cos, sin
    width = stored_cos.shape[1]
    rows = [1, batch, heads, length, 0, heads * length * depth, depth, heads * depth]
    rows += [0, 0, 0, width] * 2 + [0, heads * length * depth, length * depth, depth]
    interleaved = style != "half"
    params = [*rows, depth, rotary, int(interleaved), int(style == "deinterleave")]
    params += [2 if full and twice else 1, 1 if table == "same" else 2]
    out = module.call(
        f"fusec_rope_{dtype}",
        [x, stored_cos, stored_sin, blank((batch, heads, length, depth), dtype)],
        params,
    )[-1]
    wide = decode(x, dtype).swapaxes(1, 2)
    c, s = decode(cos, table_dtype), decode(sin, table_dtype)
    body = wide[..., :rotary]
    first, second = (
        (body[..., ::2], body[..., 1::2]) if interleaved else (body[..., :half], body[..., half:])
    )
    turned = (first * c - second * s, second * c + first * s)
    body = np.stack(turned, -1).reshape(body.shape) if twice else np.concatenate(turned, -1)
    expected = np.concatenate((body, wide[..., rotary:]), -1)
    assert_close(decode(out, dtype), expected, 1.01 * ULP[dtype] + 2e-7)


@pytest.mark.parametrize("dtype", [*DTYPES, "f64"])
@pytest.mark.parametrize("op", ["softmax", "log_softmax", "logsumexp"])
@pytest.mark.parametrize("n", [1, 9, 64, 1003])
@pytest.mark.parametrize("last", [True, False])
def test_softmax(module: Module, dtype: str, op: str, n: int, last: bool) -> None:
    rng = np.random.default_rng(n)
    x = encode(5 * rng.standard_normal((5, n) if last else (n, 5)), dtype)
    x[0, 0] = encode(np.array(200.0), dtype)
    x[-1, -1] = encode(np.array(-np.inf), dtype)
    if n > 1:
        x[(1, 0) if last else (0, 1)] = encode(np.array(np.nan), dtype)
    row, step = (n, 1) if last else (1, 5)
    single = op == "logsumexp"
    shape = (5,) if single else x.shape
    strides = [0, 0, 0, row, 0, 0, 0, 1 if single else row]
    params = [1, 1, 1, 5, *strides, n, step, step]
    out = module.call(f"fusec_{op}_{dtype}", [x, blank(shape, dtype)], params)[-1]
    wide = decode(x, dtype)
    axis = 1 if last else 0
    top = wide.max(axis, keepdims=True)
    shift = np.where(np.isinf(top), 0, top) if single else top
    with np.errstate(invalid="ignore", divide="ignore"):
        total = np.exp(wide - shift).sum(axis, keepdims=True)
        expected = {
            "softmax": np.exp(wide - shift) / total,
            "log_softmax": wide - shift - np.log(total),
            "logsumexp": (np.log(total) + shift).reshape(5),
        }[op]
    actual = decode(out, dtype)
    infinite = np.isinf(expected)
    assert (actual[infinite] == expected[infinite]).all()
    tolerance = 1e-14 if dtype == "f64" else 1.01 * ULP[dtype] + 1e-6
    assert_close(np.where(infinite, 0, actual), np.where(infinite, 0, expected), tolerance)


@pytest.mark.parametrize("dtype", [*DTYPES, "f64"])
def test_logsumexp_of_infinite_rows(module: Module, dtype: str) -> None:
    inf, nan = np.inf, np.nan
    x = encode(np.array([[inf, 1, -inf], [inf, inf, 99], [-inf] * 3, [inf, nan, 0]]), dtype)
    params = [1, 1, 1, 4, 0, 0, 0, 3, 0, 0, 0, 1, 3, 1, 1]
    out = module.call(f"fusec_logsumexp_{dtype}", [x, blank((4,), dtype)], params)[-1]
    np.testing.assert_array_equal(decode(out, dtype), [inf, inf, -inf, nan])
