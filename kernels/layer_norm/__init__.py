"""Layer norm."""

from fusec.kernels.layer_norm import cpu, triton

KERNELS = (*cpu.KERNELS, *triton.TRITON)
