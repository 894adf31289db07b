"""Causal filters along a sequence on a GPU, one per channel, and an activation behind them.

A program computes a tile [STEPS, BLOCK] of one batch.  Memory may have either axis innermost: the
stride that is 1 is a constant, and loads and stores are as wide as it allows.  Steps before the
first one are zeros.
"""

import triton
import triton.language as tl

from fusec.kernels.silu_mul.triton_kernel import sigmoid


@triton.jit
def causal_conv1d_kernel(
    p_x,
    p_weight,
    p_bias,
    p_y,
    steps,
    x_batch,
    x_channel,
    x_step,
    y_batch,
    y_channel,
    y_step,
    CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    BIAS: tl.constexpr,
    SILU: tl.constexpr,
):
    """y[b, c, s] = act(sum of weight[c, t] * x[b, c, s - TAPS + 1 + t] over t, plus bias[c])."""
    n_columns: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
    n_tiles = tl.cdiv(steps, STEPS)
    i_row = tl.program_id(0) // n_columns
    i_batch = (i_row // n_tiles).to(tl.int64)
    o_step = i_row % n_tiles * STEPS + tl.arange(0, STEPS)
    o_channel = tl.program_id(0) % n_columns * BLOCK + tl.arange(0, BLOCK)
    m_channel = o_channel < CHANNELS
    p_x_column = p_x + i_batch * x_batch + o_channel[None, :] * x_channel
    b_y = tl.zeros([STEPS, BLOCK], dtype=tl.float32)
    for i_tap in tl.static_range(TAPS):
        o_read = o_step - (TAPS - 1 - i_tap)
        m_read = ((o_read >= 0) & (o_read < steps))[:, None] & m_channel[None, :]
        b_x = tl.load(p_x_column + o_read.to(tl.int64)[:, None] * x_step, mask=m_read, other=0.0)
        b_weight = tl.load(p_weight + o_channel * TAPS + i_tap, mask=m_channel, other=0.0)
        b_y += b_weight.to(tl.float32)[None, :] * b_x.to(tl.float32)
    if BIAS:
        b_y += tl.load(p_bias + o_channel, mask=m_channel, other=0.0).to(tl.float32)[None, :]
    if SILU:
        b_y *= sigmoid(b_y)
    p_tile = p_y + i_batch * y_batch + o_channel[None, :] * y_channel
    p_tile += o_step.to(tl.int64)[:, None] * y_step
    m_tile = (o_step < steps)[:, None] & m_channel[None, :]
    tl.store(p_tile, b_y.to(p_y.dtype.element_ty), mask=m_tile)
