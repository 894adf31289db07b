"""Products of floats with a weight matrix on a GPU."""

import triton
import triton.language as tl

from fusec.kernels.fp8_linear.triton_kernel import steps_of, store_tile, tile_at


@triton.jit
def linear_kernel(
    p_x,
    p_w,
    p_bias,
    p_y,
    M,
    x_stride,
    w_stride,
    y_stride,
    N: tl.constexpr,
    K: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    DIES: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Y [M, N] = x [M, K] @ w [N, K].T + bias; products of f32 are in f32."""
    i_m, i_n = tile_at(M, N, BLOCK_M, BLOCK_N, GROUP_M, DIES)
    begin, end = steps_of(K, BLOCK_K, SPLITS)
    o_m = tl.minimum(i_m + tl.arange(0, BLOCK_M), M - 1).to(tl.int64)
    o_n = tl.minimum(i_n + tl.arange(0, BLOCK_N), N - 1).to(tl.int64)
    o_k = tl.arange(0, BLOCK_K)
    p_x_tile = p_x + o_m[:, None] * x_stride + o_k[None, :]
    p_w_tile = p_w + o_n[None, :] * w_stride + o_k[:, None]
    b_y = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for i_step in range(begin, end):
        i_k = i_step * BLOCK_K
        if K % BLOCK_K == 0:
            b_x = tl.load(p_x_tile + i_k)
            b_w = tl.load(p_w_tile + i_k)
        else:
            m_k = i_k + o_k < K
            b_x = tl.load(p_x_tile + i_k, mask=m_k[None, :], other=0.0)
            b_w = tl.load(p_w_tile + i_k, mask=m_k[:, None], other=0.0)
        b_y = tl.dot(b_x, b_w, b_y, input_precision="ieee")
    store_tile(b_y, p_bias, p_y, i_m, i_n, M, y_stride, N, BLOCK_M, BLOCK_N, BIAS)
