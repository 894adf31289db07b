"""The gated delta rule on a GPU, chunk by chunk.

With the sums G of the log gates from the beginning of a chunk and the state S before it, the
recurrence of `_infer_gated_delta_rule` is, for the steps of the chunk at once ("Gated Delta
Networks", Yang et al. 2024, section 3.3; "Kimi Linear", 2025, section 3):

    L[t, i] = beta[t] sum over d of k[t, d] k[i, d] exp(G[t, d] - G[i, d])   where i < t
    T       = (1 + L)^-1
    U       = T (beta v) - T (beta exp(G) k) S
    o       = scale (exp(G) q S + A U),   A[t, i] like L with q[t] for beta[t] k[t], i <= t
    S'      = exp(G_last) S + (exp(G_last - G) k)^T U

What does not depend on S is computed for all chunks at once: L and A by `delta_scores_kernel`, what
T is multiplied with by `delta_inverse_kernel`.  `delta_state_kernel` walks over the chunks.  What
is between them is padded: steps and channels that are not there are zeros.

No exponent is above zero where no gate is.  If each channel has its gate, exp(G[t] - G[i]) is
split in two: at the middle of the smallest block of 2, 4, 8, ... steps that holds both t and i.
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
def store_parts(p_parts, o_row, b_tile, WIDTH: tl.constexpr, PARTS: tl.constexpr):
    """Store rows, or some columns of them, whose parts of WIDTH lie behind one another."""
    o_column = tl.arange(0, b_tile.shape[1])
    p_tile = p_parts + o_row[:, None] * (PARTS * WIDTH) + o_column[None, :]
    b_high = b_tile.to(p_parts.dtype.element_ty)
    tl.store(p_tile, b_high)
    if PARTS == 2:
        tl.store(p_tile + WIDTH, (b_tile - b_high).to(tl.bfloat16))


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
def differences(CHUNK: tl.constexpr):
    """[CHUNK, CHUNK]: the bits in which row and column differ, 0 where the row is not greater.

    Shifted by `level` they are 1 where, of a block of 2 ** (level + 1) steps, the row is in the
    second half and the column in the first.
    """
    o_row = tl.arange(0, CHUNK)[:, None]
    o_column = tl.arange(0, CHUNK)[None, :]
    return tl.where(o_row > o_column, o_row ^ o_column, 0)


@triton.jit
def decayed_products(b_x, b_k, b_sum, LEVELS: tl.constexpr, PARTS: tl.constexpr):
    """x[t] k[i] exp(G[t] - G[i]) summed over channels, where i < t; else 0."""
    CHUNK: tl.constexpr = b_sum.shape[0]
    o_chunk = tl.arange(0, CHUNK)
    b_differences = differences(CHUNK)
    b_sums = tl.zeros([CHUNK, CHUNK], dtype=tl.float32)
    for level in range(LEVELS):
        o_middle = ((o_chunk >> level | 1) << level) - 1
        b_middle = tl.gather(b_sum, tl.broadcast_to(o_middle[:, None], b_sum.shape), 0)
        b_gap = b_sum - b_middle
        b_decay = tl.exp(tl.where((o_chunk >> level & 1)[:, None] == 1, b_gap, -b_gap))
        b_part = product(b_x * b_decay, tl.trans(b_k * b_decay), PARTS)
        b_sums += tl.where(b_differences >> level == 1, b_part, 0.0)
    return b_sums


@triton.jit
def chunk_at(steps, HEADS: tl.constexpr, CHUNK: tl.constexpr):
    """Batch, head, steps and rows between the kernels of the program's chunk; which steps are."""
    n_chunks = tl.cdiv(steps, CHUNK)
    i_head = tl.program_id(0) % HEADS
    i_chunk = tl.program_id(0) // HEADS % n_chunks
    i_batch = (tl.program_id(0) // HEADS // n_chunks).to(tl.int64)
    o_step = i_chunk * CHUNK + tl.arange(0, CHUNK)
    o_row = ((i_batch * HEADS + i_head) * n_chunks + i_chunk) * CHUNK + tl.arange(0, CHUNK)
    return i_batch, i_head, o_step.to(tl.int64), o_row, o_step < steps


@triton.jit
def delta_scores_kernel(
    p_q,
    p_k,
    p_gate,
    p_beta,
    p_lower,
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
    CHUNK: tl.constexpr,
    LEVELS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHANNELS: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    NORMALISE: tl.constexpr,
    PARTS: tl.constexpr,
):
    """L, scale A, scale exp(G) q, exp(G_last - G) k and exp(G_last) of one chunk of one head.

    CHUNK is 2 ** LEVELS; BLOCK_K is DEPTH with padding; channels that have gates of their own are
    taken CHANNELS at a time.
    """
    i_batch, i_head, o_step, o_row, m_step = chunk_at(steps, HEADS, CHUNK)
    o_chunk = tl.arange(0, CHUNK)
    p_q += i_batch * q_batch + i_head // GROUP * q_head
    p_k += i_batch * k_batch + i_head // GROUP * k_head
    b_q = load_rows(p_q, o_step, m_step, q_step, 0, DEPTH, BLOCK_K)
    b_k = load_rows(p_k, o_step, m_step, k_step, 0, DEPTH, BLOCK_K)
    b_q_factor = tl.full([CHUNK], 1.0, tl.float32) * scale
    b_k_factor = tl.full([CHUNK], 1.0, tl.float32)
    if NORMALISE:
        b_q_factor *= inverse_length(b_q, eps)
        b_k_factor *= inverse_length(b_k, eps)
    p_gate += i_batch * gate_batch + i_head * gate_head
    p_decay += tl.min(o_row, axis=0) // CHUNK * BLOCK_K
    if PER_CHANNEL:
        b_scores = tl.zeros([CHUNK, CHUNK], dtype=tl.float32)
        b_lower = tl.zeros([CHUNK, CHUNK], dtype=tl.float32)
        b_own = tl.zeros([CHUNK], dtype=tl.float32)
        for begin in range(0, BLOCK_K, CHANNELS):
            b_some_q = load_rows(p_q, o_step, m_step, q_step, begin, DEPTH, CHANNELS)
            b_some_k = load_rows(p_k, o_step, m_step, k_step, begin, DEPTH, CHANNELS)
            b_gate = load_rows(p_gate, o_step, m_step, gate_step, begin, DEPTH, CHANNELS)
            b_sum = tl.cumsum(b_gate.to(tl.float32), axis=0)
            b_total = tl.sum(b_gate.to(tl.float32), axis=0)
            b_query = b_some_q * (tl.exp(b_sum) * b_q_factor[:, None])
            store_parts(p_query + begin, o_row, b_query, BLOCK_K, PARTS)
            b_until = tl.exp(b_total[None, :] - b_sum)
            b_key = b_some_k * (b_until * b_k_factor[:, None])
            store_parts(p_key + begin, o_row, b_key, BLOCK_K, PARTS)
            tl.store(p_decay + begin + tl.arange(0, CHANNELS), tl.exp(b_total))
            b_own += tl.sum(b_some_q.to(tl.float32) * b_some_k, axis=1)
            b_scores += decayed_products(b_some_q, b_some_k, b_sum, LEVELS, PARTS)
            b_lower += decayed_products(b_some_k, b_some_k, b_sum, LEVELS, PARTS)
        b_scores += tl.where(o_chunk[:, None] == o_chunk[None, :], b_own[:, None], 0.0)
    else:
        p_gate += o_step * gate_step
        b_gate = tl.load(p_gate, mask=m_step, other=0.0).to(tl.float32)
        b_sum = tl.cumsum(b_gate, axis=0)
        b_total = tl.sum(b_gate, axis=0)
        b_until = tl.exp(b_total - b_sum)
        b_query = b_q * (b_q_factor * tl.exp(b_sum))[:, None]
        store_parts(p_query, o_row, b_query, BLOCK_K, PARTS)
        store_parts(p_key, o_row, b_k * (b_k_factor * b_until)[:, None], BLOCK_K, PARTS)
        b_decay = tl.zeros([BLOCK_K], dtype=tl.float32) + tl.exp(b_total)
        tl.store(p_decay + tl.arange(0, BLOCK_K), b_decay)
        m_seen = o_chunk[:, None] >= o_chunk[None, :]
        b_between = tl.exp(tl.where(m_seen, b_sum[:, None] - b_sum[None, :], float("-inf")))
        b_scores = product(b_q, tl.trans(b_k), PARTS) * b_between
        b_lower = product(b_k, tl.trans(b_k), PARTS) * b_between
        b_lower = tl.where(o_chunk[:, None] > o_chunk[None, :], b_lower, 0.0)
    b_scores *= b_q_factor[:, None] * b_k_factor[None, :]
    store_parts(p_scores, o_row, b_scores, CHUNK, PARTS)
    p_beta += i_batch * beta_batch + i_head * beta_head + o_step * beta_step
    b_beta = tl.load(p_beta, mask=m_step, other=0.0).to(tl.float32)
    b_lower *= (b_k_factor * b_beta)[:, None] * b_k_factor[None, :]
    tl.store(p_lower + o_row[:, None] * CHUNK + o_chunk[None, :], b_lower)


@triton.jit
def delta_inverse_kernel(
    p_k,
    p_v,
    p_gate,
    p_beta,
    p_lower,
    p_w,
    p_u,
    steps,
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
    """T (beta exp(G) k) and T (beta v) of one chunk of one head.

    CHUNK is 2 ** LEVELS; BLOCK_K and COLUMNS are DEPTH and WIDTH with padding.  T is found for
    blocks of 2 steps, then of 4, 8, ...: below the inverses of two halves of a block is minus their
    product around what couples the halves.
    """
    i_batch, i_head, o_step, o_row, m_step = chunk_at(steps, HEADS, CHUNK)
    o_chunk = tl.arange(0, CHUNK)
    b_differences = differences(CHUNK)
    b_lower = tl.load(p_lower + o_row[:, None] * CHUNK + o_chunk[None, :])
    b_inverse = tl.where(o_chunk[:, None] == o_chunk[None, :], 1.0, 0.0)
    b_inverse -= tl.where(b_differences == 1, b_lower, 0.0)
    for level in range(1, LEVELS):
        b_between = tl.where(b_differences >> level == 1, b_lower, 0.0)
        b_inverse -= product(product(b_inverse, b_between, PARTS), b_inverse, PARTS)
    p_beta += i_batch * beta_batch + i_head * beta_head + o_step * beta_step
    b_inverse *= tl.load(p_beta, mask=m_step, other=0.0).to(tl.float32)[None, :]

    p_v += i_batch * v_batch + i_head * v_head
    for begin in tl.static_range(0, COLUMNS, BLOCK_V):
        b_v = load_rows(p_v, o_step, m_step, v_step, begin, WIDTH, BLOCK_V)
        o_v = begin + tl.arange(0, BLOCK_V)
        tl.store(p_u + o_row[:, None] * COLUMNS + o_v[None, :], product(b_inverse, b_v, PARTS))
    p_k += i_batch * k_batch + i_head // GROUP * k_head
    b_k = load_rows(p_k, o_step, m_step, k_step, 0, DEPTH, BLOCK_K)
    if NORMALISE:
        b_inverse *= inverse_length(b_k, eps)[None, :]
    p_gate += i_batch * gate_batch + i_head * gate_head
    if PER_CHANNEL:
        b_gate = load_rows(p_gate, o_step, m_step, gate_step, 0, DEPTH, BLOCK_K).to(tl.float32)
        b_k = b_k * tl.exp(tl.cumsum(b_gate, axis=0))
    else:
        b_gate = tl.load(p_gate + o_step * gate_step, mask=m_step, other=0.0).to(tl.float32)
        b_inverse *= tl.exp(tl.cumsum(b_gate, axis=0))[None, :]
    store_parts(p_w, o_row, product(b_inverse, b_k, PARTS), BLOCK_K, PARTS)


@triton.jit
def delta_state_kernel(
    p_out,
    p_w,
    p_u,
    p_scores,
    p_query,
    p_key,
    p_decay,
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
    # Work groups go to the dies in turn: those of a head, which read the same, share a cache.
    n_heads = tl.num_programs(0) // n_blocks
    i_head = (tl.program_id(0) % n_heads).to(tl.int64)
    o_v = tl.program_id(0) // n_heads * BLOCK_V + tl.arange(0, BLOCK_V)
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
