"""Layer norm of rows on a GPU, with a weight and a bias or without.

A program has whole rows in registers, or one that is read three times where it is long or of a
length that is not known at compile time, as in a group norm of images.  Everything is in f32 until
it is stored.  The variance is the mean square of what is left after the mean is taken away, so that
rows far from zero lose nothing to it.
"""

import triton
import triton.language as tl

from fusec.kernels.quantize.triton_kernel import load_tile, load_weight, store_tile, tile_rows


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
    b_x = load_tile(p_x, i_read, x_stride, 0, N, BLOCK)
    b_x -= (tl.sum(b_x, axis=1) * (1.0 / N))[:, None]
    if N % BLOCK != 0:
        b_x = tl.where((tl.arange(0, BLOCK) < N)[None, :], b_x, 0.0)
    b_scale = tl.rsqrt(tl.sum(b_x * b_x, axis=1) * (1.0 / N) + eps)
    b_y = b_x * b_scale[:, None]
    if WEIGHT:
        b_y *= load_weight(p_w, 0, N, BLOCK, 0)
    if BIAS:
        b_y += load_weight(p_bias, 0, N, BLOCK, 0)
    store_tile(p_y, b_y, i_row, rows, y_stride, 0, N, BLOCK, ROWS)


@triton.jit
def long_layer_norm_kernel(
    p_x,
    p_w,
    p_bias,
    p_y,
    x_stride,
    y_stride,
    length,
    eps,
    BLOCK: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
):
    """The same of one row of any length."""
    i_row = tl.program_id(0).to(tl.int64)
    p_x += i_row * x_stride
    p_y += i_row * y_stride
    b_sum = tl.zeros([BLOCK], dtype=tl.float32)
    for begin in range(0, length, BLOCK):
        o_n = begin + tl.arange(0, BLOCK)
        b_sum += tl.load(p_x + o_n, mask=o_n < length, other=0.0).to(tl.float32)
    b_mean = tl.sum(b_sum) / length
    b_square = tl.zeros([BLOCK], dtype=tl.float32)
    for begin in range(0, length, BLOCK):
        o_n = begin + tl.arange(0, BLOCK)
        b_x = tl.load(p_x + o_n, mask=o_n < length, other=0.0).to(tl.float32)
        b_x = tl.where(o_n < length, b_x - b_mean, 0.0)
        b_square += b_x * b_x
    b_scale = tl.rsqrt(tl.sum(b_square) / length + eps)
    for begin in range(0, length, BLOCK):
        o_n = begin + tl.arange(0, BLOCK)
        b_y = tl.load(p_x + o_n, mask=o_n < length, other=0.0).to(tl.float32)
        b_y = (b_y - b_mean) * b_scale
        if WEIGHT:
            b_y *= tl.load(p_w + o_n, mask=o_n < length, other=0.0).to(tl.float32)
        if BIAS:
            b_y += tl.load(p_bias + o_n, mask=o_n < length, other=0.0).to(tl.float32)
        tl.store(p_y + o_n, b_y.to(p_y.dtype.element_ty), mask=o_n < length)
