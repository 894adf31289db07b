"""gated_rms_norm on a GPU; the CPU kernel is beside that of `rms_norm`."""

from fusec.kernels.gated_rms_norm.triton import TRITON

KERNELS = TRITON
