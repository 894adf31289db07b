"""Two independent root-mean-square norms of one row in one launch, as MLA needs them on a GPU."""

import triton
import triton.language as tl

from fusec.kernels.rms_norm.triton_kernel import scale_row, square_sum


@triton.jit
def dual_rms_norm_kernel(
    p_x1,
    p_w1,
    p_x2,
    p_w2,
    p_y1,
    p_y2,
    x1_stride,
    x2_stride,
    y1_stride,
    y2_stride,
    eps1,
    eps2,
    N1: tl.constexpr,
    N2: tl.constexpr,
    BLOCK1: tl.constexpr,
    BLOCK2: tl.constexpr,
    WEIGHT_OFFSET: tl.constexpr,
):
    """Norm one row: of x1 where the second program index is 0, of x2 where it is 1."""
    i_row = tl.program_id(0).to(tl.int64)
    if tl.program_id(1) == 0:
        p_x1 += i_row * x1_stride
        scale1 = tl.rsqrt(square_sum(p_x1, N1, BLOCK1) / N1 + eps1)
        scale_row(p_x1, p_w1, p_y1 + i_row * y1_stride, scale1, N1, BLOCK1, WEIGHT_OFFSET)
    else:
        p_x2 += i_row * x2_stride
        scale2 = tl.rsqrt(square_sum(p_x2, N2, BLOCK2) / N2 + eps2)
        scale_row(p_x2, p_w2, p_y2 + i_row * y2_stride, scale2, N2, BLOCK2, WEIGHT_OFFSET)
