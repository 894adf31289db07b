"""Activations of experts on a GPU, in f32; numbered by `triton.ACTIVATIONS`."""

import triton
import triton.language as tl

from fusec.kernels.silu_mul.triton_kernel import sigmoid


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """The activation of x: SiLU, GELU, GELU with tanh, SiLU of 1.702 x, ReLU, or its square."""
    if ACTIVATION == 0:
        y = x * sigmoid(x)
    elif ACTIVATION == 1:
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == 2:
        y = x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACTIVATION == 3:
        y = x * sigmoid(1.702 * x)
    elif ACTIVATION == 4:
        y = tl.where(x < 0.0, 0.0, x)
    else:
        y = tl.where(x < 0.0, 0.0, x)
        y = y * y
    return y


@triton.jit
def gated(gate, up, alpha, limit, ACTIVATION: tl.constexpr):
    """Activation of gate times up; 6 is the SwiGLU of gpt-oss, 7 SiLU with a limit alone."""
    if ACTIVATION >= 6:
        gate = tl.where(gate > limit, limit, gate)
        up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
        if ACTIVATION == 6:
            y = gate * sigmoid(alpha * gate) * (up + 1.0)
        else:
            y = gate * sigmoid(gate) * up
    else:
        y = activated(gate, ACTIVATION) * up
    return y
