"""Root-mean-square norms of rows on a GPU, alone or after a sum, quantised or not.

A program has the whole row, in registers where it fits, and everything is in f32 until it is
stored.  The variance is that of the sum before it is rounded, as vLLM's `fused_add_rms_norm`.
"""

import triton
import triton.language as tl

from fusec.kernels.quantize.triton_kernel import (
    load_tile,
    load_weight,
    row_scale,
    store_tile,
    tile_rows,
    write_tile,
)


@triton.jit
def norm_rows(
    i_tile,
    p_x,
    p_residual,
    p_w,
    p_y,
    p_sum,
    p_codes,
    p_scale,
    x_stride,
    residual_stride,
    y_stride,
    sum_stride,
    codes_stride,
    scale_stride,
    group_stride,
    rows,
    eps,
    maximum,
    floor,
    bound,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WEIGHT: tl.constexpr,
    WEIGHT_OFFSET: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PLAIN: tl.constexpr,
    QUANTISED: tl.constexpr,
    GROUP: tl.constexpr,
    ROUNDING: tl.constexpr,
    SATURATE: tl.constexpr,
):
    """Norm one tile of rows; WEIGHT, RESIDUAL, PLAIN and QUANTISED say what there is."""
    i_row, i_read = tile_rows(i_tile, rows, ROWS)
    b_square = tl.zeros([ROWS], dtype=tl.float32)
    b_top = tl.zeros([ROWS], dtype=tl.float32)
    b_w = 1.0
    for begin in tl.static_range(0, N, BLOCK):
        if WEIGHT:
            b_w = load_weight(p_w, begin, N, BLOCK, WEIGHT_OFFSET)
        b_x = load_tile(p_x, i_read, x_stride, begin, N, BLOCK)
        if RESIDUAL:
            b_x += load_tile(p_residual, i_read, residual_stride, begin, N, BLOCK)
        b_square += tl.sum(b_x * b_x, axis=1)
        if QUANTISED and GROUP == N:
            b_top = tl.maximum(b_top, tl.max(tl.abs(b_x * b_w), axis=1))
    b_rms = tl.rsqrt(b_square * (1.0 / N) + eps)
    b_inverse = b_rms
    if QUANTISED and (GROUP == N or GROUP == 0):
        b_inverse = row_scale(
            p_scale,
            p_codes,
            b_top * b_rms,
            i_row,
            rows,
            scale_stride,
            maximum,
            floor,
            bound,
            ROWS,
            GROUP,
            ROUNDING,
        )
    for begin in tl.static_range(0, N, BLOCK):
        if N > BLOCK:
            if WEIGHT:
                b_w = load_weight(p_w, begin, N, BLOCK, WEIGHT_OFFSET)
            b_x = load_tile(p_x, i_read, x_stride, begin, N, BLOCK)
            if RESIDUAL:
                b_x += load_tile(p_residual, i_read, residual_stride, begin, N, BLOCK)
        if RESIDUAL:
            store_tile(p_sum, b_x, i_row, rows, sum_stride, begin, N, BLOCK, ROWS)
        write_tile(
            b_x * b_w,
            b_rms,
            b_inverse,
            p_y,
            p_codes,
            p_scale,
            i_row,
            rows,
            y_stride,
            codes_stride,
            scale_stride,
            group_stride,
            begin,
            maximum,
            floor,
            bound,
            N,
            BLOCK,
            ROWS,
            PLAIN,
            QUANTISED,
            GROUP,
            ROUNDING,
            SATURATE,
            RESIDUAL,
        )


@triton.jit
def rms_norm_kernel(
    p_x,
    p_residual,
    p_w,
    p_y,
    p_sum,
    p_codes,
    p_scale,
    x_stride,
    residual_stride,
    y_stride,
    sum_stride,
    codes_stride,
    scale_stride,
    group_stride,
    rows,
    eps,
    maximum,
    floor,
    bound,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WEIGHT: tl.constexpr,
    WEIGHT_OFFSET: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PLAIN: tl.constexpr,
    QUANTISED: tl.constexpr,
    GROUP: tl.constexpr,
    ROUNDING: tl.constexpr,
    SATURATE: tl.constexpr,
):
    """The norm times (w + offset) of the rows of one tile, or of x + residual, which is stored."""
    norm_rows(
        tl.program_id(0),
        p_x,
        p_residual,
        p_w,
        p_y,
        p_sum,
        p_codes,
        p_scale,
        x_stride,
        residual_stride,
        y_stride,
        sum_stride,
        codes_stride,
        scale_stride,
        group_stride,
        rows,
        eps,
        maximum,
        floor,
        bound,
        N,
        BLOCK,
        ROWS,
        WEIGHT,
        WEIGHT_OFFSET,
        RESIDUAL,
        PLAIN,
        QUANTISED,
        GROUP,
        ROUNDING,
        SATURATE,
    )
