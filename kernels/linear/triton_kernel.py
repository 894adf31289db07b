"""Products of floats with a weight matrix on a GPU, and what follows them."""

import triton
import triton.language as tl

from fusec.kernels.fp8_linear.triton_kernel import steps_of, store_tile, tile_at
from fusec.kernels.silu_mul.triton_kernel import sigmoid


@triton.jit
def activated(b_y, ACTIVATION: tl.constexpr):
    """Sums after an activation, by its number in `linear/triton.py`."""
    if ACTIVATION == 1:
        return b_y * sigmoid(b_y)
    elif ACTIVATION == 2:
        return 0.5 * b_y * (1.0 + tl.erf(b_y * 0.7071067811865476))
    elif ACTIVATION == 3:  # 1 + tanh(u) = 2 sigmoid(2 u)
        return b_y * sigmoid(1.5957691216057308 * (b_y + 0.044715 * b_y * b_y * b_y))
    elif ACTIVATION == 4:
        return b_y * sigmoid(1.702 * b_y)
    elif ACTIVATION == 5:
        return tl.where(b_y < 0, 0.0, b_y)
    elif ACTIVATION == 6:
        return tl.where(b_y < 0, 0.0, tl.where(b_y > 6, 6.0, b_y))
    elif ACTIVATION == 7:
        return b_y * tl.clamp(b_y + 3, 0.0, 6.0) * (1.0 / 6.0)
    else:
        return b_y


@triton.jit
def linear_kernel(
    p_x,
    p_w,
    p_bias,
    p_y,
    p_residual,
    M,
    x_stride,
    w_stride,
    y_stride,
    residual_stride,
    N: tl.constexpr,
    K: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    DIES: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Y [M, N] = activation(x [M, K] @ w [N, K].T + bias) + residual; products of f32 in f32."""
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
    if ACTIVATION > 0 or RESIDUAL:
        o_n = i_n + tl.arange(0, BLOCK_N)
        m_n = o_n < N
        if BIAS:
            b_y += tl.load(p_bias + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
        b_y = activated(b_y, ACTIVATION)
        if RESIDUAL:
            p_tile = p_residual + o_m[:, None] * residual_stride + o_n[None, :]
            b_y += tl.load(p_tile, mask=m_n[None, :], other=0.0).to(tl.float32)
        store_tile(b_y, p_bias, p_y, i_m, i_n, M, y_stride, N, BLOCK_M, BLOCK_N, False)
    else:
        store_tile(b_y, p_bias, p_y, i_m, i_n, M, y_stride, N, BLOCK_M, BLOCK_N, BIAS)


@triton.jit
def linear_sum_kernel(
    p_parts,
    p_y,
    p_bias,
    p_residual,
    M,
    y_stride,
    residual_stride,
    N: tl.constexpr,
    SPLITS: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A row of the result of sums in parts [SPLITS, M, N]."""
    i_row = tl.program_id(0).to(tl.int64)
    o_n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_n = o_n < N
    b_sum = tl.zeros([BLOCK], dtype=tl.float32)
    for i_part in tl.static_range(SPLITS):
        b_sum += tl.load(p_parts + (i_part * M + i_row) * N + o_n, mask=m_n, other=0.0)
    if BIAS:
        b_sum += tl.load(p_bias + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_sum = activated(b_sum, ACTIVATION)
    if RESIDUAL:
        p_row = p_residual + i_row * residual_stride + o_n
        b_sum += tl.load(p_row, mask=m_n, other=0.0).to(tl.float32)
    tl.store(p_y + i_row * y_stride + o_n, b_sum.to(p_y.dtype.element_ty), mask=m_n)
