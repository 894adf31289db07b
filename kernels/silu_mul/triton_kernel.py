"""Gated activations on a GPU: act(gate) * up, quantised or not.

The gate and the up part may be halves of one row, or take turns in it: then both are read at once.
ACTIVATION is 0 for SiLU, 1 for GELU, 2 for GELU with tanh, 3 for gpt-oss's SwiGLU.
"""

import triton
import triton.language as tl

from fusec.kernels.quantize.triton_kernel import (
    load_tile,
    reciprocal,
    row_scale,
    tile_rows,
    write_tile,
)


@triton.jit
def sigmoid(b_x):
    """1 / (1 + exp(-x)); powers that are no normal numbers, which `exp2` may lose, add nothing."""
    return reciprocal(1.0 + tl.exp2(b_x * -1.4426950408889634))


@triton.jit
def activated(b_gate, b_up, alpha, limit, ACTIVATION: tl.constexpr):
    """act(gate) * up."""
    if ACTIVATION == 0:
        b_act = b_gate * sigmoid(b_gate)
    elif ACTIVATION == 1:
        b_act = 0.5 * b_gate * (1.0 + tl.erf(b_gate * 0.7071067811865476))
    elif ACTIVATION == 2:
        b_inner = 0.7978845608028654 * (b_gate + 0.044715 * b_gate * b_gate * b_gate)
        b_act = b_gate * sigmoid(2.0 * b_inner)
    else:
        b_gate = tl.where(b_gate > limit, limit, b_gate)
        b_up = tl.where(b_up > limit, limit, tl.where(b_up < -limit, -limit, b_up)) + 1.0
        b_act = b_gate * sigmoid(alpha * b_gate)
    return b_act * b_up


@triton.jit
def load_gate_up(
    p_gate,
    p_up,
    i_read,
    gate_stride,
    up_stride,
    begin,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """Tiles of both; INTERLEAVED where `p_gate` begins rows of pairs."""
    if INTERLEAVED:
        b_pairs = load_tile(p_gate, i_read, gate_stride, 2 * begin, 2 * N, 2 * BLOCK)
        b_gate, b_up = tl.split(tl.reshape(b_pairs, [ROWS, BLOCK, 2]))
    else:
        b_gate = load_tile(p_gate, i_read, gate_stride, begin, N, BLOCK)
        b_up = load_tile(p_up, i_read, up_stride, begin, N, BLOCK)
    return b_gate, b_up


@triton.jit
def gated_activation_kernel(
    p_gate,
    p_up,
    p_y,
    p_codes,
    p_scale,
    gate_stride,
    up_stride,
    y_stride,
    codes_stride,
    scale_stride,
    group_stride,
    rows,
    alpha,
    limit,
    maximum,
    floor,
    bound,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    PLAIN: tl.constexpr,
    QUANTISED: tl.constexpr,
    GROUP: tl.constexpr,
    ROUNDING: tl.constexpr,
    SATURATE: tl.constexpr,
):
    """One tile; of whole rows where one scale serves a row."""
    whole: tl.constexpr = QUANTISED and GROUP == N
    blocks: tl.constexpr = (N + BLOCK - 1) // BLOCK
    parts: tl.constexpr = blocks if whole else 1
    columns: tl.constexpr = blocks // parts
    i_row, i_read = tile_rows(tl.program_id(0) // columns, rows, ROWS)
    b_top = tl.zeros([ROWS], dtype=tl.float32)
    for part in tl.static_range(parts):
        begin = (tl.program_id(0) % columns + part) * BLOCK
        b_gate, b_up = load_gate_up(
            p_gate, p_up, i_read, gate_stride, up_stride, begin, N, BLOCK, ROWS, INTERLEAVED
        )
        b_y = activated(b_gate, b_up, alpha, limit, ACTIVATION)
        if whole:
            b_top = tl.maximum(b_top, tl.max(tl.abs(b_y), axis=1))
    b_inverse = b_top
    if QUANTISED and (whole or GROUP == 0):
        b_inverse = row_scale(
            p_scale,
            p_codes,
            b_top,
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
    for part in tl.static_range(parts):
        begin = (tl.program_id(0) % columns + part) * BLOCK
        if parts > 1:
            b_gate, b_up = load_gate_up(
                p_gate, p_up, i_read, gate_stride, up_stride, begin, N, BLOCK, ROWS, INTERLEAVED
            )
            b_y = activated(b_gate, b_up, alpha, limit, ACTIVATION)
        write_tile(
            b_y,
            tl.full([ROWS], 1.0, tl.float32),
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
        )
