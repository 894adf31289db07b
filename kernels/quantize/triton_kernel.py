"""Tiles of rows on a GPU: how they are read and written, and brought into a narrow format.

A tile is [ROWS, BLOCK] in f32: some rows, and of each a power of two of elements from `begin` on,
zero beyond the row.  Rows beyond the last are read as the last one and not written.  Rows are N
elements long; a scale serves GROUP elements: 0 when it is given and serves all, N for a whole row.
The codes of scales and their rounding are those of `fusec.formats.Scaling`.
"""

import triton
import triton.language as tl

ROUND_UP = tl.constexpr(1)
ROUND_EVEN = tl.constexpr(2)


@triton.jit
def tile_rows(i_tile, rows, ROWS: tl.constexpr):
    """Indices of the rows of a tile, and of those that are read for them."""
    i_row = i_tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    if ROWS == 1:
        i_read = i_row
    else:
        i_read = tl.minimum(i_row, rows - 1)
    return i_row, i_read


@triton.jit
def load_tile(p_x, i_read, stride, begin, N: tl.constexpr, BLOCK: tl.constexpr):
    """Elements from `begin` on of rows `stride` apart."""
    o_n = begin + tl.arange(0, BLOCK)
    p_x += i_read[:, None] * stride + o_n[None, :]
    if N % BLOCK == 0:
        b_x = tl.load(p_x)
    else:
        b_x = tl.load(p_x, mask=(o_n < N)[None, :], other=0.0)
    return b_x.to(tl.float32)


@triton.jit
def load_weight(p_w, begin, N: tl.constexpr, BLOCK: tl.constexpr, OFFSET: tl.constexpr):
    """The weights [1, BLOCK] of a tile, and OFFSET more."""
    o_n = begin + tl.arange(0, BLOCK)
    if N % BLOCK == 0:
        b_w = tl.load(p_w + o_n[None, :], eviction_policy="evict_last").to(tl.float32)
    else:
        b_w = tl.load(p_w + o_n[None, :], mask=(o_n < N)[None, :], other=0.0).to(tl.float32)
    if OFFSET != 0:
        b_w += OFFSET
    return b_w


@triton.jit
def store_tile(
    p_y,
    b_y,
    i_row,
    rows,
    stride,
    begin,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    TOGETHER: tl.constexpr = 16,
):
    """Write a tile where `load_tile` would read it, at most TOGETHER elements at a time."""
    o_n = begin + tl.arange(0, BLOCK)
    p_y += i_row[:, None] * stride + o_n[None, :]
    if TOGETHER < 16:
        p_y = tl.max_contiguous(p_y, (1, TOGETHER))
    b_y = b_y.to(p_y.dtype.element_ty)
    if ROWS > 1:
        tl.store(p_y, b_y, mask=(o_n < N)[None, :] & (i_row < rows)[:, None])
    elif N % BLOCK == 0:
        tl.store(p_y, b_y)
    else:
        tl.store(p_y, b_y, mask=(o_n < N)[None, :])


@triton.jit
def reciprocal(b_x):
    """1 / x of positive numbers: two instructions, where a division takes ten on an AMD GPU."""
    b_root = tl.rsqrt(b_x)
    return b_root * b_root


@triton.jit
def power_scale(b_top, maximum, ROUNDING: tl.constexpr, element_ty: tl.constexpr):
    """e8m0 bytes of scales for groups whose largest magnitudes are `b_top`."""
    if ROUNDING == ROUND_UP:
        bits = tl.div_rn(b_top, maximum).to(tl.int32, bitcast=True)
        # What is at most 2^-127 has the exponent 0; a carry rounds all else up.
        b_byte = tl.where(bits <= 0x400000, 0, (bits + 0x7FFFFF) >> 23)
    else:
        top_exponent: tl.constexpr = (
            2 if element_ty == tl.uint8 else (7 if element_ty == tl.float8e4b8 else 8)
        )
        mantissa: tl.constexpr = 1 if element_ty == tl.uint8 else 3
        bits = b_top.to(tl.int32, bitcast=True)
        if ROUNDING == ROUND_EVEN:
            bits += 1 << (22 - mantissa)
        b_byte = tl.maximum((bits >> 23) - top_exponent, 0)
    return tl.minimum(b_byte, 254)


