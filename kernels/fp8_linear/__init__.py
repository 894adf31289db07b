"""Product of 8-bit floats with scales."""

from fusec.kernels.fp8_linear.cpu import CPP
from fusec.kernels.fp8_linear.triton import E8M0_SCALES, F32_SCALES

KERNELS = (F32_SCALES, E8M0_SCALES, CPP)
