"""Products of stretches of rows with their own weights, on a GPU."""

import triton
import triton.language as tl


@triton.jit
def grouped_mm_kernel(
    p_x,
    p_w,
    p_ends,
    p_error,
    p_y,
    M,
    x_stride,
    w_group,
    w_row,
    w_column,
    y_stride,
    N: tl.constexpr,
    K: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUPS_PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Y [M, N]: rows ends[g - 1] to ends[g] of x [M, K] times w [g, K, N]; rows after that, zeros.

    Rows beyond M, or a stretch that ends before it begins, are an index out of range: the first
    program says so.  Tiles are numbered along the rows; those of one stretch end with it, so there
    are up to a tile more than there are groups.
    """
    n_tiles = M // BLOCK_M + GROUPS + 1
    i_tile = tl.program_id(0) % n_tiles
    i_n = tl.program_id(0) // n_tiles * BLOCK_N
    o_g = tl.arange(0, GROUPS_PADDED)
    m_g = o_g < GROUPS
    b_end = tl.load(p_ends + o_g, mask=m_g, other=0).to(tl.int64)
    b_begin = tl.load(p_ends + o_g - 1, mask=m_g & (o_g > 0), other=0).to(tl.int64)
    if tl.program_id(0) == 0:
        b_wrong = m_g & ((b_end < b_begin) | (b_end > M))
        b_word = ((b_end * 0 + tl.maximum(M, 1)) << 32) | (b_end & 0xFFFFFFFF)
        tl.store(p_error + o_g * 0, b_word, mask=b_wrong)
    b_end = tl.minimum(tl.maximum(b_end, 0), M)
    b_begin = tl.minimum(tl.maximum(b_begin, 0), M)
    b_tiles = tl.where(m_g, (tl.maximum(b_end - b_begin, 0) + BLOCK_M - 1) // BLOCK_M, 0)
    b_after = tl.cumsum(b_tiles, 0)
    i_group = tl.sum(((b_after <= i_tile) & m_g).to(tl.int32), 0)
    i_tile -= tl.sum(tl.where(o_g < i_group, b_tiles, 0), 0)
    last = tl.sum(tl.where(o_g == GROUPS - 1, b_end, 0), 0)
    begin = tl.sum(tl.where(o_g == i_group, b_begin, 0), 0)
    end = tl.sum(tl.where(o_g == i_group, b_end, 0), 0)
    length = K
    if i_group == GROUPS:
        begin, end, length = last, M.to(tl.int64), 0
    o_m = begin + i_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_n + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    m_m = o_m < end
    m_n = (o_n < N) | (N % BLOCK_N == 0)
    p_x_tile = p_x + o_m[:, None] * x_stride + o_k[None, :]
    p_w += tl.minimum(i_group, GROUPS - 1).to(tl.int64) * w_group
    p_w_tile = p_w + o_k.to(tl.int64)[:, None] * w_row + o_n.to(tl.int64)[None, :] * w_column
    b_y = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    if i_tile * BLOCK_M < end - begin:
        for i_k in range(0, length, BLOCK_K):
            m_k = (i_k + o_k < K) | (K % BLOCK_K == 0)
            b_x = tl.load(p_x_tile, mask=m_m[:, None] & m_k[None, :], other=0.0)
            b_w = tl.load(p_w_tile, mask=m_k[:, None] & m_n[None, :], other=0.0)
            b_y = tl.dot(b_x, b_w, b_y, input_precision="ieee")
            p_x_tile += BLOCK_K
            p_w_tile += BLOCK_K * w_row
        p_tile = p_y + o_m[:, None] * y_stride + o_n[None, :]
        tl.store(p_tile, b_y.to(p_y.dtype.element_ty), mask=m_m[:, None] & m_n[None, :])