@triton.jit
def float_scale(b_top, maximum, floor, bound, ROUNDING: tl.constexpr):
    """f32 scales for groups whose largest magnitudes are `b_top`, and one over each.

    A bound of 0 is none.
    """
    if ROUNDING == ROUND_UP:
        b_scale = tl.div_rn(b_top, maximum)
    else:
        b_scale = b_top * (1.0 / maximum)
    b_scale = tl.where((bound > 0) & (b_scale > bound), bound, b_scale)
    b_scale = tl.maximum(b_scale, floor)
    if ROUNDING == ROUND_UP:
        bits = (b_scale.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000
        b_scale = bits.to(tl.float32, bitcast=True)
        b_inverse = tl.maximum(0x7F000000 - bits, 0).to(tl.float32, bitcast=True)
    else:
        b_inverse = reciprocal(b_scale)
    return b_scale, b_inverse


@triton.jit
def scale_of(
    b_top,
    maximum,
    floor,
    bound,
    ROUNDING: tl.constexpr,
    element_ty: tl.constexpr,
    scale_ty: tl.constexpr,
):
    """Scales as they are stored, and one over each in f32."""
    if scale_ty == tl.uint8:
        b_byte = power_scale(b_top, maximum, ROUNDING, element_ty)
        # One over 2^127 has no leading one.
        inverse_bits = tl.where(b_byte == 254, 0x400000, (254 - b_byte) << 23)
        b_scale = b_byte.to(tl.uint8)
        b_inverse = inverse_bits.to(tl.float32, bitcast=True)
    else:
        b_scale, b_inverse = float_scale(b_top, maximum, floor, bound, ROUNDING)
    return b_scale, b_inverse


@triton.jit
def e2m1_codes(b_y):
    """4-bit codes of the nearest values, ties to even, none beyond 6."""
    b_size = tl.minimum(tl.abs(b_y), 6.0)
    # A number 2^22 times the power of two at or below, and no less than 2^22: added, it leaves two
    # bits of the sum for what is above it, and the addition rounds to them.
    power = tl.maximum(b_size.to(tl.int32, bitcast=True) & 0x7F800000, 0x3F800000)
    total = b_size + power.to(tl.float32, bitcast=True) * 4194304.0
    total = total.to(tl.int32, bitcast=True)
    # The code is those bits and twice the exponent, whose bias is 149: -2 * 149 = 6 modulo 8.
    b_code = total + (total >> 22) + 6
    return (b_code & 7) | ((b_y.to(tl.int32, bitcast=True) >> 28) & 8)


@triton.jit
def store_codes(
    p_codes,
    b_y,
    i_row,
    rows,
    stride,
    begin,
    maximum,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    SATURATE: tl.constexpr,
    TOGETHER: tl.constexpr = 16,
):
    """Write a tile, divided by its scales, as codes: two a byte for 4-bit floats."""
    if p_codes.dtype.element_ty == tl.uint8:
        b_low, b_high = tl.split(tl.reshape(e2m1_codes(b_y), [ROWS, BLOCK // 2, 2]))
        b_codes = b_low | (b_high << 4)
        store_tile(p_codes, b_codes, i_row, rows, stride, begin // 2, N // 2, BLOCK // 2, ROWS, 4)
    else:
        if SATURATE:
            b_y = tl.clamp(b_y, -maximum, maximum, propagate_nan=tl.PropagateNan.ALL)
        store_tile(p_codes, b_y, i_row, rows, stride, begin, N, BLOCK, ROWS, TOGETHER)


@triton.jit
def row_scale(
    p_scale,
    p_codes,
    b_top,
    i_row,
    rows,
    scale_stride,
    maximum,
    floor,
    bound,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    ROUNDING: tl.constexpr,
):
    """One over the scales [ROWS] of whole rows; where they are not given, write them."""
    if GROUP == 0:
        b_inverse = 1.0 / tl.load(p_scale + tl.zeros([ROWS], dtype=tl.int32))
    else:
        b_scale, b_inverse = scale_of(
            b_top,
            maximum,
            floor,
            bound,
            ROUNDING,
            p_codes.dtype.element_ty,
            p_scale.dtype.element_ty,
        )
        if ROWS > 1:
            tl.store(p_scale + i_row * scale_stride, b_scale, mask=i_row < rows)
        else:
            tl.store(p_scale + i_row * scale_stride, b_scale)
    return b_inverse


@triton.jit
def scale_groups(
    b_y,
    b_factor,
    p_scale,
    p_codes,
    i_row,
    rows,
    scale_stride,
    group_stride,
    begin,
    maximum,
    floor,
    bound,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    ROUNDING: tl.constexpr,
):
    """A tile, times a factor [ROWS], over the scales of its groups, which are written."""
    groups: tl.constexpr = BLOCK // GROUP
    b_groups = tl.reshape(b_y, [ROWS, groups, GROUP])
    b_scale, b_inverse = scale_of(
        tl.max(tl.abs(b_groups), axis=2) * b_factor[:, None],
        maximum,
        floor,
        bound,
        ROUNDING,
        p_codes.dtype.element_ty,
        p_scale.dtype.element_ty,
    )
    o_g = begin // GROUP + tl.arange(0, groups)
    p_scale += i_row[:, None] * scale_stride + o_g[None, :] * group_stride
    m_g = (o_g * GROUP < N)[None, :]
    if ROWS > 1:
        m_g &= (i_row < rows)[:, None]
    tl.store(p_scale, b_scale, mask=m_g)
    b_inverse *= b_factor[:, None]
    return tl.reshape(b_groups * b_inverse[:, :, None], [ROWS, BLOCK])


@triton.jit
def write_tile(
    b_y,
    b_factor,
    b_inverse,
    p_y,
    p_codes,
    p_scale,
    i_row,
    rows,
    y_stride,
    codes_stride,
    scale_stride,
    group_stride,
    begin,
    maximum,
    floor,
    bound,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    PLAIN: tl.constexpr,
    QUANTISED: tl.constexpr,
    GROUP: tl.constexpr,
    ROUNDING: tl.constexpr,
    SATURATE: tl.constexpr,
    BESIDE: tl.constexpr = False,
):
    """Write a tile times a factor [ROWS]: as it is if PLAIN, as codes and scales if QUANTISED.

    `b_inverse` [ROWS] has one over the scales where they serve whole rows.  BESIDE says that wider
    elements of the tile are written, too: lanes then hold 8 neighbours, which codes keep to.
    """
    if PLAIN:
        b_plain = b_y * b_factor[:, None]
        store_tile(p_y, b_plain, i_row, rows, y_stride, begin, N, BLOCK, ROWS)
    if QUANTISED:
        if GROUP == N or GROUP == 0:
            b_y *= (b_factor * b_inverse)[:, None]
        else:
            b_y = scale_groups(
                b_y,
                b_factor,
                p_scale,
                p_codes,
                i_row,
                rows,
                scale_stride,
                group_stride,
                begin,
                maximum,
                floor,
                bound,
                N,
                BLOCK,
                ROWS,
                GROUP,
                ROUNDING,
            )
        together: tl.constexpr = 8 if BESIDE or PLAIN or GROUP == N or GROUP == 0 else 16
        store_codes(
            p_codes,
            b_y,
            i_row,
            rows,
            codes_stride,
            begin,
            maximum,
            N,
            BLOCK,
            ROWS,
            SATURATE,
            together,
        )


@triton.jit
def quantize_kernel(
    p_x,
    p_codes,
    p_scale,
    x_stride,
    codes_stride,
    scale_stride,
    group_stride,
    rows,
    maximum,
    floor,
    bound,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    ROUNDING: tl.constexpr,
    SATURATE: tl.constexpr,
):
    """Codes and scales of one tile; of whole rows where one scale serves a row."""
    blocks: tl.constexpr = (N + BLOCK - 1) // BLOCK
    parts: tl.constexpr = blocks if GROUP == N else 1
    columns: tl.constexpr = blocks // parts
    i_row, i_read = tile_rows(tl.program_id(0) // columns, rows, ROWS)
    b_top = tl.zeros([ROWS], dtype=tl.float32)
    for part in tl.static_range(parts):
        begin = (tl.program_id(0) % columns + part) * BLOCK
        b_x = load_tile(p_x, i_read, x_stride, begin, N, BLOCK)
        if GROUP == N:
            b_top = tl.maximum(b_top, tl.max(tl.abs(b_x), axis=1))
    b_inverse = b_top
    if GROUP == N or GROUP == 0:
        b_inverse = row_scale(
            p_scale,
            p_codes,
            b_top,
            i_row,
            rows,
            scale_stride,
            maximum,
            floor,
            bound,
            ROWS,
            GROUP,
            ROUNDING,
        )
    for part in tl.static_range(parts):
        begin = (tl.program_id(0) % columns + part) * BLOCK
        if parts > 1:
            b_x = load_tile(p_x, i_read, x_stride, begin, N, BLOCK)
        write_tile(
            b_x,
            tl.full([ROWS], 1.0, tl.float32),
            b_inverse,
            p_x,
            p_codes,
            p_scale,
            i_row,
            rows,
            x_stride,
            codes_stride,
            scale_stride,
            group_stride,
            begin,
            maximum,
            floor,
            bound,
            N,
            BLOCK,
            ROWS,
            False,
            True,
            GROUP,
            ROUNDING,
            SATURATE,
        )


@triton.jit
def load_codes(p_codes, i_read, stride, begin, N: tl.constexpr, BLOCK: tl.constexpr):
    """The values of codes: two of each byte for 4-bit floats."""
    if p_codes.dtype.element_ty == tl.uint8:
        o_n = begin // 2 + tl.arange(0, BLOCK // 2)
        p_codes += i_read[:, None] * stride + o_n[None, :]
        b_bytes = tl.load(p_codes, mask=(o_n < N // 2)[None, :], other=0).to(tl.int32)
        b_pairs = tl.join(e2m1_values(b_bytes & 15), e2m1_values(b_bytes >> 4))
        b_values = tl.reshape(b_pairs, [b_bytes.shape[0], BLOCK])
    else:
        b_values = load_tile(p_codes, i_read, stride, begin, N, BLOCK)
    return b_values


@triton.jit
def e2m1_values(b_code):
    """The numbers of 4-bit codes."""
    b_size = b_code & 7
    bits = (b_size + 252) << 22
    b_value = tl.where(b_size < 2, b_size * 0.5, bits.to(tl.float32, bitcast=True))
    return tl.where(b_code >= 8, -b_value, b_value)


@triton.jit
def scale_values(b_scale):
    """Scales in f32; 2^-127 has no leading one, and 255 is NaN."""
    if b_scale.dtype == tl.uint8:
        b_byte = b_scale.to(tl.int32)
        bits = tl.where(b_byte == 0, 0x400000, b_byte << 23)
        bits = tl.where(b_byte == 255, 0x7FC00000, bits)
        b_scale = bits.to(tl.float32, bitcast=True)
    return b_scale


@triton.jit
def dequantize_kernel(
    p_codes,
    p_scale,
    p_y,
    codes_stride,
    scale_stride,
    group_stride,
    y_stride,
    rows,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Values of codes times their scales."""
    columns: tl.constexpr = (N + BLOCK - 1) // BLOCK
    i_row, i_read = tile_rows(tl.program_id(0) // columns, rows, ROWS)
    begin = tl.program_id(0) % columns * BLOCK
    b_values = load_codes(p_codes, i_read, codes_stride, begin, N, BLOCK)
    if GROUP == 0:
        b_y = b_values * tl.load(p_scale)
    elif GROUP == N:
        b_scale = scale_values(tl.load(p_scale + i_read * scale_stride))
        b_y = b_values * b_scale[:, None]
    else:
        groups: tl.constexpr = BLOCK // GROUP
        o_g = begin // GROUP + tl.arange(0, groups)
        p_scale += i_read[:, None] * scale_stride + o_g[None, :] * group_stride
        b_scale = scale_values(tl.load(p_scale, mask=(o_g * GROUP < N)[None, :], other=0))
        b_groups = tl.reshape(b_values, [ROWS, groups, GROUP]) * b_scale[:, :, None]
        b_y = tl.reshape(b_groups, [ROWS, BLOCK])
    store_tile(p_y, b_y, i_row, rows, y_stride, begin, N, BLOCK, ROWS)
