"""Product with a weight of 4-bit floats, a scale for each 32."""

from fusec.kernels.mxfp4_linear import triton

KERNELS = triton.KERNELS
