"""Products with weights of 4-bit floats on a GPU, a scale for each 32 along K.

Either the matrix units take codes and scales as they are, or the weight becomes bf16 on the way
into them.  Programs, tiles and splits are those of `fp8_linear/triton_kernel.py`.
"""

import triton
import triton.language as tl

from fusec.kernels.fp8_linear.triton_kernel import steps_of, store_tile, tile_at

GROUP = tl.constexpr(32)
"""Elements that share a scale."""


@triton.jit
def f32_pair(b_signs, b_magnitudes):
    """Two elements of each word, 2**-14 times what they stand for: signs and magnitudes in place.

    A code's three low bits at the foot of the exponent of an f16 are that, subnormal or not.
    """
    b_pair = (b_signs & 0x80008000) | (b_magnitudes & 0x0E000E00)
    b_low = b_pair.to(tl.uint16).to(tl.float16, bitcast=True)
    b_high = (b_pair >> 16).to(tl.uint16).to(tl.float16, bitcast=True)
    return b_low.to(tl.float32), b_high.to(tl.float32)


@triton.jit
def bf16_of_e2m1(b_words, b_scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The numbers bf16 [ROWS, COLUMNS] of words [ROWS, COLUMNS/8] and scales [ROWS, COLUMNS/32].

    Words u32 have eight codes, the first in the lowest bits; scales are e8m0.  Exact for scales up
    to 2**113, infinite beyond.  The result has two significant bits at most, so the lower half of
    its f32 is zeros.
    """
    b_0, b_4 = f32_pair(b_words << 12, b_words << 9)
    b_1, b_5 = f32_pair(b_words << 8, b_words << 5)
    b_2, b_6 = f32_pair(b_words << 4, b_words << 1)
    b_3, b_7 = f32_pair(b_words, b_words >> 3)
    b_even = tl.join(tl.join(b_0, b_4), tl.join(b_2, b_6))
    b_odd = tl.join(tl.join(b_1, b_5), tl.join(b_3, b_7))
    b_value = tl.reshape(tl.join(b_even, b_odd), [ROWS, COLUMNS // GROUP, GROUP])
    b_scale = b_scale.to(tl.uint32)
    b_power = tl.where(b_scale == 255, 0x7FC00000, tl.minimum(b_scale + 14, 255) << 23)
    b_value *= b_power.to(tl.float32, bitcast=True)[:, :, None]
    b_half = (b_value.to(tl.uint32, bitcast=True) >> 16).to(tl.uint16)
    return tl.reshape(b_half.to(tl.bfloat16, bitcast=True), [ROWS, COLUMNS])


@triton.jit
def dot_bf16(b_x, b_w, b_y, W_FIRST: tl.constexpr):
    """Y + x @ w.T, or with W_FIRST Y + w @ x.T."""
    if W_FIRST:
        b_y = tl.dot(b_w, tl.trans(b_x), b_y)
    else:
        b_y = tl.dot(b_x, tl.trans(b_w), b_y)
    return b_y


@triton.jit
def dot_bf16_parts(b_x, b_w, b_y, PARTS: tl.constexpr, W_FIRST: tl.constexpr):
    """`dot_bf16`; x is taken apart into PARTS of bf16 so that nothing of it is lost."""
    if PARTS == 1:
        b_y = dot_bf16(b_x, b_w, b_y, W_FIRST)
    else:
        b_rest = b_x.to(tl.float32)
        for _ in tl.static_range(PARTS):
            b_part = b_rest.to(tl.bfloat16)
            b_y = dot_bf16(b_part, b_w, b_y, W_FIRST)
            b_rest -= b_part.to(tl.float32)
    return b_y


@triton.jit
def load_codes(
    p_words, p_scales, i_k, K: tl.constexpr, K_MEMORY: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Words of eight codes and scales of a tile from column `i_k` on; no more than K if needed."""
    if K_MEMORY >= tl.cdiv(K, BLOCK_K) * BLOCK_K:
        b_words = tl.load(p_words + i_k // 8)
        b_scale = tl.load(p_scales + i_k // GROUP)
    else:
        m_word = i_k // 8 + tl.arange(0, BLOCK_K // 8) < K // 8
        m_group = i_k // GROUP + tl.arange(0, BLOCK_K // GROUP) < K // GROUP
        b_words = tl.load(p_words + i_k // 8, mask=m_word[None, :], other=0)
        b_scale = tl.load(p_scales + i_k // GROUP, mask=m_group[None, :], other=0)
    return b_words, b_scale


@triton.jit
def mxfp4_dequant_kernel(
    p_x,
    p_w,
    p_w_scale,
    p_bias,
    p_y,
    M,
    x_stride,
    y_stride,
    N: tl.constexpr,
    K: tl.constexpr,
    K_MEMORY: tl.constexpr,
    W_STRIDE: tl.constexpr,
    W_SCALE_STRIDE: tl.constexpr,
    X_PARTS: tl.constexpr,
    W_FIRST: tl.constexpr,
    AHEAD: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    DIES: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Y [M, N] = x @ (w * w_scale).T + bias, x [M, K] floats, w [N, K/2], w_scale [N, K/32].

    Rows of w have K_MEMORY elements, zeros from K on.  With W_FIRST it is Y.T = w @ x.T that is
    computed: Hopper's matrix units take the first operand from registers, where w becomes bf16.
    With AHEAD, w is loaded a step ahead, first of all: on AMD GPUs Triton loads ahead what goes
    straight to shared memory, and the compiler moves other loads to where they are waited for.
    """
    i_m, i_n = tile_at(M, N, BLOCK_M, BLOCK_N, GROUP_M, DIES)
    begin, end = steps_of(K, BLOCK_K, SPLITS)
    o_m = tl.minimum(i_m + tl.arange(0, BLOCK_M), M - 1).to(tl.int64)
    o_n = tl.minimum(tl.arange(0, BLOCK_N), N - 1 - i_n)
    o_k = tl.arange(0, BLOCK_K)
    o_word = tl.arange(0, BLOCK_K // 8)
    o_group = tl.arange(0, BLOCK_K // GROUP)
    p_words = (p_w + i_n.to(tl.int64) * W_STRIDE).to(tl.pointer_type(tl.uint32), bitcast=True)
    p_w_scale += i_n.to(tl.int64) * W_SCALE_STRIDE
    p_x_tile = p_x + o_m[:, None] * x_stride + o_k[None, :]
    p_w_tile = p_words + o_n[:, None] * (W_STRIDE // 4) + o_word[None, :]
    p_scale_tile = p_w_scale + o_n[:, None] * W_SCALE_STRIDE + o_group[None, :]
    if W_FIRST:
        b_y = tl.zeros([BLOCK_N, BLOCK_M], dtype=tl.float32)
    else:
        b_y = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    b_ahead, b_scale_ahead = load_codes(
        p_w_tile, p_scale_tile, begin * BLOCK_K, K, K_MEMORY, BLOCK_K
    )
    for i_step in range(begin, end):
        i_k = i_step * BLOCK_K
        b_words, b_scale = b_ahead, b_scale_ahead
        i_load = tl.minimum(i_step + 1, end - 1) * BLOCK_K if AHEAD else i_k
        b_ahead, b_scale_ahead = load_codes(p_w_tile, p_scale_tile, i_load, K, K_MEMORY, BLOCK_K)
        if not AHEAD:
            b_words, b_scale = b_ahead, b_scale_ahead
        if K % BLOCK_K == 0:
            b_x = tl.load(p_x_tile + i_k)
        else:
            b_x = tl.load(p_x_tile + i_k, mask=(i_k + o_k < K)[None, :], other=0.0)
        b_w = bf16_of_e2m1(b_words, b_scale, BLOCK_N, BLOCK_K)
        b_y = dot_bf16_parts(b_x, b_w, b_y, X_PARTS, W_FIRST)
    if W_FIRST:
        b_y = tl.trans(b_y)
    store_tile(b_y, p_bias, p_y, i_m, i_n, M, y_stride, N, BLOCK_M, BLOCK_N, BIAS)


@triton.jit
def mx_scaled_kernel(
    p_x,
    p_x_scale,
    p_w,
    p_w_scale,
    p_bias,
    p_y,
    M,
    x_stride,
    x_scale_row,
    x_scale_group,
    y_stride,
    N: tl.constexpr,
    K: tl.constexpr,
    K_MEMORY: tl.constexpr,
    W_STRIDE: tl.constexpr,
    W_SCALE_STRIDE: tl.constexpr,
    X_PACK: tl.constexpr,
    W_PACK: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    DIES: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Y [M, N] = (x * x_scale) @ (w * w_scale).T + bias by the matrix units, all operands codes.

    An element of x is a byte of e4m3fn, or half a byte of e2m1 where X_PACK is 2; so with w.
    Rows of w have K_MEMORY elements, zeros from K on.
    """
    X_FORMAT: tl.constexpr = "e2m1" if X_PACK == 2 else "e4m3"
    W_FORMAT: tl.constexpr = "e2m1" if W_PACK == 2 else "e4m3"
    i_m, i_n = tile_at(M, N, BLOCK_M, BLOCK_N, GROUP_M, DIES)
    begin, end = steps_of(K, BLOCK_K, SPLITS)
    o_m = tl.minimum(i_m + tl.arange(0, BLOCK_M), M - 1).to(tl.int64)
    o_n = tl.minimum(tl.arange(0, BLOCK_N), N - 1 - i_n)
    o_x = tl.arange(0, BLOCK_K // X_PACK)
    o_w = tl.arange(0, BLOCK_K // W_PACK)
    o_group = tl.arange(0, BLOCK_K // GROUP)
    p_w += i_n.to(tl.int64) * W_STRIDE
    p_w_scale += i_n.to(tl.int64) * W_SCALE_STRIDE
    p_x_tile = p_x + o_m[:, None] * x_stride + o_x[None, :]
    p_x_scales = p_x_scale + o_m[:, None] * x_scale_row + o_group[None, :] * x_scale_group
    p_w_tile = p_w + o_n[None, :] * W_STRIDE + o_w[:, None]
    p_w_scales = p_w_scale + o_n[:, None] * W_SCALE_STRIDE + o_group[None, :]
    b_y = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for i_step in range(begin, end):
        i_k = i_step * BLOCK_K
        i_group = i_k // GROUP
        m_group = (i_group + o_group < K // GROUP)[None, :]
        if K % BLOCK_K == 0:
            b_x = tl.load(p_x_tile + i_k // X_PACK)
            b_x_scale = tl.load(p_x_scales + i_group * x_scale_group)
        else:
            m_x = (i_k // X_PACK + o_x < K // X_PACK)[None, :]
            b_x = tl.load(p_x_tile + i_k // X_PACK, mask=m_x, other=0.0)
            b_x_scale = tl.load(p_x_scales + i_group * x_scale_group, mask=m_group, other=127)
        if K_MEMORY >= tl.cdiv(K, BLOCK_K) * BLOCK_K:
            b_w = tl.load(p_w_tile + i_k // W_PACK)
            b_w_scale = tl.load(p_w_scales + i_group)
        else:
            m_w = (i_k // W_PACK + o_w < K // W_PACK)[:, None]
            b_w = tl.load(p_w_tile + i_k // W_PACK, mask=m_w, other=0.0)
            b_w_scale = tl.load(p_w_scales + i_group, mask=m_group, other=127)
        b_y = tl.dot_scaled(b_x, b_x_scale, X_FORMAT, b_w, b_w_scale, W_FORMAT, b_y)
    store_tile(b_y, p_bias, p_y, i_m, i_n, M, y_stride, N, BLOCK_M, BLOCK_N, BIAS)
