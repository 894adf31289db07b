"""add_rms_norm in Triton; the CPU and HIP kernels are beside those of `rms_norm`."""

from fusec.kernels.add_rms_norm.triton import TRITON

KERNELS = TRITON
