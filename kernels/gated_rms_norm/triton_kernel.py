"""Gated root-mean-square norm on a GPU, as linear attention uses it: one program a row.

A row is one head of one token, at most a few hundred elements, and fits in registers.
"""

import triton
import triton.language as tl


@triton.jit
def gated_rms_norm_kernel(
    p_x,
    p_w,
    p_gate,
    p_y,
    x_stride,
    gate_stride,
    y_stride,
    eps,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    WEIGHT_OFFSET: tl.constexpr,
    SILU: tl.constexpr,
    NORM_BEFORE_GATE: tl.constexpr,
):
    """Y = norm(x) * w * act(gate), or norm(x * act(gate)) * w, for one row."""
    i_row = tl.program_id(0).to(tl.int64)
    o_n = tl.arange(0, BLOCK)
    m_n = o_n < N
    b_x = tl.load(p_x + i_row * x_stride + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_gate = tl.load(p_gate + i_row * gate_stride + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_act = tl.sigmoid(b_gate)
    if SILU:
        b_act *= b_gate
    if not NORM_BEFORE_GATE:
        b_x *= b_act
    b_y = b_x * tl.rsqrt(tl.sum(b_x * b_x, axis=0) / N + eps)
    b_y *= tl.load(p_w + o_n, mask=m_n, other=0.0).to(tl.float32) + WEIGHT_OFFSET
    if NORM_BEFORE_GATE:
        b_y *= b_act
    tl.store(p_y + i_row * y_stride + o_n, b_y.to(p_y.dtype.element_ty), mask=m_n)
