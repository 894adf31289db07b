"""Residual sum and its root-mean-square norm on a GPU: one program a row.

The variance is that of the sum before it is rounded to be stored, as vLLM's `fused_add_rms_norm`.
"""

import triton
import triton.language as tl


@triton.jit
def add_rms_norm_kernel(
    p_x,
    p_residual,
    p_w,
    p_y,
    p_sum,
    x_stride,
    residual_stride,
    y_stride,
    sum_stride,
    eps,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    WEIGHT_OFFSET: tl.constexpr,
):
    """Store x + residual, and its norm times (w + offset), for one row."""
    i_row = tl.program_id(0).to(tl.int64)
    p_x += i_row * x_stride
    p_residual += i_row * residual_stride
    p_y += i_row * y_stride
    p_sum += i_row * sum_stride
    o_n = tl.arange(0, BLOCK)
    b_square = tl.zeros([BLOCK], dtype=tl.float32)
    for begin in tl.static_range(0, N, BLOCK):
        m_n = begin + o_n < N
        b_x = tl.load(p_x + begin + o_n, mask=m_n, other=0.0).to(tl.float32)
        b_x += tl.load(p_residual + begin + o_n, mask=m_n, other=0.0).to(tl.float32)
        tl.store(p_sum + begin + o_n, b_x.to(p_sum.dtype.element_ty), mask=m_n)
        b_square += b_x * b_x
    scale = tl.rsqrt(tl.sum(b_square, axis=0) / N + eps)
    for begin in tl.static_range(0, N, BLOCK):
        m_n = begin + o_n < N
        b_x = tl.load(p_x + begin + o_n, mask=m_n, other=0.0).to(tl.float32)
        b_x += tl.load(p_residual + begin + o_n, mask=m_n, other=0.0).to(tl.float32)
        b_w = tl.load(p_w + begin + o_n, mask=m_n, other=0.0).to(tl.float32) + WEIGHT_OFFSET
        tl.store(p_y + begin + o_n, (b_x * scale * b_w).to(p_y.dtype.element_ty), mask=m_n)
