"""norm_add on a GPU: a program for each row, in f32 until it is stored."""

import triton
import triton.language as tl


@triton.jit
def norm_add_kernel(
    x, weight, residual, out, x_step, residual_step, out_step, eps,
    N: tl.constexpr, BLOCK: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """out = residual + x * rsqrt(mean(x^2) + eps) * (weight + OFFSET); steps are between rows."""
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros([BLOCK], dtype=tl.float32)
    for begin in tl.static_range(0, N, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        b_x = tl.load(x + row * x_step + i, mask=i < N, other=0.0).to(tl.float32)
        squares += b_x * b_x
    scale = tl.rsqrt(tl.sum(squares) / N + eps)
    for begin in tl.static_range(0, N, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        b_x = tl.load(x + row * x_step + i, mask=i < N, other=0.0).to(tl.float32)
        b_w = tl.load(weight + i, mask=i < N, other=0.0).to(tl.float32) + OFFSET
        b_r = tl.load(residual + row * residual_step + i, mask=i < N, other=0.0).to(tl.float32)
        tl.store(out + row * out_step + i, b_r + b_x * scale * b_w, mask=i < N)
