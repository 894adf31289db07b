"""Rows over their Euclidean length on a GPU, in f32 until they are stored."""

import triton
import triton.language as tl

from fusec.kernels.quantize.triton_kernel import load_tile, store_tile, tile_rows


@triton.jit
def l2_norm_kernel(
    p_x,
    p_y,
    x_stride,
    y_stride,
    rows,
    eps,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    ADDED: tl.constexpr,
):
    """One tile; eps is ADDED to the sum of squares, or the least that a length may be."""
    i_row, i_read = tile_rows(tl.program_id(0), rows, ROWS)
    b_square = tl.zeros([ROWS], dtype=tl.float32)
    for begin in tl.static_range(0, N, BLOCK):
        b_x = load_tile(p_x, i_read, x_stride, begin, N, BLOCK)
        b_square += tl.sum(b_x * b_x, axis=1)
    if ADDED:
        b_scale = tl.rsqrt(b_square + eps)
    else:
        b_length = tl.sqrt(b_square)
        b_scale = 1.0 / tl.maximum(b_length, eps, propagate_nan=tl.PropagateNan.ALL)
    for begin in tl.static_range(0, N, BLOCK):
        if N > BLOCK:
            b_x = load_tile(p_x, i_read, x_stride, begin, N, BLOCK)
        store_tile(p_y, b_x * b_scale[:, None], i_row, rows, y_stride, begin, N, BLOCK, ROWS)
