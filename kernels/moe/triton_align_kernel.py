"""The order of rows for routed experts on a GPU: a counting sort by expert, in three launches.

A pair is a token and one of its k slots: pair p is slot p % k of token p // k.  Pairs are put in
the order of their experts, in order of pairs within one, each expert's at a multiple of BLOCK_M, so
that a block of BLOCK_M places has one expert.  Places that no pair takes are never written: what is
valid follows from where an expert's rows end.  An index outside [0, E) has no place.
"""

import triton
import triton.language as tl


@triton.jit
def chosen_expert(p_experts, o_pair, experts_stride, pairs, E: tl.constexpr, TOP_K: tl.constexpr):
    """The expert of each pair as i32; E for what is no pair or no expert."""
    i_token = o_pair // TOP_K
    place = i_token * experts_stride + (o_pair - i_token * TOP_K)
    expert = tl.load(p_experts + place, mask=o_pair < pairs, other=E)
    return tl.where((expert >= 0) & (expert < E), expert, E).to(tl.int32)


@triton.jit
def moe_count_kernel(
    p_experts,
    p_counts,
    experts_stride,
    pairs,
    E: tl.constexpr,
    TOP_K: tl.constexpr,
    CHUNK: tl.constexpr,
    BINS: tl.constexpr,
):
    """counts[c, e]: pairs of chunk c, the program's index, that chose expert e."""
    i_chunk = tl.program_id(0).to(tl.int64)
    o_pair = i_chunk * CHUNK + tl.arange(0, CHUNK)
    expert = chosen_expert(p_experts, o_pair, experts_stride, pairs, E, TOP_K)
    o_expert = tl.arange(0, BINS)
    tl.store(p_counts + i_chunk * E + o_expert, tl.histogram(expert, BINS), mask=o_expert < E)


@triton.jit
def moe_offsets_kernel(
    p_counts,
    p_before,
    p_extents,
    chunks,
    E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BINS: tl.constexpr,
):
    """Where each expert's rows lie; one program.

    before[c, e]: pairs of e in chunks before c.  extents [2 * E + 1]: the first place of each
    expert, the place behind its last row, and the number of blocks.
    """
    o_expert = tl.arange(0, BINS)
    m_expert = o_expert < E
    rows = tl.zeros([BINS], dtype=tl.int32)
    for i_chunk in range(chunks):
        o_chunk = i_chunk * E + o_expert
        tl.store(p_before + o_chunk, rows, mask=m_expert)
        rows += tl.load(p_counts + o_chunk, mask=m_expert, other=0)
    blocks = (rows + (BLOCK_M - 1)) // BLOCK_M
    begin = (tl.cumsum(blocks, axis=0) - blocks) * BLOCK_M
    tl.store(p_extents + o_expert, begin, mask=m_expert)
    tl.store(p_extents + E + o_expert, begin + rows, mask=m_expert)
    tl.store(p_extents + 2 * E, tl.sum(blocks, axis=0))


@triton.jit
def moe_place_kernel(
    p_experts,
    p_before,
    p_extents,
    p_pairs,
    p_block_expert,
    experts_stride,
    pairs,
    E: tl.constexpr,
    TOP_K: tl.constexpr,
    CHUNK: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """pairs[place]: the pair that lies there; block_expert[block]: whose rows a block holds."""
    i_chunk = tl.program_id(0).to(tl.int64)
    o_row = tl.arange(0, CHUNK)
    o_pair = i_chunk * CHUNK + o_row
    expert = chosen_expert(p_experts, o_pair, experts_stride, pairs, E, TOP_K)
    m_pair = expert < E
    rank = tl.load(p_before + i_chunk * E + expert, mask=m_pair, other=0)
    key = expert * CHUNK + o_row
    for begin in range(0, CHUNK, STEP):
        o_other = begin + tl.arange(0, STEP)
        other = chosen_expert(p_experts, i_chunk * CHUNK + o_other, experts_stride, pairs, E, TOP_K)
        # Keys of the same expert and an earlier row are 1 to o_row less.
        less = key[:, None] - (other * CHUNK + o_other)[None, :] - 1
        earlier = less.to(tl.uint32, bitcast=True) < o_row[:, None].to(tl.uint32, bitcast=True)
        rank += tl.sum(earlier.to(tl.int32), axis=1)
    place = tl.load(p_extents + expert, mask=m_pair, other=0) + rank
    tl.store(p_pairs + place, o_pair.to(tl.int32), mask=m_pair)
    tl.store(p_block_expert + place // BLOCK_M, expert, mask=m_pair & (rank % BLOCK_M == 0))


@triton.jit
def block_rows(p_pairs, p_extents, p_block_expert, i_block, E: tl.constexpr, BLOCK_M: tl.constexpr):
    """The pairs of a block as i64, which of them there are, and whose rows they are."""
    i_expert = tl.load(p_block_expert + i_block)
    place = i_block * BLOCK_M + tl.arange(0, BLOCK_M)
    m_row = place < tl.load(p_extents + E + i_expert)
    i_pair = tl.load(p_pairs + place, mask=m_row, other=0).to(tl.int64)
    return i_pair, m_row, i_expert.to(tl.int64)
