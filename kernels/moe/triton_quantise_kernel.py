"""Activated rows of experts brought into an 8-bit float: `fusec.formats.Scaling` on a GPU."""

import triton
import triton.language as tl

from fusec.kernels.moe.triton_align_kernel import block_rows


@triton.jit
def exponent_above(scale):
    """The biased exponent of the least power of two that is not below `scale`, a normal f32."""
    return (scale.to(tl.int32, bitcast=True) + 0x7FFFFF) >> 23


@triton.jit
def float_scale(largest, maximum, upper_bound, ROUND_UP: tl.constexpr):
    """The f32 scale of groups whose largest magnitude is `largest`."""
    scale = tl.div_rn(largest, maximum)
    scale = tl.maximum(tl.minimum(scale, upper_bound), 1.0 / (512.0 * maximum))
    if ROUND_UP:
        scale = (exponent_above(scale) << 23).to(tl.float32, bitcast=True)
    return scale


@triton.jit
def power_scale(
    largest, maximum, MANTISSA: tl.constexpr, HIGHEST: tl.constexpr, ROUNDING: tl.constexpr
):
    """The biased exponent of an e8m0 scale; ROUNDING is 1 for up, 2 for even, 3 for down."""
    if ROUNDING == 1:
        ratio = tl.div_rn(largest, maximum)
        exponent = tl.where(ratio <= 2.0**-127, 0, tl.minimum(exponent_above(ratio), 254))
    else:
        bits = largest.to(tl.int32, bitcast=True)
        if ROUNDING == 2:
            bits += 1 << (22 - MANTISSA)
        exponent = tl.maximum((bits >> 23) - HIGHEST, 0)
    return exponent


@triton.jit
def power_of_two(exponent):
    """2^(exponent - 127) for a biased exponent; 0 has the subnormal 2^-127."""
    return tl.where(exponent == 0, 0x400000, exponent << 23).to(tl.float32, bitcast=True)


@triton.jit
def codes_of(scaled, maximum, dtype: tl.constexpr):
    """The nearest 8-bit floats, none beyond `maximum`; NaN stays NaN."""
    scaled = tl.where(scaled > maximum, maximum, tl.where(scaled < -maximum, -maximum, scaled))
    return scaled.to(dtype)


@triton.jit
def quantised_groups(
    x,
    maximum,
    upper_bound,
    GROUP: tl.constexpr,
    POWER: tl.constexpr,
    ROUNDING: tl.constexpr,
    MANTISSA: tl.constexpr,
    HIGHEST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    dtype: tl.constexpr,
):
    """Codes [ROWS, COLUMNS] and scales [ROWS, COLUMNS / GROUP] of f32 x; bytes where POWER."""
    groups = tl.reshape(x, [ROWS, COLUMNS // GROUP, GROUP])
    largest = tl.max(tl.abs(groups), axis=2)
    if POWER:
        exponent = power_scale(largest, maximum, MANTISSA, HIGHEST, ROUNDING)
        stored = exponent.to(tl.uint8)
        scaled = groups * power_of_two(254 - exponent)[:, :, None]
    else:
        stored = float_scale(largest, maximum, upper_bound, ROUNDING == 1)
        scaled = tl.div_rn(groups, stored[:, :, None])
    codes = codes_of(scaled, maximum, dtype)
    return tl.reshape(codes, [ROWS, COLUMNS]), stored


@triton.jit
def moe_largest_kernel(
    p_x,
    p_largest,
    p_pairs,
    p_extents,
    p_block_expert,
    E: tl.constexpr,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """largest[block]: the largest magnitude in the rows [., N] of a block, the program's index."""
    i_block = tl.program_id(0)
    if i_block >= tl.load(p_extents + 2 * E):
        return
    i_row, m_row, _ = block_rows(p_pairs, p_extents, p_block_expert, i_block, E, BLOCK_M)
    tl.store(p_largest + i_block, tl.max(largest_of_rows(p_x, i_row, m_row, N, BLOCK_M, BLOCK)))


@triton.jit
def largest_of_rows(p_x, i_row, m_row, N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr):
    """The largest magnitude in each of some rows [., N]."""
    largest = tl.zeros([BLOCK_M, BLOCK], dtype=tl.float32)
    for begin in range(0, N, BLOCK):
        o_n = begin + tl.arange(0, BLOCK)
        mask = m_row[:, None] & (o_n < N)[None, :]
        x = tl.load(p_x + i_row[:, None] * N + o_n[None, :], mask=mask, other=0.0)
        largest = tl.maximum(largest, tl.abs(x))
    return tl.max(largest, axis=1)


@triton.jit
def moe_quantise_kernel(
    p_x,
    p_largest,
    p_codes,
    p_scale,
    p_pairs,
    p_extents,
    p_block_expert,
    maximum,
    upper_bound,
    E: tl.constexpr,
    N: tl.constexpr,
    OF_EXPERT: tl.constexpr,
    ROUND_UP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Codes of f32 rows [., N], with one scale for each row, or for all rows of an expert.

    For the latter `largest` holds a number for each block, and the blocks of an expert are read
    BLOCKS at a time.
    """
    i_block = tl.program_id(0)
    if i_block >= tl.load(p_extents + 2 * E):
        return
    i_row, m_row, i_expert = block_rows(p_pairs, p_extents, p_block_expert, i_block, E, BLOCK_M)
    if OF_EXPERT:
        first = tl.load(p_extents + i_expert) // BLOCK_M
        last = (tl.load(p_extents + E + i_expert) + (BLOCK_M - 1)) // BLOCK_M
        found = tl.zeros([BLOCKS], dtype=tl.float32)
        for begin in range(first, last, BLOCKS):
            o_block = begin + tl.arange(0, BLOCKS)
            found = tl.maximum(found, tl.load(p_largest + o_block, mask=o_block < last, other=0.0))
        largest = tl.zeros([BLOCK_M], dtype=tl.float32) + tl.max(found)
    else:
        largest = largest_of_rows(p_x, i_row, m_row, N, BLOCK_M, BLOCK)
    scale = float_scale(largest, maximum, upper_bound, ROUND_UP)
    tl.store(p_scale + i_row, scale, mask=m_row)
    for begin in range(0, N, BLOCK):
        o_n = begin + tl.arange(0, BLOCK)
        mask = m_row[:, None] & (o_n < N)[None, :]
        place = i_row[:, None] * N + o_n[None, :]
        x = tl.load(p_x + place, mask=mask, other=0.0)
        codes = codes_of(tl.div_rn(x, scale[:, None]), maximum, p_codes.dtype.element_ty)
        tl.store(p_codes + place, codes, mask=mask)
