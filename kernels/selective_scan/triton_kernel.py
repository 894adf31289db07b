"""Selective scans on a GPU: a program walks along the sequence with the states of some channels.

Where each state has a decay it goes step by step.  Where a head shares one it takes a chunk of
steps at once (Dao and Gu, "Transformers are SSMs", 2024): with the sums G of dt a from the
beginning of the chunk and the states h before it,

    y  = A u + exp(G) C h,   A[t, i] = C_t B_i exp(G[t] - G[i]) dt_i   where i <= t
    h' = exp(G_last) h + (exp(G_last - G) dt B)^T u
"""

import triton
import triton.language as tl

from fusec.kernels.gated_delta_rule.triton_kernel import load_rows, product


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
    u_step,
    dt_batch,
    dt_step,
    dt_channel,
    b_batch,
    b_step,
    c_batch,
    c_step,
    y_batch,
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
    p_u += i_batch * u_batch + o_channel
    p_dt += i_batch * dt_batch + o_channel.to(tl.int64) * dt_channel
    p_b += i_batch * b_batch + o_state
    p_c += i_batch * c_batch + o_state
    p_y += i_batch * y_batch + o_channel
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


@triton.jit
def selective_scan_heads_kernel(
    p_u,
    p_dt,
    p_a,
    p_b,
    p_c,
    p_y,
    steps,
    u_batch,
    u_step,
    dt_batch,
    dt_step,
    dt_head,
    b_batch,
    b_step,
    b_group,
    c_batch,
    c_step,
    c_group,
    y_batch,
    y_step,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    STATES: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PARTS: tl.constexpr,
):
    """BLOCK channels of one head of WIDTH, GROUP heads to a group."""
    # Work groups go to the dies in turn: those of a head, which read the same, share a cache.
    n_heads = tl.num_programs(0) // ((WIDTH + BLOCK - 1) // BLOCK)
    i_batch = (tl.program_id(0) % n_heads // HEADS).to(tl.int64)
    i_head = (tl.program_id(0) % n_heads % HEADS).to(tl.int64)
    i_width = tl.program_id(0) // n_heads * BLOCK
    o_width = i_width + tl.arange(0, BLOCK)
    o_chunk = tl.arange(0, CHUNK)
    m_seen = o_chunk[:, None] >= o_chunk[None, :]
    p_u += i_batch * u_batch + i_head * WIDTH
    p_y += i_batch * y_batch + i_head * WIDTH
    p_dt += i_batch * dt_batch + i_head * dt_head
    p_b += i_batch * b_batch + i_head // GROUP * b_group
    p_c += i_batch * c_batch + i_head // GROUP * c_group
    b_a = tl.load(p_a + i_head).to(tl.float32)
    b_h = tl.zeros([BLOCK_N, BLOCK], dtype=tl.float32)
    for first in range(0, steps, CHUNK):
        o_step = (first + o_chunk).to(tl.int64)
        m_step = o_step < steps
        b_dt = tl.load(p_dt + o_step * dt_step, mask=m_step, other=0.0).to(tl.float32)
        b_u = load_rows(p_u, o_step, m_step, u_step, i_width, WIDTH, BLOCK)
        b_b = load_rows(p_b, o_step, m_step, b_step, 0, STATES, BLOCK_N)
        b_c = load_rows(p_c, o_step, m_step, c_step, 0, STATES, BLOCK_N)
        b_sum = tl.cumsum(b_dt * b_a, axis=0)
        b_total = tl.sum(b_dt * b_a, axis=0)
        b_between = tl.exp(tl.where(m_seen, b_sum[:, None] - b_sum[None, :], float("-inf")))
        b_scores = product(b_c, tl.trans(b_b), PARTS) * b_between * b_dt[None, :]
        b_y = product(b_c, b_h, PARTS) * tl.exp(b_sum)[:, None] + product(b_scores, b_u, PARTS)
        b_kept = b_b * (tl.exp(b_total - b_sum) * b_dt)[:, None]
        b_h = b_h * tl.exp(b_total) + product(tl.trans(b_kept), b_u, PARTS)
        p_tile = p_y + (o_step * y_step)[:, None] + o_width[None, :]
        m_tile = m_step[:, None] & (o_width < WIDTH)[None, :]
        tl.store(p_tile, b_y.to(p_y.dtype.element_ty), mask=m_tile)
