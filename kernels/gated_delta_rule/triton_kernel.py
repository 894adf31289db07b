"""The gated delta rule on a GPU, chunk by chunk.

With the sums G of the log gates from the beginning of a chunk and the state S before it, the
recurrence of `_infer_gated_delta_rule` is, for the steps of the chunk at once ("Gated Delta
Networks", Yang et al. 2024, section 3.3; "Kimi Linear", 2025, section 3):

    L[t, i] = beta[t] sum over d of k[t, d] k[i, d] exp(G[t, d] - G[i, d])   where i < t
    T       = (1 + L)^-1
    U       = T (beta v) - T (beta exp(G) k) S
    o       = scale (exp(G) q S + A U),   A[t, i] like L with q[t] for beta[t] k[t], i <= t
    S'      = exp(G_last) S + (exp(G_last - G) k)^T U

`delta_chunk_kernel` computes for each chunk what does not depend on S, `delta_state_kernel` walks
over the chunks.  What is between them is padded: steps and channels that are not there are zeros.

No exponent is above zero.  Where each channel has its gate, exp(G[t] - G[i]) is split in two: at
the middle of the smallest block of 2, 4, 8, ... steps that holds both t and i.
"""

import triton
import triton.language as tl


@triton.jit
def product(b_x, b_y, PARTS: tl.constexpr):
    """x @ y in f32.

    With 2 PARTS a factor in f32 is the sum of two numbers in bf16, which keep 16 of its bits; what
    the two smaller ones would add is left out.
    """
    if PARTS == 1:
        return tl.dot(b_x, b_y, input_precision="ieee")
    b_x_high = b_x.to(tl.bfloat16)
    b_y_high = b_y.to(tl.bfloat16)
    b_sum = tl.dot(b_x_high, b_y_high)
    if b_x.dtype == tl.float32:
        b_sum = tl.dot((b_x - b_x_high).to(tl.bfloat16), b_y_high, b_sum)
    if b_y.dtype == tl.float32:
        b_sum = tl.dot(b_x_high, (b_y - b_y_high).to(tl.bfloat16), b_sum)
    return b_sum


@triton.jit
def store_parts(p_parts, o_row, b_tile, PARTS: tl.constexpr):
    """Store rows whose parts lie behind one another."""
    BLOCK: tl.constexpr = b_tile.shape[1]
    p_tile = p_parts + o_row[:, None] * (PARTS * BLOCK) + tl.arange(0, BLOCK)[None, :]
    b_high = b_tile.to(p_parts.dtype.element_ty)
    tl.store(p_tile, b_high)
    if PARTS == 2:
        tl.store(p_tile + BLOCK, (b_tile - b_high).to(tl.bfloat16))


