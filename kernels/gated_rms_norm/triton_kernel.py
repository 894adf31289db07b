"""Gated root-mean-square norms on a GPU, as linear attention uses them, quantised or not.

A row is one head of one token, and HEADS of them side by side are a row of the result.  A program
has some heads; where one scale serves all heads of a token, it has those.
"""

import triton
import triton.language as tl

from fusec.kernels.quantize.triton_kernel import (
    load_tile,
    load_weight,
    scale_of,
    store_codes,
    store_tile,
)
from fusec.kernels.silu_mul.triton_kernel import sigmoid


@triton.jit
def gated_norm(
    b_x,
    b_gate,
    b_w,
    eps,
    N: tl.constexpr,
    SILU: tl.constexpr,
    NORM_BEFORE_GATE: tl.constexpr,
):
    """norm(x) * w * act(gate), or norm(x * act(gate)) * w, of a tile of heads."""
    b_act = sigmoid(b_gate)
    if SILU:
        b_act *= b_gate
    if not NORM_BEFORE_GATE:
        b_x *= b_act
    b_y = b_x * tl.rsqrt(tl.sum(b_x * b_x, axis=1) * (1.0 / N) + eps)[:, None] * b_w
    if NORM_BEFORE_GATE:
        b_y *= b_act
    return b_y


@triton.jit
def store_groups(
    p_scale,
    p_codes,
    b_groups,
    o_g,
    groups,
    scale_stride,
    group_stride,
    maximum,
    floor,
    bound,
    GROUPS: tl.constexpr,
    ROUNDING: tl.constexpr,
):
    """Write the scales of groups, of which a row of the result has GROUPS; one over each."""
    b_scale, b_inverse = scale_of(
        tl.max(tl.abs(b_groups), axis=1),
        maximum,
        floor,
        bound,
        ROUNDING,
        p_codes.dtype.element_ty,
        p_scale.dtype.element_ty,
    )
    p_scale += (o_g // GROUPS) * scale_stride + (o_g % GROUPS) * group_stride
    tl.store(p_scale, b_scale, mask=o_g < groups)
    return b_inverse


@triton.jit
def gated_rms_norm_kernel(
    p_x,
    p_w,
    p_gate,
    p_y,
    p_codes,
    p_scale,
    x_stride,
    gate_stride,
    y_stride,
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
    STEP: tl.constexpr,
    HEADS: tl.constexpr,
    WEIGHT_OFFSET: tl.constexpr,
    SILU: tl.constexpr,
    NORM_BEFORE_GATE: tl.constexpr,
    PLAIN: tl.constexpr,
    QUANTISED: tl.constexpr,
    GROUP: tl.constexpr,
    ROUNDING: tl.constexpr,
    SATURATE: tl.constexpr,
):
    """STEP heads are those of a program: ROWS, or the HEADS of a token where those are fewer."""
    begin = tl.program_id(0).to(tl.int64) * STEP
    end = tl.minimum(begin + STEP, rows)
    i_head = begin + tl.arange(0, ROWS)
    i_read = tl.minimum(i_head, end - 1)
    b_w = load_weight(p_w, 0, N, BLOCK, WEIGHT_OFFSET)
    b_x = load_tile(p_x, i_read, x_stride, 0, N, BLOCK)
    b_gate = load_tile(p_gate, i_read, gate_stride, 0, N, BLOCK)
    b_y = gated_norm(b_x, b_gate, b_w, eps, N, SILU, NORM_BEFORE_GATE)
    i_token = i_head.to(tl.int32) // HEADS
    i_place = i_head.to(tl.int32) % HEADS
    if PLAIN:
        p_y += (i_token * y_stride + i_place * N)[:, None]
        store_tile(p_y, b_y, i_head, end, 0, 0, N, BLOCK, ROWS)
    if QUANTISED:
        if GROUP == 0:
            b_y *= 1.0 / tl.load(p_scale)
        else:
            span: tl.constexpr = GROUP if STEP == ROWS else ROWS * BLOCK
            count: tl.constexpr = ROWS * BLOCK // span
            b_groups = tl.reshape(b_y, [count, span])
            o_g = begin * N // GROUP + tl.arange(0, count)
            b_inverse = store_groups(
                p_scale,
                p_codes,
                b_groups,
                o_g,
                end * N // GROUP,
                scale_stride,
                group_stride,
                maximum,
                floor,
                bound,
                HEADS * N // GROUP,
                ROUNDING,
            )
            b_y = tl.reshape(b_groups * b_inverse[:, None], [ROWS, BLOCK])
        place: tl.constexpr = N // 2 if p_codes.dtype.element_ty == tl.uint8 else N
        p_codes += (i_token * codes_stride + i_place * place)[:, None]
        store_codes(p_codes, b_y, i_head, end, 0, 0, maximum, N, BLOCK, ROWS, SATURATE)
