"""Routed experts on a GPU: a product over the sorted rows of all experts, and the sum over slots.

`triton_align_kernel.py` sorts the rows.  One function serves both products of an expert and every
format of its weights; what its formats are made of comes before it.
"""

import triton
import triton.language as tl

from fusec.kernels.fp8_linear.triton_kernel import scales_of_step
from fusec.kernels.moe.triton_activation_kernel import activated, gated
from fusec.kernels.moe.triton_align_kernel import block_rows
from fusec.kernels.moe.triton_quantise_kernel import quantised_groups
from fusec.kernels.mxfp4_linear.triton_kernel import bf16_of_e2m1

MX_GROUP = tl.constexpr(32)


@triton.jit
def load_tile(p_tile, m_rows, m_columns, EVEN_ROWS: tl.constexpr, EVEN_COLUMNS: tl.constexpr):
    """A tile of which rows and columns may be outside; what is certain is not asked."""
    if EVEN_ROWS and EVEN_COLUMNS:
        tile = tl.load(p_tile)
    elif EVEN_ROWS:
        tile = tl.load(p_tile, mask=m_columns[None, :], other=0.0)
    elif EVEN_COLUMNS:
        tile = tl.load(p_tile, mask=m_rows[:, None], other=0.0)
    else:
        tile = tl.load(p_tile, mask=m_rows[:, None] & m_columns[None, :], other=0.0)
    return tile


