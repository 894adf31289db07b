"""Selective scans on a GPU: a program walks along the sequence with the states of some channels."""

import triton
import triton.language as tl


@triton.jit
def selective_scan_kernel(
    p_u,
    p_dt,
    p_a,
    p_b,
    p_c,
    p_y,
    steps,
    u_batch,
    u_channel,
    u_step,
    dt_batch,
    dt_channel,
    dt_step,
    b_batch,
    b_state,
    b_step,
    c_batch,
    c_state,
    c_step,
    y_batch,
    y_channel,
    y_step,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """h = exp(dt a) h + dt u b; y = sum over n of c h, for each channel d and state n."""
    n_blocks: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
    i_batch = (tl.program_id(0) // n_blocks).to(tl.int64)
    o_channel = tl.program_id(0) % n_blocks * BLOCK + tl.arange(0, BLOCK)
    o_state = tl.arange(0, BLOCK_N)
    m_channel, m_state = o_channel < CHANNELS, o_state < STATES
    m_tile = m_channel[:, None] & m_state[None, :]
    o_tile = o_channel[:, None] * STATES + o_state[None, :]
    b_a = tl.load(p_a + o_tile, mask=m_tile, other=0.0).to(tl.float32)
    p_u += i_batch * u_batch + o_channel.to(tl.int64) * u_channel
    p_dt += i_batch * dt_batch + o_channel.to(tl.int64) * dt_channel
    p_b += i_batch * b_batch + o_state * b_state
    p_c += i_batch * c_batch + o_state * c_state
    p_y += i_batch * y_batch + o_channel.to(tl.int64) * y_channel
    b_h = tl.zeros([BLOCK, BLOCK_N], dtype=tl.float32)
    for _ in range(steps):
        b_u = tl.load(p_u, mask=m_channel, other=0.0).to(tl.float32)
        b_dt = tl.load(p_dt, mask=m_channel, other=0.0).to(tl.float32)
        b_b = tl.load(p_b, mask=m_state, other=0.0).to(tl.float32)
        b_c = tl.load(p_c, mask=m_state, other=0.0).to(tl.float32)
        b_h = tl.exp(b_dt[:, None] * b_a) * b_h + (b_dt * b_u)[:, None] * b_b[None, :]
        b_y = tl.sum(b_h * b_c[None, :], axis=1)
        tl.store(p_y, b_y.to(p_y.dtype.element_ty), mask=m_channel)
        p_u += u_step
        p_dt += dt_step
        p_b += b_step
        p_c += c_step
        p_y += y_step
