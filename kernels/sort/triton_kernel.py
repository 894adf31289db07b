"""Order along an axis on a GPU: sort and topk, stable, with NaN above every number.

The rank of an element is how many come before it: all that are smaller, and the equal ones with a
lower index.  Within a run of a row each is compared with each; in other runs, which are in order by
then, it is looked for by halves.  So a long row takes two launches, and none waits for another.
"""

import triton
import triton.language as tl

from fusec.kernels.index.triton_kernel import place


@triton.jit
def order_key(b_x, DESCENDING: tl.constexpr):
    """Signed integers that order as the elements do: -0 equals 0, and every NaN is the same."""
    if b_x.dtype.is_floating():
        if b_x.dtype == tl.float64:
            b_bits = b_x.to(tl.int64, bitcast=True)
            most = 0x7FFFFFFFFFFFFFFF
            infinity = 0x7FF0000000000000
        else:
            b_bits = b_x.to(tl.float32).to(tl.int32, bitcast=True)
            most = 0x7FFFFFFF
            infinity = 0x7F800000
        b_magnitude = b_bits & most
        b_key = tl.where(b_bits < 0, -b_magnitude, b_magnitude)
        b_key = tl.where(b_magnitude > infinity, most, b_key)
    elif b_x.dtype.primitive_bitwidth == 64:
        b_key = b_x
    else:
        b_key = b_x.to(tl.int32)
    if DESCENDING:
        b_key = -1 - b_key
    return b_key


@triton.jit
def load_keys(p_row, i_element, end, axis_step, DESCENDING: tl.constexpr):
    """The keys of a row's elements; from `end` on the largest key, which comes before none."""
    b_inside = i_element < end
    b_key = order_key(tl.load(p_row + i_element * axis_step, mask=b_inside, other=0), DESCENDING)
    most = 0x7FFFFFFF
    if b_key.dtype == tl.int64:
        most = 0x7FFFFFFFFFFFFFFF
    return tl.where(b_inside, b_key, most)


@triton.jit
def store_ranked(
    p_x, p_values, p_indices, i_element, b_rank, b_there, k, x_axis, values_axis, indices_axis
):
    """Elements of a row with a rank below k, and their indices, in order of ranks."""
    b_kept = b_there & (b_rank < k)
    b_value = tl.load(p_x + i_element * x_axis, mask=b_kept)
    tl.store(p_values + b_rank * values_axis, b_value, mask=b_kept)
    tl.store(p_indices + b_rank * indices_axis, i_element, mask=b_kept)


@triton.jit
def rank_kernel(
    p_x,
    p_values,
    p_indices,
    n,
    k,
    x_axis,
    values_axis,
    indices_axis,
    size_0,
    size_1,
    size_2,
    size_3,
    x_step_0,
    x_step_1,
    x_step_2,
    x_step_3,
    values_step_0,
    values_step_1,
    values_step_2,
    values_step_3,
    indices_step_0,
    indices_step_1,
    indices_step_2,
    indices_step_3,
    DESCENDING: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK: tl.constexpr,
    OTHERS: tl.constexpr,
    RANK: tl.constexpr,
):
    """BLOCK elements of a row, in order within runs of RUN elements; 0 where a row is one run.

    Each is compared with OTHERS at once.
    Of runs, `p_values` takes the keys; rows are dense then.
    """
    blocks = (n + BLOCK - 1) // BLOCK
    i_row = (tl.program_id(0) // blocks).to(tl.int64)
    first = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK
    sizes = (size_0, size_1, size_2, size_3)
    p_x += place(i_row, sizes, (x_step_0, x_step_1, x_step_2, x_step_3), RANK)
    if RUN:
        begin = first // RUN * RUN
        end = tl.minimum(begin + RUN, n)
        p_values += i_row * n
        p_indices += i_row * n
    else:
        begin = first * 0
        end = begin + n
        steps = (values_step_0, values_step_1, values_step_2, values_step_3)
        p_values += place(i_row, sizes, steps, RANK)
        steps = (indices_step_0, indices_step_1, indices_step_2, indices_step_3)
        p_indices += place(i_row, sizes, steps, RANK)
    i_own = first + tl.arange(0, BLOCK)
    b_own = load_keys(p_x, i_own, end, x_axis, DESCENDING)
    b_before = tl.zeros([BLOCK, OTHERS], dtype=tl.int32)
    for other in range(begin, end, OTHERS):
        i_other = other + tl.arange(0, OTHERS)
        b_other = load_keys(p_x, i_other, end, x_axis, DESCENDING)[None, :]
        b_first = (b_other == b_own[:, None]) & (i_other[None, :] < i_own[:, None])
        b_before += (b_first | (b_other < b_own[:, None])).to(tl.int32)
    b_rank = tl.sum(b_before, axis=1).to(tl.int64)
    b_there = i_own < end
    if RUN:
        tl.store(p_values + begin + b_rank, b_own, mask=b_there)
        tl.store(p_indices + begin + b_rank, i_own, mask=b_there)
    else:
        store_ranked(
            p_x, p_values, p_indices, i_own, b_rank, b_there, k, x_axis, values_axis, indices_axis
        )


@triton.jit
def merge_kernel(
    p_x,
    p_keys,
    p_order,
    p_values,
    p_indices,
    n,
    k,
    x_axis,
    values_axis,
    indices_axis,
    size_0,
    size_1,
    size_2,
    size_3,
    x_step_0,
    x_step_1,
    x_step_2,
    x_step_3,
    values_step_0,
    values_step_1,
    values_step_2,
    values_step_3,
    indices_step_0,
    indices_step_1,
    indices_step_2,
    indices_step_3,
    RUN: tl.constexpr,
    HALVES: tl.constexpr,
    BLOCK: tl.constexpr,
    RANK: tl.constexpr,
):
    """BLOCK elements of a row that is in order within runs of RUN elements, below 2 ** HALVES."""
    blocks = (n + BLOCK - 1) // BLOCK
    i_row = (tl.program_id(0) // blocks).to(tl.int64)
    i_place = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_there = i_place < n
    p_keys += i_row * n
    b_key = tl.load(p_keys + i_place, mask=b_there, other=0)
    i_element = tl.load(p_order + i_row * n + i_place, mask=b_there, other=0)
    b_run = i_place // RUN
    b_rank = i_place % RUN
    for run in range(0, (n + RUN - 1) // RUN):
        i_begin = i_place * 0 + run * RUN
        i_low = i_begin
        i_high = tl.minimum(i_begin + RUN, n)
        for _ in tl.static_range(HALVES):
            i_middle = (i_low + i_high) // 2
            b_open = b_there & (i_low < i_high)
            b_middle = tl.load(p_keys + i_middle, mask=b_open, other=0)
            b_below = (b_middle < b_key) | ((b_middle == b_key) & (run < b_run))
            i_low = tl.where(b_open & b_below, i_middle + 1, i_low)
            i_high = tl.where(b_open & (b_below == 0), i_middle, i_high)
        b_rank += tl.where(b_run == run, 0, i_low - i_begin)
    sizes = (size_0, size_1, size_2, size_3)
    p_x += place(i_row, sizes, (x_step_0, x_step_1, x_step_2, x_step_3), RANK)
    steps = (values_step_0, values_step_1, values_step_2, values_step_3)
    p_values += place(i_row, sizes, steps, RANK)
    steps = (indices_step_0, indices_step_1, indices_step_2, indices_step_3)
    p_indices += place(i_row, sizes, steps, RANK)
    store_ranked(
        p_x, p_values, p_indices, i_element, b_rank, b_there, k, x_axis, values_axis, indices_axis
    )