@triton.jit
def load_codes(
    p_w,
    p_scale,
    o_n,
    k,
    m_n,
    K: tl.constexpr,
    W_ROW: tl.constexpr,
    S_ROW: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Rows o_n, columns k to k + BLOCK_K of 4-bit floats, eight in a word, and their scales."""
    o_word = k // 8 + tl.arange(0, BLOCK_K // 8)
    o_group = k // MX_GROUP + tl.arange(0, BLOCK_K // MX_GROUP)
    p_words = p_w.to(tl.pointer_type(tl.uint32), bitcast=True)
    p_words += o_n[:, None] * (W_ROW // 4) + o_word[None, :]
    p_scales = p_scale + o_n[:, None] * S_ROW + o_group[None, :]
    if EVEN_K and EVEN_N:
        words, scales = tl.load(p_words), tl.load(p_scales)
    else:
        words = tl.load(p_words, mask=m_n[:, None] & (o_word < K // 8)[None, :], other=0)
        m_scale = m_n[:, None] & (o_group < K // MX_GROUP)[None, :]
        scales = tl.load(p_scales, mask=m_scale, other=127)
    return words, scales


@triton.jit
def add_product(
    acc,
    a,
    b_scale,
    words,
    scales,
    p_a_scale,
    p_w,
    p_w_scale,
    i_row,
    n,
    k,
    m_row,
    m_n,
    m_k,
    a_scale_row,
    a_scale_group,
    FORMAT: tl.constexpr,
    GROUPED: tl.constexpr,
    K: tl.constexpr,
    W_ROW: tl.constexpr,
    W_COLUMN: tl.constexpr,
    S_ROW: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """acc + a @ W[n : n + BLOCK_N, k : k + BLOCK_K].T for the weight W of an expert.

    FORMAT is 0 for plain floats, 1 for 8-bit floats on both sides, 2 for 4-bit floats that are
    widened, 3 for 4-bit floats that multiply 8-bit floats with scales of groups on both sides.
    GROUPED, a product of 8-bit floats is multiplied by `b_scale`.  Of 4-bit floats that are widened
    `words` and `scales` hold the tile.
    """
    o_n = n + tl.arange(0, BLOCK_N)
    if FORMAT == 2:
        w = bf16_of_e2m1(words, scales, BLOCK_N, BLOCK_K)
        if a.dtype != tl.bfloat16:
            w = w.to(tl.float32).to(a.dtype)
        acc = tl.dot(a, tl.trans(w), acc)
    elif FORMAT == 3:
        o_byte = k // 2 + tl.arange(0, BLOCK_K // 2)
        p_tile = p_w + o_byte[:, None] + o_n[None, :] * W_ROW
        o_group = k // MX_GROUP + tl.arange(0, BLOCK_K // MX_GROUP)
        p_scales = p_w_scale + o_n[:, None] * S_ROW + o_group[None, :]
        p_rows = p_a_scale + i_row[:, None] * a_scale_row + o_group[None, :] * a_scale_group
        m_group = o_group < K // MX_GROUP
        if EVEN_K and EVEN_N:
            w, w_scale = tl.load(p_tile), tl.load(p_scales)
        else:
            w = tl.load(p_tile, mask=(o_byte < K // 2)[:, None] & m_n[None, :], other=0)
            w_scale = tl.load(p_scales, mask=m_n[:, None] & m_group[None, :], other=127)
        a_scale = tl.load(p_rows, mask=m_row[:, None] & m_group[None, :], other=127)
        acc = tl.dot_scaled(a, a_scale, "e4m3", w, w_scale, "e2m1", acc)
    else:
        o_k = k + tl.arange(0, BLOCK_K)
        p_tile = p_w + o_k[:, None] * W_COLUMN + o_n[None, :] * W_ROW
        w = load_tile(p_tile, m_k, m_n, EVEN_K, EVEN_N)
        if FORMAT == 0:
            acc = tl.dot(a, w, acc, input_precision="ieee")
        elif GROUPED:
            acc += tl.dot(a, w) * b_scale
        else:
            acc = tl.dot(a, w, acc, max_num_imprecise_acc=0)
    return acc


@triton.jit
def scales_of_both(
    p_rows,
    p_columns,
    p_ups,
    k,
    a_scale_group,
    K: tl.constexpr,
    A_GROUP: tl.constexpr,
    W_BLOCK_K: tl.constexpr,
    UP: tl.constexpr,
):
    """`scales_of_step`, and the scales of the columns of up."""
    b_row, b_column = scales_of_step(p_rows, p_columns, k, a_scale_group, K, A_GROUP, W_BLOCK_K)
    b_up = b_column
    if UP > 0 and W_BLOCK_K < K:
        b_up = tl.load(p_ups + k // W_BLOCK_K)
    return b_row, b_column, b_up


@triton.jit
def moe_product_kernel(
    p_a,
    p_a_scale,
    p_w,
    p_w_scale,
    p_bias,
    p_weights,
    p_pairs,
    p_extents,
    p_block_expert,
    p_y,
    p_y_scale,
    a_stride,
    a_scale_row,
    a_scale_group,
    weights_stride,
    alpha,
    limit,
    maximum,
    upper_bound,
    E: tl.constexpr,
    TOP_K: tl.constexpr,
    FORMAT: tl.constexpr,
    FIRST: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    UP: tl.constexpr,
    WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BIAS_STRIDE: tl.constexpr,
    A_GROUP: tl.constexpr,
    W_EXPERT: tl.constexpr,
    W_ROW: tl.constexpr,
    W_COLUMN: tl.constexpr,
    S_EXPERT: tl.constexpr,
    S_ROW: tl.constexpr,
    W_BLOCK_N: tl.constexpr,
    W_BLOCK_K: tl.constexpr,
    ONE_SCALE: tl.constexpr,
    AHEAD: tl.constexpr,
    Y_GROUP: tl.constexpr,
    Y_POWER: tl.constexpr,
    Y_ROUNDING: tl.constexpr,
    Y_MANTISSA: tl.constexpr,
    Y_HIGHEST: tl.constexpr,
    EVEN_A: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """BLOCK_N outputs of the block of rows that is the program's first index.

    FIRST: rows of tokens times gate_up, then the activation.  UP > 0: gate and up are two halves of
    the weight, UP rows apart, each multiplied on its own; WIDE: they are alternate rows.
    Else: activated rows times down, then the weight of the route.
    Results lie at [pair, .], where Y_GROUP > 0 as codes and their scales.
    """
    i_block = tl.program_id(0)
    if i_block >= tl.load(p_extents + 2 * E):
        return
    i_pair, m_row, i_expert = block_rows(p_pairs, p_extents, p_block_expert, i_block, E, BLOCK_M)
    i_row = i_pair // TOP_K if FIRST else i_pair
    n = tl.program_id(1) * BLOCK_N
    o_n = n + tl.arange(0, BLOCK_N)
    m_n = o_n < N
    p_w += i_expert * W_EXPERT
    p_w_scale += i_expert * S_EXPERT

    acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    acc_up = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    GROUPED: tl.constexpr = FORMAT == 1 and (A_GROUP > 0 or W_BLOCK_K < K)
    b_row = tl.full([1], 1.0, tl.float32)
    b_column, b_up = b_row, b_row
    if GROUPED:
        p_rows = p_a_scale + i_row * a_scale_row
        o_scale = n + tl.arange(0, 1) if ONE_SCALE else tl.minimum(o_n, N - 1)
        p_columns = p_w_scale + o_scale // W_BLOCK_N * S_ROW
        p_ups = p_w_scale + (o_scale + UP) // W_BLOCK_N * S_ROW
        b_row, b_column, b_up = scales_of_both(
            p_rows, p_columns, p_ups, 0, a_scale_group, K, A_GROUP, W_BLOCK_K, UP
        )
    words, scales, up_words, up_scales = b_row, b_row, b_row, b_row
    if FORMAT == 2:
        words, scales = load_codes(
            p_w, p_w_scale, o_n, 0, m_n, K, W_ROW, S_ROW, EVEN_K, EVEN_N, BLOCK_K
        )
        up_words, up_scales = words, scales
        if UP > 0:
            up_words, up_scales = load_codes(
                p_w, p_w_scale, o_n + UP, 0, m_n, K, W_ROW, S_ROW, EVEN_K, EVEN_N, BLOCK_K
            )
        words_ahead, scales_ahead = words, scales
        up_words_ahead, up_scales_ahead = up_words, up_scales
    for k in range(0, K, BLOCK_K):
        if FORMAT == 2:  # a step ahead if AHEAD: see `mxfp4_dequant_kernel`
            words, scales = words_ahead, scales_ahead
            up_words, up_scales = up_words_ahead, up_scales_ahead
            k_load = tl.minimum(k + BLOCK_K, (K - 1) // BLOCK_K * BLOCK_K) if AHEAD else k
            words_ahead, scales_ahead = load_codes(
                p_w, p_w_scale, o_n, k_load, m_n, K, W_ROW, S_ROW, EVEN_K, EVEN_N, BLOCK_K
            )
            if UP > 0:
                up_words_ahead, up_scales_ahead = load_codes(
                    *(p_w, p_w_scale, o_n + UP, k_load, m_n),
                    *(K, W_ROW, S_ROW, EVEN_K, EVEN_N, BLOCK_K),
                )
            if not AHEAD:
                words, scales = words_ahead, scales_ahead
                up_words, up_scales = up_words_ahead, up_scales_ahead
        b_scale = b_row[:, None] * b_column[None, :]
        b_up_scale = b_row[:, None] * b_up[None, :]
        if GROUPED:  # a step ahead, before the tiles: see `fp8_linear_kernel`
            b_row, b_column, b_up = scales_of_both(
                *(p_rows, p_columns, p_ups, tl.minimum(k + BLOCK_K, K - 1)),
                *(a_scale_group, K, A_GROUP, W_BLOCK_K, UP),
            )
        o_k = k + tl.arange(0, BLOCK_K)
        m_k = o_k < K
        a = load_tile(p_a + i_row[:, None] * a_stride + o_k[None, :], m_row, m_k, False, EVEN_A)
        acc = add_product(
            *(acc, a, b_scale, words, scales, p_a_scale, p_w, p_w_scale, i_row, n, k, m_row),
            *(m_n, m_k, a_scale_row, a_scale_group, FORMAT, GROUPED, K, W_ROW, W_COLUMN, S_ROW),
            *(EVEN_K, EVEN_N, BLOCK_M, BLOCK_N, BLOCK_K),
        )
        if UP > 0:
            acc_up = add_product(
                *(acc_up, a, b_up_scale, up_words, up_scales, p_a_scale, p_w, p_w_scale, i_row),
                *(n + UP, k, m_row, m_n, m_k, a_scale_row, a_scale_group, FORMAT, GROUPED, K),
                *(W_ROW, W_COLUMN, S_ROW, EVEN_K, EVEN_N, BLOCK_M, BLOCK_N, BLOCK_K),
            )
    p_bias += i_expert * BIAS_STRIDE
    acc = finished(
        *(acc, p_a_scale, p_w_scale, p_bias, i_row, o_n, m_row, m_n, a_scale_row),
        *(FORMAT, K, A_GROUP, S_ROW, W_BLOCK_N, W_BLOCK_K, HAS_BIAS),
    )
    if UP > 0:
        acc_up = finished(
            *(acc_up, p_a_scale, p_w_scale, p_bias, i_row, o_n + UP, m_row, m_n, a_scale_row),
            *(FORMAT, K, A_GROUP, S_ROW, W_BLOCK_N, W_BLOCK_K, HAS_BIAS),
        )
    if not FIRST:
        i_token = i_pair // TOP_K
        p_route = p_weights + i_token * weights_stride + (i_pair - i_token * TOP_K)
        route = tl.load(p_route, mask=m_row, other=0.0).to(tl.float32)
        y = acc * route[:, None]
    elif UP > 0:
        y = gated(acc, acc_up, alpha, limit, ACTIVATION)
    elif WIDE:
        gate, up = tl.split(tl.reshape(acc, [BLOCK_M, BLOCK_N // 2, 2]))
        y = gated(gate, up, alpha, limit, ACTIVATION)
    else:
        y = activated(acc, ACTIVATION)
    COLUMNS: tl.constexpr = BLOCK_N // 2 if WIDE else BLOCK_N
    LENGTH: tl.constexpr = N // 2 if WIDE else N
    o_y = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    p_rows = p_y + i_pair[:, None] * LENGTH + o_y[None, :]
    m_y = m_row[:, None] & (o_y < LENGTH)[None, :]
    if Y_GROUP > 0:
        codes, scales = quantised_groups(
            *(y, maximum, upper_bound, Y_GROUP, Y_POWER, Y_ROUNDING, Y_MANTISSA, Y_HIGHEST),
            *(BLOCK_M, COLUMNS, p_y.dtype.element_ty),
        )
        GROUPS: tl.constexpr = COLUMNS // Y_GROUP
        o_group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
        m_group = m_row[:, None] & (o_group < LENGTH // Y_GROUP)[None, :]
        p_scales = p_y_scale + i_pair[:, None] * (LENGTH // Y_GROUP) + o_group[None, :]
        tl.store(p_scales, scales, mask=m_group)
        tl.store(p_rows, codes, mask=m_y)
    else:
        tl.store(p_rows, y.to(p_y.dtype.element_ty), mask=m_y)


@triton.jit
def finished(
    acc,
    p_a_scale,
    p_w_scale,
    p_bias,
    i_row,
    o_n,
    m_row,
    m_n,
    a_scale_row,
    FORMAT: tl.constexpr,
    K: tl.constexpr,
    A_GROUP: tl.constexpr,
    S_ROW: tl.constexpr,
    W_BLOCK_N: tl.constexpr,
    W_BLOCK_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """A sum over all of K times the scales that no group of K has of its own, and the bias."""
    if FORMAT == 1 and A_GROUP == 0:
        acc *= tl.load(p_a_scale + i_row * a_scale_row, mask=m_row, other=0.0)[:, None]
    if FORMAT == 1 and W_BLOCK_K >= K:
        acc *= tl.load(p_w_scale + (o_n // W_BLOCK_N) * S_ROW, mask=m_n, other=0.0)[None, :]
    if HAS_BIAS:
        acc += tl.load(p_bias + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    return acc


@triton.jit
def moe_sum_kernel(
    p_products,
    p_experts,
    p_y,
    experts_stride,
    y_stride,
    E: tl.constexpr,
    TOP_K: tl.constexpr,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sum over the slots of a token, in order; slots without an expert add nothing."""
    i_token = tl.program_id(0).to(tl.int64)
    o_n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros([BLOCK], dtype=tl.float32)
    for slot in tl.static_range(TOP_K):
        expert = tl.load(p_experts + i_token * experts_stride + slot)
        columns = tl.where((expert >= 0) & (expert < E), N, 0)
        p_row = p_products + (i_token * TOP_K + slot) * N
        acc += tl.load(p_row + o_n, mask=o_n < columns, other=0.0)
    tl.store(p_y + i_token * y_stride + o_n, acc.to(p_y.dtype.element_ty), mask=o_n < N)
