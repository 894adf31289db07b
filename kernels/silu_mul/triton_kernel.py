"""Gated activations on a GPU: act(gate) * up, one program a block of a row.

The gate and the up part may be halves of one row: each has a stride between rows.
"""

import triton
import triton.language as tl


@triton.jit
def gated_activation_kernel(
    p_gate,
    p_up,
    p_y,
    gate_stride,
    up_stride,
    y_stride,
    alpha,
    limit,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """ACTIVATION is 0 for SiLU, 1 for GELU, 2 for GELU with tanh, 3 for gpt-oss's SwiGLU."""
    i_row = tl.program_id(0).to(tl.int64)
    o_n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_n = o_n < N
    b_gate = tl.load(p_gate + i_row * gate_stride + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_up = tl.load(p_up + i_row * up_stride + o_n, mask=m_n, other=0.0).to(tl.float32)
    if ACTIVATION == 0:
        b_act = b_gate * tl.sigmoid(b_gate)
    elif ACTIVATION == 1:
        b_act = 0.5 * b_gate * (1.0 + tl.erf(b_gate * 0.7071067811865476))
    elif ACTIVATION == 2:
        b_inner = 0.7978845608028654 * (b_gate + 0.044715 * b_gate * b_gate * b_gate)
        b_act = b_gate * tl.sigmoid(2.0 * b_inner)
    else:
        b_gate = tl.minimum(b_gate, limit)
        b_up = tl.minimum(tl.maximum(b_up, -limit), limit) + 1.0
        b_act = b_gate * tl.sigmoid(alpha * b_gate)
    tl.store(p_y + i_row * y_stride + o_n, (b_act * b_up).to(p_y.dtype.element_ty), mask=m_n)
