"""Products of 8-bit floats on a GPU, and what all products share.

A program computes a tile of the result.  Sums are in f32.  Rows and columns beyond the last are
read as the last one and not stored.
"""

import triton
import triton.language as tl


@triton.jit
def tile_at(
    M,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP_M: tl.constexpr,
    DIES: tl.constexpr,
):
    """The first row and column of the program's tile.

    Work groups go to the dies in turn; they are renumbered so that each die has neighbours.  Then
    GROUP_M tiles below one another come before the next column of tiles.
    """
    i_tile = tl.program_id(0)
    if DIES > 1:
        n_tiles = tl.num_programs(0)
        i_die = i_tile % DIES
        i_tile = i_die * (n_tiles // DIES) + tl.minimum(i_die, n_tiles % DIES) + i_tile // DIES
    n_in_group = GROUP_M * tl.cdiv(N, BLOCK_N)
    i_first = i_tile // n_in_group * GROUP_M
    n_rows = tl.minimum(tl.cdiv(M, BLOCK_M) - i_first, GROUP_M)
    i_in_group = i_tile % n_in_group
    return (i_first + i_in_group % n_rows) * BLOCK_M, i_in_group // n_rows * BLOCK_N


@triton.jit
def steps_of(K: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr):
    """The first step along K of the program's part of the sum, and the one after its last."""
    n_steps: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    n_part: tl.constexpr = (n_steps + SPLITS - 1) // SPLITS
    begin = tl.program_id(1) * n_part
    return begin, tl.minimum(begin + n_part, n_steps)


@triton.jit
def store_tile(
    b_y,
    p_bias,
    p_y,
    i_m,
    i_n,
    M,
    y_stride,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BIAS: tl.constexpr,
):
    """Store a tile plus the bias; a part of a split sum goes behind the parts before it."""
    o_m = i_m + tl.arange(0, BLOCK_M)
    o_n = i_n + tl.arange(0, BLOCK_N)
    m_n = o_n < N
    if BIAS:
        b_y += tl.load(p_bias + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    i_row = tl.program_id(1).to(tl.int64) * M + o_m
    p_tile = p_y + i_row[:, None] * y_stride + o_n[None, :]
    tl.store(p_tile, b_y.to(p_y.dtype.element_ty), mask=(o_m < M)[:, None] & m_n[None, :])


@triton.jit
def split_sum_kernel(
    p_parts,
    p_y,
    p_bias,
    M,
    y_stride,
    N: tl.constexpr,
    SPLITS: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A row of the result: the parts [SPLITS, M, N] of its sums, added in order, plus the bias."""
    i_row = tl.program_id(0).to(tl.int64)
    o_n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_n = o_n < N
    b_sum = tl.zeros([BLOCK], dtype=tl.float32)
    for i_part in tl.static_range(SPLITS):
        b_sum += tl.load(p_parts + (i_part * M + i_row) * N + o_n, mask=m_n, other=0.0)
    if BIAS:
        b_sum += tl.load(p_bias + o_n, mask=m_n, other=0.0).to(tl.float32)
    tl.store(p_y + i_row * y_stride + o_n, b_sum.to(p_y.dtype.element_ty), mask=m_n)


@triton.jit
def scales_of_step(
    p_x_scales,
    p_w_scales,
    i_k,
    x_scale_group,
    K: tl.constexpr,
    X_GROUP: tl.constexpr,
    W_COLUMNS: tl.constexpr,
):
    """Scales of rows and of columns for the step along K at `i_k`; 1 where one serves all of K."""
    b_row = tl.full([1], 1.0, tl.float32)
    b_column = b_row
    if X_GROUP > 0:
        b_row = tl.load(p_x_scales + i_k // X_GROUP * x_scale_group)
    if W_COLUMNS < K:
        b_column = tl.load(p_w_scales + i_k // W_COLUMNS)
    return b_row, b_column


@triton.jit
def fp8_linear_kernel(
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
    W_STRIDE: tl.constexpr,
    W_SCALE_STRIDE: tl.constexpr,
    X_GROUP: tl.constexpr,
    W_ROWS: tl.constexpr,
    W_COLUMNS: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    DIES: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Y [M, N] = (x * x_scale) @ (w * w_scale).T + bias, x [M, K], w [N, K].

    X_GROUP elements of a row of x share a scale, all of them if it is 0; W_ROWS times W_COLUMNS
    elements of w do.  BLOCK_K divides X_GROUP and, unless it is at least K, W_COLUMNS.
    """
    i_m, i_n = tile_at(M, N, BLOCK_M, BLOCK_N, GROUP_M, DIES)
    begin, end = steps_of(K, BLOCK_K, SPLITS)
    o_m = tl.minimum(i_m + tl.arange(0, BLOCK_M), M - 1).to(tl.int64)
    o_n = tl.minimum(tl.arange(0, BLOCK_N), N - 1 - i_n)
    o_k = tl.arange(0, BLOCK_K)
    p_w += i_n.to(tl.int64) * W_STRIDE
    p_x_tile = p_x + o_m[:, None] * x_stride + o_k[None, :]
    p_w_tile = p_w + o_n[None, :] * W_STRIDE + o_k[:, None]
    p_x_scales = p_x_scale + o_m * x_scale_row
    p_w_scales = p_w_scale + (i_n + o_n) // W_ROWS * W_SCALE_STRIDE
    if W_ROWS % BLOCK_N == 0:
        p_w_scales = p_w_scale + i_n // W_ROWS * W_SCALE_STRIDE + tl.arange(0, 1)
    b_y = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    b_row, b_column = scales_of_step(
        p_x_scales, p_w_scales, begin * BLOCK_K, x_scale_group, K, X_GROUP, W_COLUMNS
    )
    for i_step in range(begin, end):
        i_k = i_step * BLOCK_K
        # Scales are loaded a step ahead and before the tiles, which are loaded ahead as well: what
        # is loaded after those waits for them.
        b_scale = b_row[:, None] * b_column[None, :]
        b_row, b_column = scales_of_step(
            *(p_x_scales, p_w_scales, tl.minimum(i_k + BLOCK_K, K - 1)),
            *(x_scale_group, K, X_GROUP, W_COLUMNS),
        )
        if K % BLOCK_K == 0:
            b_x = tl.load(p_x_tile + i_k)
            b_w = tl.load(p_w_tile + i_k)
        else:
            m_k = i_k + o_k < K
            b_x = tl.load(p_x_tile + i_k, mask=m_k[None, :], other=0.0)
            b_w = tl.load(p_w_tile + i_k, mask=m_k[:, None], other=0.0)
        b_y += tl.dot(b_x, b_w) * b_scale
    if X_GROUP == 0:
        b_y *= tl.load(p_x_scales)[:, None]
    if W_COLUMNS >= K:
        b_y *= tl.load(p_w_scales)[None, :]
    store_tile(b_y, p_bias, p_y, i_m, i_n, M, y_stride, N, BLOCK_M, BLOCK_N, BIAS)
