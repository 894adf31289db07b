"""Convolutions on a GPU: products with patches that are gathered as they are read, or tap by tap.

There are three axes always; the leading ones have size 1 if there are fewer.
"""

import triton
import triton.language as tl

from fusec.kernels.linear.triton_kernel import activated


@triton.jit
def is_inside(
    i_0,
    i_1,
    i_2,
    D0,
    D1,
    D2,
    PADDED: tl.constexpr,
):
    """Whether places of x are in it; without padding all are."""
    m_0 = (i_0 >= 0) & (i_0 < D0) | (PADDED == 0)
    m_1 = (i_1 >= 0) & (i_1 < D1) | (PADDED == 0)
    m_2 = (i_2 >= 0) & (i_2 < D2) | (PADDED == 0)
    return m_0 & m_1 & m_2


@triton.jit
def conv_kernel(
    p_x,
    p_w,
    p_scale,
    p_bias,
    p_residual,
    p_y,
    B,
    D0,
    D1,
    D2,
    P0,
    P1,
    P2,
    n_places,
    x_batch,
    x_channel,
    x_0,
    x_1,
    x_2,
    FILTERS: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    K0: tl.constexpr,
    K1: tl.constexpr,
    K2: tl.constexpr,
    STRIDE_0: tl.constexpr,
    STRIDE_1: tl.constexpr,
    STRIDE_2: tl.constexpr,
    PADDING_0: tl.constexpr,
    PADDING_1: tl.constexpr,
    PADDING_2: tl.constexpr,
    DILATION_0: tl.constexpr,
    DILATION_1: tl.constexpr,
    DILATION_2: tl.constexpr,
    SCALE: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Y [B, GROUPS * FILTERS, P0, P1, P2] of x [B, GROUPS * CHANNELS, D0, D1, D2].

    Sums are scaled, biased, added to a residual like Y and activated, as the constants say.

    The weight [GROUPS * FILTERS, CHANNELS, K0, K1, K2] is the left operand, so that results come
    out in the order in which they are stored.  A tile is BLOCK_M filters of a group at BLOCK_N
    places of all batches; sums are over channels and taps, in f32.
    """
    TAPS: tl.constexpr = K0 * K1 * K2
    LENGTH: tl.constexpr = CHANNELS * TAPS
    N_FILTER_TILES: tl.constexpr = (FILTERS + BLOCK_M - 1) // BLOCK_M
    i_group = tl.program_id(1)
    i_m = tl.program_id(0) % N_FILTER_TILES * BLOCK_M
    o_n = (tl.program_id(0) // N_FILTER_TILES).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < tl.cast(n_places, tl.int64) * B
    i_batch = o_n // n_places
    i_place = (o_n - i_batch * n_places).to(tl.int32)
    i_0 = i_place // (P1 * P2) * STRIDE_0 - PADDING_0
    i_1 = i_place // P2 % P1 * STRIDE_1 - PADDING_1
    i_2 = i_place % P2 * STRIDE_2 - PADDING_2
    o_m = i_m + tl.arange(0, BLOCK_M)
    m_m = o_m < FILTERS
    o_k = tl.arange(0, BLOCK_K)
    p_x += i_group.to(tl.int64) * CHANNELS * x_channel
    p_places = p_x + i_batch * x_batch + i_0 * x_0 + i_1 * x_1 + i_2 * x_2
    p_filters = p_w + (i_group * FILTERS + o_m).to(tl.int64) * LENGTH
    b_y = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for i_k in range(0, LENGTH, BLOCK_K):
        i_tap = i_k + o_k
        m_k = i_tap < LENGTH
        i_channel = i_tap // TAPS
        k_0 = i_tap // (K1 * K2) % K0 * DILATION_0
        k_1 = i_tap // K2 % K1 * DILATION_1
        k_2 = i_tap % K2 * DILATION_2
        b_offset = i_channel * x_channel + k_0 * x_0 + k_1 * x_1 + k_2 * x_2
        m_inside = is_inside(
            i_0[None, :] + k_0[:, None],
            i_1[None, :] + k_1[:, None],
            i_2[None, :] + k_2[:, None],
            D0,
            D1,
            D2,
            PADDED,
        )
        m_x = m_inside & m_k[:, None] & m_n[None, :]
        b_x = tl.load(p_places[None, :] + b_offset[:, None], mask=m_x, other=0.0)
        p_tile = p_filters[:, None] + i_tap[None, :]
        b_w = tl.load(p_tile, mask=m_m[:, None] & m_k[None, :], other=0.0)
        b_y = tl.dot(b_w, b_x, b_y, input_precision="ieee")
    o_filter = i_group * FILTERS + o_m
    if SCALE:
        b_y *= tl.load(p_scale + o_filter, mask=m_m, other=0.0).to(tl.float32)[:, None]
    if BIAS:
        b_y += tl.load(p_bias + o_filter, mask=m_m, other=0.0).to(tl.float32)[:, None]
    o_row = (i_batch * (GROUPS * FILTERS) * n_places + i_place)[None, :]
    o_y = o_row + (o_filter.to(tl.int64) * n_places)[:, None]
    m_y = m_m[:, None] & m_n[None, :]
    if RESIDUAL:
        b_y += tl.load(p_residual + o_y, mask=m_y, other=0.0).to(tl.float32)
    b_y = activated(b_y, ACTIVATION)
    tl.store(p_y + o_y, b_y.to(p_y.dtype.element_ty), mask=m_y)


@triton.jit
def conv_direct_kernel(
    p_x,
    p_w,
    p_scale,
    p_bias,
    p_residual,
    p_y,
    B,
    D0,
    D1,
    D2,
    P0,
    P1,
    P2,
    n_places,
    x_batch,
    x_channel,
    x_0,
    x_1,
    x_2,
    FILTERS: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    K0: tl.constexpr,
    K1: tl.constexpr,
    K2: tl.constexpr,
    STRIDE_0: tl.constexpr,
    STRIDE_1: tl.constexpr,
    STRIDE_2: tl.constexpr,
    PADDING_0: tl.constexpr,
    PADDING_1: tl.constexpr,
    PADDING_2: tl.constexpr,
    DILATION_0: tl.constexpr,
    DILATION_1: tl.constexpr,
    DILATION_2: tl.constexpr,
    SCALE: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PADDED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The same where a group has too few filters for a product, or elements are of 64 bits (WIDE).

    A program has BLOCK places of one filter, and goes over channels and taps.
    """
    TAPS: tl.constexpr = K0 * K1 * K2
    n_tiles = tl.cdiv(n_places, BLOCK)
    i_place = tl.program_id(0) % n_tiles * BLOCK + tl.arange(0, BLOCK)
    i_row = tl.program_id(0) // n_tiles
    i_filter = i_row % (GROUPS * FILTERS)
    i_batch = (i_row // (GROUPS * FILTERS)).to(tl.int64)
    m_place = i_place < n_places
    i_0 = i_place // (P1 * P2) * STRIDE_0 - PADDING_0
    i_1 = i_place // P2 % P1 * STRIDE_1 - PADDING_1
    i_2 = i_place % P2 * STRIDE_2 - PADDING_2
    i_first = (i_filter // FILTERS * CHANNELS).to(tl.int64)
    p_places = p_x + i_batch * x_batch + i_first * x_channel + i_0 * x_0 + i_1 * x_1 + i_2 * x_2
    p_w += i_filter.to(tl.int64) * CHANNELS * TAPS
    b_y = tl.zeros([BLOCK], dtype=tl.float64 if WIDE else tl.float32)
    for i_k in range(0, CHANNELS * TAPS):
        k_0 = i_k // (K1 * K2) % K0 * DILATION_0
        k_1 = i_k // K2 % K1 * DILATION_1
        k_2 = i_k % K2 * DILATION_2
        m_inside = is_inside(i_0 + k_0, i_1 + k_1, i_2 + k_2, D0, D1, D2, PADDED)
        p_tap = p_places + (i_k // TAPS * x_channel + k_0 * x_0 + k_1 * x_1 + k_2 * x_2)
        b_x = tl.load(p_tap, mask=m_inside & m_place, other=0.0)
        b_y += b_x.to(b_y.dtype) * tl.load(p_w + i_k).to(b_y.dtype)
    if SCALE:
        b_y *= tl.load(p_scale + i_filter).to(b_y.dtype)
    if BIAS:
        b_y += tl.load(p_bias + i_filter).to(b_y.dtype)
    o_y = i_row.to(tl.int64) * n_places + i_place
    if RESIDUAL:
        b_y += tl.load(p_residual + o_y, mask=m_place, other=0.0).to(b_y.dtype)
    b_y = activated(b_y, ACTIVATION)
    tl.store(p_y + o_y, b_y.to(p_y.dtype.element_ty), mask=m_place)
