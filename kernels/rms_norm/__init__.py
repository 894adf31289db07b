"""Root mean square norm."""

from fusec.kernels.rms_norm import cpu, triton

KERNELS = (*cpu.KERNELS, triton.TRITON)
