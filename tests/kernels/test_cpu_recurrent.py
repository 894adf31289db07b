"""`causal_conv1d` and `gated_delta_rule` on the CPU against numpy in f64."""

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
    encode,
    random,
)

module = cpu_library("causal_conv1d", "gated_delta_rule")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("channels", "steps", "taps"), [(1, 1, 1), (70, 9, 4), (5, 300, 3)])
def test_causal_conv1d(
    module: Module,
    dtype: str,
    last: bool,
    silu: bool,
    bias: bool,
    channels: int,
    steps: int,
    taps: int,
) -> None:
    rng = np.random.default_rng(channels)
    weight, offset = random(rng, (channels, taps), dtype), random(rng, (channels,), dtype)
    x = random(rng, (2, steps, channels) if last else (2, channels, steps), dtype)
    strides = [channels * steps, *([1, channels] if last else [steps, 1])]
    params = [2, channels, steps, taps, *strides, *strides, int(bias), int(silu)]
    buffers = [x, weight, *([offset] if bias else []), blank(x.shape, dtype)]
    out = module.call(f"fusec_causal_conv1d_{dtype}", buffers, params)[-1]
    wide = decode(x, dtype).swapaxes(1, 2) if last else decode(x, dtype)
    padded = np.pad(wide, [(0, 0), (0, 0), (taps - 1, 0)])
    expected = sum(
        decode(weight, dtype)[:, tap, None] * padded[..., tap : tap + steps] for tap in range(taps)
    )
    if bias:
        expected = expected + decode(offset, dtype)[:, None]
    if silu:
        expected = expected / (1 + np.exp(-expected))
    actual = decode(out, dtype)
    assert_close(actual.swapaxes(1, 2) if last else actual, expected, 1.01 * ULP[dtype] + 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(
    ("steps", "depth", "value_depth"),
    [(11, 16, 32), (1, 33, 45), (32, 128, 128), (33, 7, 65), (70, 40, 20), (0, 8, 8)],
)
def test_gated_delta_rule(
    module: Module,
    dtype: str,
    per_channel: bool,
    normalise: bool,
    steps: int,
    depth: int,
    value_depth: int,
) -> None:
    rng = np.random.default_rng(depth)
    batch, key_heads, heads = 2, 2, 4
    q, k = (random(rng, (batch, steps, key_heads, depth), dtype) for _ in range(2))
    if not normalise:
        k = encode(decode(k, dtype) / np.sqrt(depth), dtype)
    v = random(rng, (batch, steps, heads, value_depth), dtype)
    gate_shape = (batch, steps, heads, depth) if per_channel else (batch, steps, heads)
    gate = encode(-(rng.random(gate_shape) ** 4) * 8, "f32")
    gate[:, steps // 2 : steps // 2 + 1, 1] = -np.inf  # forgets everything
    beta = encode(rng.random((batch, steps, heads)), dtype)
    scale = depth**-0.5

    def strides(array: np.ndarray) -> list[int]:
        return [step // array.itemsize for step in array.strides[:3]]

    out = blank(v.shape, dtype)
    params = [batch, steps, key_heads, heads, depth, value_depth]
    params += [step for array in (q, k, v, gate, beta, out) for step in strides(array)]
    params += [2, 1, int(per_channel), bits(scale), bits(1e-6), int(normalise)]
    buffers = [q, k, v, gate, beta, out]
    actual = module.call(f"fusec_gated_delta_rule_{dtype}", buffers, params)[-1]

    wide_q, wide_k = decode(q, dtype), decode(k, dtype)
    if normalise:
        wide_q, wide_k = (
            row / np.sqrt((row**2).sum(-1, keepdims=True) + 1e-6) for row in (wide_q, wide_k)
        )
    wide_q, wide_k = wide_q.repeat(2, 2) * scale, wide_k.repeat(2, 2)
    decay = np.exp(gate.astype(np.float64) if per_channel else gate[..., None].astype(np.float64))
    state = np.zeros((batch, heads, depth, value_depth))
    expected = np.zeros(v.shape)
    for step in range(steps):
        state = state * decay[:, step, :, :, None]
        held = np.einsum("bhk,bhkv->bhv", wide_k[:, step], state)
        change = (decode(v, dtype)[:, step] - held) * decode(beta, dtype)[:, step, :, None]
        state = state + np.einsum("bhk,bhv->bhkv", wide_k[:, step], change)
        expected[:, step] = np.einsum("bhk,bhkv->bhv", wide_q[:, step], state)
    assert_close(decode(actual, dtype), expected, 1.01 * ULP[dtype] + 2e-6)
    for threads in (1, 16):
        module.threads(threads)
        again = module.call(f"fusec_gated_delta_rule_{dtype}", buffers, params)[-1]
        assert again.tobytes() == actual.tobytes()
