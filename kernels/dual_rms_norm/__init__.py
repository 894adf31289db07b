"""dual_rms_norm on a GPU; the CPU kernel is beside that of `rms_norm`."""

from fusec.kernels.dual_rms_norm.hip import HIP
from fusec.kernels.dual_rms_norm.triton import TRITON

KERNELS = (*HIP, *TRITON)