@triton.jit
def load_parts(p_parts, o_row, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    """What `store_parts` stored; the second part is the first one if there is one only."""
    p_tile = p_parts + o_row[:, None] * (PARTS * BLOCK) + tl.arange(0, BLOCK)[None, :]
    b_high = tl.load(p_tile)
    return b_high, tl.load(p_tile + BLOCK) if PARTS == 2 else b_high


@triton.jit
def product_of_parts(b_x_high, b_x_low, b_y, PARTS: tl.constexpr):
    """x @ y as `product` computes it, x in parts."""
    b_sum = product(b_x_high, b_y, PARTS)
    if PARTS == 2:
        b_sum = tl.dot(b_x_low, b_y.to(tl.bfloat16), b_sum)
    return b_sum


@triton.jit
def load_rows(p_rows, o_row, m_row, row_stride, begin, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Rows from column `begin` on, in f32 if not in bf16; zeros where there is nothing."""
    o_column = begin + tl.arange(0, BLOCK)
    p_tile = p_rows + o_row[:, None] * row_stride + o_column[None, :]
    m_tile = m_row[:, None] & (o_column < WIDTH)[None, :]
    b_tile = tl.load(p_tile, mask=m_tile, other=0.0)
    return b_tile if p_rows.dtype.element_ty == tl.bfloat16 else b_tile.to(tl.float32)


@triton.jit
def inverse_length(b_rows, eps):
    """1 / sqrt(sum of squares + eps) of each row."""
    b_wide = b_rows.to(tl.float32)
    return tl.rsqrt(tl.sum(b_wide * b_wide, axis=1) + eps)


@triton.jit
def rows_within(b_tile, row, SIZE: tl.constexpr):
    """Each row of a tile [CHUNK, BLOCK] replaced by row `row` of its block of SIZE rows."""
    CHUNK: tl.constexpr = b_tile.shape[0]
    BLOCK: tl.constexpr = b_tile.shape[1]
    b_blocks = tl.reshape(b_tile, [CHUNK // SIZE, SIZE, BLOCK])
    m_row = (tl.arange(0, SIZE) == row)[None, :, None]
    b_row = tl.sum(tl.where(m_row, b_blocks, 0.0), axis=1)
    b_rows = tl.broadcast_to(b_row[:, None, :], [CHUNK // SIZE, SIZE, BLOCK])
    return tl.reshape(b_rows, [CHUNK, BLOCK])


@triton.jit
def is_between_halves(CHUNK: tl.constexpr, HALF: tl.constexpr):
    """[CHUNK, CHUNK]: whether a row is in the second half of a block and a column in the first."""
    o_row = tl.arange(0, CHUNK)[:, None] // HALF
    o_column = tl.arange(0, CHUNK)[None, :] // HALF
    return (o_row // 2 == o_column // 2) & (o_row > o_column)


@triton.jit
def add_scores(b_kk, b_qk, b_q, b_k, b_sum, HALF: tl.constexpr, PARTS: tl.constexpr):
    """Adds the decayed products of steps in second and first halves of blocks of 2 * HALF."""
    CHUNK: tl.constexpr = b_k.shape[0]
    m_between = is_between_halves(CHUNK, HALF)
    b_exponent = b_sum - rows_within(b_sum, HALF - 1, 2 * HALF)
    m_second = ((tl.arange(0, CHUNK) // HALF) % 2 == 1)[:, None]
    b_decay = tl.exp(-tl.abs(b_exponent))
    b_later_k = tl.where(m_second, b_k * b_decay, 0.0)
    b_later_q = tl.where(m_second, b_q * b_decay, 0.0)
    b_earlier = tl.trans(tl.where(m_second, 0.0, b_k * b_decay))
    b_kk += tl.where(m_between, product(b_later_k, b_earlier, PARTS), 0.0)
    b_qk += tl.where(m_between, product(b_later_q, b_earlier, PARTS), 0.0)
    return b_kk, b_qk


@triton.jit
def merge_inverse(b_inverse, b_lower, HALF: tl.constexpr, PARTS: tl.constexpr):
    """The inverse of 1 + lower in blocks of 2 * HALF from that in blocks of HALF."""
    CHUNK: tl.constexpr = b_inverse.shape[0]
    b_between = tl.where(is_between_halves(CHUNK, HALF), b_lower, 0.0)
    return b_inverse - product(product(b_inverse, b_between, PARTS), b_inverse, PARTS)


@triton.jit
def delta_chunk_kernel(
    p_q,
    p_k,
    p_v,
    p_gate,
    p_beta,
    p_w,
    p_u,
    p_scores,
    p_query,
    p_key,
    p_decay,
    steps,
    q_batch,
    q_step,
    q_head,
    k_batch,
    k_step,
    k_head,
    v_batch,
    v_step,
    v_head,
    gate_batch,
    gate_step,
    gate_head,
    beta_batch,
    beta_step,
    beta_head,
    scale,
    eps,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    LEVELS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    COLUMNS: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    NORMALISE: tl.constexpr,
    PARTS: tl.constexpr,
):
    """One chunk of one head: T (beta exp(G) k), T (beta v), scale A, and q, k and S' decays.

    CHUNK is 2 ** LEVELS; BLOCK_K and COLUMNS are DEPTH and WIDTH with padding.
    """
    n_chunks = tl.cdiv(steps, CHUNK)
    i_head = tl.program_id(0) % HEADS
    i_chunk = tl.program_id(0) // HEADS % n_chunks
    i_batch = (tl.program_id(0) // HEADS // n_chunks).to(tl.int64)
    o_chunk = tl.arange(0, CHUNK)
    m_step = i_chunk * CHUNK + o_chunk < steps
    o_step = (i_chunk * CHUNK + o_chunk).to(tl.int64)

    p_q += i_batch * q_batch + i_head // GROUP * q_head
    p_k += i_batch * k_batch + i_head // GROUP * k_head
    b_q = load_rows(p_q, o_step, m_step, q_step, 0, DEPTH, BLOCK_K)
    b_k = load_rows(p_k, o_step, m_step, k_step, 0, DEPTH, BLOCK_K)
    b_q_factor = tl.full([CHUNK], 1.0, tl.float32) * scale
    b_k_factor = tl.full([CHUNK], 1.0, tl.float32)
    if NORMALISE:
        b_q_factor *= inverse_length(b_q, eps)
        b_k_factor *= inverse_length(b_k, eps)
    p_beta += i_batch * beta_batch + i_head * beta_head + o_step * beta_step
    b_beta = tl.load(p_beta, mask=m_step, other=0.0).to(tl.float32)

    i_place = (i_batch * HEADS + i_head) * n_chunks + i_chunk
    o_row = i_place * CHUNK + o_chunk
    p_gate += i_batch * gate_batch + i_head * gate_head
    m_lower = o_chunk[:, None] > o_chunk[None, :]
    m_diagonal = o_chunk[:, None] == o_chunk[None, :]
    if PER_CHANNEL:
        b_q = b_q * b_q_factor[:, None]
        b_k = b_k * b_k_factor[:, None]
        b_gate = load_rows(p_gate, o_step, m_step, gate_step, 0, DEPTH, BLOCK_K).to(tl.float32)
        b_sum = tl.cumsum(b_gate, axis=0)
        b_total = tl.sum(b_gate, axis=0)
        store_parts(p_query, o_row, b_q * tl.exp(b_sum), PARTS)
        b_until = tl.exp(tl.minimum(b_total[None, :] - b_sum, 0.0))
        store_parts(p_key, o_row, b_k * b_until, PARTS)
        b_decay = tl.exp(b_total)
        b_kk = tl.zeros([CHUNK, CHUNK], dtype=tl.float32)
        b_qk = tl.where(m_diagonal, tl.sum(b_q * b_k, axis=1)[:, None], 0.0)
        for level in tl.static_range(LEVELS):
            b_kk, b_qk = add_scores(b_kk, b_qk, b_q, b_k, b_sum, 1 << level, PARTS)
        b_k *= tl.exp(b_sum)
        b_k_weight = b_beta
    else:
        p_gate += o_step * gate_step
        b_gate = tl.load(p_gate, mask=m_step, other=0.0).to(tl.float32)
        b_sum = tl.cumsum(b_gate, axis=0)
        b_total = tl.sum(b_gate, axis=0)
        b_since = tl.exp(b_sum)
        b_until = tl.exp(tl.minimum(b_total - b_sum, 0.0))
        store_parts(p_query, o_row, b_q * (b_q_factor * b_since)[:, None], PARTS)
        store_parts(p_key, o_row, b_k * (b_k_factor * b_until)[:, None], PARTS)
        b_decay = tl.zeros([BLOCK_K], dtype=tl.float32) + tl.exp(b_total)
        b_between = tl.exp(tl.minimum(b_sum[:, None] - b_sum[None, :], 0.0)) * b_k_factor[None, :]
        b_columns = tl.trans(b_k)
        b_kk = product(b_k, b_columns, PARTS) * b_between * b_k_factor[:, None]
        b_kk = tl.where(m_lower, b_kk, 0.0)
        b_qk = product(b_q, b_columns, PARTS) * b_between * b_q_factor[:, None]
        b_qk = tl.where(m_lower | m_diagonal, b_qk, 0.0)
        b_k_weight = b_beta * b_since * b_k_factor
    store_parts(p_scores, o_row, b_qk, PARTS)
    tl.store(p_decay + i_place * BLOCK_K + tl.arange(0, BLOCK_K), b_decay)

    b_kk *= b_beta[:, None]
    b_inverse = tl.where(m_diagonal, 1.0, 0.0) - tl.where(is_between_halves(CHUNK, 1), b_kk, 0.0)
    for level in tl.static_range(1, LEVELS):
        b_inverse = merge_inverse(b_inverse, b_kk, 1 << level, PARTS)
    store_parts(p_w, o_row, product(b_inverse * b_k_weight[None, :], b_k, PARTS), PARTS)
    b_inverse *= b_beta[None, :]
    p_v += i_batch * v_batch + i_head * v_head
    for begin in tl.static_range(0, COLUMNS, BLOCK_V):
        b_v = load_rows(p_v, o_step, m_step, v_step, begin, WIDTH, BLOCK_V)
        o_v = begin + tl.arange(0, BLOCK_V)
        tl.store(p_u + o_row[:, None] * COLUMNS + o_v[None, :], product(b_inverse, b_v, PARTS))


@triton.jit
def delta_state_kernel(
    p_w,
    p_u,
    p_scores,
    p_query,
    p_key,
    p_decay,
    p_out,
    steps,
    out_batch,
    out_step,
    out_head,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """BLOCK_V columns of the state of one head, over all chunks, and those of the results."""
    n_chunks = tl.cdiv(steps, CHUNK)
    n_blocks: tl.constexpr = COLUMNS // BLOCK_V
    i_head = (tl.program_id(0) // n_blocks).to(tl.int64)
    o_v = tl.program_id(0) % n_blocks * BLOCK_V + tl.arange(0, BLOCK_V)
    o_k = tl.arange(0, BLOCK_K)
    o_chunk = tl.arange(0, CHUNK)
    p_out += i_head // HEADS * out_batch + i_head % HEADS * out_head
    b_state = tl.zeros([BLOCK_K, BLOCK_V], dtype=tl.float32)
    for i_chunk in range(n_chunks):
        i_place = i_head * n_chunks + i_chunk
        o_row = i_place * CHUNK + o_chunk
        b_w, b_w_low = load_parts(p_w, o_row, BLOCK_K, PARTS)
        b_query, b_query_low = load_parts(p_query, o_row, BLOCK_K, PARTS)
        b_scores, b_scores_low = load_parts(p_scores, o_row, CHUNK, PARTS)
        b_key, b_key_low = load_parts(p_key, o_row, BLOCK_K, PARTS)
        b_decay = tl.load(p_decay + i_place * BLOCK_K + o_k)
        b_u = tl.load(p_u + o_row[:, None] * COLUMNS + o_v[None, :])
        b_u -= product_of_parts(b_w, b_w_low, b_state, PARTS)
        b_out = product_of_parts(b_query, b_query_low, b_state, PARTS)
        b_out += product_of_parts(b_scores, b_scores_low, b_u, PARTS)
        b_state *= b_decay[:, None]
        b_state += product_of_parts(tl.trans(b_key), tl.trans(b_key_low), b_u, PARTS)
        o_step = i_chunk * CHUNK + o_chunk
        p_tile = p_out + o_step.to(tl.int64)[:, None] * out_step + o_v[None, :]
        m_tile = (o_step < steps)[:, None] & (o_v < WIDTH)[None, :]
        tl.store(p_tile, b_out.to(p_out.dtype.element_ty), mask=m_tile)
