"""Elements picked along an axis on a GPU: out[i, j, k] = x[i, index[i, j, k], k]."""

import triton
import triton.language as tl

from fusec.kernels.index.triton_kernel import checked, place


@triton.jit
def gather_kernel(
    p_x,
    p_index,
    p_out,
    p_error,
    count,
    bound,
    axis_step,
    size_0,
    size_1,
    size_2,
    size_3,
    x_step_0,
    x_step_1,
    x_step_2,
    x_step_3,
    index_step_0,
    index_step_1,
    index_step_2,
    index_step_3,
    out_step_0,
    out_step_1,
    out_step_2,
    out_step_3,
    BLOCK: tl.constexpr,
    RANK: tl.constexpr,
):
    """BLOCK elements; the steps of x leave out the axis, along which it has `axis_step`."""
    i_place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    sizes = (size_0, size_1, size_2, size_3)
    i_x = place(i_place, sizes, (x_step_0, x_step_1, x_step_2, x_step_3), RANK)
    steps = (index_step_0, index_step_1, index_step_2, index_step_3)
    i_index = place(i_place, sizes, steps, RANK)
    i_out = place(i_place, sizes, (out_step_0, out_step_1, out_step_2, out_step_3), RANK)
    b_asked = i_place < count
    b_index = tl.load(p_index + i_index, mask=b_asked, other=0)
    b_index, b_there = checked(b_index, bound, b_asked, p_error)
    b_x = tl.load(p_x + i_x + b_index * axis_step, mask=b_there)
    tl.store(p_out + i_out, b_x, mask=b_there)
