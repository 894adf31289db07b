"""Rotation of rows by tables of angles on a GPU, in f32 until they are stored.

Rows are those of heads, and a table has one row for all heads of a token.  A program has HEADS
heads of TOKENS tokens: 0 to HEADS - 1 of a token, then those of the next.  A row of N elements is
two parts of HALF elements that are turned together, and what follows them, which passes through.
The parts are the halves of a stretch or, INTERLEAVED, its even and odd elements.  Tokens have up to
three coordinates; the last two run to `size1` and `size2`.  Rows beyond the last are read as the
last one and not written.
"""

import triton
import triton.language as tl


@triton.jit
def load_parts(
    p_row,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """The two parts [ROWS, BLOCK] of the rows that begin at `p_row` [ROWS], zero beyond HALF."""
    p_row = p_row[:, None]
    if INTERLEAVED:
        o_pair = tl.arange(0, 2 * BLOCK)[None, :]
        if HALF == BLOCK:
            b_pair = tl.load(p_row + o_pair)
        else:
            b_pair = tl.load(p_row + o_pair, mask=o_pair < 2 * HALF, other=0.0)
        pairs: tl.constexpr = [b_pair.shape[0], BLOCK, 2]
        b_first, b_second = tl.split(tl.reshape(b_pair, pairs))
    else:
        o_n = tl.arange(0, BLOCK)[None, :]
        if HALF == BLOCK:
            b_first = tl.load(p_row + o_n)
            b_second = tl.load(p_row + HALF + o_n)
        else:
            b_first = tl.load(p_row + o_n, mask=o_n < HALF, other=0.0)
            b_second = tl.load(p_row + HALF + o_n, mask=o_n < HALF, other=0.0)
    return b_first.to(tl.float32), b_second.to(tl.float32)


@triton.jit
def store_parts(
    p_row,
    b_first,
    b_second,
    b_live,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """Write the parts of live rows where `load_parts` would read them."""
    p_row = p_row[:, None]
    kind = p_row.dtype.element_ty
    if INTERLEAVED:
        o_pair = tl.arange(0, 2 * BLOCK)[None, :]
        pairs: tl.constexpr = [b_first.shape[0], 2 * BLOCK]
        b_pair = tl.reshape(tl.join(b_first.to(kind), b_second.to(kind)), pairs)
        tl.store(p_row + o_pair, b_pair, mask=b_live[:, None] & (o_pair < 2 * HALF))
    else:
        o_n = tl.arange(0, BLOCK)[None, :]
        mask = b_live[:, None] & (o_n < HALF)
        tl.store(p_row + o_n, b_first.to(kind), mask=mask)
        tl.store(p_row + HALF + o_n, b_second.to(kind), mask=mask)


@triton.jit
def load_angles(p_row, HALF: tl.constexpr, BLOCK: tl.constexpr, TWICE: tl.constexpr):
    """The table [ROWS, BLOCK] of each pair; TWICE where each angle is there for both of a pair."""
    if TWICE:
        b_angle, _ = load_parts(p_row, HALF, BLOCK, True)
    else:
        o_n = tl.arange(0, BLOCK)[None, :]
        b_angle = tl.load(p_row[:, None] + o_n, mask=o_n < HALF, other=0.0).to(tl.float32)
    return b_angle


@triton.jit
def load_rest(p_row, REST: tl.constexpr, BLOCK: tl.constexpr):
    """REST elements [ROWS, BLOCK] from `p_row` [ROWS] on."""
    o_n = tl.arange(0, BLOCK)[None, :]
    return tl.load(p_row[:, None] + o_n, mask=o_n < REST, other=0.0).to(tl.float32)


@triton.jit
def rotate_heads(
    i_tile,
    i_block,
    p_x,
    p_w,
    p_cos,
    p_sin,
    p_y,
    tokens,
    size1,
    size2,
    x_stride0,
    x_stride1,
    x_stride2,
    x_head,
    y_stride0,
    y_stride1,
    y_stride2,
    y_head,
    cos_stride0,
    cos_stride1,
    cos_stride2,
    sin_stride0,
    sin_stride1,
    sin_stride2,
    eps,
    N: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    ALL_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    DEINTERLEAVE: tl.constexpr,
    TWICE: tl.constexpr,
    NORM: tl.constexpr,
    WEIGHT: tl.constexpr,
    WEIGHT_OFFSET: tl.constexpr,
):
    """Rotate block `i_block` of the heads of tile `i_tile` of tokens, after a NORM of each row."""
    rest: tl.constexpr = N - 2 * HALF
    if TOKENS == 1:
        i_token = i_tile + tl.arange(0, 1)
        i_head = i_block * HEADS + tl.arange(0, HEADS)
    else:
        i_row = tl.arange(0, TOKENS * HEADS)
        i_token = i_tile.to(tl.int64) * TOKENS + i_row // HEADS
        i_head = i_block * HEADS + i_row % HEADS
    b_live = (i_token < tokens) & (i_head < ALL_HEADS)
    if TOKENS > 1:
        i_token = tl.minimum(i_token, tokens - 1)
    i_head = tl.minimum(i_head, ALL_HEADS - 1).to(tl.int64)
    # A program's number has 32 bits, and so has its only token: division of more takes long.
    size1, size2 = tl.cast(size1, i_token.dtype), tl.cast(size2, i_token.dtype)
    i_outer = i_token // size2
    i_last = (i_token - i_outer * size2).to(tl.int64)
    i_first = i_outer // size1
    i_middle = (i_outer - i_first * size1).to(tl.int64)
    i_first = i_first.to(tl.int64)

    p_x += i_first * x_stride0 + i_middle * x_stride1 + i_last * x_stride2 + i_head * x_head
    p_y += i_first * y_stride0 + i_middle * y_stride1 + i_last * y_stride2 + i_head * y_head
    p_cos += i_first * cos_stride0 + i_middle * cos_stride1 + i_last * cos_stride2
    p_sin += i_first * sin_stride0 + i_middle * sin_stride1 + i_last * sin_stride2
    b_first, b_second = load_parts(p_x, HALF, BLOCK, INTERLEAVED)
    if rest > 0:
        b_rest = load_rest(p_x + 2 * HALF, rest, REST_BLOCK)
    b_cos = load_angles(p_cos, HALF, BLOCK, TWICE)
    b_sin = load_angles(p_sin, HALF, BLOCK, TWICE)
    if NORM:
        b_square = tl.sum(b_first * b_first + b_second * b_second, axis=1)
        if rest > 0:
            b_square += tl.sum(b_rest * b_rest, axis=1)
        b_scale = tl.rsqrt(b_square * (1.0 / N) + eps)[:, None]
        b_first *= b_scale
        b_second *= b_scale
        if rest > 0:
            b_rest *= b_scale
        if WEIGHT:
            p_w += tl.arange(0, 1)
            b_w_first, b_w_second = load_parts(p_w, HALF, BLOCK, INTERLEAVED)
            b_first *= b_w_first + WEIGHT_OFFSET
            b_second *= b_w_second + WEIGHT_OFFSET
            if rest > 0:
                b_rest *= load_rest(p_w + 2 * HALF, rest, REST_BLOCK) + WEIGHT_OFFSET
    b_turned = b_first * b_cos - b_second * b_sin
    b_second = b_second * b_cos + b_first * b_sin
    in_pairs: tl.constexpr = INTERLEAVED and not DEINTERLEAVE
    store_parts(p_y, b_turned, b_second, b_live, HALF, BLOCK, in_pairs)
    if rest > 0:
        o_n = tl.arange(0, REST_BLOCK)[None, :]
        b_rest = b_rest.to(p_y.dtype.element_ty)
        tl.store(p_y[:, None] + 2 * HALF + o_n, b_rest, mask=b_live[:, None] & (o_n < rest))


@triton.jit
def rope_kernel(
    p_x,
    p_cos,
    p_sin,
    p_y,
    tokens,
    size1,
    size2,
    x_stride0,
    x_stride1,
    x_stride2,
    x_head,
    y_stride0,
    y_stride1,
    y_stride2,
    y_head,
    cos_stride0,
    cos_stride1,
    cos_stride2,
    sin_stride0,
    sin_stride1,
    sin_stride2,
    N: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    ALL_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    DEINTERLEAVE: tl.constexpr,
    TWICE: tl.constexpr,
):
    """One block of heads of one tile of tokens; the blocks of a tile come one after the other."""
    blocks: tl.constexpr = (ALL_HEADS + HEADS - 1) // HEADS
    rotate_heads(
        tl.program_id(0) // blocks,
        tl.program_id(0) % blocks,
        p_x,
        p_x,
        p_cos,
        p_sin,
        p_y,
        tokens,
        size1,
        size2,
        x_stride0,
        x_stride1,
        x_stride2,
        x_head,
        y_stride0,
        y_stride1,
        y_stride2,
        y_head,
        cos_stride0,
        cos_stride1,
        cos_stride2,
        sin_stride0,
        sin_stride1,
        sin_stride2,
        0.0,
        N,
        HALF,
        BLOCK,
        REST_BLOCK,
        ALL_HEADS,
        HEADS,
        TOKENS,
        INTERLEAVED,
        DEINTERLEAVE,
        TWICE,
        False,
        False,
        0,
    )
