"""Softmax attention on a GPU: scores stay in registers, the softmax is kept up as keys come.

A program owns BLOCK_M rows: queries of PACK heads that share a key head, query by query.  It goes
through the keys that one of its rows may see, BLOCK_N at a time: first the blocks that every row
sees whole, then those at the edges, whose scores are compared with the rows' positions; under a
mask all are taken for such, because its registers would not be enough for both.  The
running maximum, the sum and the result are in f32 (FlashAttention, arXiv:2205.14135).

With few queries the keys are divided among the programs along axis 1 of the grid; what each found
goes to scratch, and `attention_parts_kernel` brings it together (Flash-Decoding).

Scores are in units of log 2, so that the softmax is by `exp2`; with a mask of floats they are not,
because a mask may hold the least number there is.  A row that sees no key gives zeros.
"""

import triton
import triton.language as tl

from fusec.kernels.quantize.triton_kernel import reciprocal

LOG2_E = tl.constexpr(1.4426950408889634)
MINUS_INFINITY = tl.constexpr(float("-inf"))

MASK_BOOL = tl.constexpr(1)
MASK_FLOAT = tl.constexpr(2)


@triton.jit
def place_of(
    S,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PACK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    LAST_FIRST: tl.constexpr,
):
    """Batch, key head, first query head and first row of the program.

    Key heads come first: work groups go to the dies in turn, so the programs that read the same
    keys share a cache.  LAST_FIRST where later queries see more keys: short programs come last.
    """
    n_blocks = tl.cdiv(S * PACK, BLOCK_M)
    i_rest = tl.program_id(0)
    i_kv = i_rest % KV_HEADS
    i_rest = i_rest // KV_HEADS
    n_packs: tl.constexpr = HEADS // KV_HEADS // PACK
    i_head = (i_kv * n_packs + i_rest % n_packs) * PACK
    i_rest = i_rest // n_packs
    i_block = i_rest % n_blocks
    if LAST_FIRST:
        i_block = n_blocks - 1 - i_block
    return i_rest // n_blocks, i_kv, i_head, i_block * BLOCK_M


@triton.jit
def tanh(b_x):
    """The hyperbolic tangent."""
    return 1.0 - 2.0 * reciprocal(1.0 + tl.exp2(b_x * (2.0 * LOG2_E)))


@triton.jit
def load_part(
    p_rows, BEGIN: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, AXIS: tl.constexpr
):
    """Columns [BEGIN, BEGIN + SIZE) of rows, zeros from WIDTH on, along AXIS of the tile."""
    o_d = BEGIN + tl.arange(0, SIZE)
    p_tile = p_rows + tl.expand_dims(o_d, 1 - AXIS)
    if BEGIN + SIZE > WIDTH:
        return tl.load(p_tile, mask=tl.expand_dims(o_d < WIDTH, 1 - AXIS), other=0.0)
    else:
        return tl.load(p_tile)


