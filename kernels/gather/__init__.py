"""Elements picked along an axis."""

from fusec.kernels.gather import cpu, triton

KERNELS = (*cpu.KERNELS, *triton.TRITON)
