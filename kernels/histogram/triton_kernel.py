"""Counts of equally wide bins on a GPU (torch.histc)."""

import triton
import triton.language as tl


@triton.jit
def histogram_kernel(
    p_x,
    p_out,
    count,
    low_bits,
    high_bits,
    BINS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """ROWS bins, each compared with every element; the bounds are f64, given as their bits.

    The last bin holds `high` itself; elements outside of the bounds and NaN are not counted.
    """
    b_zero = tl.zeros([1], dtype=tl.int64)
    low = (b_zero + low_bits).to(tl.float64, bitcast=True)
    high = (b_zero + high_bits).to(tl.float64, bitcast=True)
    i_bin = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    b_counts = tl.zeros([ROWS, BLOCK], dtype=tl.int32)
    for begin in range(0, count, BLOCK):
        i_element = begin + tl.arange(0, BLOCK).to(tl.int64)
        b_x = tl.load(p_x + i_element, mask=i_element < count, other=0).to(tl.float64)
        b_inside = (b_x >= low) & (b_x <= high) & (i_element < count)
        b_place = (tl.where(b_inside, b_x, low) - low) / (high - low) * BINS
        b_bin = tl.minimum(b_place.to(tl.int32), BINS - 1)
        b_counts += ((b_bin[None, :] == i_bin[:, None]) & b_inside[None, :]).to(tl.int32)
    b_count = tl.sum(b_counts.to(tl.int64), axis=1)
    if p_out.dtype.element_ty.is_floating():
        b_count = b_count.to(tl.float32)
    tl.store(p_out + i_bin, b_count.to(p_out.dtype.element_ty), mask=i_bin < BINS)