@triton.jit
def begin_of_chunk(o_position, CHUNK: tl.constexpr):
    """Where the chunk of a position begins; that of one before the keys ends before them, too."""
    return tl.where(o_position < 0, -CHUNK, o_position // CHUNK * CHUNK)


@triton.jit
def is_seen(o_key, o_position, T, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr):
    """Whether rows at `o_position` see the keys `o_key`: one comparison each, as far as it goes.

    A number below 0 is a large one where it has no sign.  No row is behind the last key.
    """
    o_distance = o_position[:, None] - o_key[None, :]
    if CAUSAL:
        if CHUNK >= 0:
            o_reach = (tl.maximum(o_position, 0) % CHUNK).to(tl.uint32)
            return o_distance.to(tl.uint32) <= o_reach[:, None]
        elif WINDOW < 0:
            return o_distance >= 0
        else:
            return o_distance.to(tl.uint32) < WINDOW
    elif CHUNK >= 0:
        o_place = o_key[None, :] - begin_of_chunk(o_position, CHUNK)[:, None]
        return (o_place.to(tl.uint32) < CHUNK) & (o_key < T)[None, :]
    elif WINDOW < 0:
        return (o_key < T)[None, :]
    else:
        is_near = (o_distance + (WINDOW - 1)).to(tl.uint32) < max(2 * WINDOW - 1, 0)
        return is_near & (o_key < T)[None, :]


@triton.jit
def attend(
    b_out,
    b_top,
    b_sum,
    b_q0,
    b_q1,
    p_k,
    p_v,
    p_mask,
    p_padding,
    o_position,
    i_n,
    T,
    k_t,
    v_t,
    mask_t,
    padding_t,
    scale,
    cap,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    CHUNK: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MASK: tl.constexpr,
    PADDING: tl.constexpr,
    EDGE: tl.constexpr,
):
    """Takes the keys from i_n on into the result, the maximum and the sum of every row.

    Args but those of the kernel:
        b_out, b_top, b_sum: what was found up to now.
        b_q0, b_q1: the rows in two parts, D0 and D1 wide.
        p_k, p_v, p_padding: of the batch and the key head.
        p_mask: of each row [BLOCK_M].
        o_position: of each row [BLOCK_M] among the keys.
        EDGE: whether a row may see some keys of the block and not others.
    """
    o_n = tl.arange(0, BLOCK_N)
    if EDGE:
        o_n = tl.minimum(o_n, T - 1 - i_n)
    p_k_rows = p_k + i_n * k_t + (o_n * k_t)[None, :]
    b_s = tl.dot(b_q0, load_part(p_k_rows, 0, D0, D, 0), input_precision="ieee")
    if D1 > 0:
        b_s = tl.dot(b_q1, load_part(p_k_rows, D0, D1, D, 0), b_s, input_precision="ieee")
    b_s *= scale
    if SOFTCAP:
        b_s = cap * tanh(b_s)
    if MASK > 0:
        b_mask = tl.load(p_mask[:, None] + i_n * mask_t + (o_n * mask_t)[None, :])
        if MASK == MASK_FLOAT:
            b_s += b_mask.to(tl.float32)
        else:
            b_s = tl.where(b_mask != 0, b_s, MINUS_INFINITY)
    if PADDING:
        b_keep = tl.load(p_padding + i_n * padding_t + o_n * padding_t) != 0
        b_s = tl.where(b_keep[None, :], b_s, MINUS_INFINITY)
    if EDGE:
        m_seen = is_seen(i_n + tl.arange(0, BLOCK_N), o_position, T, CAUSAL, WINDOW, CHUNK)
        b_s = tl.where(m_seen, b_s, MINUS_INFINITY)
    b_top_now = tl.maximum(b_top, tl.max(b_s, axis=1))
    b_shift = b_top_now
    if EDGE or MASK > 0 or PADDING:
        b_shift = tl.where(b_top_now == MINUS_INFINITY, 0.0, b_top_now)
    b_s -= b_shift[:, None]
    b_rescale = b_top - b_shift
    if MASK == MASK_FLOAT:
        b_s *= LOG2_E
        b_rescale *= LOG2_E
    b_p = tl.exp2(b_s)
    b_rescale = tl.exp2(b_rescale)
    b_sum = b_sum * b_rescale + tl.sum(b_p, axis=1)
    b_v = load_part(p_v + i_n * v_t + (o_n * v_t)[:, None], 0, BLOCK_DV, DV, 1)
    b_out = b_out * b_rescale[:, None]
    b_out = tl.dot(b_p.to(b_v.dtype), b_v, b_out, input_precision="ieee")
    return b_out, b_top_now, b_sum


@triton.jit
def store_rows(
    b_out,
    p_out,
    i_batch,
    o_head,
    o_query,
    m_row,
    out_b,
    out_h,
    out_s,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
):
    """Stores the rows `m_row` of a tile of the result."""
    o_d = tl.arange(0, BLOCK_DV)
    o_row = i_batch.to(tl.int64) * out_b + o_head * out_h + o_query * out_s
    m_tile = m_row[:, None]
    if BLOCK_DV > DV:
        m_tile &= (o_d < DV)[None, :]
    b_out = b_out.to(p_out.dtype.element_ty)
    tl.store(p_out + o_row[:, None] + o_d[None, :], b_out, mask=m_tile)


@triton.jit
def attention_kernel(
    p_q,
    p_k,
    p_v,
    p_mask,
    p_sinks,
    p_padding,
    p_out,
    p_parts,
    p_tops,
    p_sums,
    S,
    T,
    q_b,
    q_h,
    q_s,
    k_b,
    k_h,
    k_t,
    v_b,
    v_h,
    v_t,
    out_b,
    out_h,
    out_s,
    mask_b,
    mask_h,
    mask_s,
    mask_t,
    padding_b,
    padding_t,
    scale,
    cap,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    CHUNK: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MASK: tl.constexpr,
    SINKS: tl.constexpr,
    PADDING: tl.constexpr,
    PACK: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Out [B, HEADS, S, DV] of q [B, HEADS, S, D], k [B, KV_HEADS, T, D], v [B, KV_HEADS, T, DV].

    Strides are named after operands and axes.  Query s stands at key position s + T - S; it sees
    keys up to there if CAUSAL, and those nearer than WINDOW or in its CHUNK unless that is -1.

    The mask [B, HEADS, S, T] is of bytes or floats, by MASK.  If SINKS, each query head has a
    score of no value in the softmax.  If PADDING, bytes [B, T] say which keys count.  With SPLIT,
    and more than one program along axis 1 of the grid, what a program found goes to p_parts, f32
    [programs along axis 1, along axis 0, BLOCK_M, DV], its maxima and sums to p_tops and p_sums.

    `scale` multiplies scores, with log2(e) in it but for a mask of floats.  With SOFTCAP it is
    over the cap, and `cap` has the log2(e).
    """
    i_batch, i_kv, i_head, i_row = place_of(S, HEADS, KV_HEADS, PACK, BLOCK_M, CAUSAL)
    n_rows = S * PACK
    o_row = i_row + tl.arange(0, BLOCK_M)
    m_row = o_row < n_rows
    o_row = tl.minimum(o_row, n_rows - 1)
    o_query = o_row // PACK
    o_head = i_head + o_row % PACK
    o_position = o_query + (T - S)

    # Keys in [begin, end) are seen by some row, those in [whole_begin, whole_end) by all.
    first = i_row // PACK + (T - S)
    last = tl.minimum(i_row + BLOCK_M - 1, n_rows - 1) // PACK + (T - S)
    begin = 0
    whole_begin = 0
    end = T
    whole_end = T
    if CAUSAL:
        end = tl.minimum(T, last + 1)
        whole_end = tl.minimum(T, first + 1)
    if WINDOW >= 0:
        begin = tl.maximum(first - WINDOW + 1, 0)
        whole_begin = tl.maximum(last - WINDOW + 1, 0)
        if not CAUSAL:
            end = tl.minimum(T, last + WINDOW)
            whole_end = tl.minimum(T, first + WINDOW)
    if CHUNK >= 0:
        begin = tl.maximum(begin_of_chunk(first, CHUNK), 0)
        whole_begin = tl.maximum(begin_of_chunk(last, CHUNK), 0)
        if not CAUSAL:
            end = tl.minimum(T, begin_of_chunk(last, CHUNK) + CHUNK)
            whole_end = tl.minimum(T, begin_of_chunk(first, CHUNK) + CHUNK)
    # The same in blocks.
    begin = begin // BLOCK_N
    end = tl.cdiv(tl.maximum(end, 0), BLOCK_N)
    i_tile = tl.program_id(0).to(tl.int64)
    if SPLIT:
        n_parts = tl.num_programs(1)
        n_part = tl.cdiv(tl.maximum(end - begin, 0), n_parts)
        begin += tl.program_id(1) * n_part
        end = tl.minimum(end, begin + n_part)
        i_tile += tl.program_id(1).to(tl.int64) * tl.num_programs(0)
        if (begin >= end) & (n_parts > 1):
            o_none = i_tile * BLOCK_M + tl.arange(0, BLOCK_M)
            tl.store(p_tops + o_none, tl.full([BLOCK_M], MINUS_INFINITY, tl.float32))
            tl.store(p_sums + o_none, tl.zeros([BLOCK_M], dtype=tl.float32))
            return
    whole_begin = tl.maximum(tl.cdiv(whole_begin, BLOCK_N), begin)
    whole_end = tl.maximum(tl.minimum(tl.maximum(whole_end, 0) // BLOCK_N, end), whole_begin)
    if MASK > 0:
        whole_end = whole_begin

    i_batch_wide = i_batch.to(tl.int64)
    p_q_rows = p_q + (i_batch_wide * q_b + o_head * q_h + o_query * q_s)[:, None]
    b_q0 = load_part(p_q_rows, 0, D0, D, 1)
    b_q1 = b_q0
    if D1 > 0:
        b_q1 = load_part(p_q_rows, D0, D1, D, 1)
    p_k += i_batch_wide * k_b + i_kv * k_h
    p_v += i_batch_wide * v_b + i_kv * v_h
    p_mask_rows = p_mask
    if MASK > 0:
        p_mask_rows = p_mask + (i_batch_wide * mask_b + o_head * mask_h + o_query * mask_s)
    if PADDING:
        p_padding += i_batch_wide * padding_b

    b_out = tl.zeros([BLOCK_M, BLOCK_DV], dtype=tl.float32)
    b_top = tl.full([BLOCK_M], MINUS_INFINITY, tl.float32)
    if SINKS:
        b_sink = tl.load(p_sinks + o_head).to(tl.float32)
        if MASK != MASK_FLOAT:
            b_sink *= LOG2_E
        if SPLIT:
            b_top = tl.where(tl.program_id(1) == 0, b_sink, b_top)
        else:
            b_top = b_sink
    b_sum = tl.where(b_top == MINUS_INFINITY, 0.0, 1.0)

    if MASK == 0:
        for i_block in range(whole_begin, whole_end):
            b_out, b_top, b_sum = attend(
                b_out,
                b_top,
                b_sum,
                b_q0,
                b_q1,
                p_k,
                p_v,
                p_mask_rows,
                p_padding,
                o_position,
                i_block * BLOCK_N,
                T,
                k_t,
                v_t,
                mask_t,
                padding_t,
                scale,
                cap,
                D,
                D0,
                D1,
                DV,
                BLOCK_DV,
                BLOCK_N,
                CAUSAL,
                WINDOW,
                CHUNK,
                SOFTCAP,
                MASK,
                PADDING,
                False,
            )
    n_whole = whole_end - whole_begin
    for i_edge in range(begin, end - n_whole):
        i_block = tl.where(i_edge < whole_begin, i_edge, i_edge + n_whole)
        b_out, b_top, b_sum = attend(
            b_out,
            b_top,
            b_sum,
            b_q0,
            b_q1,
            p_k,
            p_v,
            p_mask_rows,
            p_padding,
            o_position,
            i_block * BLOCK_N,
            T,
            k_t,
            v_t,
            mask_t,
            padding_t,
            scale,
            cap,
            D,
            D0,
            D1,
            DV,
            BLOCK_DV,
            BLOCK_N,
            CAUSAL,
            WINDOW,
            CHUNK,
            SOFTCAP,
            MASK,
            PADDING,
            True,
        )

    if SPLIT:
        if tl.num_programs(1) > 1:
            o_tile = i_tile * BLOCK_M + tl.arange(0, BLOCK_M)
            tl.store(p_tops + o_tile, b_top)
            tl.store(p_sums + o_tile, b_sum)
            o_d = tl.arange(0, BLOCK_DV)
            p_tile = p_parts + o_tile[:, None] * DV + o_d[None, :]
            if BLOCK_DV > DV:
                tl.store(p_tile, b_out, mask=(o_d < DV)[None, :])
            else:
                tl.store(p_tile, b_out)
            return
    b_out = b_out * (1.0 / tl.where(b_sum == 0.0, 1.0, b_sum))[:, None]
    store_rows(b_out, p_out, i_batch, o_head, o_query, m_row, out_b, out_h, out_s, DV, BLOCK_DV)


@triton.jit
def attention_parts_kernel(
    p_parts,
    p_tops,
    p_sums,
    p_out,
    S,
    n_parts,
    out_b,
    out_h,
    out_s,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    CAUSAL: tl.constexpr,
    MASK: tl.constexpr,
    PACK: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Brings together what `n_parts` programs found of one row; PARTS is no less.

    The row is that of program 0 of axis 0 whose number is that along axis 1.
    """
    i_batch, _, i_head, i_row = place_of(S, HEADS, KV_HEADS, PACK, BLOCK_M, CAUSAL)
    i_row += tl.program_id(1)
    if i_row >= S * PACK:
        return
    o_part = tl.arange(0, PARTS)
    o_d = tl.arange(0, BLOCK_DV)
    i_tile = o_part.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    o_row = i_tile * BLOCK_M + tl.program_id(1)
    m_part = o_part < n_parts
    b_top = tl.load(p_tops + o_row, mask=m_part, other=MINUS_INFINITY)
    b_sum = tl.load(p_sums + o_row, mask=m_part, other=0.0)
    # A part without keys stored no result.
    m_part = b_sum != 0.0
    top = tl.max(b_top, axis=0)
    b_top -= tl.where(top == MINUS_INFINITY, 0.0, top)
    if MASK == MASK_FLOAT:
        b_top *= LOG2_E
    b_share = tl.exp2(b_top)
    total = tl.sum(b_sum * b_share, axis=0)
    m_tile = m_part[:, None]
    if BLOCK_DV > DV:
        m_tile &= (o_d < DV)[None, :]
    b_parts = tl.load(p_parts + o_row[:, None] * DV + o_d[None, :], mask=m_tile, other=0.0)
    b_out = tl.sum(b_parts * b_share[:, None], axis=0) / tl.where(total == 0.0, 1.0, total)
    o_out = i_batch.to(tl.int64) * out_b + i_row // PACK * out_s
    o_out += (i_head + i_row % PACK) * out_h
    tl.store(p_out + o_out + o_d, b_out.to(p_out.dtype.element_ty), mask=o_d < DV)
