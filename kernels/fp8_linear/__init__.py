"""Product of 8-bit floats with scales."""

from fusec.kernels.fp8_linear import triton

KERNELS = triton.KERNELS
