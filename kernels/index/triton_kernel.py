"""Rows picked by indices on a GPU: out[o, p, :] = x[o, i0[p], i1[p], ..., :].

One index operand is the case of embeddings.  What the others have in common is here as well: how
places are walked, and how an index is checked.
"""

import triton
import triton.language as tl


@triton.jit
def place(i_place, sizes, steps, RANK: tl.constexpr):
    """Elements before the places `i_place` of dims of `sizes`, the innermost one first."""
    i_offset = i_place * 0
    for dim in tl.static_range(RANK - 1):
        i_offset += i_place % sizes[dim] * steps[dim]
        i_place = i_place // sizes[dim]
    return i_offset + i_place * steps[RANK - 1]


@triton.jit
def checked(b_index, bound, b_asked, p_error):
    """Indices that count from 0, and which of those in `b_asked` are below `bound`.

    One that is not is reported as the program document says: the bound above it, in one word.
    """
    b_index = b_index.to(tl.int64)
    b_counted = tl.where(b_index < 0, b_index + bound, b_index)
    b_valid = (b_counted >= 0) & (b_counted < bound)
    b_bound = b_index * 0 + tl.maximum(bound, 1)
    b_word = (b_bound << 32) | (b_index & 0xFFFFFFFF)
    tl.store(p_error + b_index * 0, b_word, mask=b_asked & (b_valid == 0))
    return b_counted, b_asked & b_valid


@triton.jit
def report_kernel(p_error, size, bound):
    """Reports the last of `size` places, of which there are `bound` only."""
    checked(tl.zeros([1], dtype=tl.int64) + size - 1, bound, size > 0, p_error)


@triton.jit
def picked_rows(
    i_position,
    b_asked,
    p_indices,
    p_error,
    bounds,
    sizes,
    steps,
    AXES: tl.constexpr,
    RANK: tl.constexpr,
):
    """The row that AXES index operands name at each position, and whether it is there."""
    b_row = i_position * 0
    for axis in tl.static_range(AXES):
        i_index = place(i_position, sizes, steps[axis], RANK)
        b_index = tl.load(p_indices[axis] + i_index, mask=b_asked, other=0)
        b_counted, b_asked = checked(b_index, bounds[axis], b_asked, p_error)
        b_row = b_row * bounds[axis] + b_counted
    return b_row, b_asked


@triton.jit
def index_kernel(
    p_x,
    p_a,
    p_b,
    p_c,
    p_d,
    p_out,
    p_error,
    tasks,
    count,
    rows,
    inner,
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
    OUTER: tl.constexpr,
    AXES: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """ROWS rows, BLOCK elements of each; OUTER where `count` positions repeat, for `rows` of x."""
    columns = (inner + BLOCK - 1) // BLOCK
    i_task = (tl.program_id(0) // columns).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    i_position = i_task
    if OUTER:
        i_position = i_task % count
    b_row, b_there = picked_rows(
        i_position,
        i_task < tasks,
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
    if OUTER:
        b_row += i_task // count * rows
    i_column = (tl.program_id(0) % columns) * BLOCK + tl.arange(0, BLOCK)
    b_mask = b_there[:, None] & (i_column < inner)[None, :]
    b_x = tl.load(p_x + b_row[:, None] * inner + i_column[None, :], mask=b_mask)
    tl.store(p_out + i_task[:, None] * inner + i_column[None, :], b_x, mask=b_mask)
