"""Layer norm of rows on a GPU, with a weight and a bias or without.

A program has whole rows, in registers where they fit, and everything is in f32 until it is stored.
The variance is the mean square of what is left after the mean is taken away, so that rows far from
zero lose nothing to it.
"""

import triton
import triton.language as tl

from fusec.kernels.quantize.triton_kernel import load_tile, load_weight, store_tile, tile_rows


@triton.jit
def centred(b_x, b_mean, begin, N: tl.constexpr, BLOCK: tl.constexpr):
    """A tile less the mean of each row; zero beyond the row."""
    b_x -= b_mean[:, None]
    if N % BLOCK != 0:
        o_n = begin + tl.arange(0, BLOCK)
        b_x = tl.where((o_n < N)[None, :], b_x, 0.0)
    return b_x


@triton.jit
def layer_norm_kernel(
    p_x,
    p_w,
    p_bias,
    p_y,
    x_stride,
    y_stride,
    rows,
    eps,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
):
    """The norm times the weight, plus the bias, of the rows of one tile."""
    i_row, i_read = tile_rows(tl.program_id(0), rows, ROWS)
    b_sum = tl.zeros([ROWS], dtype=tl.float32)
    for begin in tl.static_range(0, N, BLOCK):
        b_x = load_tile(p_x, i_read, x_stride, begin, N, BLOCK)
        b_sum += tl.sum(b_x, axis=1)
    b_mean = b_sum * (1.0 / N)
    b_square = tl.zeros([ROWS], dtype=tl.float32)
    for begin in tl.static_range(0, N, BLOCK):
        if N > BLOCK:
            b_x = load_tile(p_x, i_read, x_stride, begin, N, BLOCK)
        b_x = centred(b_x, b_mean, begin, N, BLOCK)
        b_square += tl.sum(b_x * b_x, axis=1)
    b_scale = tl.rsqrt(b_square * (1.0 / N) + eps)
    for begin in tl.static_range(0, N, BLOCK):
        if N > BLOCK:
            b_x = load_tile(p_x, i_read, x_stride, begin, N, BLOCK)
            b_x = centred(b_x, b_mean, begin, N, BLOCK)
        b_y = b_x * b_scale[:, None]
        if WEIGHT:
            b_y *= load_weight(p_w, begin, N, BLOCK, 0)
        if BIAS:
            b_y += load_weight(p_bias, begin, N, BLOCK, 0)
        store_tile(p_y, b_y, i_row, rows, y_stride, begin, N, BLOCK, ROWS)
