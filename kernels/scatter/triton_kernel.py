"""Elements written by index on a GPU: a copy of x, replaced by or combined with others.

Every element of the result goes through those that are written to it, in the order of the source:
so results are the same in every run, however many meet.  Which these are follows from keys: the
places along the axis that the source is written to.  A few keys are compared one by one; of many
that were put in order, those of a place lie together.
"""

import triton
import triton.language as tl

from fusec.kernels.index.triton_kernel import picked_rows, place


@triton.jit
def copy_kernel(p_x, p_out, count, BLOCK: tl.constexpr):
    """BLOCK elements."""
    i_place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_mask = i_place < count
    tl.store(p_out + i_place, tl.load(p_x + i_place, mask=b_mask), mask=b_mask)


@triton.jit
def keys_kernel(
    p_a,
    p_b,
    p_c,
    p_d,
    p_keys,
    p_error,
    count,
    a_bound,
    b_bound,
    c_bound,
    d_bound,
    size_0,
    size_1,
    size_2,
    size_3,
    a_step_0,
    a_step_1,
    a_step_2,
    a_step_3,
    b_step_0,
    b_step_1,
    b_step_2,
    b_step_3,
    c_step_0,
    c_step_1,
    c_step_2,
    c_step_3,
    d_step_0,
    d_step_1,
    d_step_2,
    d_step_3,
    AXES: tl.constexpr,
    BLOCK: tl.constexpr,
    RANK: tl.constexpr,
):
    """BLOCK keys: indices that count from 0; -1, which is no place, for one out of range."""
    i_place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_row, b_there = picked_rows(
        i_place,
        i_place < count,
        (p_a, p_b, p_c, p_d),
        p_error,
        (a_bound, b_bound, c_bound, d_bound),
        (size_0, size_1, size_2, size_3),
        (
            (a_step_0, a_step_1, a_step_2, a_step_3),
            (b_step_0, b_step_1, b_step_2, b_step_3),
            (c_step_0, c_step_1, c_step_2, c_step_3),
            (d_step_0, d_step_1, d_step_2, d_step_3),
        ),
        AXES,
        RANK,
    )
    tl.store(p_keys + i_place, tl.where(b_there, b_row, -1), mask=i_place < count)


@triton.jit
def starts_kernel(p_keys, p_starts, lines, length, rows, halves, BLOCK: tl.constexpr):
    """Where, in each line of `length` keys in order, those of a row begin, and where all end."""
    i_place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_there = i_place < lines * (rows + 1)
    i_line = i_place // (rows + 1) * length
    b_row = i_place % (rows + 1)
    i_low = i_place * 0
    i_high = i_low + length
    for _ in range(halves):
        i_middle = (i_low + i_high) // 2
        b_open = b_there & (i_low < i_high)
        b_below = tl.load(p_keys + i_line + i_middle, mask=b_open, other=0) < b_row
        i_low = tl.where(b_open & b_below, i_middle + 1, i_low)
        i_high = tl.where(b_open & (b_below == 0), i_middle, i_high)
    tl.store(p_starts + i_place, i_low, mask=b_there)


@triton.jit
def combined(b_old, b_new, HOW: tl.constexpr):
    """`b_new` where HOW is 0; else sum, product, largest or smallest, where a NaN wins."""
    if HOW == 0:
        return b_new
    elif HOW == 1:
        return b_old + b_new
    elif HOW == 2:
        return b_old * b_new
    elif HOW == 3:
        return tl.where((b_new > b_old) | (b_new != b_new), b_new, b_old)
    else:
        return tl.where((b_new < b_old) | (b_new != b_new), b_new, b_old)


@triton.jit
def widened(b_x):
    """Floats as f32, which sums are in; others, and f64, as they are."""
    if b_x.dtype.is_floating() and b_x.dtype != tl.float64:
        b_x = b_x.to(tl.float32)
    return b_x


@triton.jit
def fold_kernel(
    p_x,
    p_values,
    p_keys,
    p_order,
    p_starts,
    p_out,
    tasks,
    columns,
    length,
    rows,
    position_size_0,
    position_size_1,
    position_size_2,
    position_size_3,
    position_step_0,
    position_step_1,
    position_step_2,
    position_step_3,
    out_inner,
    line_inner,
    row_inner,
    value_inner,
    size_0,
    size_1,
    size_2,
    size_3,
    out_step_0,
    out_step_1,
    out_step_2,
    out_step_3,
    line_step_0,
    line_step_1,
    line_step_2,
    line_step_3,
    row_step_0,
    row_step_1,
    row_step_2,
    row_step_3,
    value_step_0,
    value_step_1,
    value_step_2,
    value_step_3,
    HOW: tl.constexpr,
    SORTED: tl.constexpr,
    ALONG: tl.constexpr,
    POSITION_RANK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    RANK: tl.constexpr,
):
    """ROWS x BLOCK elements of the result.

    Lines of keys are `length` long, and `line` counts lines; `row` counts places along the axis.
    ALONG where line or row changes along the innermost dim, whose steps end in `inner`.
    """
    blocks = (columns + BLOCK - 1) // BLOCK
    i_task = (tl.program_id(0) // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    i_column = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    i_column = i_column[None, :]
    b_mask = (i_task < tasks)[:, None] & (i_column < columns)
    sizes = (size_0, size_1, size_2, size_3)
    i_line = place(i_task, sizes, (line_step_0, line_step_1, line_step_2, line_step_3), RANK)
    b_row = place(i_task, sizes, (row_step_0, row_step_1, row_step_2, row_step_3), RANK)
    i_out = place(i_task, sizes, (out_step_0, out_step_1, out_step_2, out_step_3), RANK)
    steps = (value_step_0, value_step_1, value_step_2, value_step_3)
    i_value = place(i_task, sizes, steps, RANK)[:, None] + i_column * value_inner
    i_out = i_out[:, None] + i_column * out_inner
    i_line, b_row, b_asked = i_line[:, None], b_row[:, None], (i_task < tasks)[:, None]
    if ALONG:
        i_line += i_column * line_inner
        b_row += i_column * row_inner
        b_asked = b_mask
    b_begin = i_line * 0
    turns = length
    if SORTED:
        i_start = i_line * (rows + 1) + b_row
        b_begin = tl.load(p_starts + i_start, mask=b_asked, other=0)
        b_count = tl.load(p_starts + i_start + 1, mask=b_asked, other=0) - b_begin
        turns = tl.max(tl.max(b_count, axis=1), axis=0)
    b_result = widened(tl.load(p_x + i_out, mask=b_mask, other=0))
    sizes = (position_size_0, position_size_1, position_size_2, position_size_3)
    steps = (position_step_0, position_step_1, position_step_2, position_step_3)
    for turn in range(0, turns):
        if SORTED:
            b_met = b_asked & (turn < b_count)
            i_position = tl.load(p_order + i_line * length + b_begin + turn, mask=b_met, other=0)
        else:
            i_position = b_begin + turn
            b_key = tl.load(p_keys + i_line * length + turn, mask=b_asked, other=-1)
            b_met = b_key == b_row
        i_from = i_value + place(i_position, sizes, steps, POSITION_RANK)
        b_value = widened(tl.load(p_values + i_from, mask=b_mask & b_met, other=0))
        b_result = tl.where(b_met, combined(b_result, b_value, HOW), b_result)
    tl.store(p_out + i_out, b_result.to(p_out.dtype.element_ty), mask=b_mask)
