"""Products of batches of matrices on a GPU, by any strides."""

import triton
import triton.language as tl


@triton.jit
def place_of(
    M,
    N,
    B1,
    B2,
    B3,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """The places along four batch axes, and the first row and column, of the program's tile.

    GROUP_M tiles below one another come before the next column of tiles, and all tiles of a matrix
    before the next.
    """
    n_across = tl.cdiv(N, BLOCK_N)
    n_tiles = tl.cdiv(M, BLOCK_M) * n_across
    i_tile = tl.program_id(0) % n_tiles
    i_3 = tl.program_id(0) // n_tiles
    i_2 = i_3 // B3
    i_1 = i_2 // B2
    i_0 = i_1 // B1
    n_in_group = GROUP_M * n_across
    i_first = i_tile // n_in_group * GROUP_M
    n_rows = tl.minimum(tl.cdiv(M, BLOCK_M) - i_first, GROUP_M)
    i_in_group = i_tile % n_in_group
    i_m = (i_first + i_in_group % n_rows) * BLOCK_M
    i_n = i_in_group // n_rows * BLOCK_N
    return i_0.to(tl.int64), i_1 % B1, i_2 % B2, i_3 % B3, i_m, i_n


@triton.jit
def matmul_kernel(
    p_a,
    p_b,
    p_bias,
    p_y,
    M,
    N,
    K,
    B1,
    B2,
    B3,
    a_0,
    a_1,
    a_2,
    a_3,
    a_row,
    a_column,
    b_0,
    b_1,
    b_2,
    b_3,
    b_row,
    b_column,
    y_0,
    y_1,
    y_2,
    y_3,
    y_row,
    BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    WHOLE_M: tl.constexpr,
    WHOLE_N: tl.constexpr,
    WHOLE_K: tl.constexpr,
    DOT: tl.constexpr,
):
    """Y [..., M, N] = a [..., M, K] @ b [..., K, N] + bias [N], over four batch axes.

    WHOLE_M, WHOLE_N and WHOLE_K say that there are whole tiles only.  DOT: by the matrix units,
    with sums in f32, and products of f32 in f32; else each column of a by each row of b, with sums
    in the dtype of the result.
    """
    i_0, i_1, i_2, i_3, i_m, i_n = place_of(M, N, B1, B2, B3, BLOCK_M, BLOCK_N, GROUP_M)
    o_m = i_m + tl.arange(0, BLOCK_M)
    o_n = i_n + tl.arange(0, BLOCK_N)
    m_m = (o_m < M) | (WHOLE_M == 1)
    m_n = (o_n < N) | (WHOLE_N == 1)
    p_a += i_0 * a_0 + i_1 * a_1 + i_2 * a_2 + i_3 * a_3
    p_b += i_0 * b_0 + i_1 * b_1 + i_2 * b_2 + i_3 * b_3
    p_y += i_0 * y_0 + i_1 * y_1 + i_2 * y_2 + i_3 * y_3
    p_rows = p_a + o_m.to(tl.int64) * a_row
    p_columns = p_b + o_n.to(tl.int64) * b_column
    if DOT:
        b_y = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
        o_k = tl.arange(0, BLOCK_K)
        p_a_tile = p_rows[:, None] + o_k.to(tl.int64)[None, :] * a_column
        p_b_tile = p_columns[None, :] + o_k.to(tl.int64)[:, None] * b_row
        for i_k in range(0, K, BLOCK_K):
            m_k = (i_k + o_k < K) | (WHOLE_K == 1)
            b_a = tl.load(p_a_tile, mask=m_m[:, None] & m_k[None, :], other=0.0)
            b_b = tl.load(p_b_tile, mask=m_k[:, None] & m_n[None, :], other=0.0)
            b_y = tl.dot(b_a, b_b, b_y, input_precision="ieee")
            p_a_tile += BLOCK_K * a_column
            p_b_tile += BLOCK_K * b_row
    else:
        b_y = tl.zeros([BLOCK_M, BLOCK_N], dtype=p_y.dtype.element_ty)
        for i_k in range(0, K):
            b_a = tl.load(p_rows + i_k * a_column, mask=m_m, other=0)
            b_b = tl.load(p_columns + i_k * b_row, mask=m_n, other=0)
            b_y += b_a[:, None] * b_b[None, :]
    if BIAS:
        b_y += tl.load(p_bias + o_n, mask=m_n, other=0).to(b_y.dtype)[None, :]
    p_tile = p_y + o_m.to(tl.int64)[:, None] * y_row + o_n[None, :]
    tl.store(p_tile, b_y.to(p_y.dtype.element_ty), mask=m_m[:, None] & m_n[None, :])
