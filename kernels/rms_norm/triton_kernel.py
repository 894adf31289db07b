"""Root-mean-square norm on a GPU: one program a row, everything in f32 until it is stored."""

import triton
import triton.language as tl


@triton.jit
def square_sum(p_x, N: tl.constexpr, BLOCK: tl.constexpr):
    """Sum of squares of a row of N elements, in f32."""
    o_n = tl.arange(0, BLOCK)
    b_sum = tl.zeros([BLOCK], dtype=tl.float32)
    for begin in tl.static_range(0, N, BLOCK):
        b_x = tl.load(p_x + begin + o_n, mask=begin + o_n < N, other=0.0).to(tl.float32)
        b_sum += b_x * b_x
    return tl.sum(b_sum, axis=0)


@triton.jit
def scale_row(
    p_x, p_w, p_y, scale, N: tl.constexpr, BLOCK: tl.constexpr, WEIGHT_OFFSET: tl.constexpr
):
    """Store x * scale * (w + offset) for a row of N elements."""
    o_n = tl.arange(0, BLOCK)
    for begin in tl.static_range(0, N, BLOCK):
        m_n = begin + o_n < N
        b_x = tl.load(p_x + begin + o_n, mask=m_n, other=0.0).to(tl.float32)
        b_w = tl.load(p_w + begin + o_n, mask=m_n, other=0.0).to(tl.float32) + WEIGHT_OFFSET
        b_y = b_x * scale * b_w
        tl.store(p_y + begin + o_n, b_y.to(p_y.dtype.element_ty), mask=m_n)


@triton.jit
def rms_norm_kernel(
    p_x,
    p_w,
    p_y,
    x_stride,
    y_stride,
    eps,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    WEIGHT_OFFSET: tl.constexpr,
):
    """Y = x / rms(x) * (w + offset) for the row that is the program's index."""
    i_row = tl.program_id(0).to(tl.int64)
    p_x += i_row * x_stride
    p_y += i_row * y_stride
    scale = tl.rsqrt(square_sum(p_x, N, BLOCK) / N + eps)
    scale_row(p_x, p_w, p_y, scale, N, BLOCK, WEIGHT_OFFSET)
