"""Triangular systems on a GPU: substitution, row by row.

A program holds some columns of a whole system.  A row that is solved is taken from all rows that
depend on it at once.
"""

import triton
import triton.language as tl


@triton.jit
def system_at(i_system, size_1, size_2, size_3, step_0, step_1, step_2, step_3):
    """Elements before a system, of four batch axes."""
    i_3 = i_system % size_3
    i_2 = i_system // size_3 % size_2
    i_1 = i_system // size_3 // size_2 % size_1
    i_0 = i_system // size_3 // size_2 // size_1
    return i_0 * step_0 + i_1 * step_1 + i_2 * step_2 + i_3 * step_3


@triton.jit
def solve_triangular_kernel(
    p_a,
    p_b,
    p_x,
    columns,
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
    x_step_0,
    x_step_1,
    x_step_2,
    x_step_3,
    a_row,
    a_column,
    b_row,
    b_column,
    x_row,
    x_column,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    UPPER: tl.constexpr,
    UNIT_DIAGONAL: tl.constexpr,
):
    """X of A X = B, A [N, N] a triangle; what is on its other side is not read."""
    n_blocks = tl.cdiv(columns, BLOCK)
    i_system = (tl.program_id(0) // n_blocks).to(tl.int64)
    p_a += system_at(i_system, size_1, size_2, size_3, a_step_0, a_step_1, a_step_2, a_step_3)
    p_b += system_at(i_system, size_1, size_2, size_3, b_step_0, b_step_1, b_step_2, b_step_3)
    p_x += system_at(i_system, size_1, size_2, size_3, x_step_0, x_step_1, x_step_2, x_step_3)
    o_row = tl.arange(0, ROWS)
    o_column = tl.program_id(0) % n_blocks * BLOCK + tl.arange(0, BLOCK)
    o_far = o_column.to(tl.int64)[None, :]
    m_tile = (o_row < N)[:, None] & (o_column < columns)[None, :]
    b_x = tl.load(p_b + o_row[:, None] * b_row + o_far * b_column, mask=m_tile, other=0.0)
    for i_step in range(N):
        i_row = N - 1 - i_step if UPPER else i_step
        m_after = o_row < i_row if UPPER else (o_row > i_row) & (o_row < N)
        m_own = (o_row == i_row)[:, None]
        b_solved = tl.sum(tl.where(m_own, b_x, 0.0), axis=0)
        if not UNIT_DIAGONAL:
            b_solved /= tl.load(p_a + i_row * (a_row + a_column))
        b_a = tl.load(p_a + o_row * a_row + i_row * a_column, mask=m_after, other=0.0)
        b_x = tl.where(m_own, b_solved[None, :], b_x - b_a[:, None] * b_solved[None, :])
    tl.store(p_x + o_row[:, None] * x_row + o_far * x_column, b_x, mask=m_tile)
